"""`/v1/ocr`: documents go in by all the ways there are, and come out whole; a real server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pikepdf
import pypdfium2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepseek_ocr.configuration import ServerSettings
from deepseek_ocr.errors import PromptError, SettingsError
from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import without_cut_tag
from deepseek_ocr.server.data_uri import decode_base64
from deepseek_ocr.server.jobs.document_options import as_fields, document_plan, with_defaults
from deepseek_ocr.server.jobs.region_splitter import RegionFound, RegionText, Splitter
from deepseek_ocr.server.jobs.uploads import safe_file_name
from deepseek_ocr.server.web.page_nodes import nodes_of, page_blocks
from deepseek_ocr.weights.catalog import CHECKPOINTS
from tests.conftest import ROOT
from tests.scripted import reading
from tests.serving_process import ATTACKS, FAILING, GATED, LOOPING, Server, document, text_of

SCHEMA = json.loads((ROOT / "deepseek_ocr" / "formats" / "document.schema.json").read_text())


def upload(path: Path) -> dict[str, Any]:
    return {"file": (path.name, path.read_bytes())}


def lines_of(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.iter_lines()]


# --- whole answers ------------------------------------------------------------------------------


def test_a_picture_becomes_the_document_json(known_server: Server, tmp_path: Path) -> None:
    answer = known_server.http.post("/v1/ocr", files=upload(document(tmp_path / "p.png", [7])))
    assert answer.status_code == 200
    found = answer.json()
    jsonschema.validate(found, SCHEMA)
    assert (found["name"], found["source"], found["kind"]) == ("p", "p.png", "image")
    (page,) = found["pages"]
    assert page["text"] == text_of(7)
    assert [region["label"] for region in page["regions"]] == ["title", "text", "table", "image"]
    assert page["regions"][0]["boxes_pixels"] == [[27, 24, 270, 52]]
    assert found["settings"]["task"] == "Free OCR", "the model's own default"


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_tiff_of_several_pages_in_json(
    known_server: Server, tmp_path: Path, as_uri: bool
) -> None:
    data = base64.b64encode(document(tmp_path / "p.tiff", [3, 4, 5]).read_bytes()).decode()
    data = f"data:image/tiff;base64,{data}" if as_uri else data
    answer = known_server.http.post(
        "/v1/ocr", json={"file": data, "filename": "fax.tiff", "pages": "2-", "task": "markdown"}
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [(page["number"], page["text"]) for page in found["pages"]] == [
        (2, text_of(4)), (3, text_of(5)),
    ]  # fmt: skip
    assert found["source"] == "fax.tiff"
    assert found["settings"]["task"] == "Convert to Markdown"


def test_pages_that_fail_are_in_the_result_with_their_reason(
    known_server: Server, tmp_path: Path
) -> None:
    path = document(tmp_path / "p.pdf", [1, FAILING, LOOPING])
    found = known_server.http.post("/v1/ocr", files=upload(path), data={"retries": "1"}).json()
    jsonschema.validate(found, SCHEMA)
    good, failed, looped = found["pages"]
    assert good["text"] == text_of(1)
    assert good["points"] == [300.0, 400.0]
    assert "not a finite number" in failed["error"]
    assert looped["finish_reason"] == "loop"
    assert [one["outcome"] for one in looped["tries"]] == ["loop", "loop"]
    assert looped["tries"][1]["settings"]["name"] == "closer guard"


def test_a_page_that_cannot_be_rendered_is_a_failed_page(
    known_server: Server, tmp_path: Path
) -> None:
    path = document(tmp_path / "p.tiff", [1, 2])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])  # the directory of the second page may be lost
    answer = known_server.http.post("/v1/ocr", files=upload(path))
    if answer.status_code == 400:
        assert "p.tiff" in answer.json()["error"]["message"]
        return
    assert any("error" in page for page in answer.json()["pages"])


@pytest.mark.parametrize(
    ("format_", "kind", "name"),
    [("md", "text/markdown", "p.md"), ("markdown", "text/markdown", "p.md"),
     ("html", "text/html", "p.html"), ("regions", "application/x-ndjson", "p.regions.jsonl")],
)  # fmt: skip
def test_other_formats(
    known_server: Server, tmp_path: Path, format_: str, kind: str, name: str
) -> None:
    answer = known_server.http.post(
        "/v1/ocr", files=upload(document(tmp_path / "p.png", [9])), data={"output_format": format_}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert name in answer.headers["content-disposition"]
    assert "attachment" in answer.headers["content-disposition"]
    assert "Page 9 of the report" in answer.text


def test_a_searchable_pdf_can_be_searched(known_server: Server, tmp_path: Path) -> None:
    answer = known_server.http.post(
        "/v1/ocr",
        files=upload(document(tmp_path / "p.pdf", [11, 12])),
        data={"output_format": "searchable-pdf"},
    )
    with pypdfium2.PdfDocument(answer.content) as pdf:
        texts = [page.get_textpage().get_text_bounded() for page in pdf]
    assert ["Page 11 of the report" in texts[0], "Page 12 of the report" in texts[1]] == [True] * 2


def test_an_encrypted_pdf_wants_its_password(known_server: Server, tmp_path: Path) -> None:
    path = document(tmp_path / "p.pdf", [6])
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        pdf.save(path, encryption=pikepdf.Encryption(user="sesame", owner="x"))
    refused = known_server.http.post("/v1/ocr", files=upload(path))
    assert refused.status_code == 400
    assert "give its password" in refused.json()["error"]["message"]
    read = known_server.http.post("/v1/ocr", files=upload(path), data={"password": "sesame"})
    assert read.json()["pages"][0]["text"] == text_of(6)
    assert "sesame" not in read.text


def test_the_pocket_model_reads(pocket_server: Server) -> None:
    path = ROOT / "examples" / "invoice.png"
    found = pocket_server.http.post("/v1/ocr", files=upload(path)).json()
    assert found["pages"][0]["markdown"] == "Invoice"
    events = pocket_server.http.post("/v1/ocr", files=upload(path), data={"stream": "true"})
    deltas = [event["text"] for event in lines_of(events) if event["type"] == "page.delta"]
    assert "".join(deltas) == "Invoice"


# --- streams ------------------------------------------------------------------------------------


def test_a_stream_tells_of_text_while_it_is_read(known_server: Server, tmp_path: Path) -> None:
    """The page stands still half-way until text and boxes of its first half have arrived."""
    path = document(tmp_path / "p.pdf", [1, GATED[0]])
    with known_server.http.stream(
        "POST", "/v1/ocr", files=upload(path), headers={"accept": "application/x-ndjson"}
    ) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        events = []
        for line in answer.iter_lines():
            events.append(json.loads(line))
            if events[-1] == {
                "type": "page.region", "page": 2, "order": 2, "label": "text",
                "boxes": [[90, 170, 900, 420]],
            }:  # fmt: skip
                known_server.open_gate()
    check_events(events, {1: text_of(1), 2: text_of(GATED[0])})
    assert events[-1] == {
        "type": "document.done", "status": "done", "error": None,
        "pages": {"total": 2, "read": 2, "failed": 0},
    }  # fmt: skip


def check_events(events: list[dict[str, Any]], texts: dict[int, str]) -> None:
    """The order of events, and that nothing is missing between them."""
    assert events[0]["type"] == "document.opened"
    assert events[0]["pages"] == list(texts)
    for number, text in texts.items():
        of_page = [event for event in events if event.get("page") == number]
        assert of_page[0]["type"] == "page.started"
        assert of_page[0]["width"] * 4 == of_page[0]["height"] * 3
        assert of_page[-1]["type"] == "page.done"
        assert of_page[-1]["result"]["text"] == text
        regions = {region.label: "" for region in parser.parse(text)}
        order = 0
        for event in of_page[1:-1]:
            if event["type"] == "page.region":
                order += 1
                assert event["order"] == order
            else:
                assert event["order"] == order, "text of a region before its box"
                regions[list(regions)[order - 1]] += event["text"]
        assert {label: found.strip() for label, found in regions.items()} == {
            region.label: region.text for region in parser.parse(text)
        }


def test_a_client_that_hangs_up_frees_the_slot(keyed_server: Server, tmp_path: Path) -> None:
    """The one slot stands still in a page; when its client leaves, the next page is read."""
    blocked = document(tmp_path / "blocked.png", [GATED[1]])
    with keyed_server.http.stream(
        "POST", "/v1/ocr", files=upload(blocked), data={"stream": "1"}
    ) as answer:
        types = (json.loads(line)["type"] for line in answer.iter_lines())
        assert "page.delta" in types  # it is being read; nobody will open its gate
    read = keyed_server.http.post("/v1/ocr", files=upload(document(tmp_path / "next.png", [2])))
    assert read.json()["pages"][0]["text"] == text_of(2)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [({"task": "dance"}, 400, "There is no task"),
     ({"resolution": "huge"}, 400, "There is no preset"),
     ({"task": "locate"}, 400, "needs a reference"),
     ({"task": "locate", "reference": "<|det|>"}, 400, "special tokens"),
     ({"pages": "0"}, 400, "no pages"),
     ({"pages": "5-6"}, 400, "has 1 pages and none of those"),
     ({"dpi": "9999"}, 400, "dpi must lie"),
     ({"temperature": "nan"}, 400, "must be a number"),
     ({"output_format": "docx"}, 400, "There is no format"),
     ({"stream": "perhaps"}, 400, "true or false"),
     ({"colour": "red"}, 400, "There is no field"),
     ({"model": "gpt-4"}, 404, "no such model")],
)  # fmt: skip
def test_fields_that_cannot_be(
    known_server: Server, tmp_path: Path, data: dict[str, str], status: int, says: str
) -> None:
    answer = known_server.http.post(
        "/v1/ocr", files=upload(document(tmp_path / "p.png", [1])), data=data
    )
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "how",
    [{"files": {"file": ("x.pdf", b"%PDF-1.7 garbage")}}, {"files": {"file": ("x.png", b"")}},
     {"files": {"other": ("x.png", b"x")}}, {"data": {"file": "text"}}, {"content": b"x"},
     {"json": []}, {"json": {"file": "%%%"}}, {"json": {"file": 3}},
     {"content": b"{", "headers": {"content-type": "application/json"}},
     {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}},
     {"content": b"x", "headers": {"content-type": "multipart/form-data"}}],
)  # fmt: skip
def test_bodies_that_are_no_documents(known_server: Server, how: dict[str, Any]) -> None:
    answer = known_server.http.post("/v1/ocr", **how)
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["message"]
    assert str(known_server.folder) not in answer.text


@pytest.mark.parametrize(
    "head",
    ["", "data:,", "data:;base64,", "DATA:image/png;BASE64,", "data:a/b;name=c.d;base64,"],
)
def test_base64_is_read_with_and_without_the_head_of_a_data_uri(head: str) -> None:
    assert decode_base64(f"{head}aGVs\r\n bG8=") == b"hello"


@pytest.mark.parametrize("text", ["aGVsbG8", "aGVs*G8=", "data:image/png;base64", "é"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_base64(text)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../etc/passwd", "passwd"), ("..\\..\\boot.ini", "boot.ini"), ("/etc/shadow", "shadow"),
     ("..", "document"), ("", "document"), (".bashrc", "bashrc"), ("a\0b.pdf", "a_b.pdf"),
     ("con.pdf", "con.pdf_"), ("x" * 300 + ".pdf", "x" * 100), ("naïve 报告.pdf", "naïve 报告.pdf"),
     ('a"b\r\nSet-Cookie: x.pdf', "a_b__Set-Cookie_ x.pdf")],
)  # fmt: skip
def test_names_lead_nowhere(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe


def test_a_name_with_a_path_writes_nothing_elsewhere(known_server: Server, tmp_path: Path) -> None:
    data = base64.b64encode(document(tmp_path / "p.png", [8]).read_bytes()).decode()
    body = {"file": data, "filename": "../../a/b.png"}
    answer = known_server.http.post("/v1/ocr/jobs", json=body)
    assert answer.status_code == 202
    job = answer.json()
    home = known_server.folder / "jobs" / job["id"]
    assert (home / "upload" / "b.png").is_file()
    assert {path.name for path in known_server.folder.iterdir()} <= {
        "jobs", "read.txt", "server.log", "gate",
    }  # fmt: skip
    assert (known_server.folder / "jobs").stat().st_mode & 0o077 == 0
    for path in ("../../server.log", "..%2f..%2fserver.log", "%2e%2e"):
        for place in ("output", "pages"):
            answer = known_server.http.get(f"/v1/ocr/jobs/{job['id']}/{place}/{path}")
            assert answer.status_code in (404, 405)
    known_server.http.delete(f"/v1/ocr/jobs/{job['id']}")
    assert not home.exists()


# --- fields -------------------------------------------------------------------------------------


def test_fields_become_settings() -> None:
    given = as_fields(
        {"task": "locate", "reference": "the sum", "resolution": "base", "dpi": 200, "retries": 0,
         "temperature": 0.5, "max_new_tokens": 10, "stop_on_loop": False, "timeout": 5000,
         "pages": "-1", "rotate": "90", "join_tables": "no"}
    )  # fmt: skip
    made = document_plan(given, ServerSettings(page_timeout=60.0))
    (attempt,) = made.attempts
    assert "<|ref|>the sum<|/ref|>" in made.prompt
    assert (attempt.crop.image_size, attempt.crop.crop_mode) == (1024, False)
    decode = attempt.decode
    assert (decode.temperature, decode.max_new_tokens, decode.stop_on_loop) == (0.5, 10, False)
    assert decode.timeout == 60.0, "the server's bound holds"
    assert (made.render.dpi, made.render.rotate) == (200, 90)
    assert made.pages.of(9) == [9]
    assert made.options.join_tables is False


def test_what_a_client_leaves_out_is_the_models_own() -> None:
    pocket = CHECKPOINTS["pocket"]
    assert with_defaults({}, pocket) == {"task": "Free OCR", "resolution": "Tiny"}
    given = {"prompt": "Read.", "resolution": "base"}
    assert with_defaults(given, pocket) == given, "a prompt stands in place of a task"


@pytest.mark.parametrize(("most", "pdf"), [(1_000_000, 1_000_000), (50_000_000, 20_000_000)])
def test_the_servers_bound_of_pixels_holds_for_documents(most: int, pdf: int) -> None:
    render = document_plan({}, ServerSettings(max_pixels=most)).render
    assert (render.max_pixels, render.max_picture_pixels) == (pdf, most)


def test_pages_keep_within_the_servers_bound_of_pixels(tmp_path: Path) -> None:
    with Server(tmp_path, "--max-pixels", "100000") as server:
        paper = server.http.post("/v1/ocr", files=upload(document(tmp_path / "p.pdf", [7])))
        (page,) = paper.json()["pages"]
        assert page["text"] == text_of(7)
        assert 90_000 < page["width"] * page["height"] <= 100_000
        picture = server.http.post("/v1/ocr", files=upload(document(tmp_path / "p.png", [7])))
        (page,) = picture.json()["pages"]
        assert "300 x 400 px, more than the 100,000 px allowed" in page["error"]
    assert server.read() == [7], "the picture did not reach the engine"


@pytest.mark.parametrize(
    "data",
    [{"prompt": "x", "task": "ocr"}, {"prompt": "<image><image>"}, {"reference": "x"},
     {"retries": "9"}, {"retries": "1.5"}, {"rotate": "45"}, {"task": ["ocr"]},
     {"prompt": "y" * 30_000}, {"top_p": "much"},
     {"prompt": "  "}, {"prompt": "half \ud800"}, {"seed": 10**30}],
)  # fmt: skip
def test_fields_that_contradict(data: dict[str, Any]) -> None:
    with pytest.raises((SettingsError, PromptError)):
        document_plan(as_fields(data), ServerSettings())


# --- text in pieces -----------------------------------------------------------------------------

_PIECES = st.lists(
    st.sampled_from(
        ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[1, 2, 3, 4]]", "[[5,6,7,8],[1,1,2,2]]",
         "title", " text\n", "<", "<|", "|>", "[[", "é",
         "<|ref|>a<|/ref|><|det|>[[1,2,3,4]]<|/det|>"]
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(_PIECES, st.integers(1, 9))
@example(["<|ref|>", "<|/ref|>", "<|/det|>", "<|"], 1)
def test_regions_in_pieces_are_those_of_the_whole(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    splitter = Splitter()
    told: list[RegionFound | RegionText] = []
    for at in range(0, len(text), size):
        told += splitter.feed(text[at : at + size])
    told += splitter.finish()
    whole = parser.parse(text)
    found = [one for one in told if isinstance(one, RegionFound)]
    assert [(one.label, one.boxes) for one in found] == [(one.label, one.boxes) for one in whole]
    texts = [""] * (len(whole) + 1)
    for one in told:
        if isinstance(one, RegionText):
            texts[one.order] += one.text
    expected = [text[: whole[0].start if whole else len(text)]]
    expected += [text[region.text_start : region.end] for region in whole]
    assert texts[:-1] == expected[:-1]
    assert _without_half_tags(texts[-1]) == _without_half_tags(expected[-1])


def _without_half_tags(text: str) -> str:
    shorter = "".join(without_cut_tag(text))
    return text.strip() if shorter == text else _without_half_tags(shorter)


def test_no_half_tag_is_told_of() -> None:
    head = "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"
    for end in range(3, len(head)):
        splitter = Splitter()
        told = [*splitter.feed(f"Some text.\n{head[:end]}"), *splitter.finish()]
        assert "".join(one.text for one in told if isinstance(one, RegionText)).strip() == (
            "Some text."
        )


def test_text_is_held_back_no_longer_than_it_must_be() -> None:
    splitter = Splitter()
    assert list(splitter.feed("a < b")) == [RegionText(0, "a < b")]
    assert list(splitter.feed("<|re")) == []
    assert list(splitter.feed("al")) == [RegionText(0, "<|real")]
    assert next(splitter.feed("<|ref|>" + "x" * 50_000)) == RegionText(0, "<|ref|>")


# --- formatted text -----------------------------------------------------------------------------


def test_blocks_carry_text_and_no_markup() -> None:
    from deepseek_ocr.formats.records import page_record

    hostile = f"<|ref|>text<|/ref|><|det|>[[1, 1, 9, 9]]<|/det|>\n{ATTACKS}"
    blocks = page_blocks(page_record(1, reading(hostile, "stop")))
    names, strings = _names_and_strings(blocks[0]["nodes"])
    assert names <= {"p", "br", "table", "tbody", "tr", "td", "div", "span"}
    assert "<script>window.attacked=1</script>" in "".join(strings)


def _names_and_strings(nodes: list[Any]) -> tuple[set[str], list[str]]:
    names: set[str] = set()
    strings: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            strings.append(node)
            continue
        name, attributes, children = node
        assert set(attributes) <= {"class", "colspan", "rowspan", "start", "data-page"}
        inner_names, inner_strings = _names_and_strings(children)
        names |= {name} | inner_names
        strings += inner_strings
    return names, strings


def test_nodes_of_html() -> None:
    assert nodes_of("<p>a &lt; <b>b</b><br>c</p>") == [
        ["p", {}, ["a < ", ["b", {}, ["b"]], ["br", {}, []], "c"]]
    ]
    assert nodes_of("</p>x<i>y") == ["x", ["i", {}, ["y"]]]


def test_page_pictures_are_jpegs_of_the_page(known_server: Server, tmp_path: Path) -> None:
    from PIL import Image

    path = document(tmp_path / "p.tiff", [20, 21])
    job = known_server.http.post("/v1/ocr/jobs", files=upload(path)).json()["id"]
    answer = known_server.http.get(f"/v1/ocr/jobs/{job}/pages/2/image")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (300, 400)
        assert abs(picture.getpixel((5, 5))[1] - 21 * 8) < 4  # type: ignore[index]
    assert known_server.http.get(f"/v1/ocr/jobs/{job}/pages/3/image").status_code == 404
    known_server.http.delete(f"/v1/ocr/jobs/{job}")
