"""Records come back from disk as they went there, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_ocr.engine.results import Counts, Timings
from deepseek_ocr.errors import InputError, RecordError
from deepseek_ocr.formats.records import PageRecord, Try, record_from_json, record_to_json
from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Confidence
from tests.output_fixtures import Block, grounded, record_of

PATIENT = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
"""For machines with other things to do."""

TEXT = st.text(max_size=20)
SECONDS = st.floats(0, 1e6)
COUNT = st.integers(0, 10**6)
COORDINATE = st.integers(-50, 1500)
BLOCKS = st.builds(Block, st.text(max_size=10), st.tuples(*[COORDINATE] * 4), st.text(max_size=40))


@st.composite
def records(draw: st.DrawFn) -> PageRecord:
    text = draw(st.one_of(TEXT, st.lists(BLOCKS, max_size=4).map(grounded)))
    tries = draw(
        st.lists(
            st.builds(
                Try,
                st.dictionaries(TEXT, st.none() | st.integers(0, 9) | TEXT, max_size=3),
                st.sampled_from(["stop", "loop", "timeout"]),
                COUNT,
                SECONDS,
            ),
            max_size=3,
        )
    )
    return PageRecord(
        number=draw(st.integers(1, 10**6)),
        width=draw(COUNT),
        height=draw(COUNT),
        points=draw(st.none() | st.tuples(*[st.floats(0.1, 1e5)] * 2)),
        rotation=draw(st.sampled_from([0, 90, 180, 270])),
        text=text,
        regions=tuple(parser.parse(text)),
        figures=tuple(draw(st.lists(st.sampled_from(["", "0_1.jpg", "12_0.jpg"]), max_size=3))),
        finish_reason=draw(st.sampled_from([None, "stop", "length", "loop"])),
        confidence=draw(st.none() | st.builds(Confidence, st.floats(0, 1), st.floats(0, 1))),
        counts=draw(st.none() | st.builds(Counts, COUNT, COUNT, COUNT, COUNT, SECONDS)),
        timings=draw(st.none() | st.builds(Timings, SECONDS, SECONDS, SECONDS, SECONDS)),
        tries=tuple(tries),
        kept=draw(st.integers(0, max(len(tries) - 1, 0))),
        error=draw(st.none() | TEXT),
        own_text=draw(st.sampled_from([None, "none", "visible", "invisible"])),
    )


@PATIENT
@given(records())
def test_a_record_survives_the_disk(record: PageRecord) -> None:
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record


def test_a_record_of_the_first_version_is_read() -> None:
    record = record_of(2, "words")
    data = record_to_json(record)
    del data["own_text"]
    assert record_from_json({**data, "version": 1}) == record
    with pytest.raises(RecordError, match="exactly number"):
        record_from_json(data)


def edited(path: list[Any], value: Any) -> dict[str, Any]:
    """A good record's data with one value changed, or taken out where `value` is KeyError."""
    text = grounded([Block("text", (1, 2, 300, 400), "words")])
    data = json.loads(json.dumps(record_to_json(record_of(2, text))))
    place = data
    for step in path[:-1]:
        place = place[step]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["version"], 3, "another version"),
        (["number"], 0, "page.number"),
        (["number"], True, "page.number"),
        (["number"], "2", "page.number"),
        (["text"], KeyError, "exactly number"),
        (["surprise"], 1, "exactly number"),
        (["width"], 1.5, "page.width"),
        (["points"], [1.0], "page.points"),
        (["points"], [0.0, 1.0], "page.points"),
        (["points"], [float("nan"), 1.0], "page.points"),
        (["rotation"], 45, "page.rotation"),
        (["regions", 0, "boxes"], [[5, 2, 1, 4]], "page.regions[0].boxes"),
        (["regions", 0, "boxes"], [[0, 0, 1000, 4]], "page.regions[0].boxes"),
        (["regions", 0, "boxes"], [], "page.regions[0].boxes"),
        (["regions", 0, "end"], 10**6, "page.regions[0]"),
        (["regions", 0, "confidence"], [], "page.regions[0].confidence"),
        (["figures"], ["../../etc/passwd"], "page.figures"),
        (["figures"], ["0_1.jpg\n"], "page.figures"),
        (["finish_reason"], "done", "page.finish_reason"),
        (["finish_reason"], ["stop"], "page.finish_reason"),
        (["counts", "output"], 1e300, "page.counts.output"),
        (["timings", "decode"], 10**400, "page.timings.decode"),
        (["tries", 0, "settings"], [], "page.tries[0].settings"),
        (["kept"], 1, "page.kept"),
        (["own_text"], "some", "page.own_text"),
    ],
)
def test_an_edited_record_is_refused_by_the_field(path: list[Any], value: Any, named: str) -> None:
    with pytest.raises(RecordError, match="Read the page again") as caught:
        record_from_json(edited(path, value))
    assert named in str(caught.value)
    assert isinstance(caught.value, InputError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@PATIENT
@given(JSON)
def test_nothing_else_passes_for_a_record(data: Any) -> None:
    with pytest.raises(RecordError):
        record_from_json(data)


@PATIENT
@given(st.sampled_from(sorted(record_to_json(record_of(1, "")))), JSON)
def test_any_value_in_any_field_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        record = record_from_json(edited([name], value))
    except RecordError:
        return
    assert record_from_json(record_to_json(record)) == record
