"""What was read so far, a line a page, so that a long run can stop anywhere and go on.

A folder holds `run.json` (what was asked) and `samples.jsonl` (what came of it). A run with the
same settings goes on where the last one stopped and tries pages that failed again; with other
settings it is refused, or two runs would be mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek_ocr.errors import InputError, SettingsError
from training.files import read_json, read_text, write_json, write_text, writing
from training.samples import Example
from training.scoring import Prediction, Score

SETTINGS, SAMPLES = "run.json", "samples.jsonl"

Key = tuple[str, str]
"""Task and name of an example."""


class Journal:
    """The record of one run in `folder`; `done` is what it takes up from an earlier one.

    `resume` is for texts that do not change meanwhile; without it the record begins anew.
    Nothing is written before `begin`.

    Raises `SettingsError` where the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool = True) -> None:
        self.path = folder / SAMPLES
        self._settings = json.loads(json.dumps(settings))
        self._kept: dict[Key, str] = {}
        self.done: dict[Key, Prediction] = {}
        before = _settings_of(folder / SETTINGS)
        if before is None and self.path.exists():
            raise SettingsError(
                f"{folder} holds a {SAMPLES} of something else; choose another --output_dir."
            )
        if before is not None:
            _compare(folder, before, self._settings)
            if resume and self.path.is_file():
                self._take_up()

    def begin(self) -> None:
        """Write the settings and what is taken up from an earlier run. Raises `OutputError`."""
        write_json(self.path.parent / SETTINGS, self._settings)
        write_text(self.path, "".join(f"{line}\n" for line in self._kept.values()))

    def add(self, score: Score, data_root: Path) -> None:
        """Append one page; it is with the system when the call returns. Raises `OutputError`."""
        line = json.dumps(to_json(score, data_root), ensure_ascii=False)
        with writing(self.path), self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")

    def rewrite(self, scores: list[Score], data_root: Path) -> None:
        """Put `scores` into the file, in this order, and behind them what the earlier run read
        beyond them. Raises `OutputError`."""
        lines = [json.dumps(to_json(score, data_root), ensure_ascii=False) for score in scores]
        asked = {key_of(score.example) for score in scores}
        lines += [line for key, line in self._kept.items() if key not in asked]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def _take_up(self) -> None:
        """Remember what was read, without failures and without a line cut off by a crash."""
        for line in read_text(self.path).split("\n"):
            found = _from_line(line)
            if found and found[1].error is None:
                self.done[found[0]] = found[1]
                self._kept[found[0]] = line


def to_json(score: Score, data_root: Path) -> dict[str, Any]:
    """A line of samples.jsonl; `figures` holds each figure of this page alone."""
    example, prediction = score.example, score.prediction
    return {
        "name": example.name,
        "task": example.task,
        "image": example.image.relative_to(data_root).as_posix(),
        "reference": example.answer,
        "prediction": prediction.text,
        "error": prediction.error,
        "finish_reason": prediction.finish_reason,
        "text_tokens": prediction.text_tokens,
        "vision_tokens": prediction.vision_tokens,
        "seconds": prediction.seconds,
        "figures": {name: above / below for name, (above, below) in score.shares.items() if below},
        "notes": list(score.notes),
    }


def key_of(example: Example) -> Key:
    """What `Journal.done` knows an example by."""
    return example.task, example.name


def _settings_of(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values = read_json(path, 2**20)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not the record of a run; choose another --output_dir.")
    return values


def _compare(folder: Path, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changed = [
        key for key in sorted(before.keys() | asked.keys()) if before.get(key) != asked.get(key)
    ]
    if changed:
        raise SettingsError(
            f"{folder} holds a run with other settings ({', '.join(changed)}); choose another "
            "--output_dir, or delete that one."
        )


def _from_line(line: str) -> tuple[Key, Prediction] | None:
    """The example and its prediction in a line; None where the line is not whole."""
    try:
        values = json.loads(line)
        task, name, text, error = (values[key] for key in ("task", "name", "prediction", "error"))
        counts = [values[key] for key in ("text_tokens", "vision_tokens", "seconds")]
        reason = values["finish_reason"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts_fit = all(isinstance(value, str) for value in (task, name, text))
    rest_fits = all(value is None or isinstance(value, str) for value in (error, reason))
    if not texts_fit or not rest_fits:
        return None
    if not all(value is None or isinstance(value, int | float) for value in counts):
        return None
    return (task, name), Prediction(text, error, reason, *counts)
