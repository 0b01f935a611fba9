"""What `ocr.py` understands, turned into values. Answers `--help` without importing torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import configuration
import tasks
import weights
from deepseek_ocr import __version__
from deepseek_ocr.errors import OcrError, SettingsError
from deepseek_ocr.settings import CropSettings, DecodeSettings

FORMATS = ("txt", "md", "json")

STANDARD_INPUT = "-"

_DESCRIPTION = """\
Read text from pictures of pages with DeepSeek-OCR and print it as it is decoded.
"""

_EPILOG = """\
examples:
  python ocr.py page.jpg                              Markdown with boxes, as the model writes it
  python ocr.py --format md page.jpg > page.md        the same, cleaned
  python ocr.py --task ocr --size base *.png          plain text of several pages, one model load
  python ocr.py --task locate --reference "the total" receipt.jpg
  python ocr.py --model pocket examples/invoice.png   the bundled model, no download
  curl -s https://example.org/scan.jpg | python ocr.py -

The bundled model "pocket" is a toy for trying the whole path without the 6.7 GB checkpoint: it
reads a few large, clean, printed English words with --task ocr --size tiny (its defaults) and
nothing else. Real pages need the model "deepseek-ocr"; see checkpoints/README.md.

exit status: 0 all pages read, 1 some failed (the others were read), 2 could not start,
130 interrupted
"""


@dataclass(frozen=True)
class Job:
    """One run of the program."""

    images: list[str]
    prompt: str
    crop: CropSettings
    decode: DecodeSettings
    format: str
    settings: configuration.Settings


def parse(arguments: Sequence[str] | None = None) -> Job:
    """The job that `arguments` ask for; leaves the program with status 2 where they are wrong."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if not flags.images:
        parser.error("no image given; try: python ocr.py --model pocket examples/invoice.png")
    try:
        settings = configuration.load(
            {name: getattr(flags, name) for name in ("model", "device", "dtype", "checkpoints")},
            path=flags.config,
        )
        if flags.images.count(STANDARD_INPUT) > 1:
            raise SettingsError("- stands for standard input, which can be read once only.")
        defaults = weights.known_as(settings.model)
        return Job(
            images=flags.images,
            prompt=_prompt(flags, defaults.task),
            crop=_crop(flags, defaults.resolution),
            decode=_decode(flags),
            format=flags.format,
            settings=settings,
        )
    except OcrError as error:
        parser.error(str(error))


def _prompt(flags: argparse.Namespace, default_task: str) -> str:
    if flags.prompt is not None:
        if flags.reference is not None:
            raise SettingsError("--reference belongs to --task locate; put it into the --prompt.")
        if flags.task is not None:
            raise SettingsError("--prompt replaces --task; give one of them.")
        if not flags.prompt.strip():
            raise SettingsError("--prompt is empty; say what the model should do.")
        if flags.prompt.count("<image>") > 1:
            raise SettingsError("--prompt may hold <image> once; each image is a page of its own.")
        return str(flags.prompt)
    task = tasks.task_name(flags.task or default_task)
    if flags.reference is not None and tasks.TASKS[task].short != "locate":
        raise SettingsError("--reference is only used with --task locate.")
    return tasks.prompt_for(task, flags.reference or "")


def _crop(flags: argparse.Namespace, default_resolution: str) -> CropSettings:
    preset = tasks.crop_for(flags.size or default_resolution)
    tiled = preset.crop_mode if flags.crop is None else flags.crop
    if flags.base_size is not None and not tiled:
        raise SettingsError("--base-size is for --crop; without tiles --image-size is the view.")
    return CropSettings(
        base_size=preset.base_size if flags.base_size is None else flags.base_size,
        image_size=preset.image_size if flags.image_size is None else flags.image_size,
        crop_mode=tiled,
    )


