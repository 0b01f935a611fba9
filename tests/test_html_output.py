"""HTML shows everything that was read, and does nothing that the page asks for."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_ocr.formats.mathml import DEEPEST, to_mathml
from tests.output_fixtures import (
    PAGE,
    TABLE,
    Block,
    grounded,
    record_of,
    text_output,
    three_pages,
)

STYLE = re.compile(
    r"((text-align|justify-items|padding-\w+|margin-left|width|border-\w+):"
    r" ?[-a-z0-9. %]+(; ?|$))*"
)
"""What MathML may say of its alignment and lines."""


class Audit(HTMLParser):
    """Everything in a page that could act or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in (
            "script",
            "iframe",
            "object",
            "embed",
            "link",
            "form",
            "svg",
            "base",
            "template",
        ):
            self.found.append(tag)
        for name, value in attrs:
            local = (value or "").startswith(("#page-", "data:image/jpeg;base64,"))
            if name == "style" and STYLE.fullmatch(value or "") and tag.startswith("m"):
                continue
            if name.startswith("on") or name in ("style", "srcset", "formaction", "xlink:href"):
                self.found.append(f"{tag} {name}")
            if name in ("href", "src") and not local:
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<td onclick=alert(1)>x</td>",
    "<table><tr><td style='background:url(http://evil.example/x)'>x",
    "[click](javascript:alert(1))",
    "![pixel](http://evil.example/pixel.png)",
    "<a href='https://evil.example'>x</a>",
    "<https://evil.example>",
    "[ref]: http://evil.example\n[ref]",
    "<iframe src=//evil.example></iframe>",
    "<svg/onload=alert(1)>",
    "</section></main></body><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '<table background="http://evil.example/x"><tr><td>',
    "\\(<img src=x onerror=alert(1)>\\)",
    "\\[</span><script>alert(1)</script>\\]",
    "`<script>`\n```html\n<script>\n```",
    '<span class="figure 0"></span><span class="figure 99999999999"></span>',
    "<math><mtext></mtext><style><img src=x onerror=alert(1)></style></math>",
    "<b><table><td><b><table><td>" * 50,
    "![](images/0_0.jpg)![](images/../../etc/passwd)![](images/1_99999.jpg)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!--><script>alert(1)</script>-->",
    "<<script>script>alert(1)<</script>/script>",
    "<td\n\n<script>alert(1)</script>",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_html_shows_hostile_text_and_does_nothing_with_it(hostile: str) -> None:
    label = '"><script>alert(1)</script>'
    page = grounded([Block(label, (0, 0, 9, 9), hostile)])
    shown = text_output("html", record_of(1, page), record_of(2, "the page after"))
    audit = Audit(shown)
    assert audit.found == []
    assert "the page after" in "".join(audit.texts)
    if "alert" in hostile and "<td onclick" not in hostile:
        assert "alert(1)" in "".join(audit.texts)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from([*HOSTILE, "<|ref|>image<|/ref|><|det|>[[1,2,300,400]]<|/det|>", TABLE])
        | st.text(max_size=15)
        | st.text("<>/=\"'`\\()[]!|&;\n tdscriptbr", max_size=30),
        max_size=6,
    ).map("".join)
)
def test_no_text_makes_html_act(hostile: str) -> None:
    assert Audit(text_output("html", record_of(1, hostile))).found == []


def test_html_is_self_contained_and_bound_by_a_policy() -> None:
    shown = text_output("html", *three_pages())
    style = re.search(r"<style>(.*?)</style>", shown, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in shown
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert re.findall(r'<section id="([^"]*)"', shown) == ["page-1", "page-2", "page-3"]
    assert "page 2 could not be read: The page cannot be rendered --&gt;; repair" in shown
    assert "went in circles" in shown


def test_formulas_are_mathml() -> None:
    page = (
        "Inline \\(x_1 < y_2\\) here.\n\n\\[\na = b\n- c\n\\]\n\n$$z*w*q$$\n\n"
        "<table><tr><td colspan=2>\\(t^2\\)</td></tr><tr><td>1</td><td>2</td></tr></table>"
    )
    shown = text_output("html", record_of(1, page))
    assert re.findall(r'<math alttext="([^"]*)"', shown) == [
        "x_1 &lt; y_2", "a = b\n- c", "z*w*q", "t^2",
    ]  # fmt: skip
    assert len(re.findall(r'<math[^>]* display="block"', shown)) == 2
    assert '<td colspan="2"><math' in shown
    assert "<msub><mi>x</mi><mn>1</mn></msub><mo>&lt;</mo>" in shown


def test_html_opens_no_figure_beside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "images" / "0_0.jpg").symlink_to(tmp_path / "secret.jpg")
    page = record_of(1, PAGE, figures=("0_0.jpg",))
    shown = text_output("html", page, folder=tmp_path)
    assert base64.b64encode(b"secret").decode() not in shown
    assert "no picture" in shown


