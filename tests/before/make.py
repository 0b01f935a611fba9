"""Make everything in this folder by running the revision that its README names.

    python -m tests.before.make FOLDER

from a checkout of that revision, into which `tests/before/` was copied. FOLDER must be empty or
not there. Programs run as their users run them; only where a model is scripted, or the place that
weights come from is a server of the tests, they run by way of the tests' own helpers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

import deepseek_ocr
from tests import papers, scripted, weights_world
from tests.before import interface
from tests.before.interface import EVERY_FORMAT, RUN
from tests.conftest import ROOT
from tests.serving_world import Server, serving
from tests.weights_world import NAME, Trouble, World

KEY = "a-key-from-before"

VALUES: dict[str, Any] = {
    "model": "pocket",
    "device": "cuda:2",
    "dtype": "float32",
    "checkpoints": "/srv/checkpoints",
    "source": "modelscope",
    "quant": "int8",
    "kernels": "auto,-compiled",
    "slots": 3,
    "vision_device": "cuda:1",
    "strict": True,
    "threads": 5,
    "existing_text": "both",
    "formulas": "brackets",
    "host": "127.0.0.2",
    "port": 8123,
    "api_keys": ["the-first-key", "the-second-key"],
    "api_key_file": "/etc/keys.txt",
    "no_auth": True,
    "models": ["/srv/another", "/srv/third"],
    "devices": ["cuda:0", "cuda:3"],
    "workers": 2,
    "max_body_mb": 65,
    "max_held_mb": 1025,
    "max_pixels": 9_000_000,
    "max_pages": 33,
    "page_timeout": 601.5,
    "body_timeout": 61.5,
    "max_waiting": 257,
    "allow_urls": True,
    "cors": ["https://one.example", "https://two.example"],
    "jobs_folder": "/srv/jobs",
    "shutdown_seconds": 31.5,
}
"""Setting → a value that is not its default."""

ARGUMENTS = {
    "--format": "json", "--pages": "1-3", "--dpi": "100", "--rotate": "90", "--password": "secret",
    "--timeout": "60", "--output": "out", "--retries": "1", "--existing-text": "both",
    "--formulas": "brackets", "--shard": "1/2", "--devices": "cpu,cpu", "--task": "markdown",
    "--reference": "the total", "--prompt": "Read.", "--size": "tiny", "--base-size": "1024",
    "--image-size": "640", "--model": "pocket", "--adapter": "adapter", "--checkpoints": "models",
    "--device": "cpu", "--vision-device": "cpu", "--dtype": "float32", "--quant": "none",
    "--kernels": "plain", "--slots": "2", "--max-new-tokens": "100", "--temperature": "0.5",
    "--top-p": "0.9", "--top-k": "40", "--seed": "7", "--repetition-penalty": "1.1",
    "--no-repeat-ngram-size": "20", "--no-repeat-window": "80", "--exempt-tokens": "<td>,</td>",
    "--host": "127.0.0.1", "--port": "8001", "--api-key": "a-key-of-some-length",
    "--api-key-file": "keys.txt", "--workers": "2", "--max-body-mb": "10", "--max-held-mb": "100",
    "--max-pixels": "1000000", "--max-pages": "3", "--page-timeout": "60", "--body-timeout": "6",
    "--max-waiting": "2", "--cors": "https://one.example", "--jobs-folder": "jobs",
    "--shutdown-seconds": "3",
}  # fmt: skip
"""Flag that takes a value → a value it takes."""

LEFT_OUT = ("--help", "--version", "--config", "--print-config", "--init-config")
"""Flags that end the program, and one that names a file that must be there."""


def main() -> None:
    """Make all of it."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", XDG_CONFIG_HOME=str(folder / "none"))
    documents(folder / "documents")
    interrupted(folder)
    finished(folder)
    kinds(folder)
    with tempfile.TemporaryDirectory() as state:
        os.environ["XDG_STATE_HOME"] = state
        jobs(folder)
        names = {"http": asked_names(folder)}
    settings(folder)
    checkpoints(folder / "checkpoints")
    names |= {
        "files": files_written(folder),
        "cog": interface.cog_inputs(ROOT / "predict.py"),
        "all": sorted(deepseek_ocr.__all__),
        "flags": {"read": flags("ocr.py"), "serve": flags("serve.py")},
    }
    write_json(folder / "names.json", names)


