"""A small world for the tests of `registry.py`: a checkpoint, three places that serve it, a pget.

The places are real HTTP servers on the loopback address and can be told to misbehave.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy
from safetensors.numpy import save

from deepseek_ocr.weights import registry
from deepseek_ocr.weights.origins import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "deepseek-ai/DeepSeek-OCR"
REVISION = "9f30c71f441d010e5429c532364a86705536c53a"
NAME = "deepseek-ocr"
FILES = registry.CHECKPOINTS[NAME].files
WEIGHTS = "model-00001-of-000001.safetensors"
INDEX = "model.safetensors.index.json"


def checkpoint_files(weight_bytes: int = 400_000) -> dict[str, bytes]:
    """Contents of a small checkpoint with the files of the real one, Python included."""
    numbers = numpy.random.default_rng(1).integers(0, 255, weight_bytes, dtype=numpy.uint8)
    config = (ROOT / "checkpoints/pocket/config.json").read_bytes()
    return {
        "config.json": config,
        "tokenizer.json": (ROOT / "checkpoints/pocket/tokenizer.json").read_bytes(),
        "tokenizer_config.json": b"{}",
        "special_tokens_map.json": b"{}",
        INDEX: json.dumps({"weight_map": {"weight": WEIGHTS}}).encode(),
        WEIGHTS: save({"weight": numbers}),
        "modeling_deepseekocr.py": b"raise SystemExit('a checkpoint was executed')",
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Put `files` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def remove(folder: Path) -> None:
    """Take a folder away."""
    shutil.rmtree(folder)


def tar_of(files: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An uncompressed tar of `files` at its root, and of any `more` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member, content in more:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Trouble:
    """How a server misbehaves on requests whose path contains `path`.

    - `status`: answer with that instead
    - `cut`: send only this many bytes and hang up (claiming the true length)
    - `stall`: send `cut` bytes, then wait until `World.release` is set
    - `claim`: state this length instead of the true one
    - `times`: how often; then behave
    """

    path: str
    methods: tuple[str, ...] = ("GET",)
    status: int = 0
    cut: int | None = None
    stall: bool = False
    claim: int | None = None
    times: int = 1_000_000


@dataclass
class Request:
    """What a server was asked."""

    server: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class World:
    """Servers, table and folder of one test; see `running`."""

    home: Path
    files: dict[str, bytes]
    tar: bytes
    ports: dict[str, int] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    edit_listing: Callable[[Any], Any] = staticmethod(lambda listing: listing)
    release: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)

    @property
    def target(self) -> Path:
        """Where the checkpoint is to appear."""
        return self.home / NAME

    @property
    def table(self) -> dict[str, Checkpoint]:
        """`registry.CHECKPOINTS` with the sources moved to the loopback address."""
        return table(self.ports)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests with `part` in their path."""
        return [one for one in self.requests if part in one.path and one.method == method]

    def trouble_for(self, method: str, path: str) -> Trouble | None:
        """The first trouble that is due, counted as used."""
        for trouble in self.troubles:
            if trouble.times > 0 and method in trouble.methods and trouble.path in path:
                trouble.times -= 1
                return trouble
        return None


REAL = registry.CHECKPOINTS
"""The table of the product, which tests replace."""


def table(ports: dict[str, int], stall_s: float = 30.0) -> dict[str, Checkpoint]:
    """The table of `registry.py` with servers on `ports` (by source name)."""
    real = REAL[NAME]
    moved = []
    for source in real.sources:
        path = "/default/model.tar" if source.kind == "tar" else ""
        url = f"http://127.0.0.1:{ports[source.name]}{path}"
        moved.append(replace(source, url=url, timeout_s=5.0, stall_s=stall_s))
    return {**REAL, NAME: replace(real, size=1000, sources=tuple(moved))}


