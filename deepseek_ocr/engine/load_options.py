"""How a checkpoint is loaded: one value from a program's settings to the engine.

Imports no torch, so that programs can build it before they import the engine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from deepseek_ocr.images.limits import ImageLimits


@dataclass(frozen=True)
class LoadOptions:
    """What `OcrEngine.from_options` needs to know besides the checkpoint's folder.

    - `device`: auto, cpu, cuda, cuda:1, npu, mps …; `dtype`: auto, bfloat16, float16, float32
    - `limits`: the largest pictures that are opened; None is the defaults of `ImageLimits`
    - `adapter`: folder of a LoRA adapter that is merged into the network
    - `quant`: how the decoder's weights are held: none, int8
    - `kernels`: which fast paths are used (`kernels.choice.parse`)
    - `slots`: how many pages are read at once; 0 chooses by free memory
    - `vision_device`: where the encoders run; None is on `device`
    - `strict`: an operator that the device would hand to the CPU is an error; without, such
      operators are counted in a warning
    - `threads`: of the CPU part, for the whole process; 0 chooses by cores and container limits,
      None leaves torch's threads as they are
    """

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    limits: ImageLimits | None = None
    adapter: str | os.PathLike[str] | None = None
    quant: str = "none"
    kernels: str = "auto"
    slots: int = 0
    vision_device: str | torch.device | None = None
    strict: bool = False
    threads: int | None = None
