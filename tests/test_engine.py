"""A page goes in and a reading comes out."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.engine.text_accumulator import count, valid_tokens
from deepseek_ocr.errors import DeviceError, ImageError, InputError, PromptError
from deepseek_ocr.grounding.parser import Confidence
from deepseek_ocr.images.image_loading import open_image
from deepseek_ocr.images.views import make_views
from deepseek_ocr.model.network import embed
from deepseek_ocr.settings import CropSettings, DecodeSettings
from tests.conftest import POCKET, ROOT

TINY = CropSettings(512, 512, crop_mode=False)
EXAMPLES = {"invoice": "Invoice", "total": "Total 498", "fruit": "Apple 12\nLemon 34"}


def example(name: str) -> Path:
    return ROOT / "examples" / f"{name}.png"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_read(pocket: OcrEngine, name: str) -> None:
    reading = pocket.read(example(name), "<image>\nFree OCR.", TINY)
    assert reading.text == EXAMPLES[name]
    assert reading.markdown == EXAMPLES[name].replace("\n", "  \n")
    assert reading.finish_reason == "stop"
    assert reading.image_size == (512, 512)


def test_the_image_goes_in_front_of_a_prompt_that_does_not_place_it(pocket: OcrEngine) -> None:
    assert pocket.read(example("invoice"), "Free OCR.", TINY).text == "Invoice"


def test_deltas_join_to_the_reading(pocket: OcrEngine) -> None:
    *deltas, reading = pocket.stream(example("fruit"), "Free OCR.", TINY)
    assert isinstance(reading, Reading)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == reading.text
    assert tuple(token for delta in deltas for token in delta.tokens) == reading.tokens
    assert len(deltas) > 5  # it comes as it is decoded


def test_the_first_delta_comes_before_the_page_is_done(
    pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, going_on = 0, threading.Semaphore(1)
    forward = pocket.network.lm_head.forward

    def held(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        assert going_on.acquire(timeout=60)
        steps += 1
        return forward(hidden)

    monkeypatch.setattr(pocket.network.lm_head, "forward", held)
    engine = OcrEngine(pocket.network, pocket.codec)
    stream = engine.stream(example("fruit"), "Free OCR.", TINY)
    next(stream)
    assert steps == 1
    stream.close()
    going_on.release(9)
    engine.close()  # when it is back, nothing is computed any more
    assert steps <= 2  # closing cancels: the step that was begun is the last


def test_counts_timings_and_confidence(pocket: OcrEngine) -> None:
    reading = pocket.read(example("total"), "Free OCR.", TINY)
    counts = reading.counts
    assert (counts.vision, counts.valid_vision) == (73, 64)
    assert counts.output == len(reading.tokens)
    assert pocket.codec.decode([token.id for token in reading.tokens]) == "Total 498"
    assert counts.prompt == 1 + 73 + len(pocket.codec.encode_text("\nFree OCR."))
    assert counts.compression_ratio == round(counts.output / 64, 2)
    assert min(reading.timings.vision, reading.timings.prefill, reading.timings.decode) > 0
    logprobs = [token.logprob for token in reading.tokens]
    assert reading.confidence == Confidence(
        pytest.approx(math.exp(sum(logprobs) / len(logprobs))),
        pytest.approx(math.exp(min(logprobs))),
    )
    assert [token.start for token in reading.tokens] == list(range(len(reading.text)))


def test_length_is_a_finish_reason(pocket: OcrEngine) -> None:
    reading = pocket.read(example("fruit"), "Free OCR.", TINY, DecodeSettings(max_new_tokens=3))
    assert (reading.text, reading.finish_reason) == ("App", "length")


class Scripted:
    """Stands in for the network's choices: the model writes what the script says."""

    def __init__(self, engine: OcrEngine, text: str) -> None:
        self.ids = [*engine.codec.encode_text(text), *engine.codec.end_ids]
        self.size = engine.network.config.text_config.vocab_size

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, self.size)
        logits[0, self.ids.pop(0)] = 9.0
        return logits


def scripted(
    engine: OcrEngine, text: str, patch: pytest.MonkeyPatch, decode: DecodeSettings
) -> Reading:
    patch.setattr(engine.network.lm_head, "forward", Scripted(engine, text))
    plain = OcrEngine(engine.network, engine.codec)
    return plain.read(example("invoice"), "Free OCR.", TINY, decode)


