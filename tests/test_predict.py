"""The predictor's face: inputs, choices, container files and pins, read without a server."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import tasks
from deepseek_ocr import presets
from deepseek_ocr.errors import InputError
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.weights import catalog
from tests.cog_schema import UnresolvableError, schema_of
from tests.conftest import GOLDEN, ROOT, reference

CONFIGS = ("cog.yaml", "cog.cpu.yaml", "cog.stream.yaml")


def inputs(predictor: str = "Predictor") -> tuple[dict[str, Any], dict[str, Any]]:
    schemas = schema_of(ROOT / "predict.py", predictor)["components"]["schemas"]
    return schemas["Input"]["properties"], schemas


def test_inputs_are_those_users_know_in_their_order() -> None:
    properties, schemas = inputs()
    assert list(properties) == [
        "image", "task_type", "resolution_size", "reference_text", "output_format",
        "max_new_tokens", "pages", "retries", "password",
    ]  # fmt: skip
    assert (properties["retries"]["default"], properties["retries"]["maximum"]) == (
        len(presets.RETRIES), len(presets.RETRIES),
    )  # fmt: skip
    assert properties["password"]["x-cog-secret"]
    assert properties["pages"]["default"] == ""
    assert schemas["Input"]["required"] == ["image"]
    assert properties["image"]["format"] == "uri"
    assert schemas["task_type"]["enum"] == list(tasks.TASK_TYPES)
    assert schemas["resolution_size"]["enum"] == list(tasks.RESOLUTION_SIZES)
    assert tasks.TASK_TYPES[properties["task_type"]["default"]] == presets.DEFAULT_TASK
    chosen = properties["resolution_size"]["default"]
    assert tasks.RESOLUTION_SIZES[chosen] == presets.DEFAULT_PRESET
    assert properties["reference_text"]["default"] == ""
    assert schemas["output_format"]["enum"] == ["Text", "Markdown", "JSON"]
    assert properties["output_format"]["default"] == "Text"
    assert schemas["Output"]["type"] == "string"


def test_the_streaming_predictor_takes_the_same_inputs() -> None:
    plain, plain_schemas = inputs()
    stream, stream_schemas = inputs("StreamPredictor")
    for name, value in stream.items():
        assert {**value, "x-order": 0} == {**plain[name], "x-order": 0}
        assert stream_schemas.get(name) == plain_schemas.get(name)
    assert plain.keys() - stream.keys() == {"output_format", "retries"}
    assert stream_schemas["Output"]["x-cog-array-display"] == "concatenate"


def test_the_schema_has_the_shape_cog_writes() -> None:
    example = json.loads((GOLDEN / "cog_openapi_schema_example.json").read_text())
    ours = schema_of(ROOT / "predict.py")
    assert example.keys() == ours.keys()
    theirs, mine = (s["components"]["schemas"]["Input"] for s in (example, ours))
    assert theirs.keys() == mine.keys()
    for name in ("task_type", "reference_text"):
        assert theirs["properties"][name].keys() == mine["properties"][name].keys()


@pytest.mark.parametrize(
    "choices",
    ["choices=list(tasks.TASKS)", "choices=TASKS", "description=('a' 'b')", "description='a' 'b'",
     "default=f'{1}'", "description='a\\\\n'"],
)  # fmt: skip
def test_the_reader_refuses_what_cog_cannot_resolve(tmp_path: Path, choices: str) -> None:
    (tmp_path / "p.py").write_text(
        "class Predictor:\n"
        f"    def predict(self, a: str = Input({choices})) -> str:\n        return a\n"
    )
    with pytest.raises(UnresolvableError):
        schema_of(tmp_path / "p.py")


@pytest.mark.parametrize("image", ["/etc/passwd", "file:///etc/passwd", 5, b"abc"])
def test_an_image_that_cog_did_not_fetch_is_refused(image: Any) -> None:
    import predict

    with pytest.raises(InputError, match="inside the container"):
        predict.file_of(image)


def test_a_missing_image_is_told() -> None:
    import predict

    with pytest.raises(InputError, match="image is missing"):
        predict.file_of(None)


def test_inputs_become_attempts() -> None:
    first, *others = tasks.attempts_for("Tiny", 10.0, 2.0)
    assert first.crop == CropSettings(512, 512, crop_mode=False)
    assert first.decode.max_new_tokens == 10
    assert [one.name for one in others] == [retry.name for retry in presets.RETRIES[:2]]


@pytest.mark.parametrize(("given", "used"), [(None, None), ("", None), ("secret", "secret")])
def test_an_empty_password_is_none(given: str | None, used: str | None) -> None:
    from cog import Secret

    import predict

    assert predict.plain_text(None if given is None else Secret(given)) == used


# --- container files ----------------------------------------------------------------------------


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("name", CONFIGS)
def test_cog_accepts_the_configuration(name: str) -> None:
    schema = json.loads(reference("upstream", "cog_config_schema_v1.0.json").read_text())
    jsonschema.validate(config(name), schema)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_names_what_exists(name: str) -> None:
    loaded = config(name)
    file, _, predictor = loaded["predict"].partition(":")
    assert schema_of(ROOT / file, predictor)
    assert (ROOT / loaded["build"]["python_requirements"]).is_file()
    assert loaded.get("environment", []) in ([], ["DEEPSEEK_OCR_DEVICE=cpu"])
    assert all("\n" not in command for command in loaded["build"]["run"])


def test_the_pins_agree() -> None:
    gpu, local = pins("requirements/cuda.txt"), pins("requirements/checkout.txt")
    tools = pins("tests/requirements.txt")
    build = config("cog.yaml")["build"]
    wheel = next(
        line
        for line in (ROOT / "requirements/cuda.txt").read_text().splitlines()
        if "flash_attn" in line
    )
    assert {name: local[name] for name in gpu if name != "torch"} == {
        name: version for name, version in gpu.items() if name != "torch"
    }
    assert gpu["torch"] == "2.8.0"
    assert gpu["transformers"] == "5.23.0"
    assert build["cuda"].split(".")[0] == re.search(r"\+cu(\d+)", wheel)[1]  # type: ignore[index]
    assert gpu["torch"].startswith(re.search(r"torch([\d.]+)cxx11abi", wheel)[1])  # type: ignore[index]
    python = "cp" + build["python_version"].replace(".", "")
    assert f"-{python}-{python}-linux_x86_64.whl" in wheel
    assert "#sha256" not in wheel
    for name in CONFIGS:
        other = config(name)["build"]
        assert other["python_version"] == build["python_version"]
        assert other["sdk_version"] == build["sdk_version"] == tools["cog"] == tools["coglet"]
        assert other["run"] == build["run"]
    assert config("cog.stream.yaml")["build"] == build


def test_only_a_predictor_that_is_asynchronous_runs_many_predictions() -> None:
    """Cog 0.23.1 refuses to start another with more than one."""
    for name in CONFIGS:
        loaded = config(name)
        most = loaded.get("concurrency", {}).get("max", 1)
        _, _, predictor = loaded["predict"].partition(":")
        source = ast.parse((ROOT / "predict.py").read_text())
        (found,) = (one for one in source.body if getattr(one, "name", "") == predictor)
        methods = {getattr(one, "name", ""): one for one in found.body}  # type: ignore[attr-defined]
        assert (most > 1) is isinstance(methods["predict"], ast.AsyncFunctionDef)


def test_every_pin_of_the_container_is_used_and_explained() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in [*pins("requirements/cuda.txt"), "flash-attn", "pget"]:
        assert re.search(rf"\| `{name}`", readme), f"{name} is not in the README's table"


# --- pget in the image --------------------------------------------------------------------------

CURL = """#!/usr/bin/env bash
# Stands for curl -fsSL -o TARGET URL: serves files from $SERVED, fails like curl for others.
target=$3 file="$SERVED/$(basename "$4")"
[ -f "$file" ] || exit 22
cp "$file" "$target"
"""


def install_pget(tmp_path: Path, asset: str, body: bytes, sums: str) -> bool:
    """Run the image's install step against a release of this content; True where it installs."""
    served, bin_folder = tmp_path / "served", tmp_path / "bin"
    for folder in (served, bin_folder):
        folder.mkdir()
    (served / asset).write_bytes(body)
    (served / "checksums.txt").write_text(sums)
    (bin_folder / "curl").write_text(CURL)
    (bin_folder / "curl").chmod(0o755)
    command = config("cog.yaml")["build"]["run"][0]
    command = command.replace("/tmp/", f"{tmp_path}/").replace("/usr/local/bin", str(bin_folder))
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": f"{bin_folder}:/usr/bin:/bin", "SERVED": str(served)},
        capture_output=True,
    )
    installed = bin_folder / "pget"
    if done.returncode == 0:
        assert installed.read_bytes() == body
        assert installed.stat().st_mode & 0o111
        return True
    return False