def write_json(path: Path, data: Any) -> None:
    """Data that people may read too."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def program(name: str, *arguments: str, cwd: Path, **environ: str) -> str:
    """What a program of the checkout prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *arguments],
        cwd=cwd, env=os.environ | environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def until(true: Callable[[], bool]) -> None:
    """Wait, and look often."""
    end = time.monotonic() + 120
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.001)


# --- runs over documents ------------------------------------------------------------------------


def documents(folder: Path) -> None:
    """Two pictures, a PDF of two pages, and a picture that comes after it."""
    folder.mkdir()
    examples = ROOT / "examples"
    for name in ("fruit", "invoice", "total"):
        shutil.copy(examples / f"{name}.png", folder / f"{name}.png")
    papers.picture_pdf(folder / "ledger.pdf", [examples / "total.png", examples / "fruit.png"])


def interrupted(folder: Path) -> None:
    """A run that was killed when three of its five pages were listed: in the middle of the PDF."""
    with tempfile.TemporaryDirectory(prefix="before-") as name:
        work = Path(name)
        shutil.copytree(folder / "documents", work / "documents")
        process = subprocess.Popen([sys.executable, str(ROOT / "ocr.py"), *RUN], cwd=work)
        manifest = work / "out" / "manifest.jsonl"
        until(lambda: manifest.exists() and manifest.read_text().count('"page": 1') >= 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.copytree(work / "out", folder / "interrupted")


def finished(folder: Path) -> None:
    """The same run, to its end."""
    with tempfile.TemporaryDirectory(prefix="before-") as name:
        shutil.copytree(folder / "documents", Path(name) / "documents")
        program("ocr.py", *RUN, cwd=Path(name))
        shutil.copytree(Path(name) / "out", folder / "finished")


def kinds(folder: Path) -> None:
    """A finished run whose pages went wrong in every way that the scripted model knows; one of
    them failed."""
    faults = dict(enumerate(scripted.FAULTS, start=1))
    papers.pdf(folder / "kinds.pdf", faults, faults)
    with tempfile.TemporaryDirectory(prefix="before-") as name, scripted.Server() as server:
        shutil.copy(folder / "kinds.pdf", name)
        status, _, err = server.run("kinds.pdf", "-o", "out", cwd=Path(name))
        if status != 1:
            raise AssertionError(err)
        shutil.copytree(Path(name) / "out", folder / "kinds")


def files_written(folder: Path) -> list[str]:
    """What a run over the documents of every kind leaves, in every format."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copy(folder / "kinds.pdf", work)
        shutil.copytree(folder / "kinds", work / "out")
        program("ocr.py", "--model", "pocket", "kinds.pdf", "-o", "out", *EVERY_FORMAT, cwd=work)
        return interface.files_in(work / "out")


# --- the server's jobs --------------------------------------------------------------------------


def jobs(folder: Path) -> None:
    """A store with a document that was read, and one of which the first page of three was, when
    the server was killed. SQLite's file is kept as statements."""
    place = folder / "jobs"
    with tempfile.TemporaryDirectory() as name:
        store, pictures = Path(name) / "jobs", Path(name) / "pictures.zip"
        with zipfile.ZipFile(pictures, "w") as archive:
            for picture in ("fruit", "invoice", "total"):
                archive.write(folder / "documents" / f"{picture}.png", f"{picture}.png")
        options = ("--model", "pocket", "--jobs-folder", str(store), "--slots", "1")
        with serving(*options, environ={"DEEPSEEK_OCR_API_KEYS": KEY}) as server:
            http = client(server)
            done = interface.finished_job(http, folder / "documents" / "ledger.pdf")
            http.get(f"/v1/ocr/jobs/{done}/output/md").raise_for_status()
            half = interface.hand_in(http, pictures)
            until(lambda: http.get(f"/v1/ocr/jobs/{half}").json()["pages"]["read"] >= 1)
            server.stop(signal.SIGKILL)
        shutil.copytree(store, place, ignore=shutil.ignore_patterns("*.sqlite3*"))
        with sqlite3.connect(store / "jobs.sqlite3") as database:
            (pages,) = database.execute("SELECT count(*) FROM pages WHERE job = ?", (half,))
            if pages != (1,):
                raise AssertionError(pages)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            dump = [*database.iterdump(), f"PRAGMA user_version = {version};"]
        database.close()
    (place / "jobs.sql").write_text("\n".join(dump) + "\n", encoding="utf-8")
    write_json(folder / "jobs.json", {"key": KEY, "finished": done, "half": half})


def client(server: Server) -> httpx.Client:
    """A client that has the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60)


def asked_names(folder: Path) -> dict[str, Any]:
    """What the server takes and gives."""
    with serving("--model", "pocket", environ={"DEEPSEEK_OCR_API_KEYS": KEY}) as server:
        http = client(server)
        job = interface.finished_job(http, folder / "documents" / "ledger.pdf")
        return {
            "requests": interface.requests_of(http.get("/openapi.json").json()),
            "answers": interface.answers_of(http, folder / "documents" / "invoice.png", job),
            "hidden": interface.open_paths(http),
        }


# --- settings -----------------------------------------------------------------------------------


def settings(folder: Path) -> None:
    """The file that `--init-config` writes with every value set, and as many variables."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.toml"
        program("ocr.py", "--init-config", "--config", str(path), cwd=Path(name))
        text = re.sub(
            r"^# (\w+) = .*$",
            lambda found: f"{found[1]} = {json.dumps(VALUES[found[1]])}",
            path.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        (folder / "config.toml").write_text(text, encoding="utf-8")
        printed = program(
            "serve.py", "--print-config", "--config", str(folder / "config.toml"), cwd=Path(name)
        )
        expected = tomllib.loads(printed)
        environ = {f"DEEPSEEK_OCR_{key.upper()}": as_text(value) for key, value in VALUES.items()}
        from_environ = tomllib.loads(
            program("serve.py", "--print-config", cwd=Path(name), **environ)
        )
    if from_environ != expected:
        raise AssertionError(from_environ)
    write_json(folder / "settings.json", {"environment": environ, "arrives": expected})


def as_text(value: Any) -> str:
    """A setting's value as a variable has it."""
    if isinstance(value, list):
        return ",".join(value)
    return "yes" if value is True else str(value)


def flags(script: str) -> list[str]:
    """Every flag in the help of a program, with a value if it takes one."""
    text = program(script, "--help", cwd=ROOT).split("\nexamples:")[0]
    found: list[str] = []
    for line in text.splitlines():
        if not (listed := re.match(r"  (?:-\w(?: \w+)?, )?(--\w.*)", line)):
            continue
        for flag in re.findall(r"--[a-z-]+", re.split(r"\s{2,}", listed[1])[0]):
            if flag not in LEFT_OUT:
                takes = re.search(rf"{flag}[ =]\[?[A-Z{{0-9]", listed[1])
                found.append(f"{flag}={ARGUMENTS[flag]}" if takes else flag)
    return found


# --- checkpoints --------------------------------------------------------------------------------


def checkpoints(folder: Path) -> None:
    """Folders of named checkpoints: one was fetched, one adopted, and of one the download was
    killed."""
    files = weights_world.checkpoint_files(2000)
    for kind in ("fetched", "adopted", "interrupted"):
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            with weights_world.running(work / "checkpoints", files) as world:
                if kind == "interrupted":
                    world.troubles = [Trouble("/cdn/", cut=500, stall=True)]
                weights_world.write_files(work / "mine", files)
                verb = ["adopt", str(work / "mine")] if kind == "adopted" else ["fetch", NAME]
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.weights_process", json.dumps(world.ports), "0",
                     *verb, "--checkpoints", str(world.home),
                     *(["--source", "huggingface"] if verb[0] == "fetch" else [])],
                    cwd=ROOT, env=weights_world.environment(work, pget=False),
                )  # fmt: skip
                if kind == "interrupted":
                    until(lambda world=world: is_downloading(world))
                    process.kill()
                if process.wait() != (-signal.SIGKILL if kind == "interrupted" else 0):
                    raise AssertionError(kind)
            shutil.copytree(work / "checkpoints", folder / kind)


def is_downloading(world: World) -> bool:
    """True once the weights were asked for, and a file for them was opened."""
    return bool(world.asked("/cdn/") and [*world.home.rglob("*.incomplete")])


if __name__ == "__main__":
    main()
