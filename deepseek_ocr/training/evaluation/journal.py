"""What was read so far, a line a page, so that a long run can stop anywhere and go on.

A folder holds `run.json` (what was asked) and `samples.jsonl` (what came of it). A run with the
same settings goes on where the last one stopped and tries pages that failed again, and those whose
picture changed; with other settings it is refused, or two runs would be mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepseek_ocr.errors import InputError, SettingsError
from deepseek_ocr.files import LARGEST_FILE, read_json, write_json, write_text
from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.evaluation.scoring import Prediction, Score
from deepseek_ocr.training.experiment_log import append_line

SETTINGS, SAMPLES = "run.json", "samples.jsonl"

Key = tuple[str, str]
"""Task and name of an example."""

Stamp = tuple[int, int]
"""Size of a file in bytes and when it was changed, in nanoseconds."""


@dataclass(frozen=True)
class _Line:
    """What a line of samples.jsonl holds, and the line itself."""

    prediction: Prediction
    picture: tuple[Any, Any]
    text: str


class Journal:
    """The record of one run in `folder`. `resume` is for texts that do not change meanwhile;
    without it the record begins anew. Nothing is written before `begin`. Raises `SettingsError` if
    the folder holds a run with other settings, `InputError` if its record cannot be read."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool = True) -> None:
        self.path = folder / SAMPLES
        self._settings = json.loads(json.dumps(settings))
        self._before: dict[Key, _Line] = {}
        self._pictures: dict[Key, Stamp | None] = {}
        before = _settings_of(folder / SETTINGS)
        if before is None and os.path.exists(self.path):
            raise SettingsError(
                f"{folder} holds a {SAMPLES} of something else; choose another --output_dir."
            )
        if before is not None:
            keys = sorted(before.keys() | self._settings.keys())
            changed = [key for key in keys if before.get(key) != self._settings.get(key)]
            if changed:
                raise SettingsError(
                    f"{folder} holds a run with other settings ({', '.join(changed)}); choose "
                    "another --output_dir, or delete that one."
                )
            if resume and os.path.isfile(self.path):
                self._before = _lines_in(self.path)

    def take_up(self, examples: Iterable[Example]) -> dict[Key, Prediction]:
        """What an earlier run read of `examples`, without failures and without those whose
        picture changed. To be called before any is read: it notes how the pictures are now."""
        done: dict[Key, Prediction] = {}
        for example in examples:
            key = key_of(example)
            picture = self._pictures[key] = stamp_of(example.image)
            line = self._before.get(key)
            if line is not None and picture is not None and line.picture == picture:
                done[key] = line.prediction
        return done

    def begin(self) -> None:
        """Write the settings and what is taken up from an earlier run. Raises `FileWriteError`."""
        write_json(self.path.parent / SETTINGS, self._settings)
        write_text(self.path, "".join(f"{line.text}\n" for line in self._before.values()))

    def add(self, score: Score, data_root: Path) -> None:
        """Append one page; it is with the system when the call returns. Raises `FileWriteError`."""
        append_line(self.path, self._line(score, data_root))

    def rewrite(self, scores: list[Score], data_root: Path) -> None:
        """Put `scores` into the file, in this order, and behind them what the earlier run read
        beyond them. Raises `FileWriteError`."""
        lines = [self._line(score, data_root) for score in scores]
        asked = {key_of(score.example) for score in scores}
        lines += [line.text for key, line in self._before.items() if key not in asked]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def _line(self, score: Score, data_root: Path) -> str:
        """A line of samples.jsonl; `figures` holds each figure of this page alone."""
        example, read = score.example, asdict(score.prediction)
        size, changed = self._pictures.get(key_of(example)) or (None, None)
        shares = score.shares.items()
        values = {
            "name": example.name,
            "task": example.task,
            "image": example.image.relative_to(data_root).as_posix(),
            "image_bytes": size,
            "image_mtime_ns": changed,
            "reference": example.answer,
            "prediction": read.pop("text"),
            **read,
            "figures": {name: above / below for name, (above, below) in shares if below},
            "notes": list(score.notes),
        }
        return json.dumps(values, ensure_ascii=False)


def key_of(example: Example) -> Key:
    """What `Journal` knows an example by."""
    return example.task, example.name


def stamp_of(path: Path) -> Stamp | None:
    """What changes of a file when it is replaced; None if there is none to be had."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return status.st_size, status.st_mtime_ns


def _settings_of(path: Path) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    values = read_json(path, 2**20)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not the record of a run; choose another --output_dir.")
    return values


def _lines_in(path: Path) -> dict[Key, _Line]:
    """What was read, without failures and without a line cut off by a crash; the last line on a
    page counts. Raises `InputError`."""
    found: dict[Key, _Line] = {}
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"{path} has more than {LARGEST_FILE:,} bytes; choose another --output_dir."
            )
        with path.open("rb") as file:
            for line in file:
                parsed = _from_line(line)
                if parsed and parsed[1].prediction.error is None:
                    found[parsed[0]] = parsed[1]
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; choose another --output_dir."
        ) from error
    return found


_LINE: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "name", "prediction"), (str,)),
    **dict.fromkeys(("error", "finish_reason"), (str, type(None))),
    **dict.fromkeys(("text_tokens", "vision_tokens", "seconds"), (int, float, type(None))),
}
"""What a whole line holds at least."""


def _from_line(line: bytes) -> tuple[Key, _Line] | None:
    """The example and what the line holds of it; None if the line is not whole."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
        values = json.loads(text)
        if not all(isinstance(values[key], kinds) for key, kinds in _LINE.items()):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    task, name, *rest = (values[key] for key in _LINE)
    picture = values.get("image_bytes"), values.get("image_mtime_ns")  # older lines have none
    return (task, name), _Line(Prediction(*rest), picture, text)
