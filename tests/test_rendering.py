"""Documents are opened and rendered in a process that may crash or hang."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from deepseek_ocr.documents.renderer import Ahead, OpenDocument, Rendered, Renderer
from deepseek_ocr.errors import DocumentError, SettingsError
from deepseek_ocr.settings import RenderSettings
from tests import papers
from tests.scripted import colour


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as renderer:
        yield renderer


def middle(page: Rendered) -> Any:
    return page.image.getpixel((page.image.width // 2, page.image.height // 2))


def worker_of(renderer: Renderer) -> psutil.Process:
    """The one rendering process of `renderer`, which must have been used."""
    process = renderer._all[0]._process
    assert process is not None
    return psutil.Process(process.pid)


def render(path: Path, number: int = 1, password: str | None = None, **settings: Any) -> Rendered:
    with Renderer(RenderSettings(**settings)) as renderer:
        return renderer.render(renderer.open(path, password), number)


def test_pages_of_a_pdf_come_at_the_resolution_asked_for(
    renderer: Renderer, tmp_path: Path
) -> None:
    document = renderer.open(papers.pdf(tmp_path / "x.pdf", range(1, 501), size=(50, 80)))
    assert (document.kind, document.pages) == ("pdf", 500)
    for number in (1, 300, 500, 2):
        page = renderer.render(document, number)
        assert page.image.size == (100, 160)  # 144 dpi
        assert page.points == (50.0, 80.0)
        assert middle(page) == colour(number)
    assert render(document.path, dpi=72).image.size == (50, 80)


CJK = {
    "HeiseiMin-W3": "いろはにほへと漢字東京都",  # Japanese
    "HeiseiKakuGo-W5": "アイウエオ文書読取",
    "STSong-Light": "天地玄黄宇宙洪荒简体汉语",  # simplified Chinese
    "MSung-Light": "天地玄黃宇宙洪荒繁體漢語",  # traditional Chinese
    "HYSMyeongJo-Medium": "모든인간은태어날때부터",  # Korean
    "HYGothic-Medium": "존엄과권리에있어동등하다",
}
"""Fonts that PDFs name and do not embed, each with text of different characters."""


@pytest.mark.parametrize("font", CJK)
def test_text_in_east_asian_fonts_that_are_not_embedded_is_drawn(
    renderer: Renderer, tmp_path: Path, font: str
) -> None:
    """By the font that the images install, where no other is installed. Missing glyphs would be
    empty, or boxes all alike."""
    if not list(Path("/usr/share/fonts").rglob("wqy-microhei.ttc")):
        pytest.skip("needs Debian's package fonts-wqy-microhei")
    text, size = CJK[font], 36
    document = renderer.open(papers.line(tmp_path / "x.pdf", font, text, size))
    ink = np.asarray(renderer.render(document, 1).image.convert("L")) < 128
    cells = np.split(ink, len(text), axis=1)
    assert len({cell.tobytes() for cell in cells}) == len(text)
    assert min(cell.mean() for cell in cells) > 0.02


def test_frames_of_a_tiff_are_pages(renderer: Renderer, tmp_path: Path) -> None:
    document = renderer.open(papers.tiff(tmp_path / "x.tiff", range(1, 51)))
    assert (document.kind, document.pages) == ("image", 50)
    for number in (50, 1, 1, 26):
        page = renderer.render(document, number)
        assert (middle(page), page.points) == (colour(number), None)


def test_pictures_of_a_zip_are_pages_in_the_order_of_their_numbers(
    renderer: Renderer, tmp_path: Path
) -> None:
    members = {
        "scan10.png": papers.png(10), "scan9.png": papers.png(9), "b/scan1.PNG": papers.png(1),
        "notes.txt": b"", "__MACOSX/scan9.png": b"", "../../etc/evil.png": papers.png(7),
    }  # fmt: skip
    document = renderer.open(papers.archive(tmp_path / "x.zip", members))
    assert (document.pages, document.left_out) == (3, 3)
    pages = [middle(renderer.render(document, number)) for number in (1, 2, 3)]
    assert pages == [colour(1), colour(9), colour(10)]


def test_a_locked_pdf_opens_with_its_password_only(renderer: Renderer, tmp_path: Path) -> None:
    path = papers.encrypted(tmp_path / "x.pdf", "secret", [7])
    with pytest.raises(DocumentError, match="is encrypted; give its password"):
        renderer.open(path)
    with pytest.raises(DocumentError, match="the password given does not open it"):
        renderer.open(path, "wrong")
    assert middle(renderer.render(renderer.open(path, "secret"), 1)) == colour(7)


def test_what_has_no_pages_says_so(renderer: Renderer, tmp_path: Path) -> None:
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "text.pdf").write_text("no document")
    for path, reason in (
        (papers.without_pages(tmp_path / "none.pdf"), "has no pages"),
        (papers.cut_off(tmp_path / "cut.pdf", [1]), "damaged"),
        (papers.archive(tmp_path / "none.zip", {"a.txt": b""}), "has no pages"),
        (tmp_path / "empty.pdf", "empty"),
        (tmp_path / "text.pdf", "not a picture"),
        (tmp_path / "gone.pdf", "no file"),
        (tmp_path, "no file"),
        (Path("/dev/zero"), "no file"),
    ):
        with pytest.raises(DocumentError, match=reason):
            renderer.open(path)


def test_a_broken_cross_reference_table_is_repaired(renderer: Renderer, tmp_path: Path) -> None:
    document = renderer.open(papers.broken_xref(tmp_path / "x.pdf", [1, 2]))
    assert middle(renderer.render(document, 2)) == colour(2)


def test_a_page_of_two_hundred_inches_is_rendered_within_the_bound(tmp_path: Path) -> None:
    path = papers.pdf(tmp_path / "x.pdf", [5], size=(14_400, 14_400))
    page = render(path, max_pixels=1_000_000)
    assert page.image.size == (1000, 1000)
    assert (middle(page), page.points) == (colour(5), (14_400.0, 14_400.0))


@pytest.mark.parametrize("size", [(595.28, 841.89), (612, 792), (841.89, 595.28)])
@pytest.mark.parametrize("most", [1_000, 100_003, 1_000_000])
def test_a_page_never_has_more_pixels_than_the_bound(
    renderer: Renderer, tmp_path: Path, size: tuple[float, float], most: int
) -> None:
    path = papers.pdf(tmp_path / "x.pdf", [5], size=size)
    bounded = renderer.using(RenderSettings(max_pixels=most))
    width, height = bounded.render(bounded.open(path), 1).image.size
    assert most * 0.9 < width * height <= most


def test_a_page_as_thin_as_a_line_keeps_the_bound_too(tmp_path: Path) -> None:
    page = render(papers.pdf(tmp_path / "x.pdf", [5], size=(0.5, 14_400)), max_pixels=1_000)
    assert page.image.size == (1, 1_000)


@pytest.mark.parametrize("size", [(0.5, 0.5), (14_400, 0.5)])
def test_a_page_of_one_pixel_is_a_page(tmp_path: Path, size: tuple[float, float]) -> None:
    page = render(papers.pdf(tmp_path / "x.pdf", [1], size=size))
    assert min(page.image.size) == 1


@pytest.mark.parametrize("flag", [0, 90, 180, 270])
@pytest.mark.parametrize("asked", [None, 0, 90, 180, 270])
def test_a_page_is_turned_as_its_flag_says_or_as_asked(
    tmp_path: Path, flag: int, asked: int | None
) -> None:
    page = render(papers.rotated(tmp_path / "x.pdf", flag, (40, 80)), dpi=72, rotate=asked)
    turn = flag if asked is None else asked
    assert page.image.size == ((40, 80) if turn % 180 == 0 else (80, 40))
    assert page.points == ((40.0, 80.0) if flag % 180 == 0 else (80.0, 40.0))
    assert page.rotation == (0 if asked is None else (asked - flag) % 360)
    width, height = page.image.size
    corner = {0: (5, 5), 90: (width - 5, 5), 180: (width - 5, height - 5), 270: (5, height - 5)}
    assert page.image.getpixel(corner[turn]) == (0, 0, 0)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 180), (6, 90), (8, 270)])
@pytest.mark.parametrize("asked", [None, 0, 90])
def test_a_photograph_is_turned_as_its_flag_says_or_as_asked(
    tmp_path: Path, orientation: int, turn: int, asked: int | None
) -> None:
    picture = Image.new("RGB", (40, 80), "white")
    picture.paste("black", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x112] = orientation
    for name in ("x.jpg", "x.tiff"):
        picture.save(tmp_path / name, exif=exif)
        page = render(tmp_path / name, rotate=asked)
        shown = turn if asked is None else asked
        width, height = page.image.size
        assert (width, height) == ((40, 80) if shown % 180 == 0 else (80, 40))
        corner = {0: (5, 5), 90: (width - 5, 5), 180: (width - 5, height - 5)}
        corner[270] = (5, height - 5)
        level: Any = page.image.convert("L").getpixel(corner[shown])
        assert level < 60
        assert page.rotation == (0 if asked is None else (asked - turn) % 360)


# --- hostile files ------------------------------------------------------------------------------


def test_a_page_that_never_ends_is_stopped_and_the_next_one_is_rendered(tmp_path: Path) -> None:
    bomb = papers.nested_bomb(tmp_path / "bomb.pdf")
    good = papers.pdf(tmp_path / "good.pdf", [3])
    with Renderer(RenderSettings(timeout=2)) as renderer:
        with pytest.raises(DocumentError, match="longer than 2 seconds"):
            renderer.render(renderer.open(bomb), 1)
        assert middle(renderer.render(renderer.open(good), 1)) == colour(3)


def test_a_process_that_dies_takes_one_page_with_it(tmp_path: Path) -> None:
    bomb = papers.nested_bomb(tmp_path / "bomb.pdf")
    good = papers.pdf(tmp_path / "good.pdf", [3])
    with Renderer(RenderSettings(timeout=60)) as renderer:
        document = renderer.open(bomb)
        process = worker_of(renderer)
        threading.Timer(0.3, process.kill).start()
        with pytest.raises(DocumentError, match=r"process down \(status -9\)"):
            renderer.render(document, 1)
        assert middle(renderer.render(renderer.open(good), 1)) == colour(3)


def test_a_picture_that_unpacks_to_gigabytes_stays_within_the_memory_allowed(
    tmp_path: Path,
) -> None:
    path = papers.huge_image(tmp_path / "x.pdf", 15_000)  # 675 MB of pixels
    assert path.stat().st_size < 1_000_000
    with Renderer(RenderSettings(memory=100 << 20)) as renderer:
        document = renderer.open(path)
        process, peak = worker_of(renderer), 0
        before = process.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02) and process.is_running():
                peak = max(peak, process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            renderer.render(document, 1)
        except DocumentError:
            pass  # a page that fails is as good as one without the picture
        finally:
            done.set()
            watcher.join()
        assert peak - before < 150 << 20
        good = renderer.open(papers.pdf(tmp_path / "good.pdf", [3]))
        assert middle(renderer.render(good, 1)) == colour(3)


@pytest.mark.parametrize("name", ["x.png", "x.zip"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    renderer: Renderer, tmp_path: Path, name: str
) -> None:
    """Its pixels are missing, which who decodes it says."""
    data = io.BytesIO()
    Image.effect_noise((200, 150), 100).save(data, "PNG")
    cut_off = data.getvalue()[:5000]
    path = tmp_path / name
    if name == "x.zip":
        papers.archive(path, {"1.png": cut_off})
    else:
        path.write_bytes(cut_off)
    document = renderer.open(path)
    with pytest.raises(DocumentError, match=r"200 x 150 px, more than the 29,999 px allowed"):
        renderer.using(RenderSettings(max_picture_pixels=29_999)).render(document, 1)
    with pytest.raises(DocumentError, match="damaged"):
        renderer.using(RenderSettings(max_picture_pixels=30_000)).render(document, 1)


def test_a_zip_member_may_not_unpack_to_more_than_a_picture_may_have(
    renderer: Renderer, tmp_path: Path
) -> None:
    path = papers.archive(tmp_path / "x.zip", {"1.png": bytes(257 << 20), "2.png": papers.png(2)})
    document = renderer.open(path)
    with pytest.raises(DocumentError, match="larger than 256 MiB"):
        renderer.render(document, 1)
    assert middle(renderer.render(document, 2)) == colour(2)


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Also in the middle of a page that never ends, and though nobody told it to."""
    import subprocess
    import sys

    from tests.conftest import ROOT

    path = papers.nested_bomb(tmp_path / "bomb.pdf")
    code = (
        "import sys, threading, time\nfrom pathlib import Path\n"
        "from deepseek_ocr.documents.renderer import Renderer\n"
        f"r = Renderer(); d = r.open(Path({str(path)!r}))\n"
        "print(r._all[0]._process.pid, flush=True)\nr.render(d, 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    child.wait(timeout=30)


def test_settings_have_bounds() -> None:
    for wrong in (
        {"dpi": 5}, {"dpi": 5000}, {"rotate": 45}, {"timeout": 0}, {"max_pixels": 0},
        {"max_picture_pixels": 0},
    ):  # fmt: skip
        with pytest.raises(SettingsError):
            RenderSettings(**wrong)


# --- ahead --------------------------------------------------------------------------------------


def ahead_of(
    renderer: Renderer, document: OpenDocument, asked: list[int], count: int
) -> Ahead[int]:
    def requests() -> Iterator[tuple[int, OpenDocument, int]]:
        for number in range(1, document.pages + 1):
            asked.append(number)
            yield number, document, number

    return Ahead(renderer, requests(), count)


def test_pages_are_rendered_a_few_ahead_and_come_in_order(
    renderer: Renderer, tmp_path: Path
) -> None:
    document = renderer.open(papers.pdf(tmp_path / "x.pdf", range(1, 41)))
    asked: list[int] = []
    with closing(ahead_of(renderer, document, asked, 3)) as ahead:
        for taken, (number, page) in enumerate(ahead, 1):
            assert isinstance(page, Rendered)
            assert (number, middle(page)) == (taken, colour(taken))
            assert len(asked) <= taken + 3 + 1
    assert asked == list(range(1, 41))


def test_rendering_stops_when_nobody_takes_pages(renderer: Renderer, tmp_path: Path) -> None:
    document = renderer.open(papers.pdf(tmp_path / "x.pdf", range(1, 41)))
    asked: list[int] = []
    before = set(threading.enumerate())
    ahead = ahead_of(renderer, document, asked, 2)
    next(iter(ahead))
    begun = set(threading.enumerate()) - before
    ahead.close()
    assert len(asked) < 10
    assert begun
    for thread in begun:
        thread.join(60)
        assert not thread.is_alive()


def test_an_error_of_the_listing_is_raised_where_pages_are_taken(
    renderer: Renderer, tmp_path: Path
) -> None:
    document = renderer.open(papers.pdf(tmp_path / "x.pdf", [1]))

    def requests() -> Iterator[tuple[int, OpenDocument, int]]:
        yield 1, document, 1
        raise OSError("the disk is gone")

    with closing(Ahead(renderer, requests(), 2)) as ahead:
        pages = iter(ahead)
        assert isinstance(next(pages)[1], Rendered)
        with pytest.raises(OSError, match="the disk is gone"):
            next(pages)


def test_a_page_that_cannot_be_rendered_does_not_end_the_others(tmp_path: Path) -> None:
    good = papers.pdf(tmp_path / "good.pdf", [1])
    with Renderer(RenderSettings(timeout=2)) as renderer:
        wanted = [renderer.open(papers.nested_bomb(tmp_path / "b.pdf")), renderer.open(good)]
        requests = ((at, document, 1) for at, document in enumerate(wanted))
        with closing(Ahead(renderer, requests, 2)) as ahead:
            (_, first), (_, second) = list(ahead)
    assert isinstance(first, DocumentError)
    assert isinstance(second, Rendered)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    with Renderer(workers=2) as renderer:
        renderer.open(papers.pdf(tmp_path / "x.pdf", [1]))
        processes = [psutil.Process(one._process.pid) for one in renderer._all if one._process]
    assert processes
    assert not any(process.is_running() for process in processes)
