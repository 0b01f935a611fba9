"""What the programs left before they moved into one package is still read; names stay.

`tests/before/` holds it: runs, settings, checkpoints, and the names of flags, inputs, files and
exports, of which there may be more now. Its README says which revision made it and how. Programs
are asked from outside, as by their users. The server is in `test_compatibility_server.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deepseek_ocr
from tests import weights_world
from tests.before import interface
from tests.before.interface import EVERY_FORMAT, RUN
from tests.conftest import ROOT
from tests.weights_world import NAME

PROGRAMS = {
    "read": [str(ROOT / "ocr.py")],
    "serve": [str(ROOT / "serve.py")],
    "list": [str(ROOT / "weights.py"), "list"],
    "fetch": [str(ROOT / "weights.py"), "fetch", NAME],
    "verify": [str(ROOT / "weights.py"), "verify", NAME],
    "fetch from the test's place": ["-m", "tests.weights_process"],
}
"""What each program is called now; `serving_world.Server` has the server's own line."""

BEFORE = Path(__file__).resolve().parent / "before"

NAMES: dict[str, Any] = json.loads((BEFORE / "names.json").read_text())

VOLATILE = ("timings", "seconds", "confidence")
"""Fields of outputs that depend on the machine and the moment."""


@pytest.fixture(scope="module", autouse=True)
def _plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings of whoever runs the tests, and no way to a network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DEEPSEEK_OCR_")]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield


def run(program: str, *arguments: str, cwd: Path, **environ: str) -> str:
    """What a program prints; it must succeed."""
    return completed(program, *arguments, cwd=cwd, **environ).stdout


def read(*arguments: str, cwd: Path) -> str:
    """What is said of a run over documents; it must succeed."""
    return completed("read", *arguments, cwd=cwd).stderr


def completed(
    program: str, *arguments: str, cwd: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    """A program that came to its end, and succeeded."""
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program], *arguments],
        cwd=cwd, env=os.environ | environ, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """File → its bytes, of all files of a folder but those of locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def pages_listed(manifest: str) -> list[tuple[str, int]]:
    """(source, page) of the lines of a manifest that are about a page."""
    found = [json.loads(line) for line in manifest.splitlines()]
    return [(line["source"], line["page"]) for line in found if line["page"] is not None]


def steady(data: Any) -> Any:
    """JSON data without the fields that are `VOLATILE`."""
    if isinstance(data, list):
        return [steady(one) for one in data]
    if isinstance(data, dict):
        return {name: steady(value) for name, value in data.items() if name not in VOLATILE}
    return data


def outputs(folder: Path) -> dict[str, Any]:
    """File → what is in it, of the outputs of a run."""
    return {
        name: steady(json.loads(data)) if name.endswith(".json") else data
        for name, data in contents(folder).items()
        if not name.startswith((".pages/", "manifest"))
    }


# --- runs over documents ------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the documents of the runs."""
    shutil.copytree(BEFORE / "documents", tmp_path / "documents")
    return tmp_path


def test_a_run_that_was_killed_goes_on_and_reads_the_rest_only(work: Path) -> None:
    kept = shutil.copytree(BEFORE / "interrupted", work / "out")
    before = contents(kept)
    manifest = (kept / "manifest.jsonl").read_text()
    assert len(pages_listed(manifest)) == 3

    said = read(*RUN, cwd=work)

    assert "3 read before" in said
    after = (kept / "manifest.jsonl").read_text()
    assert after.startswith(manifest)
    assert pages_listed(after.removeprefix(manifest)) == [
        ("documents/ledger.pdf", 2),
        ("documents/total.png", 1),
    ]
    now = contents(kept)
    same = [name for name in before if not name.endswith(("source.json", "manifest.jsonl"))]
    assert {name: now[name] for name in same} == {name: before[name] for name in same}
    shutil.move(kept, work / "resumed")
    read(*RUN, cwd=work)
    assert len(outputs(work / "out")) == 12
    assert outputs(work / "resumed") == outputs(work / "out")


def test_a_run_that_was_finished_reads_and_writes_nothing(work: Path) -> None:
    kept = shutil.copytree(BEFORE / "finished", work / "out")
    before = contents(kept)
    written = {path: path.stat().st_mtime_ns for path in kept.glob("*/*.*")}
    assert "5 read before" in read(*RUN, cwd=work)
    now = contents(kept)
    changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
    assert {Path(name).name for name in changed} <= {"source.json"}  # it has the folder's new place
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_pages_that_were_read_before_are_written_in_every_format(tmp_path: Path) -> None:
    """Pages that looped, were cut, came out empty or had a figure; one had failed and is tried
    again."""
    shutil.copy(BEFORE / "kinds.pdf", tmp_path)
    kept = shutil.copytree(BEFORE / "kinds", tmp_path / "out")
    manifest = (kept / "manifest.jsonl").read_text()
    records = {path.name: path.read_bytes() for path in sorted(kept.glob(".pages/kinds/000*.json"))}
    failed = [name for name, record in records.items() if json.loads(record)["page"]["error"]]

    said = read("--model", "pocket", "kinds.pdf", "-o", "out", *EVERY_FORMAT, cwd=tmp_path)

    assert "9 read before" in said
    after = (kept / "manifest.jsonl").read_text()
    assert after.startswith(manifest)
    (again,) = pages_listed(after.removeprefix(manifest))
    assert failed == [f"{again[1]:05}.json"]
    for name, record in records.items():
        assert ((kept / ".pages/kinds" / name).read_bytes() == record) == (name not in failed)
    assert set(NAMES["files"]) <= contents(kept).keys()
    pages = json.loads((kept / "kinds/kinds.json").read_text())["pages"]
    for page, record in zip(pages, records.values(), strict=True):
        if f"{page['number']:05}.json" not in failed:
            was = json.loads(record)["page"]
            assert (page["text"], page["finish_reason"]) == (was["text"], was["finish_reason"])
            assert [one["outcome"] for one in page["tries"]] == [
                one["outcome"] for one in was["tries"]
            ]


