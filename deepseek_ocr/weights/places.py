"""Where downloaded checkpoints are kept, and where those that come with the package lie."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path

PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The folder that holds the package beside `pyproject.toml` and `checkpoints/`, if one does:
    a checkout or the container; None for an installed package."""
    root = PACKAGE.parent
    found = (root / "pyproject.toml").is_file() and (root / "checkpoints").is_dir()
    return root if found else None


def default_checkpoints() -> Path:
    """Where downloads go unless a setting says: `checkpoints/` of the checkout, else the platform's
    cache (`~/.cache/deepseek-ocr/models` on Linux)."""
    root = checkout()
    return root / "checkpoints" if root else user_cache_path("deepseek-ocr", False) / "models"


def bundled_folder(name: str) -> Path:
    """Where the bundled checkpoint `name` lies: in the checkout's `checkpoints/`, else in the
    installed package."""
    root = checkout()
    return root / "checkpoints" / name if root else PACKAGE / name
