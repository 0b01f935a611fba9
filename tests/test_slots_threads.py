"""The threads of an engine: begun by the first page, ended with it, whatever comes in between."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from deepseek_ocr.errors import CancelledError
from deepseek_ocr.model.network import Network
from tests.conftest import ROOT
from tests.tiny_engine import Held, engine_of, engine_with, ids_alone, ids_of, page


def test_threads_begin_with_the_first_page_and_end_with_the_engine(tiny: Network) -> None:
    gc.collect()
    before = set(threading.enumerate())
    engine = engine_of(tiny, 2)
    assert set(threading.enumerate()) <= before
    engine.submit(page(1, 3)).result(60)
    begun = set(threading.enumerate()) - before
    assert {thread.name for thread in begun} == {"ocr-worker", "ocr-helper-0", "ocr-helper-1"}
    del engine
    for thread in begun:
        thread.join(60)
        assert not thread.is_alive()


def test_a_page_in_flight_keeps_its_engine(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    handle = engine_with(tiny, lambda _: decoder, 1).submit(page(1, 5))
    decoder.reached()
    gc.collect()
    decoder.let_go()
    assert ids_of(handle.result(60)) == ids_alone(tiny, page(1, 5))


def test_closing_cancels_and_takes_nothing_more(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    engine = engine_with(tiny, lambda _: decoder, 1)
    handles = [engine.submit(page(number, 50)) for number in range(3)]
    decoder.reached()
    decoder.let_go()
    engine.close()
    engine.close()
    for handle in handles:
        assert handle.done
    with pytest.raises(CancelledError, match="closed"):
        handles[2].result()
    with pytest.raises(CancelledError, match="load another"):
        engine.submit(page(1))


@pytest.mark.parametrize("began", [True, False])
def test_an_interruption_while_the_threads_start_leaves_the_engine_usable(
    tiny: Network, monkeypatch: pytest.MonkeyPatch, began: bool
) -> None:
    """Ctrl-C comes out of `Thread.start`, which does not tell whether the thread began."""
    engine = engine_of(tiny, 2)
    before = set(threading.enumerate())
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if began:
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.submit(page(1, 9))
    for left in set(threading.enumerate()) - before:
        left.join(60)
        assert not left.is_alive()
    assert ids_of(engine.submit(page(2, 9)).result(60)) == ids_alone(tiny, page(2, 9))
    engine.close()


def test_where_no_thread_can_be_had_the_page_fails_and_later_ones_are_read(
    tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny, 2)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("ocr-helper"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            engine.submit(page(1, 9)).result(60)
    assert ids_of(engine.submit(page(2, 9)).result(60)) == ids_alone(tiny, page(2, 9))


def test_a_program_may_end_while_pages_are_read() -> None:
    code = (
        "from tests.tiny_engine import *\n"
        "from tests.conftest import GOLDEN, load_network\n"
        "tiny = load_network(GOLDEN / 'checkpoint', 'cpu', 'float32')\n"
        "engine = engine_of(tiny, 2, 'auto,-compiled')\n"
        "handles = [engine.submit(page(n, 8000, no_repeat_ngram_size=0)) for n in range(3)]\n"
        "next(handles[0].deltas())\n"
        "print('reading')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "reading\n", "")
