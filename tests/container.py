"""Runs tests in an environment with the versions that ship in the container: `make test-container`.

Python 3.12, what `requirements/cpu.txt` pins, and `tests/requirements.txt`. The environment takes
about 7 GB where torch comes with its CUDA libraries, so it lies in the user's cache, under a name
made of the requirements, and serves every checkout. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = (ROOT / "requirements" / "cpu.txt", ROOT / "tests" / "requirements.txt")
PYTHON = "3.12"
"""Of the container; `cog.yaml` says the same."""

BYTES = 12_000_000_000
"""Free disk that making the environment wants: what is installed, and the downloads beside it."""

READY = "ready"
"""File in an environment that is whole."""

LEFT_OUT = (
    "adapters", "auxiliary", "ascend_examples", "benchmark*", "cli", "command", "compatibility*",
    "document_progress", "doctor",
    "evaluate", "facts", "gpu_report", "install", "interactive", "journal", "load_options",
    "metrics", "nvidia", "pocket",
    "predictions", "project", "quality", "samples", "serving_*", "split", "synth",
    "training*", "verify",
)  # fmt: skip
"""Names of test files about what is not in the container: command line, server, training."""

DONE, FAILED, UNAVAILABLE = 0, 1, 3


class UnavailableError(Exception):
    """The environment cannot be made here; says why."""


def main() -> int:
    """The exit status of pytest; `UNAVAILABLE` if the environment cannot be made."""
    parser = argparse.ArgumentParser(prog="make test-container", description=__doc__)
    parser.add_argument("--index", default="", help="another package index, such as PyTorch's")
    parser.add_argument("--check", action="store_true", help="only say whether it can be made")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    arguments = parser.parse_args()
    folder = cache() / f"container-{fingerprint(arguments.index)}"
    try:
        if not is_ready(folder):
            check(folder)
            if not arguments.check:
                make(folder, arguments.index)
    except UnavailableError as error:
        print(f"make test-container: {error}", file=sys.stderr)
        return UNAVAILABLE
    except subprocess.CalledProcessError as error:
        print(f"make test-container: {error}", file=sys.stderr)
        return FAILED
    if arguments.check:
        return DONE
    python = folder / "bin" / "python"
    print(f"Testing in {folder}: {versions(python)}", flush=True)
    ignored = [f"--ignore-glob=*/test_{name}.py" for name in LEFT_OUT]
    command = [str(python), "-m", "pytest", *ignored, *arguments.pytest]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def is_ready(folder: Path) -> bool:
    """True if the environment is whole, and the Python it was made with still there."""
    return (folder / READY).is_file() and (folder / "bin" / "python").exists()


def check(folder: Path) -> None:
    """Raises `UnavailableError` if the environment cannot be made: no Python, no disk, no right."""
    find_python()
    there = next(parent for parent in folder.parents if parent.exists())
    elsewhere = "name another folder with XDG_CACHE_HOME."
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UnavailableError(f"Nothing can be written to {there}; {elsewhere}")
    free = shutil.disk_usage(there).free
    if free < BYTES:
        raise UnavailableError(
            f"{there} has {free / 1e9:.0f} GB free and the environment wants {BYTES / 1e9:.0f}; "
            f"{elsewhere}"
        )


def make(folder: Path, index: str) -> None:
    """Make the environment, unless another process has by then.

    Raises `CalledProcessError` if pip fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(folder):
            return
        interpreter = find_python()
        print(f"Making {folder} with {interpreter}: some minutes.", flush=True)
        if folder.exists():
            shutil.rmtree(folder)
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        extra = ["--extra-index-url", index] if index else []
        files = [word for path in REQUIREMENTS for word in ("-r", path)]
        subprocess.run([*pip, *extra, *files], check=True)
        (folder / READY).touch()


def cache() -> Path:
    """Where the environments of all checkouts lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deepseek-ocr"


def fingerprint(index: str) -> str:
    """A name for what is installed, and from where."""
    digest = hashlib.sha256(f"{PYTHON} {index}".encode())
    for path in REQUIREMENTS:
        digest.update(b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def find_python() -> str:
    """Python 3.12 on PATH or under pyenv. Raises `UnavailableError` if there is none."""
    test = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{PYTHON}')"
    for candidate in candidates():
        try:
            subprocess.run([candidate, "-c", test], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):  # pyenv's commands may lead nowhere
            continue
        return candidate
    raise UnavailableError(
        f"No Python {PYTHON} that can make environments is on PATH or under pyenv; install it "
        f"(on Debian and Ubuntu python{PYTHON}-venv too)."
    )


def candidates() -> Iterator[str]:
    """Commands and files that may be Python 3.12."""
    yield f"python{PYTHON}"
    yield "python3"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in sorted(pyenv.glob(f"versions/{PYTHON}*"), reverse=True):
        yield str(folder / "bin" / "python")


def versions(python: Path) -> str:
    """Which Python and torch these are, and what is unlike the container."""
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version, torch = found.stdout.split()
    unlike = "" if torch.endswith("+cpu") else ", standing in for the container's CPU build"
    return f"Python {version}, torch {torch}{unlike}"


if __name__ == "__main__":
    sys.exit(main())
