"""What clients may send, as OpenAI's API has it, and the fields that are ours.

Fields nobody here knows are left alone, as pydantic does, since clients send many. Where a field
would change the answer and cannot be had here, asking for it is an error (`request_parsing.py`).
The `detail` of a picture is left alone too: how closely a page is looked at, the preset says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

OutputFormat = Literal["text", "markdown", "json"]


class CommonFields(BaseModel):
    """What both kinds of request have: the model, our own fields, and sampling. The names are those
    of the flags of `deepseek-ocr read` and the Cog predictor's inputs."""

    model: str = Field(description="A name of /v1/models; NAME:PRESET reads at that preset")
    stream: bool | None = Field(None, description="Send the text as it is decoded")
    task: str | None = Field(None, description="markdown, ocr, figure or locate")
    resolution: str | None = Field(None, description="tiny, small, base, large or gundam")
    reference: str | None = Field(None, description="What task locate is to find")
    output_format: OutputFormat | None = Field(
        None, description="text as the model writes it, markdown cleaned, json with boxes"
    )
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    no_repeat_window: int | None = None
    exempt_ngrams: bool | None = None
    stop_on_loop: bool | None = None
    timeout: float | None = Field(None, description="Seconds for a page")


class ImageUrl(BaseModel):
    """The address of a picture: a data URI, or http(s) where the server allows it."""

    url: str


class Part(BaseModel):
    """A piece of a message: `text` and `input_text`, or `image_url` and `input_image`."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class Message(BaseModel):
    """One turn. An item of `/v1/responses` that is no message has no role."""

    role: str | None = None
    type: str | None = None
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream also tells."""

    include_usage: bool | None = None


class ChatRequest(CommonFields):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    n: int | None = None
    stop: str | list[str] | None = None


class TextOptions(BaseModel):
    """Form of the answer's text."""

    format: dict[str, Any] | None = None


class ResponsesRequest(CommonFields):
    """Body of `/v1/responses`."""

    input: str | list[Message]
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    instructions: str | None = None
    metadata: dict[str, str] | None = None
