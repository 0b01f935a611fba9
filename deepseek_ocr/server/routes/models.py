"""What may be asked, and what comes: each loaded checkpoint with an alias for each preset
(`/v1/models`), and the shape of readings in JSON (`/document.schema.json`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from deepseek_ocr import presets
from deepseek_ocr.server.openai.reading_schema import document_schema
from deepseek_ocr.server.server_state import CurrentState

router = APIRouter()


@router.get("/v1/models")
async def list_models(state: CurrentState) -> dict[str, Any]:
    """Every name that requests may give as `model`; `NAME:PRESET` reads at that preset."""
    endings = ("", *(f":{preset}" for preset in presets.PRESETS))
    found = [_entry(model + ending, state) for model in state.names for ending in endings]
    return {"object": "list", "data": found}


@router.get("/v1/models/{model}")
async def show_model(model: str, state: CurrentState) -> dict[str, Any]:
    """One of them."""
    state.check_name(model)
    return _entry(model, state)


@router.head("/document.schema.json", include_in_schema=False)
@router.get("/document.schema.json")
async def show_schema() -> JSONResponse:
    """The JSON Schema of what `response_format` and `output_format: json` give."""
    return JSONResponse(document_schema())


def _entry(name: str, state: CurrentState) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": state.started, "owned_by": "deepseek-ai"}
