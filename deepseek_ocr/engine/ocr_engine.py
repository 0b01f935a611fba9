"""One page in, a `Reading` out; many pages in, one outcome each.

The shortest use:

    engine = OcrEngine.load("checkpoints/deepseek-ocr")
    print(engine.read("page.jpg", "Free OCR.").text)
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch

from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import memory
from deepseek_ocr.devices import selection as devices
from deepseek_ocr.devices.cpu import use_threads
from deepseek_ocr.engine.load_options import LoadOptions
from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.request import Handle, OnEvent, failed, wait_for
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.engine.scheduler import EngineStatus, Scheduler
from deepseek_ocr.errors import DeviceError, SettingsError
from deepseek_ocr.images.image_loading import Source
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import choice, op_fallbacks, rehearsal
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.rehearsal import RehearsalOutcome, outcome_of
from deepseek_ocr.model import adapters, footprint, prompts
from deepseek_ocr.model import network as model
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.settings import CropSettings, DecodeSettings

log = logging.getLogger(__name__)


class OcrEngine:
    """A loaded checkpoint that reads pages, several at once; any thread may ask it to.

    The thread that computes is started by the first page and ends with the engine.
    """

    def __init__(
        self,
        network: model.Network,
        codec: prompts.Codec,
        limits: ImageLimits | None = None,
        make: Callable[[int], Decoder] | None = None,
        slots: int = 0,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`make` makes a decoder with so many slots, the plain one by default; `slots` is how many
        pages are read at once, 0 as many as `footprint.slots_for` says; `within` is entered by the
        thread that computes (autocast counts per thread).

        Raises `SettingsError` for a negative number of slots.
        """
        if slots < 0:
            raise SettingsError("slots must be at least 1, or 0 to choose by what memory is free.")
        self.network = network
        self.codec = codec
        self.rehearsal: RehearsalOutcome | None = None
        self.limits = limits or ImageLimits()
        make = make or partial(PlainDecoder, network)
        slots = slots or footprint.choose_slots(network)
        open_page = partial(PageState, codec=codec, limits=self.limits)
        self._scheduler = Scheduler(network, open_page, make, slots, within)
        self._finalizer = weakref.finalize(self, self._scheduler.close)
        self._finalizer.atexit = False

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        limits: ImageLimits | None = None,
        adapter: str | os.PathLike[str] | None = None,
        quant: str = "none",
        kernels: str = "auto",
        slots: int = 0,
        vision_device: str | torch.device | None = None,
        strict: bool = False,
    ) -> OcrEngine:
        """Load the checkpoint in `folder`; `LoadOptions` says what each parameter is. Raises what
        `from_options` raises."""
        return cls.from_options(
            folder,
            LoadOptions(
                device, dtype, limits, adapter, quant, kernels, slots, vision_device, strict
            ),
        )

    @classmethod
    def from_options(
        cls, folder: str | os.PathLike[str], options: LoadOptions = LoadOptions()
    ) -> OcrEngine:
        """Load the checkpoint in `folder`: network and tokenizer, and an adapter merged into it.

        What the rehearsal on the device chose is in `rehearsal`, and an INFO line in the log.

        Raises `CheckpointError`, `DeviceError` (with what would fit, if memory runs out) and
        `SettingsError`.
        """
        chosen = choice.parse(options.kernels)
        if options.threads is not None:
            use_threads(options.threads)
        folder = Path(folder)
        config = read_config(folder)
        codec = prompts.codec_of(folder, config)
        target = devices.choose_device(options.device)
        context: int = config.text_config.max_position_embeddings
        free: int | None = None
        try:
            free = memory.free_bytes(target)
            network = _network(folder, target, options)
            selection = rehearsal.prepare(network, chosen)
            op_fallbacks.rehearse(network, options.strict)
            decoders = DecoderFactory(network, selection.paths, context)
            engine = cls(network, codec, options.limits, decoders.make, options.slots)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            load = footprint.load_for(
                target, options.dtype, options.quant, options.slots, options.vision_device
            )
            raise footprint.refused_at_load(error, config, target, load, free) from error
        engine.rehearsal = outcome_of(network, selection, decoders.path, engine.slots)
        log.info("%s", engine.rehearsal)
        return engine

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def slots(self) -> int:
        """How many pages are read at once, at most; fewer than at first after memory ran out."""
        return self.status().slots

    @property
    def is_running(self) -> bool:
        """False when no page can be read any more: the engine was closed, its thread ended, or a
        device failed for good (`selection.failure`), which closes the engine."""
        return self._scheduler.is_running

    @property
    def ahead(self) -> int:
        """How many pages in flight keep every slot busy: those in slots and those prepared."""
        return self._scheduler.ahead

    def status(self) -> EngineStatus:
        """How much there is to do just now."""
        return self._scheduler.status

    def close(self) -> None:
        """Cancel the pages that are not read yet and end the engine's threads."""
        self._scheduler.close()
        self._scheduler.join()

    def vision_tokens(self, views: Views) -> torch.Tensor:
        """The rows `[N, hidden]` that stand for a page in the sequence."""
        return model.vision_tokens(self.network, views)

    def submit(self, page: Page, on_event: OnEvent | None = None) -> Handle:
        """Hand a page in, to be read when a slot is free, and return at once.

        `on_event` is told of every `Delta` and, at the end, of the `Reading` or `Failure`; the
        thread that computes calls it, so it must not block. Pages begin in the order in which
        they are prepared, which is about the one in which they came.

        Raises `CancelledError` if the engine is closed, `DeviceError` if its device failed.
        """
        job = self._scheduler.submit(page, on_event)
        return Handle(job, partial(self._scheduler.cancel, job), self)

    def read(
        self,
        image: Source,
        prompt: str,
        crop: CropSettings = CropSettings(),
        decode: DecodeSettings = DecodeSettings(),
    ) -> Reading:
        """Read one page to its end. Raises what `stream` raises."""
        *_, last = self.stream(image, prompt, crop, decode)
        assert isinstance(last, Reading)
        return last

    def stream(
        self,
        image: Source,
        prompt: str,
        crop: CropSettings = CropSettings(),
        decode: DecodeSettings = DecodeSettings(),
    ) -> Iterator[Delta | Reading]:
        """Read one page: a `Delta` whenever text was decoded, and the `Reading` at the end.

        The texts of the deltas join to `Reading.text`. Closing the iterator cancels. `prompt`
        holds `<image>` where the page goes; in front if it does not say.

        Raises `ImageError`, `PromptError`, `GenerationError`, and `DeviceError` if the device
        fails.
        """
        handle = self.submit(Page(image, prompt, crop, decode))
        try:
            yield from handle.deltas()
            yield handle.result()
        finally:
            handle.cancel()

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        """Read pages as they come, in order, each to a `Reading` or a `Failure`.

        A page that fails does not stop the others; if the device fails, all that are left fail with
        the same `DeviceError`. Pages are taken from `pages` in the caller's
        thread, a bounded number ahead: enough to keep every slot busy and the next pages prepared,
        and as many again whose readings wait for their turn. Closing the iterator cancels.
        """
        source, more = iter(pages), True
        broken: Exception | None = None
        window: deque[Handle] = deque()
        ended: SimpleQueue[None] = SimpleQueue()

        def note(event: Delta | Reading | Failure) -> None:
            if not isinstance(event, Delta):
                ended.put(None)

        try:
            while more or window:
                ahead = self.ahead
                in_flight = sum(not handle.done for handle in window)
                if window and window[0].done:
                    yield window.popleft().outcome()
                elif more and in_flight < ahead and len(window) < 2 * ahead:
                    try:
                        window.append(self._submit_or_fail(next(source), note))
                    except StopIteration:
                        more = False
                    except Exception as error:  # after what was taken in before it
                        more, broken = False, error
                else:
                    wait_for(ended)
        finally:
            for handle in window:
                handle.cancel()
        if broken is not None:
            raise broken

    def _submit_or_fail(self, page: Page, on_event: OnEvent) -> Handle:
        """As `submit`; if the device failed, the page has ended with that."""
        try:
            return self.submit(page, on_event)
        except DeviceError as error:
            return failed(page, error, self)


def _network(folder: Path, device: torch.device, options: LoadOptions) -> model.Network:
    adapt = None
    if options.adapter is not None:
        adapt = partial(adapters.merge_adapter, folder=Path(options.adapter))
    return load_network(folder, device, options.dtype, options.vision_device, options.quant, adapt)
