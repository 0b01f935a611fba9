"""`deepseek-ocr evaluate`: measure how well a model reads pages whose text is known."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from deepseek_ocr import configuration, presets
from deepseek_ocr.cli.flags import add_speed, named
from deepseek_ocr.cli.number_types import positive
from deepseek_ocr.cli.terminal import COULD_NOT_START, INTERRUPTED, complain
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.evaluation.evaluation_options import EvaluationOptions
from deepseek_ocr.weights import catalog

DESCRIPTION = "Measure how well a model reads pages whose text is known."

EPILOG = """\
examples:
  deepseek-ocr evaluate --data_root scans --test_file scans/test.json \\
      --model_path deepseek-ocr --output_dir results --task ocr markdown --size base
  deepseek-ocr evaluate --data_root scans --test_file scans/test.json \\
      --predictions other-program/ --output_dir results-other
  deepseek-ocr evaluate --facts facts.jsonl --data_root scans \\
      --model_path deepseek-ocr --output_dir results-facts

The output folder gets report.md with plots, metrics.json, samples.jsonl (a line a page, written as
pages are read) and experiment_logs.txt. The same command again goes on where it was interrupted.

exit status: 0 all pages were read, 1 some were not or some entries cannot be used (they are
named), 2 could not start or could not write, 130 interrupted
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    _add_inputs(parser.add_argument_group("what is compared, and where results go"))
    _add_reading(parser.add_argument_group("how pages are read"))


def run(flags: argparse.Namespace) -> int:
    """Evaluate what `flags` name; the exit status is in the help. Raises `OcrError`."""
    options = evaluation_options(flags)
    try:
        from deepseek_ocr.training.evaluation.evaluation_run import evaluate

        return evaluate(options)
    except OSError as error:  # of a file without a message of its own
        what = error.filename or "a file"
        complain(f"{what} cannot be used: {error.strerror or error}; check that path.")
        return COULD_NOT_START
    except KeyboardInterrupt:
        complain(f"interrupted; the same command goes on where {options.output_dir} stopped.")
        return INTERRUPTED


def evaluation_options(flags: argparse.Namespace) -> EvaluationOptions:
    """The evaluation that `flags` ask for. Raises `SettingsError`."""
    _check(flags)
    settings = configuration.load(vars(flags) | {"model": flags.model_path})
    chosen = flags.task or ["markdown" if flags.facts else "ocr"]
    values = vars(flags) | {
        "data_root": flags.data_root or Path(),
        "tasks": tuple(dict.fromkeys(presets.task_title(name) for name in chosen)),
        "size": presets.preset_title(flags.size or catalog.known_as(settings.model).preset),
        "settings": settings,
    }
    return EvaluationOptions(**{one.name: values[one.name] for one in fields(EvaluationOptions)})


def _check(flags: argparse.Namespace) -> None:
    if (flags.test_file is None) == (flags.facts is None):
        raise SettingsError("Give either --test_file (from deepseek-ocr split) or --facts.")
    if (flags.model_path is None) == (flags.predictions is None):
        raise SettingsError("Give either --model_path or --predictions.")
    if flags.data_root is None and not (flags.facts and flags.predictions):
        raise SettingsError("--data_root is needed: the folder that holds the pictures.")
    if flags.adapter is not None and flags.predictions is not None:
        raise SettingsError("--adapter belongs to --model_path.")
    if len(flags.task or ()) > 1 and (flags.predictions or flags.facts):
        raise SettingsError("--predictions and --facts hold texts of one --task.")
    if flags.facts and "locate" in (presets.task_name(name) for name in flags.task or ()):
        raise SettingsError("--facts are about the text of a page; use --task ocr or markdown.")
    DecodeSettings(max_new_tokens=flags.max_tokens)  # raises if that is out of range


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data_root", type=Path, metavar="DIR", help="folder that holds the pictures")
    add("--test_file", type=Path, metavar="FILE", help="test.json of deepseek-ocr split")
    text = "instead of --test_file: facts about pages, a JSON object a line"
    add("--facts", type=Path, metavar="FILE", help=text)
    text = "instead of --model_path: texts made elsewhere, NAME.md, NAME.mmd or NAME.txt a page"
    add("--predictions", type=Path, metavar="DIR", help=text)
    add("--model_path", metavar="NAME|DIR", help="model that reads the pages")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where results go")


def _add_reading(group: argparse._ArgumentGroup) -> None:
    add, tasks, sizes = group.add_argument, ", ".join(presets.TASKS), ", ".join(presets.PRESETS)
    add("--task", nargs="+", metavar="TASK", type=named(presets.task_title),
        help=f"one or more of {tasks} (default: ocr; with --facts: markdown)")  # fmt: skip
    add("--size", type=named(presets.preset_title),
        help=f"{sizes} (default: gundam; pocket: tiny)")  # fmt: skip
    add("--adapter", type=Path, metavar="DIR", help="LoRA adapter of deepseek-ocr train")
    add("--device", help="auto, cpu, cuda, cuda:1, mps, npu (default: auto)")
    add("--dtype", help="auto, bfloat16, float16, float32 (default: auto)")
    add_speed(group)
    add("--limit", type=positive, metavar="N", help="only the first N samples")
    add("--max_tokens", type=int, default=DecodeSettings().max_new_tokens, metavar="N",
        help="longest answer in tokens (default: %(default)s)")  # fmt: skip
