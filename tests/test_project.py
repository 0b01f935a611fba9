"""The project keeps its own promises: layers, names, commands, pins."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import deepseek_ocr
from deepseek_ocr.cli.commands import COMMANDS, build_parser
from tests.conftest import ROOT, need

ROOT_FILES = ("predict", "tasks", "weights", "ocr", "serve")

SAME_NAME = {"serve", "weights"}
"""Module names that stand twice: files in `cli/` are called as their sub-commands, and at the root
Cog looks for `weights.py`, and `serve.py` starts the sub-command for one more release."""


def sources() -> list[Path]:
    found = [*ROOT.glob("*.py")]
    for package in ("deepseek_ocr", "benchmarks"):
        found += (ROOT / package).rglob("*.py")
    return [path for path in found if path.name != "__init__.py"]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter", reason="needs import-linter")
    code = "from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_layers_are_kept_and_nothing_imports_in_a_circle() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("engine/results.py", "import deepseek_ocr.formats.export", "its own layer or those below"),
        ("errors.py", "from deepseek_ocr import settings", "its own layer or those below"),
        (
            "grounding/parser.py",
            "from deepseek_ocr.grounding import geometry",
            "Nothing imports in a circle",
        ),
        ("cli/flags.py", "def f():\n    import tasks", "knows nothing of the files around it"),
        ("new_module.py", "", "its own layer or those below"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path: Path, file: str, line: str, broken: str) -> None:
    for name in ("deepseek_ocr", "benchmarks"):
        python = shutil.ignore_patterns("__pycache__", "*.safetensors", "page")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=python)
    for name in ("pyproject.toml", *(f"{name}.py" for name in ROOT_FILES)):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "deepseek_ocr" / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert f"{broken}" in " ".join(done.stdout.split())


def test_no_module_name_stands_twice() -> None:
    names = Counter(path.stem for path in sources() if path.stem != "__main__")
    assert {name for name, count in names.items() if count > 1} == SAME_NAME


def test_no_public_class_name_stands_twice() -> None:
    names = Counter(
        node.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_the_root_holds_what_people_and_cog_look_for_there() -> None:
    need("git")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    assert len({name.split("/")[0] for name in done.stdout.splitlines()}) <= 24


def test_every_exported_name_is_there() -> None:
    """`tests/before/names.json` holds the names themselves."""
    for name in deepseek_ocr.__all__:
        assert getattr(deepseek_ocr, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = deepseek_ocr.NoSuchName


@pytest.mark.parametrize(
    "statement",
    [
        "from deepseek_ocr import CropSettings, OcrError",
        "import tasks, weights, deepseek_ocr.configuration",
    ],
)
def test_light_imports_stay_light(statement: str) -> None:
    code = (
        f"import sys\n{statement}\nassert not {{'torch', 'transformers', 'PIL'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_library_has_no_side_effects() -> None:
    code = (
        "import os, torch\n"
        "before = (torch.get_num_threads(), dict(os.environ))\n"
        "import deepseek_ocr.engine.ocr_engine, deepseek_ocr.formats.export\n"
        "assert before == (torch.get_num_threads(), dict(os.environ))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_the_library_works_without_the_rest_of_the_checkout(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path = [{str(tmp_path)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "from deepseek_ocr import CropSettings, OcrEngine\n"
        f"engine = OcrEngine.load({str(ROOT / 'checkpoints' / 'pocket')!r}, 'cpu')\n"
        f"page = {str(ROOT / 'examples' / 'invoice.png')!r}\n"
        "print(engine.read(page, 'Free OCR.', CropSettings(512, 512, False)).text)"
    )
    (tmp_path / "deepseek_ocr").symlink_to(ROOT / "deepseek_ocr")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "Invoice\n"


def test_no_file_evaluates_unpickles_or_trusts_remote_code() -> None:
    forbidden = re.compile(
        r"(?<![.\w])(eval|exec)\(|\bpickle\b.*import|import.*\bpickle\b"
        r"|trust_remote_code\s*=\s*True|torch\.load\("
    )
    hits = [str(path) for path in sources() if forbidden.search(path.read_text(encoding="utf-8"))]
    assert hits == []


def readme_commands(program: str) -> set[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return set(re.findall(rf"^\s*(?:\$ )?{program} ([\w./-]+)", text, re.MULTILINE))


def test_readme_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= readme_commands("make") <= targets
    for script in readme_commands("python"):
        assert script.startswith("-") or (ROOT / script).is_file(), script


DOCUMENTS = ("README.md", "checkpoints/README.md", "docs/devices.md", "docs/outputs.md",
             "docs/documents-api.md", "deepseek_ocr/training/README.md",
             "examples/ascend/README.md")  # fmt: skip
"""What people read, with commands to copy."""


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a parser and of its sub-commands'."""
    found = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(flags_of, action.choices.values()))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags_in_the_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    used = re.findall(r"(?<![\w/-])deepseek-ocr ([a-z][a-z-]*)([^\n|`]*)", text)
    commands = [(name, rest) for name, rest in used if name in COMMANDS]
    for name, rest in commands:
        (parser,) = [
            action.choices[name]
            for action in build_parser([name])._actions
            if isinstance(action, argparse._SubParsersAction)
        ]
        flags = set(re.findall(r"(?<!\S)--[a-z][a-z_-]*", rest.partition("#")[0]))
        assert flags <= flags_of(parser), f"deepseek-ocr {name}{rest}"
    if document == "README.md":
        assert len(commands) > 10
        assert {name for name, _ in used} <= COMMANDS.keys()


def test_pins_agree_with_the_package() -> None:
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements/checkout.txt").read_text().splitlines()
        if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for asked in map(Requirement, project["dependencies"]):
        assert pins[asked.name] in asked.specifier


def test_the_examples_are_what_their_script_draws() -> None:
    from PIL import Image, ImageChops, ImageFont

    try:
        ImageFont.truetype("DejaVuSans.ttf", 12)
    except OSError:
        pytest.skip("needs the Debian package fonts-dejavu-core")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import make_pages
    finally:
        sys.path.pop(0)
    for name, (face, height, lines) in make_pages.PAGES.items():
        with Image.open(ROOT / "examples" / f"{name}.png") as kept:
            drawn = make_pages.draw(face, height, lines)
            assert ImageChops.difference(kept.convert("RGB"), drawn).getbbox() is None
    with Image.open(ROOT / "examples" / "letter.png") as kept:
        assert ImageChops.difference(kept, make_pages.draw_letter()).getbbox() is None
