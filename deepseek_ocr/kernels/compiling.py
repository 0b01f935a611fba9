"""Compiles the C++ files of this folder on the machine they run on, once, and loads them.

The result is kept in the user's own cache folder under a name made of everything it depends on,
so a second process finds it there, and a new compiler or processor does not. Nothing is ever
loaded from a folder that somebody else could write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

_LOG = logging.getLogger(__name__)
_COMPILERS = ("g++", "c++", "clang++")
FLAGS = ["-O3", "-march=native"]
"""What the compiler is told about speed; it runs on the machine that the kernel is for."""

_PATIENCE = 120
"""Seconds after which a compiler is given up."""


class CompilingError(Exception):
    """The kernel cannot be had here; says why."""


@cache
def library(name: str = "decode") -> ctypes.CDLL | None:
    """The compiled `NAME.cpp`; None, said once in the log, where it cannot be compiled or kept."""
    try:
        return _library(Path(__file__).with_name(f"{name}.cpp"))
    except (CompilingError, OSError, subprocess.SubprocessError) as error:
        _LOG.warning(
            "Going on without the compiled kernel %r, which is slower: %s "
            "Install a C++ compiler with OpenMP (g++), or leave it out: kernels=auto,-compiled.",
            name,
            error,
        )
        return None


def _library(source: Path) -> ctypes.CDLL:
    if platform.system() != "Linux":
        raise CompilingError("the compiled kernel is for Linux only.")
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise CompilingError("there is no C++ compiler.")
    command = [compiler, *FLAGS, "-std=c++20", "-shared", "-fPIC", "-fopenmp"]
    target = _folder() / f"{source.stem}-{_fingerprint(command, source)}.so"
    if not target.is_file():
        _compile(command, source, target)
    return ctypes.CDLL(str(target))


def _folder() -> Path:
    """The cache folder, made where it is missing, that nobody else may write to."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user whom the system does not know, without HOME
        raise CompilingError("this user has no home; set XDG_CACHE_HOME.") from error
    folder = base / "deepseek-ocr" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if stat.S_ISLNK(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise CompilingError(f"the folder {folder} is not this user's alone.")
    return folder


def _fingerprint(command: list[str], source: Path) -> str:
    """A name for source, compiler, flags, processor and torch."""
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_PATIENCE
    ).stdout
    parts = [source.read_bytes(), " ".join(command).encode(), version]
    parts += [_processor().encode(), torch.__version__.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> str:
    """What tells this kind of processor from others: its features as the system lists them."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.lower().startswith(("flags", "features")):
            return line
    return platform.machine()


def _compile(command: list[str], source: Path, target: Path) -> None:
    # Each process compiles to a name of its own and moves the result into place.
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", name, str(source), *_openmp()],
            capture_output=True, text=True, timeout=_PATIENCE, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CompilingError(f"{command[0]} failed: {done.stderr.strip()[-500:]}.")
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _openmp() -> list[str]:
    """The OpenMP library that torch brought, so that one set of threads serves both."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libgomp", "libiomp5")):
            return [path]
    return []
