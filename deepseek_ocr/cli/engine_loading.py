"""From settings to loaded engines, for every sub-command that reads."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ocr.cli.terminal import tell
from deepseek_ocr.devices import ascend
from deepseek_ocr.errors import DeviceError, OcrError

if TYPE_CHECKING:
    from deepseek_ocr.cli.read_options import ReadOptions
    from deepseek_ocr.engine.ocr_engine import OcrEngine


def load_engines(options: ReadOptions) -> list[OcrEngine]:
    """An engine for each device of `options`. Raises `OcrError`."""
    folder = options.settings.checkpoint_folder()
    devices = options.output.devices if options.output else ()
    tell(f"loading {folder} …")
    try:
        return [_load(folder, device, options) for device in devices or (options.settings.device,)]
    except (OcrError, ModuleNotFoundError):
        raise
    except Exception as error:  # a device that is out of memory raises what it likes
        reason = ascend.advice(error) or f"the model could not be loaded: {error}"
        raise DeviceError(reason) from error


def _load(folder: Path, device: str, options: ReadOptions) -> OcrEngine:
    """An engine on one of the devices, after a warning if it may not fit there."""
    with _without_garbage_collection():  # imports torch: seconds
        from deepseek_ocr.cli.device_report import warn_of_too_little
        from deepseek_ocr.engine.ocr_engine import OcrEngine
    settings = replace(options.settings, device=device)
    warn_of_too_little(settings, options.crop, folder)
    load_options = replace(settings.load_options(), adapter=options.adapter)
    engine = OcrEngine.from_options(folder, load_options)
    tell(f"on {engine.device}, {str(engine.dtype).removeprefix('torch.')}")
    return engine


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Import without looking for garbage, which takes a sixth of the time: nothing of what is
    imported is garbage, and it is not looked at later either."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
