"""What the programs offer to others, as sorted names: for `make.py` and the tests that compare.

Nothing here imports the project: everything is asked for over HTTP or read off files.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.cog_schema import schema_of

Names = dict[str, list[str]]

RUN = ("--model", "pocket", "documents", "-o", "out", "--format", "md,html,json", "--slots", "1")
"""Arguments of the run that was interrupted, and of the one that was not."""

EVERY_FORMAT = ("--format", "md,html,json,txt,mmd,pdf,searchable-pdf,regions")

PREDICTORS = ("Predictor", "StreamPredictor")

HIDDEN = (
    "/", "/page/app.js", "/page/style.css", "/page/options.json", "/document.schema.json",
    "/openapi.json", "/health", "/ready",
)  # fmt: skip
"""Paths that answer HEAD and GET without being in the OpenAPI schema, or not with both."""

_KINDS = ("type", "object", "event")
"""Fields whose values are names too: of events and of objects."""


def field_names(data: Any, path: str = "") -> set[str]:
    """The names of all fields of JSON data, such as `pages[].regions[].label`; with the values of
    those that name a kind, such as `type=page.done`."""
    if isinstance(data, list):
        return set().union(*(field_names(one, f"{path}[]") for one in data))
    if not isinstance(data, dict):
        return set()
    found = set()
    for name, value in data.items():
        here = f"{path}.{name}".removeprefix(".")
        found |= {here} | field_names(value, here)
        if name in _KINDS and isinstance(value, str):
            found.add(f"{here}={value}")
    return found


# --- HTTP ---------------------------------------------------------------------------------------


def requests_of(schema: dict[str, Any]) -> Names:
    """ "POST /v1/ocr" → the fields of its query and its bodies, from an OpenAPI schema."""
    found = {}
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            names = {
                f"{one['in']}.{one['name']}"
                for one in about.get("parameters", [])
                if one["in"] != "path"
            }
            for kind, body in about.get("requestBody", {}).get("content", {}).items():
                names |= {f"{kind} {one}" for one in _properties(body["schema"], schema)}
            found[f"{method.upper()} {re.sub('{.*?}', '{}', path)}"] = sorted(names)
    return found


def _properties(part: Any, schema: dict[str, Any]) -> Iterator[str]:
    """The dotted names of all properties below a part of an OpenAPI schema."""
    if isinstance(part, list):
        for one in part:
            yield from _properties(one, schema)
    if not isinstance(part, dict):
        return
    if "$ref" in part:
        yield from _properties(schema["components"]["schemas"][part["$ref"].split("/")[-1]], schema)
    for name, value in part.get("properties", {}).items():
        yield name
        yield from (f"{name}.{inner}" for inner in _properties(value, schema))
    for key in ("anyOf", "allOf", "oneOf", "items"):
        yield from _properties(part.get(key), schema)


def open_paths(http: httpx.Client) -> Names:
    """The methods, of GET and HEAD, that each of `HIDDEN` answers with success."""
    return {
        path: [name for name in ("GET", "HEAD") if http.request(name, path).is_success]
        for path in HIDDEN
    }


FIELDS = {"task": "markdown", "retries": "1", "existing_text": "both"}
"""What is asked of the documents that are handed in as jobs."""


def hand_in(http: httpx.Client, path: Path) -> str:
    """The name of a new job."""
    files = {"file": (path.name, path.read_bytes())}
    answer = http.post("/v1/ocr/jobs", files=files, data=FIELDS).raise_for_status()
    return str(answer.json()["id"])


def finished_job(http: httpx.Client, path: Path) -> str:
    """The name of a new job that was read to its end."""
    job = hand_in(http, path)
    events = http.get(f"/v1/ocr/jobs/{job}/events").text  # to the last of them
    if '"document.done"' not in events:
        raise AssertionError(events)
    return job


def answers_of(http: httpx.Client, picture: Path, job: str) -> Names:
    """What a request asks → the names in the JSON of its answer, from a server that has the model
    pocket and the finished job `job`."""
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    chat = {"model": "pocket", "messages": [{"role": "user", "content": content}]}
    parts = [{"type": "input_image", "image_url": uri}]
    respond = {"model": "pocket", "input": [{"role": "user", "content": parts}]}
    document = {"file": uri, "filename": "picture.png", "task": "markdown"}
    usage = {"stream_options": {"include_usage": True}}
    found = {
        path: field_names(_json(http.get(path)))
        for path in (
            "/health", "/ready", "/page/options.json", "/v1/models", "/v1/models/pocket",
            "/v1/models/none", "/v1/ocr/jobs",
        )
    }  # fmt: skip
    for path in ("", "/events", "/pages/1/blocks", "/output/json", "/output/regions"):
        found[f"/v1/ocr/jobs/ID{path}"] = field_names(_json(http.get(f"/v1/ocr/jobs/{job}{path}")))
    for name, path, body in (
        ("chat", "/v1/chat/completions", {**chat, "logprobs": True}),
        ("chat as a stream", "/v1/chat/completions", {**chat, "stream": True, **usage}),
        ("chat as JSON", "/v1/chat/completions", {**chat, "output_format": "json"}),
        ("response", "/v1/responses", respond),
        ("response as a stream", "/v1/responses", {**respond, "stream": True}),
        ("document", "/v1/ocr", document),
        ("document as a stream", "/v1/ocr", {**document, "stream": True}),
        ("error", "/v1/chat/completions", {**chat, "n": 2}),
    ):
        found[name] = field_names(_json(http.post(path, json=body)))
    return {name: sorted(names) for name, names in found.items()}


def _json(answer: httpx.Response) -> Any:
    """The JSON of an answer; a list of all there is of one in lines or in server-sent events."""
    kind = answer.headers["content-type"].partition(";")[0]
    if kind == "application/json":
        return answer.json()
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


# --- Cog and files ------------------------------------------------------------------------------


def cog_inputs(predict: Path) -> dict[str, Any]:
    """Predictor → its inputs as Cog's schema has them, without what only people read."""
    found = {}
    for predictor in PREDICTORS:
        schemas = schema_of(predict, predictor)["components"]["schemas"]
        found[predictor] = {
            name: _bare(value) | {"choices": schemas.get(name, {}).get("enum")}
            for name, value in schemas["Input"]["properties"].items()
        }
        found[predictor]["required"] = schemas["Input"]["required"]
        found[predictor]["output"] = _bare(schemas["Output"])
    return found


def _bare(value: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in value.items() if name not in ("description", "title")}


def files_in(folder: Path) -> list[str]:
    """The files below `folder`, without those that a lock leaves."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.endswith(".lock"))
