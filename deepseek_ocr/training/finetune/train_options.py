"""What `deepseek-ocr train` understands, turned into values. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr import configuration
from deepseek_ocr import presets as tasks
from deepseek_ocr.errors import OcrError, SettingsError
from deepseek_ocr.settings import LARGEST_RANK, DecodeSettings
from deepseek_ocr.training.evaluation.evaluation_options import positive
from deepseek_ocr.training.files import STATE

_EPILOG = """\
examples:
  deepseek-ocr train --data_root scans --train_file scans/train.json \\
      --val_file scans/test.json --model_path deepseek-ocr --output_dir runs/first \\
      --epochs 3 --batch_size 2 --grad_accum 8
  accelerate launch -m deepseek_ocr.training.finetune.fine_tuning …the same…      several GPUs or machines
  deepseek-ocr train …the same… --resume        goes on after an interruption

The output folder gets a checkpoint after each epoch (with LoRA: an adapter), best/ by validation
CER, rejected.json, experiment_logs.txt and loss.png. Read pages with the result:
  python ocr.py --model deepseek-ocr --adapter runs/first/best page.png     (LoRA)
  python ocr.py --model runs/first/best page.png                            (--full)

exit status: 0 done, 1 done but some samples could not be used (rejected.json; by a launcher 0), 2
could not start or go on, 130 interrupted
"""


@dataclass(frozen=True)
class TrainOptions:
    """One training run. Tasks and preset by long name; `lr` and others as their flags say."""

    data_root: Path
    train_file: Path
    output_dir: Path
    settings: configuration.Settings
    tasks: tuple[str, ...]
    resolution: str
    epochs: int = 1
    batch_size: int = 1
    lr: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    grad_accum: int = 1
    lora: bool = True
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_experts: bool = False
    train_vision: bool = False
    balance: float = 0.0
    checkpointing: bool = True
    val_file: Path | None = None
    val_pages: int = 50
    resume: bool = False
    merge: bool = False
    keep: int = 3
    seed: int = 0
    max_tokens: int = 4096
    max_rejected: float = 0.05
    workers: int = 2


def parse(arguments: Sequence[str] | None = None) -> TrainOptions:
    """The run that `arguments` ask for; leaves the program with status 2 where they are wrong."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        return _options(flags)
    except OcrError as error:
        parser.error(str(error))


def _options(flags: argparse.Namespace) -> TrainOptions:
    settings = configuration.load(
        {"model": flags.model_path, "device": flags.device, "dtype": flags.dtype}
    )
    if flags.lora_rank > LARGEST_RANK:
        raise SettingsError(f"--lora_rank {flags.lora_rank} is more than {LARGEST_RANK}, the most.")
    if flags.full and (flags.lora_experts or flags.merge):
        raise SettingsError("--lora_experts and --merge belong to LoRA; leave out --full.")
    if flags.lora_experts and flags.lora_dropout:
        raise SettingsError("--lora_dropout cannot be had with --lora_experts; leave one out.")
    values = vars(flags)
    given = {name: values[name] for name in TrainOptions.__dataclass_fields__ if name in values}
    given |= {
        "settings": settings,
        "lora": not flags.full,
        "tasks": tuple(dict.fromkeys(tasks.task_name(name) for name in flags.task)),
        "resolution": tasks.resolution_name(flags.resolution),
    }
    DecodeSettings(max_new_tokens=flags.max_tokens)
    return TrainOptions(**given)


