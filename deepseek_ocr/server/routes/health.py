"""Is it alive, can it read, what are its numbers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from deepseek_ocr.server.observability import metrics
from deepseek_ocr.server.server_state import CurrentState

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Answers 200 as long as the server runs, also while it ends after an engine failed."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(state: CurrentState) -> JSONResponse:
    """200 while pages can be read; 503 while the model is loaded, while shutting down, and as soon
    as the device of an engine fails."""
    if state.problem is not None:
        raise state.problem
    return JSONResponse({"status": "ready", "models": list(state.pools)})


@router.get("/metrics", response_class=Response)
def numbers(state: CurrentState) -> Response:
    """Numbers for Prometheus."""
    return Response(state.metrics.text(), media_type=metrics.CONTENT_TYPE)
