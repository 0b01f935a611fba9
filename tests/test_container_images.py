"""What goes into the images and what stays out; recipes; the workflow that pushes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deepseek_ocr.weights import catalog, registry
from tests import container, weights_world
from tests.cog_server import build_context, copy_image
from tests.conftest import ROOT, need
from tests.test_predict import CONFIGS, config, pins
from tests.weights_steps import ensure

SERVE, ASCEND = ROOT / "examples" / "serve", ROOT / "examples" / "ascend"

MADE = (
    ".env", ".env.local", ".venv/bin/ruff", ".venv/lib/site.py", "api-keys.txt", "found.pdf",
    "out/manifest.jsonl", "out/scan/scan.md", "page.json", "page.jpg", "page.md",
    "results/report.md",
    "runs/first/best/adapter_model.safetensors", "scans/0001.jpg", "scans/0001.json",
    "scans/train.json", "build/full/model.safetensors", "checkpoints/deepseek-ocr/config.json",
    "checkpoints/.deepseek-ocr.part/model.tar", ".git/config", ".cache/pip/x", "id_rsa", "notes.py",
    ".config/deepseek-ocr/config.toml", "deepseek_ocr/__pycache__/engine.cpython-312.pyc",
)  # fmt: skip
"""Files of a checkout in use: what the README's commands read and write, keys, environments."""

PROJECT = (
    ".dockerignore", ".gitignore", "LICENSE", "README.md", "benchmarks", "checkpoints/README.md",
    "checkpoints/pocket", "cog.cpu.yaml", "cog.stream.yaml", "cog.yaml", "deepseek_ocr", "docs",
    "examples", "ocr.py", "predict.py", "pyproject.toml", "requirements", "serve.py", "tasks.py",
    "weights.py",
)  # fmt: skip
"""Of the checkout; tests, and whatever else lies in the one that is tested, stay behind."""

