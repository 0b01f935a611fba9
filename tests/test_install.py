"""The wheel, installed where there is no checkout: the command, the bundled model, the extras."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "fruit.png"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `pip wheel` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", folder, ROOT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel and what its base asks for."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    install(wheel, packages)
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        asked = metadata.PathDistribution(packages / Path(name).parent).requires or []
    link_distributions(asked, packages)
    return folder / "bin"


def install(wheel: Path, packages: Path) -> None:
    """Install the wheel alone, with its command, into the environment of `packages`."""
    python = packages.parents[2] / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
         "--no-index", wheel],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def link_distributions(asked: Iterable[str], packages: Path) -> None:
    """Link what `asked` needs, and nothing else, from the environment of the tests.

    A real installation downloads the same from a registry; `make test-wheel` does that.
    """
    waiting = [Requirement(line) for line in asked]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        marker, extras = requirement.marker, requirement.extras or {""}
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in done:
            continue
        done.add(key)
        found = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), requirement
        link(found, packages)
        for line in found.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                needed.marker = None
                waiting.append(needed)


def link(found: metadata.Distribution, packages: Path) -> None:
    """Link the files of one distribution, by the first folder or file of each."""
    for file in found.files or []:
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (packages / top).exists():
            (packages / top).symlink_to(Path(str(found.locate_file(top))).resolve())


def run(command: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user without any setting runs it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEEPSEEK_OCR_", "PYTHON"))}
    return subprocess.run(
        [command, *arguments],
        env=kept | {"HOME": str(cwd), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_an_installed_command_reads_a_page_without_a_checkout(
    installed: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.png"
    page.write_bytes(EXAMPLE.read_bytes())
    done = run(installed / "deepseek-ocr", "read", "page.png", "--model", "pocket", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "read", EXAMPLE, "--model", "pocket"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == here.stdout != ""
    assert str(ROOT) not in done.stderr


def test_the_package_runs_as_a_module_too(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "python", "-m", "deepseek_ocr", "--version", cwd=tmp_path)
    assert done.stdout == f"deepseek-ocr {metadata_version(installed)}\n"


def metadata_version(installed: Path) -> str:
    """The version that the installed distribution has."""
    (packages,) = installed.parent.glob("lib/python*/site-packages")
    (found,) = metadata.distributions(name="cog-deepseek-ocr", path=[str(packages)])
    return found.version


@pytest.mark.parametrize(
    ("command", "extra"),
    [(["serve"], "serve"), (["train", "--help"], None), (["evaluate", "--help"], None)],
)
def test_what_an_extra_brings_is_asked_for_in_one_sentence(
    installed: Path, tmp_path: Path, command: list[str], extra: str | None
) -> None:
    done = run(installed / "deepseek-ocr", *command, cwd=tmp_path)
    if extra is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert f"cog-deepseek-ocr[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_downloads_go_to_the_platform_s_cache(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "deepseek-ocr", "weights", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(Path(".cache") / "deepseek-ocr" / "models" / "deepseek-ocr") in done.stdout


def test_the_wheel_holds_what_runs_and_no_more(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"deepseek_ocr"}
    assert "deepseek_ocr/pocket/model.safetensors" in names
    assert "deepseek_ocr/server/web/index.html" in names or any(
        name.startswith("deepseek_ocr/server/") and name.endswith("/index.html") for name in names
    )
    assert not [name for name in names if name.endswith("heads.safetensors")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


NEEDS = {"server": "serve", "training": "train"}
"""Packages of ours → the extra that brings what they import."""

OWN_TERMS = {"peft": {"deepseek_ocr/model/adapters.py"}}
"""Imports that need an extra and say so if it is missing → the files that do that."""


def test_every_import_is_asked_for() -> None:
    """By the base of the distribution, or by the extra of the part that imports it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = names_of(project["dependencies"])
    extras = {name: names_of(asked) for name, asked in project["optional-dependencies"].items()}
    homes = metadata.packages_distributions()
    for path in (ROOT / "deepseek_ocr").rglob("*.py"):
        extra = NEEDS.get(path.relative_to(ROOT).parts[1], "")
        for module in imported_packages(path):
            found = {canonicalize_name(name) for name in homes.get(module, [module])}
            if not found & (base | extras.get(extra, set())):
                known = OWN_TERMS.get(module, set())
                assert str(path.relative_to(ROOT)) in known, f"{path} imports {module}"


def names_of(asked: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in asked}


def imported_packages(path: Path) -> set[str]:
    """The packages of others that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"deepseek_ocr"}
