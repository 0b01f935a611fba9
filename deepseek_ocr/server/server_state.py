"""What the routes of a running server share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from deepseek_ocr import configuration, presets
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.server.api_errors import ApiError, ClosingError, EngineFailedError, NotReadyError
from deepseek_ocr.server.observability.metrics import Metrics
from deepseek_ocr.server.queueing.admission import Admission
from deepseek_ocr.server.queueing.model_pools import AHEAD, Engines, ModelPool
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.security.url_fetcher import Fetcher
from deepseek_ocr.weights import catalog


@dataclass(eq=False)
class ServerState:
    """The server: what it was told, its models once they are loaded, its queues and its numbers.

    - `settings`, `server`: what both programs share, and what is the server's alone
    - `names`: of the models, known before they are loaded: name → checkpoint name or folder
    - `load`: loads them all, in a thread; seconds to minutes
    - `pools`: by name, filled when `load` is done
    - `failed`: what is answered after `load` or an engine failed, which ends the server
    - `fetcher`: None unless addresses may be fetched
    - `closing`: true from the signal to stop until the end; `started`: seconds since 1970
    - `held`: bytes of the requests that are being answered
    """

    settings: configuration.Settings
    server: configuration.ServerSettings
    keys: Keys
    names: Mapping[str, str]
    load: Callable[[], Engines]
    fetcher: Fetcher | None = None
    metrics: Metrics = field(default_factory=Metrics)
    pools: dict[str, ModelPool] = field(default_factory=dict)
    failed: ApiError | None = None
    closing: bool = False
    held: int = 0
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def limits(self) -> ImageLimits:
        """Of one picture."""
        return ImageLimits(self.server.max_body_mb * 2**20, self.server.max_pixels)

    @property
    def ready(self) -> bool:
        """True while pages can be read."""
        return self.problem is None

    @property
    def problem(self) -> ApiError | None:
        """Why pages cannot be read now, as it is answered (503); None if they can. One engine that
        reads no more is enough, also beside others: it would go on being given pages."""
        if self.failed is not None:
            return self.failed
        if self.closing:
            return ClosingError()
        if not self.pools:
            return NotReadyError()
        if not all(engine.is_running for engine in self.engines):
            return EngineFailedError()
        return None

    @property
    def engines(self) -> tuple[OcrEngine, ...]:
        """Those of all models."""
        return tuple(engine for pool in self.pools.values() for engine in pool.engines)

    def open_pools(self, engines: Engines) -> None:
        """Put a queue before each of the loaded models. Belongs to the event loop."""
        for name, group in engines.items():
            places = [engine.slots + AHEAD for engine in group]
            admission = Admission(places, self.server.max_waiting)
            known = catalog.known_as(self.names[name])
            self.pools[name] = ModelPool(name, known, group, admission, self.metrics)

    def close_queues(self) -> None:
        """Refuse what waits and what comes; pages being read go on. Belongs to the event loop."""
        self.closing = True
        for pool in self.pools.values():
            pool.admission.close()

    def give_up(self) -> None:
        """End the pages that are still being read; their clients are told."""
        for engine in self.engines:
            threading.Thread(target=engine.close, daemon=True).start()

    def serves(self, model: str) -> bool:
        """True for a name that `/v1/models` lists."""
        name, colon, preset = model.partition(":")
        return name in self.names and (not colon or preset in presets.PRESETS)

    def check_name(self, model: str) -> tuple[str, str]:
        """`model` as a loaded checkpoint's name and a preset's short name ("" for its own). Raises
        `ApiError` 404 for a name that `/v1/models` does not list."""
        name, _, preset = model.partition(":")
        if not self.serves(model):
            raise ApiError(
                404, f"There is no such model here. There are: {', '.join(self.names)}, each also "
                f"with a preset, as {next(iter(self.names))}:tiny.", "model_not_found", "model",
            )  # fmt: skip
        return name, preset

    def pool_for(self, model: str) -> tuple[ModelPool, str]:
        """The pool of `model` and the preset its name asks for (`deepseek-ocr:tiny`), else the
        preset it is best at.

        Raises `ApiError` 404 for an unknown name, and `problem` if there is one.
        """
        name, preset = self.check_name(model)
        if self.problem is not None:
            raise self.problem
        pool = self.pools[name]
        return pool, preset or pool.known.preset


@dataclass(frozen=True)
class Caller:
    """Who asks for what is being answered, and whom.

    - `client`: the name under which it takes its turns
    - `hold`: to be told of bytes that its request keeps in memory beside its body; raises
      `QueueFullError` where all requests keep too much
    """

    state: ServerState
    client: str
    hold: Callable[[int], None]


async def state_of(request: Request) -> ServerState:
    """Dependency: the state of the server that answers `request`. Not a plain function: FastAPI
    would call that in another thread, and each such call waits for the threads that compute."""
    state: ServerState = request.app.state.server
    return state


async def caller_of(request: Request) -> Caller:
    """Dependency: who asks, and whom. `middleware.Guard` has found that out, before anything of the
    request's body was read."""
    scope = request.scope
    return Caller(await state_of(request), scope["deepseek_ocr.client"], scope["deepseek_ocr.hold"])


CurrentState = Annotated[ServerState, Depends(state_of)]
CurrentCaller = Annotated[Caller, Depends(caller_of)]
