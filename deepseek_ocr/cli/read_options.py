"""What `deepseek-ocr read` is asked for, as values. Imports no torch."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

from deepseek_ocr import presets
from deepseek_ocr.cli.example_pages import examples_folder
from deepseek_ocr.cli.flags import load_settings
from deepseek_ocr.configuration import Settings, parts_of
from deepseek_ocr.documents.inputs import PageSelection, Shard, parse_pages, parse_shard
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats import find_format
from deepseek_ocr.settings import CropSettings, DecodeSettings, RenderSettings
from deepseek_ocr.weights import catalog

STANDARD_INPUT = "-"

PRINTED = ("txt", "md", "json")
"""Formats that can go to standard output."""


@dataclass(frozen=True)
class OutputOptions:
    """What a run with -o writes, and which part of the inputs it reads on which devices."""

    folder: Path
    formats: tuple[str, ...]
    join_tables: bool
    overwrite: bool
    retries: int
    shard: Shard
    devices: tuple[str, ...]


@dataclass(frozen=True)
class ReadOptions:
    """One run of `deepseek-ocr read`; without `output` it prints in `format`.

    `task` is the task's title, or None for a prompt of the user's own.
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
    settings: Settings
    adapter: Path | None = None
    output: OutputOptions | None = None


def read_options(flags: argparse.Namespace) -> ReadOptions:
    """The run that `flags` ask for. Raises `SettingsError` if they do not go together."""
    askable = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    if not flags.inputs and (flags.output or flags.stdout or not askable):
        example = shlex.quote(str(examples_folder() / "invoice.png"))
        raise SettingsError(f"no image given; try: deepseek-ocr read --model pocket {example}")
    if flags.inputs.count(STANDARD_INPUT) > 1:
        raise SettingsError("- stands for standard input, which can be read once only.")
    settings = load_settings(flags)
    defaults = catalog.known_as(settings.model)
    output = _output(flags)
    return ReadOptions(
        inputs=flags.inputs,
        task=None if flags.prompt is not None else presets.task_title(flags.task or defaults.task),
        prompt=_prompt(flags, defaults.task),
        crop=_crop(flags, defaults.preset),
        decode=_decode(flags),
        render=RenderSettings(flags.dpi, None if flags.rotate == "auto" else int(flags.rotate)),
        pages=PageSelection() if flags.pages is None else parse_pages(flags.pages),
        password=flags.password,
        format="txt" if output else _printed(flags.format),
        settings=settings,
        adapter=flags.adapter,
        output=output,
    )


def _printed(names: str | None) -> str:
    """The format of standard output."""
    if names in (None, *PRINTED):
        return names or "txt"
    for name in names.split(","):
        find_format(name)
    reason = f"--format {names} makes files; add -o FOLDER. Printed is one of {', '.join(PRINTED)}."
    raise SettingsError(reason)


def _output(flags: argparse.Namespace) -> OutputOptions | None:
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
    retries = len(presets.RETRIES) if flags.retries is None else flags.retries
    presets.attempts(CropSettings(), DecodeSettings(), retries)  # are there as many?
    return OutputOptions(
        folder=flags.output,
        formats=tuple(dict.fromkeys(names)),
        join_tables=flags.join_tables is not False,
        overwrite=bool(flags.overwrite),
        retries=retries,
        shard=Shard() if flags.shard is None else parse_shard(flags.shard),
        devices=parts_of(flags.devices or ""),
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
    if flags.reference is not None and task != "locate":
        raise SettingsError("--reference is only used with --task locate.")
    return presets.prompt_for(task, flags.reference or "")


def _crop(flags: argparse.Namespace, default_resolution: str) -> CropSettings:
    preset = presets.crop_for(flags.size or default_resolution)
    tiled = preset.crop_mode if flags.crop is None else flags.crop
    if flags.base_size is not None and not tiled:
        raise SettingsError("--base-size is for --crop; without tiles --image-size is the view.")
    given = {"base_size": flags.base_size, "image_size": flags.image_size, "crop_mode": tiled}
    return replace(preset, **{name: one for name, one in given.items() if one is not None})


def _decode(flags: argparse.Namespace) -> DecodeSettings:
    values = {field.name: getattr(flags, field.name) for field in fields(DecodeSettings)}
    values["exempt_tokens"] = tuple(token for token in flags.exempt_tokens.split(",") if token)
    return DecodeSettings(**values)
