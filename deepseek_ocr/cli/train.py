"""`deepseek-ocr train`: fine-tune a checkpoint on annotated pages."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path

from deepseek_ocr import configuration, presets
from deepseek_ocr.cli.number_types import between, positive, share, whole
from deepseek_ocr.cli.terminal import COULD_NOT_START, DONE, INTERRUPTED, SOME_FAILED, complain
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.settings import LARGEST_RANK, DecodeSettings
from deepseek_ocr.training.finetune.train_options import TrainOptions

DESCRIPTION = "Fine-tune a checkpoint on annotated pages, by LoRA or in full."

EPILOG = """\
examples:
  deepseek-ocr train --data_root scans --train_file scans/train.json \\
      --val_file scans/test.json --model_path deepseek-ocr --output_dir runs/first \\
      --epochs 3 --batch_size 2 --grad_accum 8
  accelerate launch -m deepseek_ocr train …the same…      several GPUs or machines
  deepseek-ocr train …the same… --resume        goes on after an interruption

The output folder gets a checkpoint after each epoch (with LoRA: an adapter), best/ by validation
CER, rejected.json, experiment_logs.txt and loss.png. Read pages with the result:
  deepseek-ocr read --model deepseek-ocr --adapter runs/first/best page.png     (LoRA)
  deepseek-ocr read --model runs/first/best page.png                            (--full)

exit status: 0 done, 1 done but some samples could not be used (rejected.json; by a launcher 0), 2
could not start or go on, 130 interrupted
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    _add_data(parser.add_argument_group("data"))
    _add_weights(parser.add_argument_group("what is trained"))
    _add_optimization(parser.add_argument_group("how"))
    _add_run(parser.add_argument_group("the run"))
    given = {one.name: one.default for one in fields(TrainOptions) if one.default is not MISSING}
    parser.set_defaults(**given)


def run(flags: argparse.Namespace) -> int:
    """Train what `flags` ask for; the exit status is in the help. Raises `OcrError`."""
    options = train_options(flags)
    try:
        from deepseek_ocr.training.finetune.fine_tuning import fine_tune

        return SOME_FAILED if fine_tune(options) else DONE
    except KeyboardInterrupt:
        place = f"after the last finished epoch in {options.output_dir}"
        complain(f"interrupted; the same command with --resume goes on {place}.")
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        from deepseek_ocr.devices.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        fewer = "take fewer pages at once (--batch_size 1 with more --grad_accum)"
        smaller = "a smaller --resolution or --max_tokens, or --lora instead of --full."
        complain(f"out of memory; {fewer}, {smaller}")
        return COULD_NOT_START


def train_options(flags: argparse.Namespace) -> TrainOptions:
    """The run that `flags` ask for. Raises `SettingsError`."""
    if flags.lora_rank > LARGEST_RANK:
        raise SettingsError(f"--lora_rank {flags.lora_rank} is more than {LARGEST_RANK}, the most.")
    if flags.full and (flags.lora_experts or flags.merge):
        raise SettingsError("--lora_experts and --merge belong to LoRA; leave out --full.")
    if flags.lora_experts and flags.lora_dropout:
        raise SettingsError("--lora_dropout cannot be had with --lora_experts; leave one out.")
    DecodeSettings(max_new_tokens=flags.max_tokens)  # raises if that is out of range
    values = vars(flags) | {
        "settings": configuration.load(vars(flags) | {"model": flags.model_path}),
        "lora": not flags.full,
        "tasks": tuple(dict.fromkeys(presets.task_title(name) for name in flags.task)),
        "resolution": presets.preset_title(flags.resolution),
    }
    return TrainOptions(**{field.name: values[field.name] for field in fields(TrainOptions)})


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR", help="folder with the pictures")
    add("--train_file", type=Path, required=True, metavar="FILE",
        help="train.json (deepseek-ocr split)")  # fmt: skip
    add("--val_file", type=Path, metavar="FILE",
        help="test.json: read after each epoch for its CER")  # fmt: skip
    add("--val_pages", type=positive, metavar="N",
        help="the first so many pages of it (default: 50)")  # fmt: skip
    tasks = ", ".join(presets.TASKS)
    add("--task", nargs="+", default=["ocr"], metavar="TASK", help=f"{tasks} (default: ocr)")
    sizes = ", ".join(presets.PRESETS)
    add("--resolution", default="base", metavar="PRESET", help=f"{sizes} (default: base)")
    add("--max_tokens", type=positive, metavar="N",
        help="longest page, prompt and answer together (default: 4096)")  # fmt: skip
    add("--max_rejected", type=share, metavar="SHARE",
        help="stop if more samples than this cannot be used (default: 0.05)")  # fmt: skip


def _add_weights(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model_path", metavar="NAME|DIR", help="checkpoint to begin with")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--lora", action="store_true", help="adapters on the decoder (default)")
    how.add_argument("--full", action="store_true", help="every weight of the decoder, in float32")
    add("--lora_rank", type=positive, metavar="R", help="default: 16")
    add("--lora_alpha", type=positive, metavar="A", help="default: 32")
    add("--lora_dropout", type=share, metavar="SHARE", help="default: 0")
    add("--lora_experts", action="store_true", help="adapters on the routed experts too")
    vision = group.add_mutually_exclusive_group()
    vision.add_argument("--freeze_vision", dest="train_vision", action="store_false",
                        help="leave the vision encoder as it is (default)")  # fmt: skip
    vision.add_argument("--train_vision", dest="train_vision", action="store_true",
                        help="train the vision encoder too, in full")  # fmt: skip
    add("--merge", action="store_true", help="at the end write best/ merged into a checkpoint")


def _add_optimization(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--epochs", type=positive, metavar="N", help="default: 1")
    add("--batch_size", type=positive, metavar="N", help="pages at once on a device")
    add("--grad_accum", type=positive, metavar="N", help="batches to one step")
    add("--lr", type=between(1e-9, 1.0), metavar="RATE", help="highest learning rate (1e-4)")
    add("--warmup", type=share, metavar="SHARE", help="of all steps (0.05)")
    add("--weight_decay", type=share, metavar="W", help="of matrices (0.01)")
    add("--balance", type=share, metavar="W",
        help="weight of the routers' auxiliary loss (default: 0, none)")  # fmt: skip
    add("--no_checkpointing", dest="checkpointing", action="store_false",
        help="keep activations instead of computing them twice: faster, more memory")  # fmt: skip


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where results go")
    add("--resume", action="store_true", help="go on after the last finished epoch in --output_dir")
    add("--keep", type=positive, metavar="N", help="epochs whose checkpoint stays (3)")
    add("--seed", type=whole, help="of order and adapters (default: 0)")
    add("--workers", type=whole, metavar="N",
        help="processes that prepare pages (default: 2; 0: this one)")  # fmt: skip
    add("--device", help="auto, cpu, cuda, mps, npu (default: DEEPSEEK_OCR_DEVICE, auto)")
    add("--dtype", help="auto, bfloat16, float16, float32: the type computed in (default: auto); "
        "with --full the routed experts compute in float32 all the same")  # fmt: skip