def check_output(options: TrainOptions) -> None:
    """Raises `SettingsError` where the output folder holds a run that is not to be gone on with."""
    if not options.resume and (options.output_dir / STATE).exists():
        raise SettingsError(
            f"{options.output_dir} holds a run already; add --resume to go on with it, or choose "
            "another --output_dir."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepseek-ocr train",
        description="Fine-tune a checkpoint on annotated pages, by LoRA or in full.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_data(parser)
    _add_weights(parser)
    _add_optimisation(parser)
    _add_run(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR", help="folder with the pictures")
    add(
        "--train_file",
        type=Path,
        required=True,
        metavar="FILE",
        help="train.json (deepseek-ocr split)",
    )
    add(
        "--val_file", type=Path, metavar="FILE", help="test.json: read after each epoch for its CER"
    )
    add("--val_pages", type=positive, default=50, metavar="N",
        help="the first so many pages of it (default: 50)")  # fmt: skip
    shorts = ", ".join(tasks.TASK_SHORT_NAMES)
    add("--task", nargs="+", default=["ocr"], metavar="TASK", help=f"{shorts} (default: ocr)")
    presets = ", ".join(tasks.RESOLUTION_SHORT_NAMES)
    add("--resolution", default="base", metavar="PRESET", help=f"{presets} (default: base)")
    add("--max_tokens", type=positive, default=4096, metavar="N",
        help="longest page, prompt and answer together (default: 4096)")  # fmt: skip
    add("--max_rejected", type=_share, default=0.05, metavar="SHARE",
        help="stop where more samples than this cannot be used (default: 0.05)")  # fmt: skip


def _add_weights(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--model_path", metavar="NAME|DIR", help="checkpoint to begin with")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--lora", action="store_true", help="adapters on the decoder (default)")
    how.add_argument("--full", action="store_true", help="every weight of the decoder, in float32")
    add("--lora_rank", type=positive, default=16, metavar="R", help="default: 16")
    add("--lora_alpha", type=positive, default=32, metavar="A", help="default: 32")
    add("--lora_dropout", type=_share, default=0.0, metavar="SHARE", help="default: 0")
    add("--lora_experts", action="store_true", help="adapters on the routed experts too")
    vision = group.add_mutually_exclusive_group()
    vision.add_argument("--freeze_vision", dest="train_vision", action="store_false",
                        help="leave the vision encoder as it is (default)")  # fmt: skip
    vision.add_argument("--train_vision", dest="train_vision", action="store_true",
                        help="train the vision encoder too, in full")  # fmt: skip
    parser.set_defaults(train_vision=False)
    add("--merge", action="store_true", help="at the end write best/ merged into a checkpoint")


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    add = group.add_argument
    add("--epochs", type=positive, default=1, metavar="N", help="default: 1")
    add("--batch_size", type=positive, default=1, metavar="N", help="pages at once on a device")
    add("--grad_accum", type=positive, default=1, metavar="N", help="batches to one step")
    add("--lr", type=_rate, default=1e-4, metavar="RATE", help="highest learning rate (1e-4)")
    add("--warmup", type=_share, default=0.05, metavar="SHARE", help="of all steps (0.05)")
    add("--weight_decay", type=_share, default=0.01, metavar="W", help="of matrices (0.01)")
    add("--balance", type=_share, default=0.0, metavar="W",
        help="weight of the routers' auxiliary loss (default: 0, none)")  # fmt: skip
    add("--no_checkpointing", dest="checkpointing", action="store_false",
        help="keep activations instead of computing them twice: faster, more memory")  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where results go")
    add("--resume", action="store_true", help="go on after the last finished epoch in --output_dir")
    add("--keep", type=positive, default=3, metavar="N", help="epochs whose checkpoint stays (3)")
    add("--seed", type=_whole, default=0, help="of order and adapters (default: 0)")
    add("--workers", type=_whole, default=2, metavar="N",
        help="processes that prepare pages (default: 2; 0: this one)")  # fmt: skip
    add("--device", help="auto, cpu, cuda, mps, npu (default: DEEPSEEK_OCR_DEVICE, auto)")
    add("--dtype", help="auto, bfloat16, float16, float32: the type computed in (default: auto); "
        "with --full the routed experts compute in float32 all the same")  # fmt: skip


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of up to nine digits.")
    return int(text)


def _share(text: str) -> float:
    return _between(text, 0.0, 1.0)


def _rate(text: str) -> float:
    return _between(text, 1e-9, 1.0)


def _between(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}.")
    return value