SHIPPED = {
    ".dockerignore", "LICENSE", "checkpoints", "cog.cpu.yaml", "cog.stream.yaml", "cog.yaml",
    "deepseek_ocr", "docs", "predict.py", "pyproject.toml", "tasks.py", "weights.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def used_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that has been used: its own files, and what the README's commands write."""
    folder = tmp_path_factory.mktemp("used")
    for name in PROJECT:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in MADE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    return folder


def tops(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def test_an_image_holds_what_it_runs_and_nothing_of_its_user(used_checkout: Path) -> None:
    found = build_context(used_checkout)
    assert tops(found) == SHIPPED
    assert set(found).isdisjoint(MADE)
    assert "docs/third-party.md" in found
    assert not [name for name in found if name.endswith("heads.safetensors")]
    assert not [name for name in found if (used_checkout / name).read_bytes() == b"private"]
    assert tops(build_context(ROOT)) == SHIPPED
    models = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    assert models == {"README.md", "pocket"}


@pytest.mark.parametrize("folder", [SERVE, ASCEND], ids=lambda folder: folder.name)
def test_other_images_hold_nothing_of_their_user_either(used_checkout: Path, folder: Path) -> None:
    ignore = folder.relative_to(ROOT) / "Dockerfile.dockerignore"
    found = build_context(used_checkout, str(ignore))
    assert set(found).isdisjoint(MADE)
    recipe = (folder / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in recipe.splitlines() if line.startswith("COPY ")]
    assert ["."] in copied
    known = {*found, *tops(found)}
    assert {name for names in copied for name in names} - {"."} <= known


def test_git_ignores_what_the_readme_s_commands_make(
    used_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    subprocess.run(["git", "init", "--quiet"], cwd=used_checkout, check=True)
    names = [name for name in MADE if not name.startswith((".git/", ".c", "id_rsa", "notes.py"))]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *names], cwd=used_checkout, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert set(names) - set(done.stdout.split()) == set()
    readme = (ROOT / "README.md").read_text()
    told = subprocess.run(
        ["git", "check-ignore", "--no-index", *sources_of(readme)], cwd=used_checkout,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout == "", "a file of the project is ignored"


def sources_of(readme: str) -> list[str]:
    """Files of the project that the README links to."""
    names = re.findall(r"\]\(([\w./-]+)\)", readme)
    assert len(names) > 5
    return [name for name in names if (ROOT / name).is_file()]


def test_weights_can_be_baked_in(used_checkout: Path, tmp_path: Path) -> None:
    """The README's recipe: fetched weights, one line of `.dockerignore`, `cog build`."""
    line = "#!checkpoints/deepseek-ocr"
    readme = (ROOT / "README.md").read_text()
    assert f"`{line}`" in readme
    # It would take every folder with a large file for weights, .dockerignore or not.
    assert "cog build --separate-weights" not in readme
    checkout = tmp_path / "checkout"
    shutil.copytree(used_checkout, checkout)
    rules = (checkout / ".dockerignore").read_text()
    assert line in rules.splitlines()
    (checkout / ".dockerignore").write_text(rules.replace(line, line.removeprefix("#")))
    shutil.rmtree(checkout / "checkpoints" / "deepseek-ocr")
    with weights_world.running(checkout / "checkpoints") as world:
        ensure(world)
    image = copy_image(tmp_path / "image", checkout)
    found = registry.ensure(weights_world.NAME, image / "checkpoints", fetch=False)
    assert found == image / "checkpoints" / weights_world.NAME
    names = build_context(checkout)
    assert tops(names) == SHIPPED
    assert set(names) & set(MADE) == {f"checkpoints/{weights_world.NAME}/config.json"}


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_image_s_system_needs(name: str) -> None:
    packages = config(name)["build"]["system_packages"]
    assert packages == ["g++", "fonts-wqy-microhei"]
    assert f"{' '.join(packages)} \\\n" in (SERVE / "Dockerfile").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_type_is_left_to_the_device(name: str) -> None:
    assert not [line for line in config(name).get("environment", []) if "DTYPE" in line]


def test_the_image_without_a_gpu_differs_by_flash_attn_alone() -> None:
    lines = {
        name: [
            line for line in (ROOT / name).read_text().splitlines()
            if line and not line.startswith("#")
        ]
        for name in ("requirements/cuda.txt", "requirements/cpu.txt")
    }  # fmt: skip
    only_gpu = set(lines["requirements/cuda.txt"]) - set(lines["requirements/cpu.txt"])
    assert [re.search(r"/(flash_attn-2\.8\.3)\+", line)[1] for line in only_gpu] == [  # type: ignore[index]
        "flash_attn-2.8.3"
    ]
    assert set(lines["requirements/cpu.txt"]) <= set(lines["requirements/cuda.txt"])


def test_the_environment_of_the_container_s_tests_has_its_versions() -> None:
    assert config("cog.cpu.yaml")["build"]["python_version"] == container.PYTHON
    named = config("cog.cpu.yaml")["build"]["python_requirements"]
    assert container.REQUIREMENTS[0] == ROOT / named
    tools = dict(
        line.split("==") for line in container.REQUIREMENTS[1].read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    assert tools["cog"] == tools["coglet"] == config("cog.yaml")["build"]["sdk_version"]
    assert tools.keys().isdisjoint(pins("requirements/cpu.txt"))


def test_compose_names_what_there_is() -> None:
    found: dict[str, Any] = yaml.safe_load((SERVE / "compose.yaml").read_text())
    (service,) = found["services"].values()
    assert (SERVE / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert {volume.split(":")[0] for volume in service["volumes"]} == found["volumes"].keys()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert f"weights fetch {catalog.FETCHED[0]} &&" in service["command"][-1]
    key = service["environment"]["DEEPSEEK_OCR_API_KEY_FILE"]
    assert key == f"/run/secrets/{next(iter(found['secrets']))}"


def test_the_licence_of_every_package_is_listed() -> None:
    """Those that the container's pins bring along, and all that they need."""
    listed = set(re.findall(r"`([a-z][\w-]*)\*?`", (ROOT / "docs/third-party.md").read_text()))
    needed = {"flash-attn"}
    waiting = [*pins("requirements/cuda.txt"), *pins("requirements/serve.txt"), "cog", "coglet"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # the server's, in the container
            continue
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate()]
    vendors = ("nvidia-", "cuda-")
    known = {str(canonicalize_name(name)) for name in listed}
    assert {name for name in needed - known if not name.startswith(vendors)} == set()
    assert set(vendors) <= listed


# --- the workflow that pushes ---------------------------------------------------------------------


@pytest.fixture
def push() -> list[dict[str, Any]]:
    text = (ROOT / ".github" / "workflows" / "push.yml").read_text()
    steps: list[dict[str, Any]] = yaml.safe_load(text)["jobs"]["push"]["steps"]
    return steps


def test_the_workflow_installs_the_cog_that_reads_this_yaml(push: list[dict[str, Any]]) -> None:
    (setup,) = [step for step in push if step.get("uses", "").startswith("replicate/setup-cog@")]
    assert setup["with"]["cog-version"] == f"v{config('cog.yaml')['build']['sdk_version']}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("registry.example.com/team/deepseek-ocr", True),
        ("registry.example.com:5000/deepseek-ocr", True),
        ("localhost:5000/deepseek-ocr", True),
        ("docker.io/team/deepseek-ocr", True),
        ("r8.im/owner/name", True),
        ("team/deepseek-ocr", False),
        ("deepseek-ocr", False),
        ("registry.example.com", False),
        ("", False),
    ],
)
def test_the_workflow_refuses_a_name_without_a_registry(
    push: list[dict[str, Any]], name: str, accepted: bool
) -> None:
    (check,) = [step for step in push if step.get("name") == "Check the name"]
    done = subprocess.run(
        ["bash", "-e", "-c", check["run"]], env={**os.environ, "IMAGE": name}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is accepted
    assert accepted or "must begin with a registry's host" in done.stdout
