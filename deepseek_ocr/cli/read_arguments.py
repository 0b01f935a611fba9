"""What `ocr.py` understands, turned into values. Answers `--help` without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from deepseek_ocr import configuration, presets
from deepseek_ocr.cli.flags import LIST_DEVICES, PRINTED, parser
from deepseek_ocr.documents.inputs import PageSelection, Shard, parse_pages, parse_shard
from deepseek_ocr.errors import OcrError, SettingsError
from deepseek_ocr.formats import find_format
from deepseek_ocr.settings import CropSettings, DecodeSettings, RenderSettings
from deepseek_ocr.weights import registry

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Output:
    """What a run with -o writes, and which part of the inputs it reads on which devices."""

    folder: Path
    formats: tuple[str, ...]
    join_tables: bool
    overwrite: bool
    retries: int
    shard: Shard
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run of the program; without `output` it prints in `format`.

    `task` is the key of `presets.TASKS`, or None for a prompt of the user's own. With `report`
    no page is read: it tells of the devices or of the installation.
    """

    inputs: list[str]
    task: str | None
    prompt: str
    crop: CropSettings
    decode: DecodeSettings
    render: RenderSettings
    pages: PageSelection
    password: str | None
    format: str
    settings: configuration.Settings
    adapter: Path | None = None
    output: Output | None = None
    report: Literal["devices", "doctor"] | None = None


def parse(arguments: Sequence[str] | None = None) -> Job:
    """The job that `arguments` ask for; leaves the program with status 2 where they are wrong."""
    known = parser()
    flags = known.parse_args(arguments)
    if flags.print_config or flags.init_config:
        show_config(known, flags)
    report = _report(flags)
    if not (flags.inputs or report) and (flags.output or flags.stdout or not _is_terminal()):
        known.error("no image given; try: python ocr.py --model pocket examples/invoice.png")
    try:
        settings = configuration.load(
            {name: getattr(flags, name) for name in configuration.FLAGS},
            path=flags.config,
        )
        if flags.inputs.count(STANDARD_INPUT) > 1:
            raise SettingsError("- stands for standard input, which can be read once only.")
        return _job(flags, settings, report)
    except OcrError as error:
        known.error(str(error))


def show_config(
    known: argparse.ArgumentParser,
    flags: argparse.Namespace,
    of_server: Mapping[str, Any] | None = None,
) -> NoReturn:
    """Do what `--init-config` or `--print-config` asks for, and leave the program.

    `of_server` are flags that are the server's own.
    """
    try:
        if flags.init_config:
            known.exit(0, f"{configuration.write_template(flags.config)}\n")
        settings = configuration.load(vars(flags), path=flags.config)
        server = configuration.load_server(of_server, path=flags.config)
    except OcrError as error:
        known.error(str(error))
    print(configuration.as_toml(settings, server), end="")
    known.exit(0)


def _is_terminal() -> bool:
    """True where somebody can be asked for paths."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _report(flags: argparse.Namespace) -> Literal["devices", "doctor"] | None:
    """What is to be told in place of reading; takes `--devices` without names off the flags."""
    if flags.devices == LIST_DEVICES:
        flags.devices = None
        return "devices"
    return "doctor" if flags.doctor else None


def _job(
    flags: argparse.Namespace,
    settings: configuration.Settings,
    report: Literal["devices", "doctor"] | None,
) -> Job:
    defaults = registry.known_as(settings.model)
    output = _output(flags)
    return Job(
        inputs=flags.inputs,
        task=None if flags.prompt is not None else presets.task_name(flags.task or defaults.task),
        prompt=_prompt(flags, defaults.task),
        crop=_crop(flags, defaults.resolution),
        decode=_decode(flags),
        render=RenderSettings(
            dpi=flags.dpi, rotate=None if flags.rotate == "auto" else int(flags.rotate)
        ),
        pages=PageSelection() if flags.pages is None else parse_pages(flags.pages),
        password=flags.password,
        format="txt" if output else _printed(flags.format),
        settings=settings,
        adapter=flags.adapter,
        output=output,
        report=report,
    )


def _printed(names: str | None) -> str:
    """The format of standard output."""
    if names in (None, *PRINTED):
        return names or "txt"
    for name in names.split(","):
        find_format(name)
    raise SettingsError(
        f"--format {names} makes files; add -o FOLDER. Printed is one of {', '.join(PRINTED)}."
    )


def _output(flags: argparse.Namespace) -> Output | None:
    if flags.output is None:
        for flag in ("overwrite", "shard", "devices", "retries", "join_tables", "existing_text"):
            if getattr(flags, flag) is not None:
                raise SettingsError(f"--{flag.replace('_', '-')} goes with -o FOLDER.")
        return None
    if flags.stdout:
        raise SettingsError("--stdout prints and -o writes files; give one of them.")
    if flags.devices and flags.device:
        raise SettingsError("--devices names several devices, --device one; give one of them.")
    names = [find_format(name.strip()).name for name in (flags.format or "md").split(",")]
    devices = tuple(name.strip() for name in (flags.devices or "").split(",") if name.strip())
    retries = len(presets.RETRIES) if flags.retries is None else flags.retries
    presets.attempts(CropSettings(), DecodeSettings(), retries)  # are there as many?
    return Output(
        folder=flags.output,
        formats=tuple(dict.fromkeys(names)),
        join_tables=flags.join_tables is not False,
        overwrite=bool(flags.overwrite),
        retries=retries,
        shard=Shard() if flags.shard is None else parse_shard(flags.shard),
        devices=devices,
    )


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
    task = presets.task_name(flags.task or default_task)
    if flags.reference is not None and presets.TASKS[task].short != "locate":
        raise SettingsError("--reference is only used with --task locate.")
    return presets.prompt_for(task, flags.reference or "")


def _crop(flags: argparse.Namespace, default_resolution: str) -> CropSettings:
    preset = presets.crop_for(flags.size or default_resolution)
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
        timeout=flags.timeout,
    )