@pytest.mark.parametrize("asset", ["pget_linux_x86_64", "pget_Linux_x86_64"])
def test_pget_is_installed_when_its_sum_matches(tmp_path: Path, asset: str) -> None:
    from hashlib import sha256

    body = b"#!/bin/sh\n"
    sums = f"{'0' * 64}  pget_Darwin_arm64\n{sha256(body).hexdigest()}  pget_Linux_x86_64\n"
    assert install_pget(tmp_path, asset, body, sums)


@pytest.mark.parametrize("sums", ["", f"{'0' * 64}  pget_Linux_x86_64\n"])
def test_pget_is_not_installed_when_its_sum_does_not_match(tmp_path: Path, sums: str) -> None:
    assert not install_pget(tmp_path, "pget_Linux_x86_64", b"tampered", sums)


def test_a_sum_of_another_file_does_not_count(tmp_path: Path) -> None:
    from hashlib import sha256

    sums = f"{sha256(b'tampered').hexdigest()}  pget_Darwin_arm64\n"
    assert not install_pget(tmp_path, "pget_Linux_x86_64", b"tampered", sums)


def test_named_checkpoints_have_a_known_task_and_preset() -> None:
    for checkpoint in catalog.CHECKPOINTS.values():
        assert checkpoint.task in presets.TASKS
        assert checkpoint.preset in presets.PRESETS
