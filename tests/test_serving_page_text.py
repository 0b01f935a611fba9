"""A page's text at `/`: formatted and raw, in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.page_browser import FOCUSED, Open, needs_chromium, read, read_to_the_end
from tests.serving_process import FAILING, FORMATTED, FRONT, GATED, PARTS, Server, document

Node = Any

MATHML = "http://www.w3.org/1998/Math/MathML"
BLOCKS = "**/pages/*/blocks"
WRITTEN = [FRONT, *PARTS.values()]
CAPTION = list(PARTS)[-1]


# --- formatted text, as the server sends it -----------------------------------------------------


def formula(*children: Node, **attributes: str) -> Node:
    return ["math", attributes, list(children)]


def mi(name: str) -> Node:
    return ["mi", {}, [name]]


def mn(number: str) -> Node:
    return ["mn", {}, [number]]


def mo(sign: str, **attributes: str) -> Node:
    return ["mo", attributes, [sign]]


def half() -> Node:
    return ["mfrac", {}, [mn("1"), mn("2")]]


def item(text: str) -> Node:
    return ["li", {}, [text]]


def cell(text: str, **attributes: str) -> Node:
    return ["td", attributes, [text]]


ENERGY = formula(
    mi("f"), mo("("), mi("v"), mo(")"), mo("≔"), half(), mi("m"), ["msup", {}, [mi("v"), mn("2")]],
    alttext=r"f(v) \coloneqq \frac{1}{2} m v^{2}",
)  # fmt: skip

GAUSS = formula(
    ["msubsup", {}, [mo("∫", largeop="true"), mn("0"), mi("∞")]],
    ["msup", {}, [mi("e"), ["mrow", {}, [mo("−"), ["msup", {}, [mi("x"), mn("2")]]]]]],
    ["mspace", {"width": "0.1667em"}, []], mi("d"), mi("x"), mo("="),
    ["mfrac", {}, [["msqrt", {}, [mi("π")]], mn("2")]],
    display="block",
)  # fmt: skip

TABLE = ["table", {}, [["tbody", {}, [
    ["tr", {}, [cell("Body", colspan="2")]], ["tr", {}, [cell("Moon"), cell("1,022 m/s")]],
]]]]  # fmt: skip

FORMATTED_NODES: list[list[Node]] = [
    [["h1", {}, ["The motion of bodies"]]],
    [["ul", {"class": "list"}, [
        item("1. at rest"), item("3. in a straight line"), item("7. on a circle"),
    ]]],
    [["p", {}, ["Let ", ENERGY, " be its ", ["i", {}, ["energy"]], ", if x < y & y > 0."]]],
    [GAUSS],
    [TABLE],
    [["p", {}, ["Figure 1. The path of a body with speed ",
                formula(["msub", {}, [mi("v"), mn("0")]])]]],
]  # fmt: skip
"""The page `FORMATTED`, a list for each of its regions."""


def feed(page: Any, *regions: list[Node]) -> None:
    """Have the server's formatted text be this, from now on."""
    blocks = [{"region": order, "nodes": nodes} for order, nodes in enumerate(regions, start=1)]
    page.route(BLOCKS, lambda route: route.fulfill(json={"blocks": blocks}))


@pytest.fixture
def shown(known_server: Server, open_page: Open, tmp_path: Path) -> Any:
    """The page `FORMATTED`, read, with its text formatted."""
    page = open_page(known_server)
    feed(page, *FORMATTED_NODES)
    read_to_the_end(page, document(tmp_path / "motion.png", [FORMATTED]))
    page.wait_for_selector("#text math")
    return page


def built(page: Any, *nodes: Node) -> str:
    """What becomes of `nodes` at the end of the text; the HTML of it, for reading alone."""
    return page.evaluate(
        """async (nodes) => {
            const { build } = await import("/page/nodes.js");
            const home = document.createElement("div");
            home.className = "body formatted";
            home.append(build(nodes, () => document.createElement("canvas")));
            for (const part of ["work", "text"]) document.getElementById(part).hidden = false;
            document.getElementById("text").replaceChildren(home);
            return home.innerHTML;
        }""",
        list(nodes),
    )