@contextmanager
def running(home: Path, files: dict[str, bytes] | None = None) -> Iterator[World]:
    """A world with its servers running."""
    files = files or checkpoint_files()
    world = World(home, files, tar_of(files))
    servers = []
    for name in ("replicate", "huggingface", "modelscope", "cdn"):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(name, world))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        world.ports[name] = server.server_address[1]
        servers.append(server)
    try:
        yield world
    finally:
        world.release.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(name: str, world: World) -> type[BaseHTTPRequestHandler]:
    answers = {
        "replicate": _replicate,
        "huggingface": _huggingface,
        "modelscope": _modelscope,
        "cdn": _cdn,
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            world.requests.append(Request(name, self.command, self.path, headers))
            world.arrived.set()
            trouble = world.trouble_for(self.command, self.path)
            if trouble and trouble.status:
                self._send(trouble.status, {}, b"trouble", None)
                return
            status, extra, body = answers[name](world, self.path)
            wanted = headers.get("range", "")
            if status == 200 and wanted.startswith("bytes=") and body:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self._send(status, extra, body, trouble)

        do_HEAD = do_GET  # noqa: N815

        def _send(
            self, status: int, extra: dict[str, str], body: bytes, trouble: Trouble | None
        ) -> None:
            length = len(body)
            if trouble and trouble.claim is not None:
                length = trouble.claim
            self.send_response(status)
            for key, value in {"Content-Length": str(length), **extra}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            try:
                cut = trouble.cut if trouble and trouble.cut is not None else len(body)
                self.wfile.write(body[:cut])
                self.wfile.flush()
                if trouble and trouble.stall:
                    world.release.wait(60)
                    self.wfile.write(body[cut:])
                elif cut != len(body) or length != len(body):
                    self.close_connection = True
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler


Answer = tuple[int, dict[str, str], bytes]


def _replicate(world: World, path: str) -> Answer:
    return 200, {}, world.tar


def _huggingface(world: World, path: str) -> Answer:
    if path.startswith("/api/models/"):
        siblings = []
        for name, content in world.files.items():
            digest = hashlib.sha256(content).hexdigest()
            large = {"sha256": digest, "size": len(content), "pointerSize": 100}
            one = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            siblings.append({**one, "lfs": large} if name == WEIGHTS else one)
        listing = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings}
        return 200, {}, json.dumps(world.edit_listing(listing)).encode()
    name = path.rsplit("/", 1)[-1]
    content = world.files[name]
    digest = hashlib.sha256(content).hexdigest()
    headers = {"X-Repo-Commit": REVISION, "ETag": f'"{digest}"'}
    if name != WEIGHTS:
        return 200, headers, content
    location = f"http://127.0.0.1:{world.ports['cdn']}/cdn/{name}?X-Signature=not-for-logs"
    linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
    return 302, {**headers, **linked, "Location": location}, b""


def _cdn(world: World, path: str) -> Answer:
    return 200, {}, world.files[urlsplit(path).path.rsplit("/", 1)[-1]]


def _modelscope(world: World, path: str) -> Answer:
    query = parse_qs(urlsplit(path).query)
    if "FilePath" in query:
        return 200, {}, world.files[query["FilePath"][0]]
    entries = [
        {
            "Name": name,
            "Path": name,
            "Size": len(content),
            "Sha256": hashlib.sha256(content).hexdigest(),
            "Type": "blob",
        }
        for name, content in world.files.items()
    ]
    listing = {"Code": 200, "Success": True, "Data": {"Files": entries}}
    return 200, {}, json.dumps(world.edit_listing(listing)).encode()


def in_huggingface(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """An `edit_listing` that changes the entry of the weights."""

    def change(listing: Any) -> Any:
        for one in listing["siblings"]:
            if one["rfilename"] == WEIGHTS:
                edit(one)
        return listing

    return change


def in_modelscope(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """An `edit_listing` that changes the entry of the weights."""

    def change(listing: Any) -> Any:
        for one in listing["Data"]["Files"]:
            if one["Path"] == WEIGHTS:
                edit(one)
        return listing

    return change


def install_pget(folder: Path) -> Path:
    """Put the stand-in into `folder` as the program `pget`; returns where it notes its calls."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "pget"
    stand_in = (ROOT / "tests/pget_stand_in.py").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable} -IS\n{stand_in}", encoding="utf-8")
    program.chmod(0o755)
    return folder / "calls.jsonl"


def environment(folder: Path, pget: bool) -> dict[str, str]:
    """The environment of a test's processes: only this pget or none, no token, no proxy."""
    path = os.environ["PATH"].split(os.pathsep)
    kept = [part for part in path if not (Path(part) / "pget").exists()]
    values = {
        "PATH": os.pathsep.join([str(folder / "bin"), *kept] if pget else kept),
        "PGET_RETRIES": "1",
        "PGET_STAND_IN_RECORD": str(install_pget(folder / "bin")),
        "HF_HOME": str(folder / "hf"),
        "NO_PROXY": "*",
        "no_proxy": "*",
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    dropped = ("HF_", "HUGGING", "DEEPSEEK_OCR_", "PGET_", "TRANSFORMERS_")
    rest = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**rest, **values}
