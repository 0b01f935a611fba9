"""Fetching over real HTTP from servers that fail in every way, by pget's stand-in and without."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.weights import folders
from tests import weights_world
from tests.weights_steps import CONTENT, SOURCES, check, ensure, failing
from tests.weights_world import NAME, WEIGHTS, Trouble, World, in_huggingface, in_modelscope

pytest_plugins = ["tests.weights_fixtures"]


# --- what works ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_by_each_downloader(world: World, carrier: str, source: str) -> None:
    said = ensure(world, source)
    check(world, source)
    assert f"from {source}, by {'pget' if carrier == 'pget' else 'huggingface_hub'}\n" in said
    assert not any("modeling" in request.path for request in world.requests), "Python was fetched"


def test_the_pinned_revision_is_asked_for_and_recorded(world: World, carrier: str) -> None:
    ensure(world, "huggingface")
    asked = [one.path for one in world.requests if one.server == "huggingface"]
    assert asked
    assert all(weights_world.REVISION in path for path in asked)
    assert folders.read_record(world.target).revision == weights_world.REVISION


def test_what_is_there_is_not_fetched_again(world: World, carrier: str) -> None:
    ensure(world)
    before = len(world.requests)
    ensure(world)
    assert len(world.requests) == before


def test_what_a_killed_run_left_beside_a_finished_one_is_removed(
    world: World, carrier: str
) -> None:
    ensure(world)
    left = world.home / f".{NAME}.part" / "huggingface" / "config.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    ensure(world)
    check(world, "replicate")


def test_a_damaged_one_is_replaced_and_kept(world: World, carrier: str) -> None:
    ensure(world)
    (world.target / "config.json").write_text("{")
    said = ensure(world, "modelscope")
    assert "config.json has 1 bytes instead of" in said
    check(world, "modelscope")
    kept = world.home / f"{NAME}.damaged-1"
    assert (kept / "config.json").read_text() == "{"
    assert f"kept as {kept}" in said
    (world.target / "config.json").write_text("[")
    ensure(world, "modelscope")
    assert (world.home / f"{NAME}.damaged-2" / "config.json").read_text() == "["


def test_an_empty_folder_is_replaced(world: World, carrier: str) -> None:
    world.target.mkdir(parents=True)
    ensure(world)
    check(world, "replicate")


@pytest.mark.parametrize("failed", [1, 2])
def test_a_source_that_fails_is_followed_by_the_next(
    world: World, carrier: str, failed: int
) -> None:
    world.troubles = [Trouble(CONTENT[name], status=500) for name in SOURCES[:failed]]
    said = ensure(world)
    check(world, SOURCES[failed])
    assert all(f"  {name}: " in said for name in SOURCES[:failed])


def test_when_all_fail_the_error_lists_all(world: World, carrier: str) -> None:
    world.troubles = [Trouble(path, status=500) for path in CONTENT.values()]
    message = failing(world, "auto", "deepseek-ocr could not be fetched")
    assert all(f"\n  {name}: " in message for name in SOURCES)
    assert message.endswith("deepseek-ocr weights adopt FOLDER")


# --- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_content_is_refused(world: World, carrier: str, source: str, status: int) -> None:
    world.troubles = [Trouble(CONTENT[source], status=status)]
    failing(world, source, f"{source}: (pget ended with status 1|the download broke off).*{status}")


@pytest.mark.parametrize(
    ("source", "path", "method"),
    [
        ("replicate", "/default/", "HEAD"),
        ("huggingface", "/api/models/", "GET"),
        ("modelscope", "/repo/files", "GET"),
    ],
)
@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_the_question_before_is_refused(
    world: World, carrier: str, source: str, path: str, method: str, status: int
) -> None:
    world.troubles = [Trouble(path, methods=(method,), status=status)]
    if source == "replicate" and status != 404:  # perhaps only HEAD is refused: tried all the same
        ensure(world, source)
        check(world, source)
        return
    failing(world, source, str(status))
    assert not world.asked(CONTENT[source])


@pytest.mark.parametrize("source", SOURCES)
def test_nobody_answers(world: World, carrier: str, source: str) -> None:
    world.ports[source] = 1
    failing(world, source, f"{source}: .*(cannot be reached|does not list)")


@pytest.mark.parametrize("source", SOURCES)
def test_the_connection_drops_for_good(world: World, carrier: str, source: str) -> None:
    world.troubles = [Trouble(CONTENT[source], cut=1000)]
    failing(world, source, "pget ended with status 1|the download broke off")


@pytest.mark.parametrize("source", SOURCES)
def test_the_connection_drops_once(world: World, carrier: str, source: str) -> None:
    world.troubles = [Trouble(CONTENT[source], cut=1000, times=1)]
    ensure(world, source)
    check(world, source)
    assert len(world.asked(CONTENT[source])) == 2


@pytest.mark.parametrize("source", SOURCES)
def test_the_server_falls_silent(world: World, carrier: str, source: str) -> None:
    world.troubles = [Trouble(CONTENT[source], cut=1000, stall=True)]
    expected = "pget stalled: nothing came for 1 seconds" if carrier == "pget" else "broke off"
    failing(world, source, expected, stall_s=1.0)


def test_a_stalled_pget_is_ended(world: World, pget: Path) -> None:
    world.troubles = [Trouble(CONTENT["replicate"], cut=1000, stall=True)]
    failing(world, "replicate", "pget stalled", stall_s=0.5)
    process = json.loads(pget.read_text())["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("change", [-1000, +1000])
def test_the_server_lies_about_the_length(
    world: World, carrier: str, source: str, change: int
) -> None:
    true = len(world.tar if source == "replicate" else world.files[WEIGHTS])
    world.troubles = [Trouble(CONTENT[source], claim=true + change)]
    failing(world, source, "status 1|broke off|bytes instead of")


@pytest.mark.parametrize("change", [-1000, +1000])
def test_head_lies_about_the_length(world: World, carrier: str, change: int) -> None:
    claim = len(world.tar) + change
    world.troubles = [Trouble("/default/", methods=("HEAD",), claim=claim)]
    failing(world, "replicate", f"bytes instead of {claim}|should be of size {claim}")


@pytest.mark.parametrize("claim", [None, 405])
def test_a_tar_of_unknown_length(world: World, carrier: str, claim: int | None) -> None:
    if claim:
        world.troubles = [Trouble("/default/", methods=("HEAD",), status=claim)]
    ensure(world, "replicate")
    check(world, "replicate")


WRONG = "0" * 64
LISTINGS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("huggingface", in_huggingface(lambda one: one["lfs"].update(sha256=WRONG)), "another SHA"),
    ("modelscope", in_modelscope(lambda one: one.update(Sha256=WRONG)), "another SHA"),
    ("huggingface", in_huggingface(lambda one: one.update(size=5)), "bytes instead of 5"),
    ("modelscope", in_modelscope(lambda one: one.update(Size=5)), "bytes instead of 5|size 5"),
    ("huggingface", in_huggingface(lambda one: one.update(rfilename="x")), f"lacks {WEIGHTS}"),
    ("modelscope", in_modelscope(lambda one: one.update(Path="x")), f"lacks {WEIGHTS}"),
    ("huggingface", in_huggingface(lambda one: one.update(size=-5)), "the size '-5'"),
    ("modelscope", in_modelscope(lambda one: one.update(Size="5")), "the size '5'"),
    ("modelscope", in_modelscope(lambda one: one.update(Size=True)), "the size 'True'"),
    ("huggingface", in_huggingface(lambda one: one["lfs"].update(sha256="x")), "that is none"),
    ("modelscope", in_modelscope(lambda one: one.update(Sha256=5)), "that is none"),
    ("modelscope", lambda listing: [], "unknown kind of listing"),
    ("modelscope", lambda listing: {"Data": {"Files": [5]}}, "unknown kind of listing"),
    ("modelscope", lambda listing: {"Data": {"Files": []}}, "lacks config.json, tokenizer.json"),
    ("huggingface", lambda listing: {**listing, "siblings": []}, "lacks config.json"),
]


@pytest.mark.parametrize(("source", "edit", "message"), LISTINGS)
def test_the_hub_says_something_else_than_it_sends(
    world: World, carrier: str, source: str, edit: Callable[[Any], Any], message: str
) -> None:
    world.edit_listing = edit
    failing(world, source, message)
    world.edit_listing = lambda listing: listing
    ensure(world, source)
    check(world, source)


def test_a_sum_in_capitals_is_the_same_sum(world: World, carrier: str) -> None:
    world.edit_listing = in_modelscope(lambda one: one.update(Sha256=one["Sha256"].upper()))
    ensure(world, "modelscope")
    check(world, "modelscope")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_listing_without_sizes_and_sums_is_enough(
    world: World, carrier: str, source: str
) -> None:
    if source == "huggingface":
        world.edit_listing = in_huggingface(lambda one: one.update(size=None, lfs=None))
    else:
        world.edit_listing = in_modelscope(lambda one: (one.pop("Size"), one.pop("Sha256")))
    ensure(world, source)
    check(world, source)


def test_a_listing_that_is_not_json(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_world, "_modelscope", lambda *_: (200, {}, b"<html>"))
    with weights_world.running(world.home) as other:
        failing(other, "modelscope", "something that is not JSON")


def test_a_listing_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = b" " * (17 * 2**20)
    monkeypatch.setattr(weights_world, "_modelscope", lambda *_: (200, {}, endless))
    with weights_world.running(world.home) as other:
        failing(other, "modelscope", "an endless listing")


def test_what_came_is_no_checkpoint(world: World, carrier: str) -> None:
    world.files[WEIGHTS] = b"<html>please log in</html>"
    for source in ("huggingface", "modelscope"):
        failing(world, source, f"{WEIGHTS} is damaged or cut off")
    world.tar = weights_world.tar_of({**world.files, "config.json": b"{"})
    failing(world, "replicate", "config.json is damaged: it is not JSON")


def test_the_tar_lacks_a_file(world: World, carrier: str) -> None:
    del world.files["tokenizer_config.json"]
    world.tar = weights_world.tar_of(world.files)
    failing(world, "replicate", "tokenizer_config.json is missing")


def test_the_tar_is_refused(world: World, carrier: str) -> None:
    world.tar = weights_world.tar_of({**world.files, "../evil.json": b"{}"})
    failing(world, "replicate", "leaves its folder")
    assert not list(world.home.parent.rglob("evil.json"))


def test_the_record_of_a_stranger_is_not_taken_over(world: World, carrier: str) -> None:
    world.tar = weights_world.tar_of({**world.files, folders.RECORD: b"{}"})
    ensure(world, "replicate")
    check(world, "replicate")
