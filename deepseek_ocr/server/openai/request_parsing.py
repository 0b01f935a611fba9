"""From what a client sent to the pages that are to be read, and the form of the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from deepseek_ocr import presets
from deepseek_ocr.model.prompts import IMAGE
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.openai.reading_schema import is_ours
from deepseek_ocr.server.openai.request_schemas import CommonFields, Message, OutputFormat
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.weights.catalog import Checkpoint

_SAMPLING = {field.name for field in fields(DecodeSettings)} & set(CommonFields.model_fields)
"""Fields of a request that are fields of `DecodeSettings`."""

_LOCATE = re.compile(r"Locate <\|ref\|>(.+?)<\|/ref\|> in the image\.?", re.DOTALL)
_LOCATE_SHORT = re.compile(r"locate:\s*(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class UserTurn:
    """What a user said last: text, and pictures (their addresses, and where they stood)."""

    text: str
    images: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RequestOptions:
    """What both kinds of request come to: their last turn, and what they call differently.
    `turn_param` and `format_param` say where in the request it stood."""

    turn: UserTurn
    turn_param: str
    max_tokens: int | None
    format: Mapping[str, Any] | None
    format_param: str
    logprobs: bool


def last_turn(messages: Sequence[Message] | str, param: str) -> UserTurn:
    """The last user turn, with the pictures of the latest turn that has some; `messages` may be
    the text of one.

    Everything else of a conversation is left out: the model reads pages and knows no history.
    Raises `ApiError` 400 where no user says anything, and for a part of the last turn that cannot
    be read.
    """
    if isinstance(messages, str):
        return UserTurn(messages, ())
    turns = [
        (message, f"{param}.{number}")
        for number, message in enumerate(messages)
        if message.role == "user"
    ]
    if not turns:
        raise ApiError(400, "There is no message of role user.", "missing_message", param)
    last = _turn(*turns[-1])
    if last.images:
        return last
    earlier = (_turn(message, at, strict=False).images for message, at in reversed(turns[:-1]))
    return UserTurn(last.text, next((images for images in earlier if images), ()))


def _turn(message: Message, param: str, strict: bool = True) -> UserTurn:
    """The text and the pictures of a turn; not `strict`, what else is in it is left out."""
    if not isinstance(message.content, list):
        return UserTurn(message.content or "", ())
    texts: list[str] = []
    images: list[tuple[str, str]] = []
    for number, part in enumerate(message.content):
        at = f"{param}.content.{number}"
        if part.type in ("text", "input_text"):
            texts.append(_own_words(part.text or ""))
        elif part.type in ("image_url", "input_image") and (part.image_url is not None or strict):
            if part.image_url is None:
                raise ApiError(400, "image_url is missing.", "missing_image", at)
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
            images.append((url, f"{at}.image_url"))
        elif strict:
            raise ApiError(
                400, f"A part of type {part.type!r} cannot be read; use text and image_url "
                "(documents go to /v1/ocr).", "unsupported_part", at,
            )  # fmt: skip
    return UserTurn("\n".join(text for text in texts if text), tuple(images))


def _own_words(text: str) -> str:
    """`text` without the list of a message's files that Open WebUI puts in front of it."""
    if not text.startswith("<attached_files>"):
        return text
    _, _, own = text.partition("</attached_files>")
    return own.strip()


def prompt_of(asked: CommonFields, text: str, known: Checkpoint) -> str:
    """The prompt: of the task that is named by the field or by the text, else the text itself.

    Without either it is the task the model is best at. `locate: THING` names task and reference
    for clients that have only text. Raises `PromptError` and `SettingsError`.
    """
    text = text.strip()
    if asked.task is not None:
        return presets.prompt_for(asked.task, asked.reference or "")
    if not text:
        return presets.prompt_for(known.task, asked.reference or "")
    plain = text.removeprefix(IMAGE).strip()
    if found := _LOCATE.fullmatch(plain) or _LOCATE_SHORT.fullmatch(plain):
        return presets.prompt_for("locate", found[1])
    named = _TASKS_BY_TEXT.get(_simple(plain))
    return presets.prompt_for(named, asked.reference or "") if named else text


def _simple(text: str) -> str:
    """`text` without what does not matter when a task is recognised by it."""
    text = text.replace(IMAGE, "").replace("<|grounding|>", "")
    return " ".join(text.split()).rstrip(".").lower()


_TASKS_BY_TEXT = {
    _simple(known): name
    for name, task in presets.TASKS.items()
    for known in (name, task.title, task.prompt)
}


def decode_of(asked: CommonFields, max_tokens: int | None, page_timeout: float) -> DecodeSettings:
    """How to decode; what the request leaves open is as everywhere, but never without a time limit.
    Raises `SettingsError`."""
    values = asked.model_dump(include=_SAMPLING, exclude_none=True)
    if max_tokens is not None:
        values["max_new_tokens"] = max_tokens
    values["timeout"] = min(asked.timeout or page_timeout, page_timeout)
    return DecodeSettings(**values)


def form_of(asked: CommonFields, options: RequestOptions) -> OutputFormat:
    """The form of the answer: JSON where `response_format` says so, else `output_format`. Raises
    `ApiError` 400 for a schema that is not ours and for what does not go together."""
    form = asked.output_format or "text"
    wanted = options.format or {}
    kind = wanted.get("type", "text")
    if kind == "json_schema":
        schema = wanted.get("json_schema", wanted)
        if not (isinstance(schema, dict) and is_ours(schema.get("schema"))):
            raise ApiError(
                400, "Readings come in one schema, which is at /document.schema.json; send that "
                "one, or ask for json_object.", "unsupported_schema", options.format_param,
            )  # fmt: skip
    if kind in ("json_object", "json_schema"):
        form = "json"
    elif kind != "text":
        raise ApiError(
            400, f"The format {kind!r} is unknown; use text, json_object or json_schema.",
            "unsupported_format", options.format_param,
        )  # fmt: skip
    if options.logprobs and form != "text":
        raise ApiError(
            400, "logprobs are of the text as the model writes it; leave out output_format and "
            "response_format.", "unsupported_logprobs", "logprobs",
        )  # fmt: skip
    return form


def refuse_unsupported(asked: CommonFields) -> None:
    """Raise `ApiError` 400 for what no kind of request can have here."""
    message = "Only the chosen token's log-probability is known; leave out top_logprobs."
    refuse(asked.top_logprobs, message, "top_logprobs")
    calls_tools = asked.tool_choice not in (None, "none", "auto")
    refuse(calls_tools, "The model calls no tools.", "tool_choice")
    for name in ("presence_penalty", "frequency_penalty"):
        message = f"{name} is not known here; use repetition_penalty."
        refuse(getattr(asked, name), message, name)
    biased = any((asked.logit_bias or {}).values())
    refuse(biased, "Tokens cannot be given a bias; leave out logit_bias.", "logit_bias")


def refuse(condition: object, message: str, param: str) -> None:
    """Raise `ApiError` 400 for something that was asked for and cannot be had."""
    if condition:
        raise ApiError(400, message, "unsupported_parameter", param)
