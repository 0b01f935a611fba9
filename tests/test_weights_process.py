"""Processes of `deepseek-ocr weights`: killed at any moment, several at once, with a token."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_ocr.cli.terminal import DONE, INTERRUPTED, SOME_FAILED
from deepseek_ocr.weights import folders, registry
from deepseek_ocr.weights.folders import Condition
from tests import weights_world
from tests.weights_steps import left_in, until
from tests.weights_world import FILES, NAME, ROOT, Trouble, World

TOKEN = "hf_a-token-that-nobody-else-may-see"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The servers."""
    with weights_world.running(tmp_path / "check points") as running:
        yield running


def start(
    world: World, *arguments: str, pget: bool = True, die_at: int = 0, **more: str
) -> subprocess.Popen[str]:
    """A process that fetches."""
    command = [sys.executable, "-m", "tests.weights_process", json.dumps(world.ports), str(die_at)]
    where = ["--checkpoints", str(world.home)]
    return subprocess.Popen(
        [*command, "fetch", NAME, *where, *arguments],
        cwd=ROOT,
        env={**weights_world.environment(world.home.parent, pget), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status and what it wrote."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def check(world: World) -> None:
    """The checkpoint is whole and nothing else is left."""
    assert registry.verify(NAME, world.home) is not None
    assert all((world.target / name).read_bytes() == world.files[name] for name in FILES)
    assert left_in(world.home) == [f".{NAME}.lock", NAME]


def pget_calls(world: World) -> list[dict[str, object]]:
    """What the stand-in was called with."""
    record = world.home.parent / "bin" / "calls.jsonl"
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def alive(process: object) -> bool:
    """Is the process with this number there, and not only waiting to be buried?"""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def events(world: World, source: str, pget: bool) -> int:
    """How many changes to files an undisturbed fetch makes."""
    status, _, err = finish(start(world, "--source", source, pget=pget))
    assert status == DONE, err
    return int(err.splitlines()[-1])


@pytest.mark.parametrize(("source", "pget"), [("replicate", True), ("modelscope", False)])
def test_killed_at_ten_moments(world: World, source: str, pget: bool) -> None:
    """With pget a damaged checkpoint is being replaced; without, there is none yet."""
    total = events(world, source, pget)
    config = world.target / "config.json"
    for moment in range(10):
        config.write_text("{")  # damages what the run before has fetched
        if not pget:
            weights_world.remove(world.target)
        die_at = 1 + moment * (total - 1) // 9
        status, _, err = finish(start(world, "--source", source, pget=pget, die_at=die_at))
        assert status == -signal.SIGKILL, err
        state = folders.examine(world.target)
        if state.condition is Condition.READY:
            assert registry.verify(NAME, world.home) is not None
        elif state.condition is Condition.DAMAGED:
            assert pget, "half of a checkpoint is to be seen"
            assert config.read_text() == "{", "the damaged one was touched, not replaced"
        else:
            assert state.condition is Condition.ABSENT
        status, out, err = finish(start(world, "--source", source, pget=pget))
        assert (status, out) == (DONE, f"{NAME} is in {world.target}\n"), err
        check(world)


def test_a_pget_that_outlives_its_parent_does_no_harm(world: World) -> None:
    world.troubles = [Trouble("/default/", cut=100_000, stall=True, times=1)]
    first = start(world, "--source", "replicate")
    part = f".{NAME}.part/pget-*/part.tar"
    until(lambda: [path for path in world.home.glob(part) if path.stat().st_size], "a part")
    first.kill()
    finish(first)
    orphan = pget_calls(world)[0]["pid"]
    assert alive(orphan)
    assert not world.target.exists()
    status, _, err = finish(start(world, "--source", "replicate"))
    assert status == DONE, err
    check(world)
    world.release.set()
    until(lambda: not alive(orphan), "the orphan is through")
    check(world)


@pytest.mark.parametrize("fate", ["finishes", "is killed"])
def test_the_second_process_waits_for_the_first(world: World, fate: str) -> None:
    world.troubles = [Trouble("/default/", cut=100_000, stall=True, times=1)]
    first = start(world, "--source", "replicate")
    until(lambda: world.asked("/default/"), "the first asks")
    second = start(world, "--source", "replicate")
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    if fate == "finishes":
        world.release.set()
        assert finish(first)[0] == DONE
    else:
        first.kill()
        finish(first)
    assert finish(second)[0] == DONE
    check(world)
    assert len(world.asked("/default/")) == (1 if fate == "finishes" else 2)


def test_many_processes_at_once(world: World) -> None:
    processes = [start(world, "--source", "modelscope") for _ in range(4)]
    assert [finish(process)[0] for process in processes] == [DONE] * 4
    check(world)
    assert len(world.asked("model-00001")) == 1


def test_an_interrupt_ends_pget_too(world: World) -> None:
    world.troubles = [Trouble("/default/", cut=100_000, stall=True, times=1)]
    process = start(world, "--source", "replicate")
    until(lambda: world.asked("/default/"), "it asks")
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out) == (INTERRUPTED, "")
    assert "deepseek-ocr: interrupted; the same command starts it again." in err
    assert "Traceback" not in err
    assert not alive(pget_calls(world)[0]["pid"])
    assert finish(start(world, "--source", "replicate"))[0] == DONE
    check(world)


def test_the_environment_chooses_the_source(world: World) -> None:
    status, _, err = finish(start(world, DEEPSEEK_OCR_SOURCE="modelscope"))
    assert status == DONE, err
    assert {request.server for request in world.requests} == {"modelscope"}


def test_a_failure_is_said_and_not_traced(world: World) -> None:
    world.troubles = [Trouble("/", methods=("GET", "HEAD"), status=403)]
    status, out, err = finish(start(world))
    assert (status, out) == (SOME_FAILED, "")
    assert "deepseek-ocr: deepseek-ocr could not be fetched:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("pget", [True, False])
def test_the_token_goes_to_hugging_face_only(world: World, pget: bool) -> None:
    world.troubles = [Trouble("/default/", status=403), Trouble("/cdn/", status=403)]
    status, out, err = finish(start(world, pget=pget, HF_TOKEN=TOKEN))
    assert status == DONE, err
    with_token = {one.server for one in world.requests if TOKEN in str(one.headers)}
    assert with_token == {"huggingface"}
    assert {one.server for one in world.requests} == {*with_token, "replicate", "cdn", "modelscope"}
    questions = [one for one in world.requests if one.server == "huggingface"]
    assert all(one.headers["authorization"] == f"Bearer {TOKEN}" for one in questions)
    assert TOKEN not in out + err
    assert TOKEN not in json.dumps(pget_calls(world))
    for call in pget_calls(world):
        assert "huggingface" not in str(call["arguments"])
    for path in world.home.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize("pget", [True, False])
def test_a_token_that_is_refused_is_not_repeated_in_the_error(world: World, pget: bool) -> None:
    world.troubles = [Trouble("/", methods=("GET", "HEAD"), status=401)]
    status, out, err = finish(start(world, pget=pget, HF_TOKEN=TOKEN))
    assert status == SOME_FAILED
    assert "huggingface: " in err
    assert TOKEN not in out + err


def test_a_stored_login_counts_as_a_token(world: World) -> None:
    stored = world.home.parent / "hf" / "token"
    stored.parent.mkdir()
    stored.write_text(TOKEN)
    status, _, err = finish(start(world, "--source", "huggingface"))
    assert status == DONE, err
    assert {one.server for one in world.requests if TOKEN in str(one.headers)} == {"huggingface"}
    assert pget_calls(world) == []
    check(world)


def test_no_file_of_the_checkpoint_is_executed(world: World) -> None:
    """The Python file in the tar would end whoever runs it with a message."""
    assert b"was executed" in world.files["modeling_deepseekocr.py"]
    status, out, err = finish(start(world, "--source", "replicate"))
    assert status == DONE
    assert "was executed" not in out + err
    assert os.listdir(world.target).count("modeling_deepseekocr.py") == 0