def _decode(flags: argparse.Namespace) -> DecodeSettings:
    return DecodeSettings(
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        top_p=flags.top_p,
        top_k=flags.top_k,
        repetition_penalty=flags.repetition_penalty,
        seed=flags.seed,
        no_repeat_ngram_size=flags.no_repeat_ngram_size,
        no_repeat_window=flags.no_repeat_window,
        exempt_tokens=tuple(token for token in flags.exempt_tokens.split(",") if token),
        exempt_ngrams=flags.exempt_ngrams,
        stop_on_loop=flags.stop_on_loop,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ocr.py",
        usage="python ocr.py [options] IMAGE [IMAGE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="picture of a page; - is standard input"
    )
    parser.add_argument("--version", action="version", version=f"deepseek-ocr {__version__}")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="txt",
        help="txt: what the model writes, at once; md: cleaned Markdown; json: pages with regions, "
        "boxes (0-999 and pixels), confidence, counts, timings (default: %(default)s)",
    )
    _add_what(parser)
    _add_where(parser)
    _add_how(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read and how closely")
    task_list = "; ".join(f"{task.short}: {task.purpose}" for task in tasks.TASKS.values())
    group.add_argument(
        "--task",
        type=_named(tasks.task_name),
        help=f"{task_list} (default: markdown; pocket: ocr)",
    )
    group.add_argument("--reference", metavar="TEXT", help="what --task locate is to find")
    group.add_argument(
        "--prompt", metavar="TEXT", help="a prompt of your own instead of --task; <image> in front"
    )
    group.add_argument(
        "--size",
        type=_named(tasks.resolution_name),
        help=f"preset: {', '.join(tasks.RESOLUTION_SHORT_NAMES)} (default: gundam; pocket: tiny)",
    )
    group.add_argument(
        "--base-size", type=int, metavar="PX", help="side of the global view beside tiles"
    )
    group.add_argument(
        "--image-size", type=int, metavar="PX", help="side of a tile, or of the one view"
    )
    group.add_argument(
        "--crop", action=argparse.BooleanOptionalAction, help="cut large pages into tiles too"
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which model and where (also by DEEPSEEK_OCR_MODEL, …)")
    names = ", ".join(weights.CHECKPOINTS)
    group.add_argument("--model", metavar="NAME|FOLDER", help=f"{names}, or a checkpoint folder")
    group.add_argument("--checkpoints", metavar="FOLDER", help="where named models are kept")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps, npu (default: auto)")
    group.add_argument("--dtype", help="auto, bfloat16, float16, float32 (default: auto)")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with model, device, … (default: "
        + str(configuration.default_path()).replace("%", "%%")
        + ")",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    base = DecodeSettings()
    group = parser.add_argument_group("decoding (greedy unless --temperature is given)")
    for flag, kind, text in (
        ("max-new-tokens", int, "longest answer in tokens"),
        ("temperature", float, "0 always takes the likeliest token"),
        ("top-p", float, "sample from the likeliest tokens that make up this share"),
        ("top-k", int, "sample from this many likeliest tokens; 0 is off"),
        ("seed", int, "of the sampling"),
        ("repetition-penalty", float, "above 1 discourages tokens already written"),
        ("no-repeat-ngram-size", int, "forbid sequences of this many tokens to return; 0 is off"),
        ("no-repeat-window", int, "how many tokens back that looks; 0 is everything"),
    ):
        default = getattr(base, flag.replace("-", "_"))
        metavar = "N" if kind is int else "X"
        group.add_argument(
            f"--{flag}", type=kind, default=default, metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    group.add_argument(
        "--exempt-tokens",
        metavar="A,B",
        default=",".join(base.exempt_tokens),
        help="tokens that guard never forbids (default: those of tables)",
    )
    group.add_argument(
        "--exempt-ngrams",
        action=argparse.BooleanOptionalAction,
        default=base.exempt_ngrams,
        help="nor does a sequence with one of them forbid anything (default: yes)",
    )
    group.add_argument(
        "--stop-on-loop",
        action=argparse.BooleanOptionalAction,
        default=base.stop_on_loop,
        help="end a page whose text goes in circles (default: yes)",
    )


def _named(find: Callable[[str], str]) -> Callable[[str], str]:
    """An argparse type that turns `SettingsError` into argparse's own complaint."""

    def convert(text: str) -> str:
        try:
            return find(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
