"""What routes are given: who asks, and the state of the server."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from deepseek_ocr.server.server_state import Caller, ServerState


async def state_of(request: Request) -> ServerState:
    """Dependency: the state of the server that answers `request`.

    Not a plain function: FastAPI would call that in another thread, and each such call waits for
    the threads that compute.
    """
    state: ServerState = request.app.state.server
    return state


async def caller_of(request: Request) -> Caller:
    """Dependency: who asks, and whom. `middleware.Guard` has found that out, before anything of the
    request's body was read."""
    scope = request.scope
    return Caller(await state_of(request), scope["deepseek_ocr.client"], scope["deepseek_ocr.hold"])


CurrentState = Annotated[ServerState, Depends(state_of)]
CurrentCaller = Annotated[Caller, Depends(caller_of)]