def height(page: Any, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    return float(box["height"])


def raw_texts(page: Any) -> list[str]:
    return page.locator("#text .body.plain").evaluate_all(
        "all => all.map((one) => one.textContent)"
    )


def raw_button(page: Any) -> Any:
    return page.get_by_role("button", name="Raw text")


# --- formatted ----------------------------------------------------------------------------------


@needs_chromium
def test_titles_lists_tables_and_formulas_are_rendered(shown: Any) -> None:
    text = shown.locator("#text")
    assert text.locator("h1").inner_text() == "The motion of bodies"
    assert text.locator("ul.list li").all_inner_texts() == [
        "1. at rest", "3. in a straight line", "7. on a circle"
    ]  # fmt: skip
    assert text.locator("li").first.evaluate("e => getComputedStyle(e).listStyleType") == "none"
    assert text.locator("td").all_inner_texts() == ["Body", "Moon", "1,022 m/s"]
    assert text.locator("td").first.evaluate("e => e.colSpan") == 2
    assert text.locator("td").first.evaluate("e => getComputedStyle(e).borderTopStyle") == "solid"
    assert text.locator("math").count() == 3
    spaces = text.locator("math, math *").evaluate_all("all => all.map((one) => one.namespaceURI)")
    assert set(spaces) == {MATHML}
    assert height(shown, "math:not([display])") > 0
    assert height(shown, "mfrac") > 1.5 * height(shown, "p math > mi"), "it is laid out as one"
    assert height(shown, "math[display=block] mfrac") > height(shown, "p mfrac")
    assert text.locator("math").first.get_attribute("alttext") in PARTS["text"]


@needs_chromium
def test_a_display_formula_is_in_the_middle(shown: Any) -> None:
    parts = shown.locator("#text .display > math > *")
    first, last = parts.first.bounding_box(), parts.last.bounding_box()
    column = shown.locator("#text .display").bounding_box()
    left = first["x"] - column["x"]
    right = column["x"] + column["width"] - last["x"] - last["width"]
    assert left > 20
    assert left == pytest.approx(right, abs=4)


@needs_chromium
def test_text_in_a_tag_is_shown_once(shown: Any) -> None:
    chips = shown.locator("#text .label")
    assert [chip.is_visible() for chip in chips.all()] == [True] * 5 + [False]
    raw_button(shown).click()
    assert chips.last.inner_text() == CAPTION
    assert raw_texts(shown)[-1] == ""


@needs_chromium
def test_long_labels_are_shortened_in_names_only(open_page: Open, known_server: Server) -> None:
    page = open_page(known_server)
    name = page.evaluate(
        """async (label) => (await import("/page/text.js")).regionName({ order: 1, label })""",
        "word " * 100,
    )
    assert name == f"Region 1: {('word ' * 100)[:80]} …"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_formulas_have_the_colour_of_the_text(
    known_server: Server, open_page: Open, scheme: str
) -> None:
    page = open_page(known_server, color_scheme=scheme)
    built(page, ["p", {}, ["so ", ENERGY]], ["code", {"class": "formula"}, [r"\odd{x}"]])
    colours = page.locator(":is(p, mn, code)", has_text="").evaluate_all(
        "all => all.filter((one) => one.closest('#text')).map((one) => getComputedStyle(one).color)"
    )
    assert len(set(colours)) == 1


@needs_chromium
@pytest.mark.parametrize("width", [320, 390])
def test_wide_text_scrolls_by_itself_on_a_phone(
    known_server: Server, open_page: Open, tmp_path: Path, width: int
) -> None:
    page = open_page(known_server, viewport={"width": width, "height": 800})
    sum_ = [part for number in range(60) for part in (mn(str(number)), mo("+"))]
    row = ["tr", {}, [cell(f"column {number}") for number in range(30)]]
    feed(
        page,
        [["h1", {}, ["incomprehensibilities" * 4]]],
        [formula(*sum_, display="block")],
        [["p", {}, ["so ", formula(*sum_), " in the end"]]],
        [["table", {}, [row]]],
        [["p", {}, [["code", {"class": "formula"}, ["x" * 300]]]]],
    )
    read_to_the_end(page, document(tmp_path / "wide.png", [FORMATTED]))
    page.wait_for_selector("#text table")
    over = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(over) <= 0
    for scroller in (".display", ".body:has(p > math)", ".wide"):
        assert page.locator(f"#text {scroller}").evaluate("e => e.scrollWidth > e.clientWidth")
    cells = page.locator("#text td").first
    assert cells.inner_text() == "column 0"
    assert height(page, "#text td") < 60, "words of a narrow cell are not torn apart"
    raw_button(page).click()
    assert page.evaluate(over) <= 0
    assert raw_button(page).bounding_box()["x"] + raw_button(page).bounding_box()["width"] <= width


@needs_chromium
def test_arrow_keys_scroll_a_wide_table(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(known_server)
    feed(page, [["table", {}, [["tr", {}, [cell(f"column {number}") for number in range(60)]]]]])
    read_to_the_end(page, document(tmp_path / "wide.png", [FORMATTED]))
    page.wait_for_selector("#text table")
    page.locator("#text .wide").focus()
    page.evaluate("""() => { window.scrolled = new Promise((done) => {
        document.activeElement.addEventListener("scroll", ({ target }) => done(target.className));
    }); }""")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("scrolled") == "wide"


# --- raw ----------------------------------------------------------------------------------------


@needs_chromium
def test_raw_text_is_what_the_model_wrote(shown: Any) -> None:
    formatted = shown.locator("#text").inner_text()
    button = raw_button(shown)
    assert button.get_attribute("aria-pressed") == "false"
    button.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert raw_texts(shown) == WRITTEN
    assert shown.locator("#text :is(h1, ul, table, math):visible").count() == 0
    look = shown.locator("#text .plain").first.evaluate(
        "e => [getComputedStyle(e).whiteSpaceCollapse, getComputedStyle(e).fontFamily]"
    )
    assert look[0] == "preserve"
    assert "monospace" in look[1]
    button.press("Enter")
    assert shown.locator("#text").inner_text() == formatted
    assert shown.evaluate(FOCUSED) == "raw"


@needs_chromium
def test_regions_are_linked_in_both_views(shown: Any) -> None:
    for _ in range(2):
        for order in ("1", "6"):
            shown.locator(f".box[data-region='{order}']").hover()
            lit = shown.locator(".lit").evaluate_all("all => all.map((e) => e.dataset.region)")
            assert lit == [order, order]
        shown.locator(".box[data-region='3']").press("Enter")
        assert shown.evaluate("document.activeElement.id") == "region-3"
        raw_button(shown).click()
        assert shown.locator(".block.lit").get_attribute("data-region") == "3", "still pinned"


@needs_chromium
def test_the_choice_stays_on_other_pages_and_after_a_reload(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    known_server.close_gate()
    page = open_page(known_server)
    read(page, document(tmp_path / "pages.tiff", [FORMATTED, GATED[40], FAILING]))
    page.wait_for_selector("#page-list button[data-state=failed]")
    page.get_by_role("button", name="Page 2, reading").click()
    page.get_by_text("The bakery sold more bread").wait_for()
    raw_button(page).click()
    page.get_by_role("button", name="Page 1, done").click()
    assert raw_texts(page) == WRITTEN
    page.get_by_role("button", name="Page 2, reading").click()
    known_server.open_gate()
    page.get_by_text("<td>Month</td>").wait_for()
    page.wait_for_selector("#copy:enabled")
    assert page.locator("#text :is(h1, table):visible").count() == 0, (
        "it stays raw after it is read"
    )
    page.reload()
    page.wait_for_selector("#copy:enabled")
    assert raw_button(page).get_attribute("aria-pressed") == "true"
    assert raw_texts(page) == WRITTEN
    raw_button(page).click()
    page.get_by_role("heading", name="The motion of bodies").wait_for()
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert open_page(known_server).locator("#raw[aria-pressed=false]").count() == 1, "another tab"


# --- hostile ------------------------------------------------------------------------------------


@needs_chromium
def test_attributes_of_nodes_cannot_act(known_server: Server, open_page: Open) -> None:
    page = open_page(known_server)
    hostile = {
        "href": "javascript:window.attacked=1", "xlink:href": "https://example.org/",
        "onclick": "window.attacked=2", "src": "https://example.org/x.png", "id": "work",
        "style": "background:url(https://example.org/y.png)", "class": "unseen problem",
        "actiontype": "statusline", "data-region": "1", "mathbackground": "red", "dir": "rtl",
        "display": "block;", "width": "99999em", "height": "calc(1px)", "lspace": "1em;x",
    }  # fmt: skip
    html = built(
        page,
        *([name, hostile, ["x"]] for name in ("p", "table", "td", "span", "code")),
        ["math", hostile, [[name, hostile, ["x"]] for name in ("mi", "mrow", "mtd", "mspace")]],
    )
    assert "=" not in html.replace('class="wide"', "").replace('class=""', "")
    assert page.evaluate("window.attacked ?? null") is None


@needs_chromium
def test_styles_of_cells_are_a_short_list(known_server: Server, open_page: Open) -> None:
    page = open_page(known_server)
    style = (
        "text-align: left; padding-left: 0em; padding: 0 .5em; border-right: 0.06em solid; "
        "width: 100%; position: fixed; inset: 0; background: red; --x: 1; border-left: url(x); "
        "padding-right: calc(1px); width: 9999px; text-align: left !important; margin: -9em; "
        "border-top: 1px solid url(https://example.org/); content: 'x'"
    )
    cells = [["mtd", {"style": style}, [mi("x")]], ["mi", {"style": style}, ["x"]]]
    built(page, formula(["mtable", {"style": "width:100%"}, [["mtr", {}, cells[:1]]]], cells[1]))
    found = page.locator("mtd, mi, mtable").evaluate_all("""all => all.map((one) => (
        [one.localName, [...one.style].sort().join(" "), one.style.width]
    ))""")
    borders = " ".join(f"border-right-{what}" for what in ("color", "style", "width"))
    padding = " ".join(f"padding-{side}" for side in ("bottom", "left", "right", "top"))
    assert found == [
        ["mtable", "width", "100%"],
        ["mtd", f"{borders} {padding} text-align width", "100%"],
        ["mi", "", ""],
        ["mi", "", ""],
    ]


@needs_chromium
def test_unknown_elements_show_their_text(known_server: Server, open_page: Open) -> None:
    page = open_page(known_server)
    attack = "window.attacked = 1"
    script: Node = ["script", {}, [attack]]
    html = built(
        page,
        script,
        ["iframe", {"srcdoc": "x"}, ["framed ", ["b", {}, ["bold"]]]],
        ["mi", {}, ["outside"]],
        formula(
            ["semantics", {}, [mi("s"), ["annotation", {"encoding": "text/html"}, [script]]]],
            ["mtext", {}, [["img", {"src": "x"}, ["alt"]]]],
            ["maction", {}, ["acted"]], ["annotation-xml", {}, [["p", {}, ["inner"]]]], "loose",
            ["mfrac", {}, [["svg", {}, ["above"]], mn("2")]],
        ),
    )  # fmt: skip
    assert html == (
        f"{attack}framed <b>bold</b>outside<math>"
        f"<semantics><mi>s</mi><annotation>{attack}</annotation></semantics>"
        "<mtext>alt</mtext><mtext>acted</mtext><mtext>inner</mtext><mtext>loose</mtext>"
        "<mfrac><mtext>above</mtext><mn>2</mn></mfrac></math>"
    )
    assert page.locator("annotation").is_hidden()
    assert page.locator("mtext", has_text="loose").bounding_box()["width"] > 10
    assert page.evaluate("window.attacked ?? null") is None


DEEP = """async ([levels, names]) => {
  const { build } = await import("/page/nodes.js");
  let node = names[0].startsWith("m") ? ["mi", {}, ["bottom"]] : "bottom";
  for (let level = 0; level < levels; level += 1) {
    const name = names[level % names.length];
    node = [name, {}, [node]];
  }
  const home = document.createElement("div");
  home.append(build([names[0].startsWith("m") ? ["math", {}, [node]] : node], () => null));
  document.getElementById("start").replaceChildren(home);
}"""


@needs_chromium
def test_deep_formulas_are_shown(known_server: Server, open_page: Open) -> None:
    page = open_page(known_server)
    page.evaluate(DEEP, [250, ["mrow", "msqrt", "mstyle", "mpadded"]])
    assert page.locator("math *").count() == 251
    assert height(page, "math mi") > 0


@needs_chromium
@pytest.mark.parametrize("levels", [298, 299, 300, 301, 5000])
@pytest.mark.parametrize("name", ["b", "mrow", "unknown"])
def test_deep_nodes_lose_no_text(
    known_server: Server, open_page: Open, name: str, levels: int
) -> None:
    page = open_page(known_server)
    page.evaluate(DEEP, [levels, [name]])
    assert page.locator("#start").inner_text().strip() == "bottom"


@needs_chromium
def test_no_formula_reaches_beyond_its_region(known_server: Server, open_page: Open) -> None:
    """Lengths may be negative; what they move is seen within the region's text or not at all."""
    page = open_page(known_server)
    moved = ["mpadded", {"voffset": "300px", "lspace": "-300px"}, [["mtext", {}, ["Log in here"]]]]
    built(page, ["p", {}, ["text ", formula(moved)]], formula(moved, display="block"))
    body = page.locator("#text .formatted")
    assert body.evaluate("e => getComputedStyle(e).overflow") == "auto hidden"


@needs_chromium
def test_what_the_server_formats_is_rendered(
    known_server: Server, open_page: Open, tmp_path: Path
) -> None:
    """From the model's text to the page, with nothing in between that is made up."""
    page = open_page(known_server)
    read_to_the_end(page, document(tmp_path / "motion.png", [FORMATTED]))
    page.wait_for_selector("#text math")
    text = page.locator("#text")
    assert text.locator("h1").inner_text() == "The motion of bodies"
    for marker in ("1. at rest", "3. in a straight line", "7. on a circle"):
        assert marker in text.inner_text()
    assert text.locator("table td").all_inner_texts() == ["Body", "Moon", "1,022 m/s"]
    assert text.locator("math[display=block] msqrt").count() == 1
    assert height(page, "p mfrac") > 1.5 * height(page, "p math mi")
    assert text.inner_text().count("Figure 1. The path of a body") == 1
    raw_button(page).click()
    assert raw_texts(page) == WRITTEN
