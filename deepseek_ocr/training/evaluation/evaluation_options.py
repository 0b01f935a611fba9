"""What `deepseek-ocr evaluate` understands, turned into values. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr import configuration
from deepseek_ocr import presets as tasks
from deepseek_ocr.cli.flags import add_speed
from deepseek_ocr.errors import OcrError, SettingsError
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.weights import registry

_EPILOG = """\
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


@dataclass(frozen=True)
class Job:
    """One evaluation: what is read (by `model` or from `predictions`) and what it is held against
    (`test_file` or `facts`). Tasks and size by long name."""

    output_dir: Path
    data_root: Path
    tasks: tuple[str, ...]
    size: str
    settings: configuration.Settings
    test_file: Path | None = None
    facts: Path | None = None
    predictions: Path | None = None
    adapter: Path | None = None
    limit: int | None = None
    max_tokens: int = DecodeSettings().max_new_tokens


def parse(arguments: Sequence[str] | None = None) -> Job:
    """The job that `arguments` ask for; leaves the program with status 2 where they are wrong."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        _check(flags)
        settings = configuration.load(
            {
                "model": flags.model_path,
                "device": flags.device,
                "dtype": flags.dtype,
                "quant": flags.quant,
                "kernels": flags.kernels,
                "slots": flags.slots,
            }
        )
        defaults = registry.known_as(settings.model)
        chosen = flags.task or ["markdown" if flags.facts else "ocr"]
        return Job(
            output_dir=flags.output_dir,
            data_root=flags.data_root or Path(),
            tasks=tuple(dict.fromkeys(tasks.task_name(name) for name in chosen)),
            size=tasks.resolution_name(flags.size or defaults.resolution),
            settings=settings,
            test_file=flags.test_file,
            facts=flags.facts,
            predictions=flags.predictions,
            adapter=flags.adapter,
            limit=flags.limit,
            max_tokens=flags.max_tokens,
        )
    except OcrError as error:
        parser.error(str(error))


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
    if flags.facts and "locate" in (tasks.TASKS[name].short for name in flags.task or ()):
        raise SettingsError("--facts are about the text of a page; use --task ocr or markdown.")
    DecodeSettings(max_new_tokens=flags.max_tokens)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepseek-ocr evaluate",
        description="Measure how well a model reads pages whose text is known.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_reading(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared, and where results go")
    for flag, metavar, text in (
        ("data_root", "DIR", "folder that holds the pictures"),
        ("test_file", "FILE", "test.json of deepseek-ocr split"),
        ("facts", "FILE", "instead of --test_file: facts about pages, a JSON object a line"),
        ("predictions", "DIR", "instead of --model_path: texts made elsewhere, NAME.md, NAME.mmd "
         "or NAME.txt a page"),
    ):  # fmt: skip
        group.add_argument(f"--{flag}", type=Path, metavar=metavar, help=text)
    group.add_argument("--model_path", metavar="NAME|DIR", help="model that reads the pages")
    group.add_argument(
        "--output_dir", type=Path, required=True, metavar="DIR", help="where results go"
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how pages are read")
    shorts = ", ".join(tasks.TASK_SHORT_NAMES)
    group.add_argument(
        "--task", nargs="+", metavar="TASK", type=_named(tasks.task_name),
        help=f"one or more of {shorts} (default: ocr; with --facts: markdown)",
    )  # fmt: skip
    group.add_argument(
        "--size", type=_named(tasks.resolution_name),
        help=f"{', '.join(tasks.RESOLUTION_SHORT_NAMES)} (default: gundam; pocket: tiny)",
    )  # fmt: skip
    group.add_argument(
        "--adapter", type=Path, metavar="DIR", help="LoRA adapter of deepseek-ocr train"
    )
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps, npu (default: auto)")
    group.add_argument("--dtype", help="auto, bfloat16, float16, float32 (default: auto)")
    add_speed(group)
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N samples")
    group.add_argument(
        "--max_tokens", type=int, default=DecodeSettings().max_new_tokens, metavar="N",
        help="longest answer in tokens (default: %(default)s)",
    )  # fmt: skip


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0.")
    return int(text)


def _named(find: Callable[[str], str]) -> Callable[[str], str]:
    """An argparse type that turns `SettingsError` into argparse's own complaint."""

    def convert(text: str) -> str:
        try:
            return find(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
