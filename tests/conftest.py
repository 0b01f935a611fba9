"""Paths and loaded models that several test files share."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.kernels import compiling
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.weights import registry
from tests.goldens import GOLDEN, load_golden

if TYPE_CHECKING:
    from tests.serving_world import Server

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "checkpoints" / "pocket"

REFERENCE = os.environ.get("OCR_REFERENCE")
"""Folder with outputs of the real checkpoint and its tokenizer, where somebody has one."""


def pytest_configure() -> None:
    """Give the tests what their caller's environment may lack, before any worker starts.

    - Shells ignore Ctrl-C for background jobs, and programs under test would inherit that.
    - If the home directory cannot be written, compiled kernels go to the temporary folder.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        compiling._folder()
    except (OSError, compiling.CompilingError):
        cache = Path(tempfile.gettempdir()) / f"deepseek-ocr-tests-{os.getuid()}"
        os.environ["XDG_CACHE_HOME"] = str(cache)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers are the same whichever tests ran before, also in fixtures."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def reference(*parts: str) -> Path:
    """A file of the reference material; the test is skipped where it is not at hand."""
    path = Path(REFERENCE or "").joinpath(*parts)
    if not REFERENCE or not path.exists():
        pytest.skip(f"needs the reference material ({'/'.join(parts)}); set OCR_REFERENCE")
    return path


def need(program: str) -> None:
    """Skip the test if `program` is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of single bytes and the model's tags: most characters take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: at for at, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = (
        "<image>",
        "<|ref|>",
        "<|/ref|>",
        "<|det|>",
        "<|/det|>",
        "<td>",
        "</td>",
        "<tr>",
        "</tr>",
    )
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    return tokenizer


TOKENIZERS = ("bytes", "official")


def tokenizer_called(name: str) -> Tokenizer:
    """The byte tokenizer, or the official one where it is at hand."""
    if name == "bytes":
        return byte_tokenizer()
    return Tokenizer.from_file(str(reference("upstream", "tokenizer.json")))


@pytest.fixture(autouse=True)
def _no_user_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the person who runs the tests has configured must not matter."""
    for name in [name for name in os.environ if name.startswith("DEEPSEEK_OCR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    monkeypatch.setenv("DEEPSEEK_OCR_DEVICE", "cpu")


@pytest.fixture(autouse=True, scope="session")
def _no_user_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers keep documents in a folder of the tests, not in the home of who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _any_size_may_be_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' checkpoints are small; one test looks at this bound itself."""
    monkeypatch.setattr(registry, "_LEAST_SHARE", 0.0)


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """The library keeps one state for the process, with the precision of whoever came first."""
    from accelerate.state import AcceleratorState  # not in the containers

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny() -> Network:
    """The golden checkpoint: official format, small sizes, random weights, float32."""
    return load_network(GOLDEN / "checkpoint", "cpu", "float32")


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """What the official implementation computed with the golden checkpoint."""
    return load_golden()


@pytest.fixture(scope="session")
def pocket() -> OcrEngine:
    """The bundled model, which really reads."""
    return OcrEngine.load(POCKET, "cpu", "float32")


@pytest.fixture(scope="session")
def codec(pocket: OcrEngine) -> Codec:
    """The bundled model's."""
    return pocket.codec


@pytest.fixture
def network() -> Network:
    """A fresh copy of the bundled model in float32, every weight trainable."""
    return load_network(POCKET, "cpu", "float32").train().requires_grad_(True)


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it starts by itself, with two models, and that fetches addresses."""
    from tests import serving_world

    endless = serving_world.endless_model(tmp_path_factory.mktemp("models"))
    arguments = ("--model", "pocket", "--model", str(endless), "--allow-urls")
    with serving_world.serving(*arguments) as running:
        yield running


def _serving(factory: pytest.TempPathFactory, name: str, *options: str, keys: str = "") -> Any:
    from tests.serving_process import Server  # it needs this file

    return Server(factory.mktemp(name), *options, keys=keys)


@pytest.fixture(scope="session")
def known_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running server whose engine writes what is known; see `serving_process`."""
    with _serving(tmp_path_factory, "known") as server:
        yield server


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same with two keys and one slot."""
    keys = "first-key-for-tests,second-key-for-tests"
    with _serving(tmp_path_factory, "keyed", "--slots", "1", keys=keys) as server:
        yield server


@pytest.fixture(scope="session")
def pocket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running server with the bundled model."""
    with _serving(tmp_path_factory, "pocket", "--engine", "pocket") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from tests import page_browser  # it needs this file

    with page_browser.chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens the page of a server; see `page_browser`."""
    from tests import page_browser

    with page_browser.opener(browser) as opened:
        yield opened
