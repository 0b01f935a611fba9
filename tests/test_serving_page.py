"""The page at `/`, driven in headless Chromium against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pypdfium2
import pytest

from deepseek_ocr.server.routes import web_page
from tests.conftest import ROOT
from tests.page_browser import FOCUSED, HOLD, Open, needs_chromium, read, read_to_the_end
from tests.serving_process import FAILING, GATED, HOSTILE, Server, document


def attacked(page: Any) -> Any:
    return page.evaluate("window.attacked ?? null")


# --- reading ------------------------------------------------------------------------------------


@needs_chromium
def test_text_and_boxes_appear_while_the_page_is_read(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    """The engine stands still half-way; half the text is there by then, with its boxes."""
    known_server.close_gate()
    page = open_page(known_server)
    read(page, document(tmp_path / "scan.pdf", [GATED[10]]))
    page.get_by_text("The bakery sold more bread").wait_for()
    assert page.locator("#text").get_attribute("aria-busy") == "true"
    assert page.get_by_role("button", name="Copy Markdown").is_disabled()
    page.wait_for_selector("#picture")
    picture = page.locator("#picture").bounding_box()
    box = page.get_by_role("button", name="Region 2: text").bounding_box()
    assert (box["x"] - picture["x"]) / picture["width"] == pytest.approx(90 / 999, abs=0.01)
    assert (box["y"] - picture["y"]) / picture["height"] == pytest.approx(170 / 999, abs=0.01)
    assert box["width"] / picture["width"] == pytest.approx(810 / 999, abs=0.01)
    assert box["height"] / picture["height"] == pytest.approx(250 / 999, abs=0.01)
    assert page.locator("#text table").count() == 0
    known_server.open_gate()
    page.wait_for_selector("#text table")
    assert page.locator("#text h1").inner_text() == f"Page {GATED[10]} of the report"
    assert page.locator("#text canvas[aria-label='Figure 1']").count() == 1
    assert page.get_by_role("status").inner_text().startswith("1 page read")
    assert page.locator("#text").get_attribute("aria-busy") == "false"


@needs_chromium
def test_regions_and_text_light_each_other(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    page.wait_for_selector("#text table")

    def lit() -> list[str]:
        return [
            f"{one.evaluate('e => e.tagName')} {one.get_attribute('data-region')}"
            for one in page.locator(".lit").all()
        ]

    page.locator(".box[data-region='3']").hover()
    assert lit() == ["BUTTON 3", "SECTION 3"]
    page.locator(".block[data-region='2']").hover()
    assert lit() == ["BUTTON 2", "SECTION 2"]
    page.mouse.move(1, 1)
    assert lit() == []
    page.locator(".block[data-region='1']").focus()
    assert lit() == ["BUTTON 1", "SECTION 1"]
    page.keyboard.press("ArrowDown")
    assert lit() == ["BUTTON 2", "SECTION 2"]
    page.locator(".box[data-region='2']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.region") == "3"
    assert lit() == ["BUTTON 3", "SECTION 3"]
    page.locator(".box[data-region='4']").click()
    page.mouse.move(1, 1)
    assert lit() == ["BUTTON 4", "SECTION 4"], "a click keeps it"
    page.keyboard.press("Escape")
    assert lit() == []


@needs_chromium
@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_box_leads_to_its_text_and_back(
    known_server: Server, open_page: Open, tmp_path: Path, key: str
) -> None:
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    page.wait_for_selector("#text table")

    def focused() -> str:
        return page.evaluate(
            "(({ tagName, ariaLabel }) => `${tagName} ${ariaLabel}`)(document.activeElement)"
        )

    page.locator(".box").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(key)
    assert focused() == "SECTION Region 2: text"
    assert page.evaluate("document.activeElement.innerText").endswith("this is page 1.")
    page.keyboard.press("Shift+Tab")
    assert focused() == "BUTTON Region 2: text", "the text is entered where it was left, not before"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert focused() == "BUTTON Region 3: table"


@needs_chromium
def test_a_box_and_its_text_go_by_one_name(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    page.wait_for_selector("#text table")
    for name in ("Region 1: title", "Region 2: text", "Region 3: table", "Region 4: image"):
        box = page.get_by_role("group", name="Regions on the page").get_by_role("button", name=name)
        block = page.get_by_role("region", name=name)
        assert box.get_attribute("aria-details") == block.get_attribute("id")
        assert block.get_attribute("data-region") == name[7]


@needs_chromium
def test_pages_of_a_document(known_server: Server, open_page: Open, tmp_path: Path) -> None:
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "scan.pdf", [1, FAILING, 3]))
    pages = page.get_by_role("navigation", name="Pages")
    pages.get_by_role("button", name="Page 2, could not be read").click()
    assert "not a finite number" in page.locator("#text").inner_text()
    pages.get_by_role("button", name="Page 3, done").click()
    page.get_by_role("heading", name="Page 3 of the report").wait_for()
    assert page.locator("[aria-current=page]").inner_text() == "3"
    assert "1 could not be read" in page.get_by_role("status").inner_text()


@needs_chromium
def test_a_document_is_taken_up_again_after_a_reload(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    known_server.close_gate()
    page = open_page(known_server)
    read(page, document(tmp_path / "scan.tiff", [1, GATED[11]]))
    page.wait_for_selector("#page-list button[data-state=done]")
    page.reload()
    page.wait_for_selector("#page-list button[data-state=done]")
    known_server.open_gate()
    page.wait_for_selector("#copy:enabled")
    page.get_by_role("button", name="New document").click()
    page.get_by_role("button", name="Read", exact=True).wait_for()
    page.reload()
    page.get_by_role("button", name="Read", exact=True).wait_for()
    assert page.locator("#work").is_hidden()


@needs_chromium
def test_stopping(keyed_server: Server, open_page: Open, tmp_path: Path) -> None:
    page = open_page(keyed_server)
    page.get_by_label("API key").fill("second-key-for-tests")
    read(page, document(tmp_path / "scan.png", [GATED[12]]))
    page.get_by_text("The bakery sold").wait_for()
    page.get_by_role("button", name="Stop").press("Enter")
    page.get_by_text("Stopped.").first.wait_for()
    assert page.evaluate(FOCUSED) == "work-name"
    assert page.get_by_text("The bakery sold").is_visible()
    assert keyed_server.http.get("/ready").status_code == 200


@needs_chromium
def test_the_focus_outlives_the_stop_button(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    known_server.close_gate()
    page = open_page(known_server)
    read(page, document(tmp_path / "scan.png", [GATED[13]]))
    page.get_by_text("The bakery sold").wait_for()
    page.get_by_role("button", name="Stop").focus()
    known_server.open_gate()
    page.wait_for_selector("#copy:enabled")
    assert page.evaluate(FOCUSED) == "work-name"


@needs_chromium
def test_the_pocket_model_on_the_page(pocket_server: Server, open_page: Open) -> None:
    page = open_page(pocket_server)
    assert page.get_by_role("radio", name="Free OCR").is_checked(), "what the model is best at"
    page.set_input_files("#file", ROOT / "examples" / "invoice.png")
    page.get_by_role("button", name="Read", exact=True).click()
    page.wait_for_selector("#copy:enabled")
    assert page.locator("#text").inner_text().strip() == "Invoice"


# --- taking it away -----------------------------------------------------------------------------


@needs_chromium
def test_copy_and_downloads(known_server: Server, open_page: Open, tmp_path: Path) -> None:
    page = open_page(known_server, permissions=["clipboard-read", "clipboard-write"])
    read_to_the_end(page, document(tmp_path / "scan 1.pdf", [1, 2]))
    page.get_by_role("button", name="Copy Markdown").click()
    page.get_by_text("Copied as Markdown.").first.wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    files = {}
    for name in ("Markdown", "JSON", "Searchable PDF"):
        with page.expect_download() as got:
            page.get_by_role("button", name=name, exact=True).click()
        files[got.value.suggested_filename] = Path(got.value.path())
    assert set(files) == {"scan 1.md", "scan 1.json", "scan 1.pdf"}
    assert files["scan 1.md"].read_text() == copied
    assert "# Page 2 of the report" in copied
    assert len(json.loads(files["scan 1.json"].read_text())["pages"]) == 2
    with pypdfium2.PdfDocument(files["scan 1.pdf"].read_bytes()) as pdf:
        assert "Page 2 of the report" in pdf[1].get_textpage().get_text_bounded()


@needs_chromium
def test_a_download_keeps_the_focus_and_is_made_once(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    page.evaluate(HOLD, "/output/json")
    page.get_by_role("button", name="JSON").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("held.length") == 1
    with page.expect_download():
        page.evaluate("held[0]()")
    page.get_by_text("scan.json was made.").first.wait_for()
    assert page.evaluate("document.activeElement.dataset.format") == "json"
    page.route("**/output/json", lambda route: route.abort())
    page.keyboard.press("Enter")
    page.evaluate("held[1]()")
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    assert page.evaluate("document.activeElement.dataset.format") == "json"
    page.get_by_role("button", name="Dismiss this message").press("Enter")
    assert page.evaluate(FOCUSED) == "work-name"


LIKE_SAFARI = """() => {
  const { write } = Clipboard.prototype;
  const late = () => Promise.reject(new DOMException("Too late.", "NotAllowedError"));
  Clipboard.prototype.writeText = late;
  Clipboard.prototype.write = function (items) {
    return window.event?.type === "click" ? write.call(this, items) : late();
  };
}"""


@needs_chromium
def test_copying_where_only_the_click_itself_may(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server, permissions=["clipboard-read", "clipboard-write"])
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    page.evaluate(LIKE_SAFARI)
    copy = page.get_by_role("button", name="Copy Markdown")
    copy.click()
    page.get_by_text("Copied as Markdown.").first.wait_for()
    assert "# Page 1 of the report" in page.evaluate("navigator.clipboard.readText()")
    page.route("**/output/md", lambda route: route.abort())
    copy.click()
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()


@needs_chromium
@pytest.mark.parametrize("missing", ["window.ClipboardItem", "navigator.clipboard"])
def test_copying_in_browsers_that_know_less(
    known_server: Server, open_page: Open, tmp_path: Path, missing: str
) -> None:
    page = open_page(known_server, permissions=["clipboard-read", "clipboard-write"])
    read_to_the_end(page, document(tmp_path / "scan.png", [1]))
    owner, name = missing.split(".")
    page.evaluate(f"""() => {{
        window.real = navigator.clipboard;
        Object.defineProperty({owner}, "{name}", {{ value: undefined }});
    }}""")
    page.get_by_role("button", name="Copy Markdown").press("Enter")
    page.get_by_text("Copied as Markdown.").first.wait_for()
    assert page.evaluate(FOCUSED) == "copy"
    assert "# Page 1 of the report" in page.evaluate("real.readText()")


# --- ways in, and what goes wrong ---------------------------------------------------------------

CARRY = """([bytes, name, kind]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


@needs_chromium
@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_and_pasted(
    known_server: Server, open_page: Open, tmp_path: Path, kind: str
) -> None:
    page = open_page(known_server)
    data = document(tmp_path / "p.png", [4]).read_bytes()
    page.evaluate(CARRY, [list(data), "dropped.png", kind])
    assert page.locator("#file-name").inner_text() == "dropped.png"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Page 4 of the report").wait_for()


@needs_chromium
def test_uploads_that_fail_are_said_in_plain_words(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    page.get_by_role("button", name="Read", exact=True).click()
    assert "Choose a picture or a PDF first." in page.get_by_role("alert").inner_text()
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    read(page, tmp_path / "broken.pdf")
    page.get_by_role("alert").get_by_text("broken.pdf is damaged").wait_for()
    page.get_by_role("button", name="Dismiss this message").click()
    assert page.get_by_role("alert").count() == 0
    page.get_by_role("radio", name="Locate Object by Reference").check()
    page.get_by_role("button", name="Read", exact=True).click()
    assert "Say what to locate" in page.get_by_role("alert").inner_text()
    assert page.evaluate("document.activeElement.id") == "reference"
    page.route("**/v1/ocr/jobs", lambda route: route.abort())
    page.get_by_label("What to locate").fill("the sum")
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    page.unroute("**/v1/ocr/jobs")
    read_to_the_end(page, document(tmp_path / "good.png", [5]))
    assert page.get_by_role("alert").count() == 0


@needs_chromium
def test_a_failed_upload_keeps_the_focus(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    page.set_input_files("#file", tmp_path / "broken.pdf")
    page.locator("#read").press("Enter")
    page.get_by_role("alert").get_by_text("broken.pdf is damaged").wait_for()
    page.wait_for_selector("#read:not([aria-disabled])")
    assert page.evaluate(FOCUSED) == "read"
    page.get_by_role("button", name="Dismiss this message").press("Enter")
    assert page.evaluate(FOCUSED) == "file"


@needs_chromium
def test_a_document_is_handed_in_once(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    page.evaluate(HOLD, "/jobs")
    page.set_input_files("#file", document(tmp_path / "p.png", [9]))
    for field in ("#pages", "#pages", "#read"):
        page.locator(field).press("Enter")
    assert page.evaluate("held.length") == 1
    page.evaluate("held[0]()")
    page.get_by_role("heading", name="Page 9 of the report").wait_for()


@needs_chromium
def test_a_key_is_asked_for_where_one_is_needed(
    known_server: Server, keyed_server: Server, open_page: Open, tmp_path: Path
) -> None:
    assert open_page(known_server).get_by_label("API key").is_hidden()
    page = open_page(keyed_server)
    page.get_by_label("API key").fill("wrong")
    read(page, document(tmp_path / "p.png", [6]))
    page.get_by_role("alert").get_by_text("key").wait_for()
    page.get_by_label("API key").fill("second-key-for-tests")
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_role("heading", name="Page 6 of the report").wait_for()
    page.wait_for_selector("#picture")
    stores = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert stores == ["{}", "", f"{keyed_server.url}/"]


# --- safety -------------------------------------------------------------------------------------


@needs_chromium
def test_text_of_a_page_cannot_run(known_server: Server, open_page: Open, tmp_path: Path) -> None:
    """Text, label and file name attack; `open_page` sees that nothing is fetched for them."""
    path = tmp_path / "<img src=x onerror=window.attacked=9>.tiff"
    document(path, [HOSTILE, HOSTILE])
    page = open_page(known_server)
    read_to_the_end(page, path)
    for number in ("1", "2"):
        page.get_by_role("button", name=f"Page {number}, done").click()
        page.wait_for_selector("#text table")
        shown = page.locator("#text").inner_text()
        assert "<script>window.attacked=1</script>" in shown
        assert "![picture](https://example.org/beacon.png)" in shown
    assert page.locator("#text :is(script, img, svg, iframe, a, style)").count() == 0
    assert page.locator("#text [onclick], #text [style]:not([data-region])").count() == 0
    assert page.locator("#work-name").inner_text().endswith("onerror=window.attacked=9_.tiff")
    assert attacked(page) is None


@needs_chromium
def test_the_policy_forbids_html_in_strings(known_server: Server, open_page: Open) -> None:
    page = open_page(known_server)
    refused = page.evaluate(
        """() => { try { document.body.innerHTML = "<b>x</b>"; } catch (e) { return e.name; } }"""
    )
    assert refused == "TypeError"


def test_files_of_the_page(known_server: Server) -> None:
    for name in ("/", *(f"/page/{name}" for name in web_page.FILES)):
        answer = known_server.http.get(name)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("index.html.bak", "..%2fweb.py", "..%2f..%2fserve.py", "%2e%2e/web.py"):
        assert known_server.http.get(f"/page/{name}").status_code == 404


def test_the_page_names_nobody_else() -> None:
    on_disk = {path.name for path in web_page.FOLDER.iterdir()}
    assert on_disk == {"index.html", *web_page.FILES}
    for name in on_disk:
        text = (web_page.FOLDER / name).read_text(encoding="utf-8")
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text))
        assert addresses <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1998/Math/MathML",
        }
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


# --- for everybody ------------------------------------------------------------------------------

CONTRASTS = """() => {
  const channel = (value) => {
    const part = value / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  };
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("h1, p, label, legend, small, span, strong, b, button")]
    .filter((one) => one.checkVisibility() && one.innerText?.trim())
    .filter((one) => !one.disabled && !one.matches(".unseen"))
    .map((one) => {
      const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))];
      return [one.innerText.slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(
    known_server: Server, open_page: Open, tmp_path: Path, scheme: str
) -> None:
    page = open_page(known_server, color_scheme=scheme)
    found = dict(page.evaluate(CONTRASTS))
    read_to_the_end(page, document(tmp_path / "p.tiff", [1, FAILING]))
    page.get_by_role("button", name="Page 2, could not be read").click()
    found |= dict(page.evaluate(CONTRASTS))
    assert len(found) > 20
    assert {text: ratio for text, ratio in found.items() if ratio < 4.5} == {}
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(one) for one in re.findall(r"\d+", paper)) > 384) == (scheme == "light")


@needs_chromium
@pytest.mark.parametrize("width", [320, 390])
def test_nothing_sticks_out_on_a_phone(
    known_server: Server, open_page: Open, tmp_path: Path, width: int
) -> None:
    page = open_page(known_server, viewport={"width": width, "height": 800})
    over = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(over) <= 0
    read_to_the_end(page, document(tmp_path / f"{'long name ' * 9}.pdf", [1, 2, 3]))
    page.wait_for_selector("#text table")
    assert page.evaluate(over) <= 0
    picture, text = (page.locator(one).bounding_box() for one in ("#canvas", "#text"))
    assert picture["y"] + picture["height"] <= text["y"], "the text is below the picture"


@needs_chromium
def test_the_keyboard_reaches_everything(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        outlined = page.evaluate(
            "[document.activeElement, ...document.querySelectorAll(':has(:focus-visible)')]"
            ".some((one) => getComputedStyle(one).outlineStyle !== 'none')"
        )
        assert outlined, f"the focus on {reached[-1]} cannot be seen"
    assert reached == ["skip", "file", "task", "preset", "pages", "read"]
    page.set_input_files("#file", document(tmp_path / "p.png", [8]))
    page.locator("#read").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#copy:enabled")
    names = [one.get_attribute("aria-label") or one.inner_text() for one in
             page.locator("button:visible").all()]  # fmt: skip
    assert all(name.strip() for name in names)
    for role in ("banner", "main"):
        assert page.get_by_role(role).count() == 1
