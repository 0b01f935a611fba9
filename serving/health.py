"""Is it alive, can it read, what are its numbers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from serving import metrics
from serving.errors import ApiError, ClosingError, NotReadyError
from serving.state import State, state_of

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Answers as long as the server runs."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(state: Annotated[State, Depends(state_of)]) -> JSONResponse:
    """200 while pages can be read; 503 while the model is loaded and while shutting down."""
    if state.closing:
        raise ClosingError
    if state.failed:
        raise ApiError(503, "The model could not be loaded; the server's log says why.", "failed")
    if not state.ready:
        raise NotReadyError
    return JSONResponse({"status": "ready", "models": list(state.pools)})


@router.get("/metrics", response_class=Response)
def numbers(state: Annotated[State, Depends(state_of)]) -> Response:
    """Numbers for Prometheus."""
    return Response(state.metrics.text(), media_type=metrics.CONTENT_TYPE)
