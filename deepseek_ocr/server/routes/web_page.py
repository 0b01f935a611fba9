"""The page at `/`: its files, and a policy under which it can run and ask nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from deepseek_ocr import presets
from deepseek_ocr.server import web
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.server_state import CurrentState
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.weights import catalog

router = APIRouter(include_in_schema=False)

FOLDER = Path(web.__file__).with_name("page")

_MODULES = ("app", "api", "dom", "nodes", "sheet", "start", "text", "work")
FILES = {"style.css": "text/css", "icon.svg": "image/svg+xml"}
FILES |= {f"{name}.js": "text/javascript" for name in _MODULES}
"""Everything the page is made of beside index.html; no other file is ever opened."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Trusted Types without any policy: no string can become HTML on this page, by mistake or not."""


@router.api_route("/", methods=["GET", "HEAD"])
def index() -> Response:
    """The page."""
    return _file("index.html", "text/html")


@router.api_route("/page/options.json", methods=["GET", "HEAD"])
def options(state: CurrentState) -> dict[str, Any]:
    """What may be chosen on the page. Open to all: it says nothing that the README does not."""
    known = catalog.known_as(next(iter(state.names.values())))
    return {
        "needs_key": bool(state.keys),
        "task": presets.task_title(known.task),
        "preset": presets.preset_title(known.preset),
        "tasks": [
            {
                "name": task.title, "purpose": task.purpose[0].upper() + task.purpose[1:],
                "reference": name == "locate",
            }
            for name, task in presets.TASKS.items()
        ],
        "presets": [
            {"name": preset.title, "purpose": _purpose(preset.crop)}
            for preset in presets.PRESETS.values()
        ],
    }  # fmt: skip


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def asset(name: str) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise ApiError(404, "There is no such file.", "not_found")
    return _file(name, FILES[name])


def _file(name: str, media_type: str) -> Response:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return Response(_content(name), media_type=f"{media_type}; charset=utf-8", headers=headers)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _purpose(crop: CropSettings) -> str:
    if crop.crop_mode:
        return (
            f"The whole page at {crop.base_size} px, and its parts at {crop.image_size} px: "
            "for dense pages and small type."
        )
    return f"The whole page at {crop.image_size} px in one look."