# --- settings -----------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = json.loads((BEFORE / "settings.json").read_text())


def settings(program: str, *arguments: str, cwd: Path, **environ: str) -> dict[str, Any]:
    """What holds for a program. An empty variable is none: the tests' own device must not count."""
    environ = {"DEEPSEEK_OCR_DEVICE": "", **environ}
    return tomllib.loads(run(program, *arguments, "--print-config", cwd=cwd, **environ))


def arrived(found: dict[str, Any]) -> dict[str, Any]:
    """Of the settings `found` those that there were before."""
    was = SETTINGS["arrives"]
    server = {name: found["server"].get(name) for name in was["server"]}
    return {name: found.get(name) for name in was} | {"server": server}


def test_every_key_of_the_file_arrives(tmp_path: Path) -> None:
    file = ("--config", str(BEFORE / "config.toml"))
    assert arrived(settings("serve", *file, cwd=tmp_path)) == SETTINGS["arrives"]
    assert arrived(settings("read", *file, cwd=tmp_path)) == SETTINGS["arrives"]


def test_the_file_is_found_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "deepseek-ocr").mkdir()
    shutil.copy(BEFORE / "config.toml", tmp_path / "deepseek-ocr" / "config.toml")
    found = settings("serve", cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path))
    assert arrived(found) == SETTINGS["arrives"]


def test_every_variable_arrives(tmp_path: Path) -> None:
    found = settings("serve", cwd=tmp_path, **SETTINGS["environment"])
    assert arrived(found) == SETTINGS["arrives"]
    assert settings("read", cwd=tmp_path, OMP_NUM_THREADS="3")["threads"] == 3


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "source"), [("fetched", "huggingface"), ("adopted", "adopted")])
def test_a_checkpoint_is_whole_and_is_not_fetched_again(
    kind: str, source: str, tmp_path: Path
) -> None:
    kept = shutil.copytree(BEFORE / "checkpoints" / kind, tmp_path / "checkpoints")
    before = contents(kept)
    place = ("--checkpoints", str(kept))
    assert f"{NAME}: ready" in run("list", *place, cwd=tmp_path)
    assert f"{NAME} is in {kept / NAME}" in run("fetch", *place, cwd=tmp_path)
    found = run("verify", cwd=tmp_path, DEEPSEEK_OCR_CHECKPOINTS=str(kept))
    assert f"all 6 files are as they came from {source}" in found
    assert contents(kept) == before


def test_a_download_that_was_killed_is_made_whole(tmp_path: Path) -> None:
    kept = shutil.copytree(BEFORE / "checkpoints" / "interrupted", tmp_path / "checkpoints")
    assert (kept / f".{NAME}.part").is_dir()
    with weights_world.running(kept, weights_world.checkpoint_files(2000)) as world:
        place = ("fetch", NAME, "--checkpoints", str(kept), "--source", "huggingface")
        environ = weights_world.environment(tmp_path, pget=False)
        run("fetch from the test's place", json.dumps(world.ports), "0", *place, cwd=ROOT,
            **environ)  # fmt: skip
    assert {path.name for path in kept.iterdir()} <= {f".{NAME}.lock", NAME}
    run("verify", "--checkpoints", str(kept), cwd=tmp_path)


# --- names --------------------------------------------------------------------------------------


def missing(was: dict[str, list[str]], now: dict[str, list[str]]) -> dict[str, list[str]]:
    """What was there and is not any more."""
    gone = {key: sorted({*names} - {*now.get(key, ())}) for key, names in was.items()}
    return {key: names for key, names in gone.items() if names or key not in now}


def test_what_is_missing_is_found() -> None:
    was = {"a": ["x", "y"], "b": [], "c": ["z"]}
    assert missing(was, {"a": ["x"], "c": ["z", "new"], "d": []}) == {"a": ["y"], "b": []}


@pytest.mark.parametrize("predictor", interface.PREDICTORS)
def test_inputs_of_the_predictors(predictor: str) -> None:
    was, now = NAMES["cog"][predictor], interface.cog_inputs(ROOT / "predict.py")[predictor]
    assert {name: now.get(name) for name in was} == was


def test_the_predictors_are_where_cog_looks() -> None:
    import predict

    for predictor in interface.PREDICTORS:
        assert callable(getattr(predict, predictor).predict)


def test_what_the_package_exports() -> None:
    assert missing({"all": NAMES["all"]}, {"all": deepseek_ocr.__all__}) == {}
    assert all(hasattr(deepseek_ocr, name) for name in NAMES["all"])


@pytest.mark.parametrize("program", NAMES["flags"])
def test_flags(program: str, tmp_path: Path) -> None:
    """All at once, with one that ends the program before what they say is weighed."""
    completed(program, *NAMES["flags"][program], "--print-config", cwd=tmp_path)
    refused = subprocess.run(
        [sys.executable, *PROGRAMS[program], "--no-such-flag", "--print-config"],
        cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    assert refused.returncode == 2


@pytest.mark.parametrize("program", NAMES["flags"])
def test_flags_that_end_a_program(program: str, tmp_path: Path) -> None:
    assert run(program, "--help", cwd=tmp_path)
    assert run(program, "--version", cwd=tmp_path)
    run(program, "--init-config", "--config", "new.toml", cwd=tmp_path)
    assert "# slots = " in (tmp_path / "new.toml").read_text()
