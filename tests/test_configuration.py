"""Flags before environment before file before defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek_ocr import configuration
from deepseek_ocr.errors import SettingsError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_source_gives_way_to_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'model = "file"\ndevice = "file"\ndtype = "file"\n')
    environ = {"DEEPSEEK_OCR_MODEL": "env", "DEEPSEEK_OCR_DEVICE": "env"}
    settings = configuration.load({"model": "flag", "device": None}, environ, file)
    assert (settings.model, settings.device, settings.dtype) == ("flag", "env", "file")
    assert settings.source == "auto"


def test_empty_environment_variables_are_unset() -> None:
    assert configuration.load({}, {"DEEPSEEK_OCR_MODEL": " "}).model == "deepseek-ocr"


def test_the_file_is_looked_for_where_the_platform_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    configuration.default_path().parent.mkdir(parents=True)
    write(configuration.default_path(), 'device = "cpu"')
    assert configuration.load(environ={}).device == "cpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'x'", "no setting"),
        ("model = 3", "string"),
        ("model = ", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("[model]\nname = 'x'", "string"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "bad.toml", text)
    with pytest.raises(SettingsError, match=message) as caught:
        configuration.load({}, {}, file)
    assert "bad.toml" in str(caught.value)


@pytest.mark.parametrize(("text", "slots"), [("4", 4), ("auto", 0), (" AUTO ", 0), ("1024", 1024)])
def test_slots_are_a_number_or_auto(text: str, slots: int, tmp_path: Path) -> None:
    assert configuration.load({"slots": text}, {}).slots == slots
    assert configuration.load({}, {"DEEPSEEK_OCR_SLOTS": text}).slots == slots
    file = write(tmp_path / "c.toml", f'slots = "{text}"\n')
    assert configuration.load({}, {}, file).slots == slots


def test_slots_may_be_a_number_in_the_file(tmp_path: Path) -> None:
    assert configuration.load({}, {}, write(tmp_path / "c.toml", "slots = 8\n")).slots == 8


@pytest.mark.parametrize("text", ["0", "-1", "four", "1.5", "1025", "٤", "9" * 5000, ""])
def test_other_slots_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="slots must be"):
        configuration.load({"slots": text}, {})


@pytest.mark.parametrize(
    ("name", "value"), [("quant", "int3"), ("kernels", "turbo"), ("kernels", "auto,-turbo")]
)
def test_a_name_that_nobody_knows_is_refused_at_once(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=r"turbo|int3"):
        configuration.load({name: value}, {})


def test_a_missing_file_asked_for_by_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        configuration.load({}, {}, tmp_path / "none.toml")
