"""Headless Chromium on the page at `/`, and what tests do there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving_process import Server

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")

Open = Callable[..., Any]
"""Opens the page of a server, with options of a browser's context."""

FOCUSED = "(({ id, name, className }) => id || name || className)(document.activeElement)"

HOLD = """(ending) => {
  const { fetch } = window;
  window.held = [];
  window.fetch = (...asked) => asked[0].endsWith(ending)
    ? new Promise((go) => { held.push(() => go(fetch(...asked))); })
    : fetch(...asked);
}"""
"""Requests whose path ends so are sent only when `held[n]()` is called."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opener(browser: Any) -> Iterator[Open]:
    """What opens pages; at the end nothing may have been asked of anybody else, and no script may
    have failed."""
    contexts, asked, broken = [], [], []

    def opened(server: Server, **options: Any) -> Any:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append((server.url, request.url)))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("dialog", lambda dialog: broken.append(dialog.message))
        page.goto(server.url)
        page.wait_for_selector(".task")
        return page

    yield opened
    for context in contexts:
        context.close()
    strangers = [url for own, url in asked if not url.startswith((f"{own}/", f"blob:{own}/"))]
    assert (strangers, broken) == ([], [])


def read(page: Any, path: Path, task: str = "Convert to Markdown") -> None:
    """Hand a document in."""
    page.set_input_files("#file", path)
    page.get_by_role("radio", name=task).check()
    page.get_by_role("button", name="Read", exact=True).click()


def read_to_the_end(page: Any, path: Path) -> None:
    """Hand a document in and wait until it is read."""
    read(page, path)
    page.wait_for_selector("#copy:enabled")
