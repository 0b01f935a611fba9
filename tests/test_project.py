"""The project keeps its own promises: layers, names, commands, pins."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_ocr
from tests.conftest import ROOT

ROWS = [
    {"predict", "ocr", "serve", "cli", "serving", "training", "benchmarks"},
    {"tasks", "weights", "fetching", "configuration"},
    {
        "deepseek_ocr.documents.shared_reader",
        "deepseek_ocr.documents.pipeline",
        "deepseek_ocr.documents.page_retries",
        "deepseek_ocr.formats.records",
        "deepseek_ocr.documents.renderer",
        "deepseek_ocr.documents.render_worker",
        "deepseek_ocr.documents.inputs",
        "deepseek_ocr.documents.run_store",
        "deepseek_ocr.formats.export",
        "deepseek_ocr.formats.figures",
        "deepseek_ocr.formats",
    },
    {
        "deepseek_ocr.engine.ocr_engine",
        "deepseek_ocr.engine.scheduler",
        "deepseek_ocr.engine.request",
        "deepseek_ocr.engine.preprocess_pool",
        "deepseek_ocr.engine.page_state",
        "deepseek_ocr.engine.text_accumulator",
        "deepseek_ocr.engine.results",
    },
    {
        "deepseek_ocr.images.colors",
        "deepseek_ocr.images.views",
        "deepseek_ocr.model.prompts",
        "deepseek_ocr.model.checkpoint",
        "deepseek_ocr.model.network",
        "deepseek_ocr.model.adapters",
        "deepseek_ocr.decoding.loop_detector",
        "deepseek_ocr.decoding.sampler",
        "deepseek_ocr.decoding.decoder",
        "deepseek_ocr.grounding.parser",
        "deepseek_ocr.devices.selection",
        "deepseek_ocr.model.footprint",
        "deepseek_ocr.devices.hugepages",
        "deepseek_ocr.devices.nvidia",
        "deepseek_ocr.kernels.op_fallbacks",
        "deepseek_ocr.kernels.float32_fallback",
        "deepseek_ocr.devices.cpu",
        "deepseek_ocr.grounding.geometry",
        "deepseek_ocr.kernels",
        "deepseek_ocr.markup",
        "deepseek_ocr.devices.memory",
    },
    {
        "deepseek_ocr.settings",
        "deepseek_ocr.errors",
        "deepseek_ocr.files",
        "deepseek_ocr.devices.ascend",
    },
]
"""The layers of ARCHITECTURE.md, top to bottom: a file imports from its own row or below."""


def row_of(module: str) -> int | None:
    """Row of a module, or of the package it is in; None for what is not ours."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in (2, 1)]
    return next((row for name in names for row, known in enumerate(ROWS) if name in known), None)


def sources() -> list[Path]:
    found = [*ROOT.glob("*.py")]
    for package in ("deepseek_ocr", "fetching", "cli", "serving", "training", "benchmarks"):
        found += (ROOT / package).rglob("*.py")
    return [path for path in found if path.name != "__init__.py"]


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, submodules taken from a package spelt out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            for alias in node.names:
                home = deepseek_ocr._HOME_OF.get(alias.name, alias.name)
                package = node.module == "deepseek_ocr"
                names.add(f"{node.module}.{home if package else alias.name}")
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_a_row_above(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = row_of(module)
    assert own is not None, f"{module} is in no row of the table"
    rows = {name: row_of(name) for name in imports(path)}
    assert not {name for name, row in rows.items() if row is not None and row < own}


def test_the_table_catches_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "from deepseek_ocr import engine\nimport tasks\n"
        "from deepseek_ocr import CropSettings\nfrom deepseek_ocr.images.colors import to_rgb\n"
    )
    assert {row_of(name) for name in imports(tmp_path / "x.py")} == {1, 3, 4, 5}


def test_exported_names() -> None:
    assert sorted(deepseek_ocr.__all__) == [
        "CancelledError",
        "CheckpointError",
        "Confidence",
        "Counts",
        "CropSettings",
        "DecodeSettings",
        "Delta",
        "DeviceError",
        "DocumentError",
        "EngineStatus",
        "Failure",
        "GenerationError",
        "Handle",
        "ImageError",
        "ImageLimits",
        "ImageTooLargeError",
        "InputError",
        "OcrEngine",
        "OcrError",
        "Page",
        "PromptError",
        "Reading",
        "Region",
        "SettingsError",
        "TextToken",
        "Timings",
        "Views",
    ]
    for name in deepseek_ocr.__all__:
        assert getattr(deepseek_ocr, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = deepseek_ocr.NoSuchName


@pytest.mark.parametrize(
    "statement",
    ["from deepseek_ocr import CropSettings, OcrError", "import tasks, configuration, weights"],
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


def test_readme_flags_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = {
        flag
        for line in re.findall(r"ocr\.py (.*)", text)
        for flag in re.findall(r"(?<!\S)--[a-z-]+", line)
    }
    done = subprocess.run(
        [sys.executable, "ocr.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"--[a-z-]+", done.stdout))
    assert used
    assert used <= known


def test_pins_agree_with_the_package() -> None:
    import tomllib

    from packaging.requirements import Requirement

    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements/checkout.txt").read_text().splitlines()
        if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in map(Requirement, project["dependencies"]):
        assert pins[need.name] in need.specifier


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
