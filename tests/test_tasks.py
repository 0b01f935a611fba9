"""Names that users say become prompts and settings."""

from __future__ import annotations

import pytest

import tasks
from deepseek_ocr import presets
from deepseek_ocr.errors import PromptError, SettingsError
from deepseek_ocr.settings import CropSettings, DecodeSettings


def test_the_prompts_are_the_models_own() -> None:
    assert presets.prompt_for("Convert to Markdown") == (
        "<image>\n<|grounding|>Convert the document to markdown."
    )
    assert presets.prompt_for("Free OCR") == "<image>\nFree OCR."
    assert presets.prompt_for("Parse Figure") == "<image>\nParse the figure."
    assert presets.prompt_for("Locate Object by Reference", "  the total ") == (
        "<image>\nLocate <|ref|>the total<|/ref|> in the image."
    )


def test_the_presets_are_the_models_own() -> None:
    sizes = {
        name: (preset.crop.base_size, preset.crop.image_size, preset.crop.crop_mode)
        for name, preset in presets.PRESETS.items()
    }
    assert sizes == {
        "gundam": (1024, 640, True),
        "tiny": (512, 512, False),
        "small": (640, 640, False),
        "base": (1024, 1024, False),
        "large": (1280, 1280, False),
    }


@pytest.mark.parametrize("name", ["gundam", "GUNDAM", "Gundam (Recommended)", " gundam "])
def test_names_and_titles_in_any_case(name: str) -> None:
    assert presets.crop_for(name) is presets.PRESETS["gundam"].crop
    assert presets.preset_title(name) == "Gundam (Recommended)"
    assert presets.task_name("OCR") == presets.task_name("free ocr") == "ocr"
    assert presets.task_title("OCR") == "Free OCR"


def test_the_choices_of_cog_are_names_of_the_package() -> None:
    assert tasks.TASK_TYPES == {
        "Convert to Markdown": "markdown",
        "Free OCR": "ocr",
        "Parse Figure": "figure",
        "Locate Object by Reference": "locate",
    }
    assert tasks.RESOLUTION_SIZES == {
        "Gundam (Recommended)": "gundam",
        "Tiny": "tiny",
        "Small": "small",
        "Base": "base",
        "Large": "large",
    }
    assert presets.prompt_for("Free OCR", "not used") == presets.prompt_for("ocr")
    with pytest.raises(SettingsError, match="no task"):
        presets.prompt_for("translate", "")


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(SettingsError, match="markdown, ocr, figure, locate"):
        presets.task_name("translate")
    with pytest.raises(SettingsError, match="tiny, small, base, large"):
        presets.crop_for("huge")


@pytest.mark.parametrize("reference", ["", "   ", "\n\t"])
def test_locating_needs_a_reference(reference: str) -> None:
    with pytest.raises(PromptError, match="needs a reference"):
        presets.prompt_for("locate", reference)


@pytest.mark.parametrize(
    "reference",
    ["a<|/ref|>b", "<image>", "<｜end▁of▁sentence｜>", "<|grounding|>", "x <td> y", "half |>"],
)
def test_a_reference_with_special_tokens_is_refused(reference: str) -> None:
    with pytest.raises(PromptError, match="special tokens"):
        presets.prompt_for("locate", reference)


def test_a_reference_longer_than_any_name_is_refused() -> None:
    with pytest.raises(PromptError, match="1000 are the most"):
        presets.prompt_for("locate", "x" * 1001)


def test_braces_in_a_reference_are_plain_text() -> None:
    assert "{0} {reference}" in presets.prompt_for("locate", "{0} {reference}")


@pytest.mark.parametrize("size", [0, -64, 100, 1344, 2**40, 640.0])
def test_view_sizes_outside_the_range_are_refused(size: int) -> None:
    with pytest.raises(SettingsError, match="multiple of 64"):
        CropSettings(base_size=size)
    with pytest.raises(SettingsError, match="multiple of 64"):
        CropSettings(image_size=size)


def test_crop_mode_is_yes_or_no() -> None:
    with pytest.raises(SettingsError, match="True or False"):
        CropSettings(crop_mode="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"temperature": "0"},
        {"exempt_tokens": "<td>"},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"no_repeat_ngram_size": -1},
        {"no_repeat_ngram_size": 30, "no_repeat_window": 20},
    ],
)
def test_decode_settings_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(reversed(values))):
        DecodeSettings(**values)  # type: ignore[arg-type]
