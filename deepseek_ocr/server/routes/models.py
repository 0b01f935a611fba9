"""`/v1/models`: each loaded checkpoint, and an alias for each preset."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from deepseek_ocr import presets
from deepseek_ocr.server.routes.dependencies import CurrentState

router = APIRouter(prefix="/v1")

_OWNER = "deepseek-ai"


@router.get("/models")
async def list_models(state: CurrentState) -> dict[str, Any]:
    """Every name that requests may give as `model`; `NAME:PRESET` reads at that preset."""
    names = [
        name
        for model in state.names
        for name in (model, *(f"{model}:{preset}" for preset in presets.PRESETS))
    ]
    return {"object": "list", "data": [_entry(name, state) for name in names]}


@router.get("/models/{model}")
async def show_model(model: str, state: CurrentState) -> dict[str, Any]:
    """One of them."""
    state.check_name(model)
    return _entry(model, state)


def _entry(name: str, state: CurrentState) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": state.started, "owned_by": _OWNER}