FREE = DecodeSettings(no_repeat_ngram_size=0)


def test_a_loop_ends_the_page(pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "A fine start.\n" + "la la " * 400
    reading = scripted(pocket, text, monkeypatch, FREE)
    assert reading.finish_reason == "loop"
    assert len(reading.text) < len(text) / 2
    assert text.startswith(reading.text)


def test_a_loop_may_be_let_run(pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DecodeSettings(no_repeat_ngram_size=0, stop_on_loop=False)
    text = "la la " * 150
    reading = scripted(pocket, text, monkeypatch, settings)
    assert (reading.text, reading.finish_reason) == (text, "stop")


def test_regions_have_boxes_text_and_confidence(
    pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n# Hi\n"
        "<|ref|>image<|/ref|><|det|>[[5, 6, 7, 8]]<|/det|>"
    )
    reading = scripted(pocket, text, monkeypatch, FREE)
    assert reading.text == text
    assert [region.label for region in reading.regions] == ["title", "image"]
    assert reading.regions[0].text == "# Hi"
    others = pocket.network.config.text_config.vocab_size - 1
    sure = math.exp(9) / (math.exp(9) + others)
    for region in reading.regions:
        assert region.confidence is not None
        assert region.confidence.lowest == pytest.approx(sure, rel=1e-4)
    assert reading.markdown == "# Hi\n\n![](images/0.jpg)"


def test_an_empty_answer_is_a_reading(pocket: OcrEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = scripted(pocket, "", monkeypatch, FREE)
    assert (reading.text, reading.regions, reading.confidence) == ("", (), None)
    assert reading.finish_reason == "stop"


def test_many_pages_come_in_order_and_a_bad_one_does_not_stop_them(pocket: OcrEngine) -> None:
    started = []

    def pages():  # type: ignore[no-untyped-def]
        for source in (example("invoice"), b"no picture", example("total"), "gone.png"):
            started.append(source)
            yield Page(source, "Free OCR.", TINY)

    outcomes = pocket.read_many(pages())
    assert not started  # pages are taken when the first outcome is asked for
    first, second, third, fourth = outcomes
    assert isinstance(first, Reading)
    assert isinstance(third, Reading)
    assert (first.text, third.text) == ("Invoice", "Total 498")
    assert isinstance(second, Failure)
    assert isinstance(second.error, ImageError)
    assert "gone.png" in str(fourth)


@pytest.mark.parametrize(
    ("crop", "valid"),
    [
        (CropSettings(512, 512, crop_mode=False), 64),
        (CropSettings(640, 640, crop_mode=False), 100),
        (CropSettings(1024, 1024, crop_mode=False), 128),
        (CropSettings(1280, 1280, crop_mode=False), 200),
        (CropSettings(), 128 + 2 * 100),
    ],
)
def test_valid_tokens_of_a_page_twice_as_wide_as_high(crop: CropSettings, valid: int) -> None:
    """Small views stretch the page and so have no padding; larger ones are half padding."""
    views = make_views(Image.new("RGB", (1000, 500)), crop)
    assert valid_tokens(views, crop, (1000, 500)) == valid


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_a_page_of_any_shape_is_read(pocket: OcrEngine, size: tuple[int, int]) -> None:
    reading = pocket.read(Image.new("RGB", size, "white"), "Free OCR.", TINY)
    assert reading.finish_reason == "stop"


def test_a_failure_does_not_keep_the_page_alive(pocket: OcrEngine) -> None:
    (failure,) = pocket.read_many([Page(b"no picture", "Free OCR.", TINY)])
    assert isinstance(failure, Failure)
    link: BaseException | None = failure.error
    assert link.__cause__ is not None  # the reason is still there
    while link is not None:
        assert link.__traceback__ is None
        link = link.__cause__ or link.__context__


def test_bad_input_leaves_nothing_behind(
    pocket: OcrEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import os
    import tempfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()  # what other tests left is not given back in between
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for source in (broken, b"", "gone.png", example("invoice").read_bytes()[:900]):
        with pytest.raises(ImageError):
            pocket.read(source, "Free OCR.", TINY)
    assert list(tmp_path.iterdir()) == [broken]
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened


def test_a_prompt_with_two_images_is_refused(pocket: OcrEngine) -> None:
    with pytest.raises(PromptError, match="exactly once"):
        pocket.read(example("invoice"), "<image><image>\nFree OCR.", TINY)


def test_a_page_that_does_not_fit_the_context_says_so(pocket: OcrEngine) -> None:
    with pytest.raises(PromptError, match="smaller preset"):
        pocket.read(Image.new("RGB", (1, 10_000)), "Free OCR. " * 200, CropSettings())


def test_placeholders_and_rows_must_agree(pocket: OcrEngine) -> None:
    rows = pocket.vision_tokens(make_views(open_image(example("invoice")), TINY))
    assert rows.shape == (73, 256)
    image_id = pocket.codec.image_id
    for ids in ([0, *[image_id] * 72, 5], [0, *[image_id] * 74, 5], [0, 5]):
        with pytest.raises(InputError, match="placeholders"):
            embed(pocket.network, ids, rows, 1)


def test_prompt_ids_are_the_official_ones() -> None:
    import json

    from deepseek_ocr.model.prompts import encode, load_codec
    from tests.conftest import GOLDEN, reference

    tokenizer = reference("upstream", "tokenizer.json")
    codec = load_codec(tokenizer.parent, 0, frozenset({1}), 128815)
    for case in json.loads((GOLDEN / "preprocess.json").read_text())["cases"]:
        prompt = encode(
            codec,
            "<image>\n<|grounding|>Convert the document to markdown.",
            case["vision_tokens"],
        )
        assert prompt.ids[:3] == case["head"]
        assert prompt.ids[-10:] == case["tail"]
        assert (len(prompt.ids), prompt.image_start) == (case["length"], case["image_start"])


def test_valid_vision_tokens_are_counted_as_the_official_code_does() -> None:
    import json

    from tests.conftest import reference

    for page in json.loads(reference("real", "pages.json").read_text()):
        image = open_image(reference("real", page["fixture"]))
        views = make_views(image, CropSettings())
        for mode in page["modes"].values():
            valid = valid_tokens(views, CropSettings(), image.size)
            counts = count(0, 0, int(mode["output_text_tokens"]), valid)
            assert str(counts.valid_vision) == mode["valid_img_tokens"]
            assert counts.compression_ratio == float(mode["compression_ratio"])


@pytest.mark.parametrize("kernels", ["auto", "auto,-compiled", "plain"])
def test_a_page_is_read_with_weights_of_8_bits(kernels: str) -> None:
    engine = OcrEngine.load(POCKET, "cpu", quant="int8", kernels=kernels)
    texts = {name: engine.read(example(name), "Free OCR.", TINY).text for name in EXAMPLES}
    engine.close()
    assert texts == EXAMPLES


@pytest.mark.parametrize(
    "stage",
    [
        "deepseek_ocr.model.checkpoint.TensorFiles.read",
        "deepseek_ocr.kernels.rehearsal.prepare",
        "deepseek_ocr.kernels.op_fallbacks.rehearse",
    ],
)
def test_memory_that_runs_out_at_load_is_explained(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(stage, fail)
    monkeypatch.setattr("deepseek_ocr.devices.memory.free_bytes", lambda device: 10**9)
    failure: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")
    with pytest.raises(DeviceError) as caught:
        OcrEngine.load(POCKET, "cpu", "float32", slots=3)
    told = str(caught.value)
    assert "'cpu' ran out of memory" in told
    assert "CUDA out of memory. Tried to allocate 1.50 GiB" in told
    assert "1.0 GB were free before" in told
    assert "slots 1 (" in told
    assert "--" not in told
    assert caught.value.__cause__ is failure
    failure = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        OcrEngine.load(POCKET, "cpu", "float32")


def test_a_device_too_full_to_be_asked_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.device) -> int:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …")

    monkeypatch.setattr("deepseek_ocr.devices.memory.free_bytes", full)
    with pytest.raises(DeviceError, match=r"loaded \(CUDA error: out of memory\)\. Its weights"):
        OcrEngine.load(POCKET, "cpu", "float32")