def test_enormous_tables_come_out_whole() -> None:
    rows = "".join(f"<tr><td>{number}</td><td>x</td></tr>" for number in range(2_000))
    shown = text_output("html", record_of(1, f"<table>{rows}</table>"))
    assert shown.count("<tr>") == 2_000
    assert text_output("txt", record_of(1, f"<table>{rows}</table>")).count("\tx\n") == 2_000


# --- formulas -------------------------------------------------------------------------------------

GRIDS = {
    r"\begin{aligned}a&=b\\c&=d+e\end{aligned}": [["a", "=b"], ["c", "=d+e"]],
    r"\begin{align}a&=b\\c&=d\end{align}": [["a", "=b"], ["c", "=d"]],
    r"\begin{split}a&=b\end{split}": [["a", "=b"]],
    r"\begin{gather}a+b\\c\end{gather}": [["a+b"], ["c"]],
    r"\begin{cases}1&x>0\\0&\text{else}\end{cases}": [["1", "x>0"], ["0", "else"]],
    r"\begin{array}{l|cr}a&b&c\\ \hline d&&f\end{array}": [["a", "b", "c"], ["d", "", "f"]],
    r"\left(\begin{matrix}1&2\\3&4\end{matrix}\right)": [["1", "2"], ["3", "4"]],
}


@pytest.mark.parametrize("source", GRIDS)
def test_rows_and_columns_of_a_formula_are_right(source: str) -> None:
    shown = text_output("html", record_of(1, f"\\[{source}\\]"))
    found = re.search(r"<math.*</math>", shown, re.DOTALL)
    assert found is not None
    table = ElementTree.fromstring(found[0].replace("&nbsp;", " ")).find(".//mtable")
    assert table is not None
    rows = [["".join(cell.itertext()) for cell in row.iter("mtd")] for row in table.iter("mtr")]
    assert [[cell for cell in row if cell or source.count("&&")] for row in rows] == GRIDS[source]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"E=mc^2 \tag{7}", "E=mc2(7)"),
        (r"a=b \eqno{(3.1)}", "a=b(3.1)"),
        (r"\begin{equation}a\end{equation}", "a"),  # without a number that was not read
        (r"20 % \text{ of } x", "20% of x"),
        (r"a \coloneqq b", "a≔b"),
    ],
)
def test_what_is_seen_of_a_formula(source: str, text: str) -> None:
    made = to_mathml(source, display=True)
    assert made is not None
    seen = "".join(ElementTree.fromstring(made).itertext())
    assert "".join(seen.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "source",
    [r"\unknown{x}", r"\frac{a}", r"\begin{aligned}a&=b", r"\left(x", "x}",
     r"\href{javascript:a}{b}",
     r"\text{" + "{" * DEEPEST + "}" * DEEPEST + "}", r"\sqrt" * 50_000 + "x", "{" * 100_000,
     "^" * 100_000, r"\left(" * 50_000, "x" * 5 + r"\begin{matrix}" * 30_000],
    ids=lambda source: source[:20],
)  # fmt: skip
def test_a_formula_that_cannot_be_set_shows_its_source(source: str) -> None:
    assert to_mathml(source, display=False) is None
    shown = text_output("html", record_of(1, f"before \\({source}\\) after"))
    assert f'<code class="formula">\\({escape(source, quote=False)}\\)</code> after' in shown


def test_formulas_of_any_length_are_set() -> None:
    made = to_mathml("+".join(f"x_{{{number}}}" for number in range(20_000)), display=True)
    assert made is not None
    assert made.count("<msub>") == 20_000


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [r"\text{", "}", "{", "<script>", "</math>", "<style>", "\"'", "&lt;", "<!--", r"\frac",
             r"\begin{array}{c}", r"\end{array}", "&", r"\\", "<mtext><img src=x onerror=a()>", "x",
             r"\left(", r"\right)", r"\color{red}", "%", r"\operatorname{", r"\mathrm{", "]]>"]
        ),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_no_formula_makes_html_act(source: str) -> None:
    for raw in (f"\\[{source}\\]", f"<table><tr><td>\\({source}\\)</td></tr></table>"):
        audit = Audit(text_output("html", record_of(1, raw), record_of(2, "the page after")))
        assert audit.found == []
        assert "the page after" in "".join(audit.texts)
