"""The answer to an order: its text piece by piece, how it ended, what it cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from deepseek_ocr.engine.results import Reading
from deepseek_ocr.server.openai.page_writers import Piece, writer_for
from deepseek_ocr.server.openai.request_parsing import Order
from deepseek_ocr.server.queueing.page_streams import reading
from deepseek_ocr.server.server_state import ServerState


@dataclass
class Answer:
    """An answer in the making; `readings` grows as pages end."""

    state: ServerState
    order: Order
    readings: list[Reading] = field(default_factory=list)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text, piece by piece, pages in order. Raises what reading raises."""
        order = self.order
        with reading(self.state, order.pool, order.client, order.pages) as flights:
            for number, flight in enumerate(flights):
                writer = writer_for(order.form, number, order.pages)
                async for event in flight.events():
                    if isinstance(event, Reading):
                        self.readings.append(event)
                    yield writer.take(event)

    async def text(self) -> tuple[str, list[tuple[str, float]]]:
        """All of it, and all its tokens."""
        pieces = [piece async for piece in self.pieces()]
        return "".join(piece.text for piece in pieces), [
            token for piece in pieces for token in piece.tokens
        ]

    @property
    def finish_reason(self) -> str:
        """As OpenAI has it: "stop", or "length" where any page is not whole."""
        whole = all(page.finish_reason == "stop" for page in self.readings)
        return "stop" if whole else "length"

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens that went in, vision tokens included, and that came out."""
        return (
            sum(page.counts.prompt for page in self.readings),
            sum(page.counts.output for page in self.readings),
        )

    @property
    def details(self) -> dict[str, Any]:
        """What OpenAI's API has no place for: how each page ended and how sure the model was."""
        return {
            "pages": [
                {
                    "finish_reason": page.finish_reason,
                    "confidence": None if page.confidence is None else page.confidence.mean,
                    "vision_tokens": page.counts.vision,
                    "output_tokens": page.counts.output,
                    "more_pages": page.more_pages,
                }
                for page in self.readings
            ]
        }
