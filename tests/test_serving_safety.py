"""Each rule of safety, attacked at the real server."""

from __future__ import annotations

import gzip
import hmac
import io
import json
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deepseek_ocr.errors import SettingsError
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.startup import check_binding, read_keys
from tests.conftest import ROOT
from tests.serving_world import FRUIT, TEXT, Server, chat, serving, uri

KEYS = ("first-key-of-two", "second-key-of-two")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys and small limits, on all addresses."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# keys\n{KEYS[1]}\n")
    limits = ("--max-body-mb", "1", "--max-pixels", "1000000", "--max-pages", "2",
              "--body-timeout", "1")  # fmt: skip
    with serving(
        "--model", "pocket", "--host", "0.0.0.0", "--api-key-file", str(file), *limits,
        "--cors", "https://friend.example", environ={"DEEPSEEK_OCR_API_KEYS": KEYS[0]},
    ) as server:  # fmt: skip
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        yield server


@pytest.fixture(scope="module")
def curious(open_server: Server) -> Server:
    """A server as it starts by itself, but that fetches addresses."""
    return open_server


def authorized(key: str = KEYS[0]) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(server: Server, body: dict[str, Any], **headers: str) -> Any:
    return server.post("/v1/chat/completions", json=body, headers={**authorized(), **headers})


# --- keys and doors -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "ocr.example"])
def test_no_server_for_others_without_a_key(host: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "serve",
         "--model", "pocket", "--host", host, "--port", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--api-key" in done.stderr


def test_who_may_bind_where() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        check_binding(host, has_keys=False, no_auth=False)
    check_binding("0.0.0.0", has_keys=True, no_auth=False)
    check_binding("0.0.0.0", has_keys=False, no_auth=True)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(guarded: Server, key: str) -> None:
    answer = guarded.post("/v1/chat/completions", json=chat("ocr"), headers=authorized(key))
    assert answer.json()["choices"][0]["message"]["content"] == TEXT["fruit"]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer wrong-key-of-two", f"Basic {KEYS[0]}", KEYS[0],
     f"Bearer {KEYS[0]} {KEYS[1]}", f"Bearer {KEYS[0]}x", "Bearer \xff\xfe"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/metrics", "/v1/x"])
def test_without_a_key_there_is_no_way_in(guarded: Server, header: str, path: str) -> None:
    answer = guarded.get(path, headers={b"authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_and_readiness_need_no_key(guarded: Server) -> None:
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_a_body_without_a_key_is_not_read(guarded: Server) -> None:
    """A stranger is answered before anything of what is sent is taken."""
    with raw(guarded) as stranger:
        stranger.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        )
        assert stranger.recv(4096).startswith(b"HTTP/1.1 401")


def test_all_keys_are_compared_whatever_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = Keys(KEYS)
    for key, opens in ((KEYS[0], True), (KEYS[1], True), ("x", False), ("", False)):
        compared.clear()
        assert (keys.name_of(key) is not None) == opens
        assert len(compared) == 2
        assert {len(side) for pair in compared for side in pair} == {32}  # of one length always


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for key in ("short", "with space inside", "näturally-not", "new\nline-inside"):
        with pytest.raises(SettingsError, match="key"):
            read_keys([key], "")
    (tmp_path / "empty").write_text("# nothing\n")
    for file in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(SettingsError, match=re.escape(str(file))):
            read_keys([], str(file))


def test_the_log_names_keys_without_telling_them(guarded: Server) -> None:
    ask(guarded, chat("ocr"))
    assert any(str(line.get("client")).startswith("key-") for line in guarded.lines)
    assert not any(key in json.dumps(guarded.lines) for key in KEYS)


# --- browsers -----------------------------------------------------------------------------------


def test_web_pages_of_others_are_kept_out(guarded: Server, curious: Server) -> None:
    for server in (guarded, curious):
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            answer = server.post(
                "/v1/chat/completions", json=chat("ocr"), headers={"origin": origin, **authorized()}
            )
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_and_allowed_origins_may_ask(guarded: Server) -> None:
    own = guarded.get("/v1/models", headers={"origin": guarded.url, **authorized()})
    assert own.status_code == 200
    friend = {"origin": "https://friend.example", **authorized()}
    answer = guarded.get("/v1/models", headers=friend)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    wanted = {"access-control-request-method": "POST",
              "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    asked = {"origin": "https://friend.example", **wanted}  # a browser asks so, without the key
    answer = httpx.options(f"{guarded.url}/v1/chat/completions", headers=asked, trust_env=False)
    assert answer.status_code == 200
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


def test_clients_in_a_browser_may_send_headers_of_their_own(guarded: Server) -> None:
    """OpenAI's client for JavaScript tells on which system it runs."""
    names = "authorization,content-type,x-stainless-lang,x-stainless-runtime-version"
    asked = {"origin": "https://friend.example", "access-control-request-method": "POST",
             "access-control-request-headers": names}  # fmt: skip
    answer = httpx.options(f"{guarded.url}/v1/chat/completions", headers=asked, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == names
    strange = {**asked, "origin": "https://evil.example"}
    answer = httpx.options(f"{guarded.url}/v1/chat/completions", headers=strange, trust_env=False)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_page_can_read_why_it_was_refused(guarded: Server) -> None:
    friend = {"origin": "https://friend.example"}
    for status, body, key in ((401, b"{}", {}), (413, b" " * 2**20 + b"{}", authorized())):
        answer = guarded.post("/v1/responses", content=body, headers={**friend, **key})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_unless_asked_for_no_other_page_may_ask(curious: Server) -> None:
    asked = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    answer = httpx.options(f"{curious.url}/v1/chat/completions", headers=asked, trust_env=False)
    assert answer.status_code == 403
    for headers in (asked, {}):
        answer = curious.get("/health", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_that_somebody_points_here_leads_nowhere(curious: Server, guarded: Server) -> None:
    """DNS rebinding: the browser believes that evil.example is this machine."""
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "", "[::1"):
        assert curious.get("/v1/models", headers={"host": host}).status_code in (400, 403)
    assert curious.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    answer = guarded.get("/v1/models", headers={"host": "ocr.example", **authorized()})
    assert answer.status_code == 200  # a key is what counts there


def test_every_answer_has_security_headers(guarded: Server) -> None:
    for path in ("/health", "/v1/models", "/nothing"):
        headers = guarded.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.mark.parametrize("given", ["a b", "x" * 65, 'a"b', "../../x", "ä"])
def test_request_ids_that_could_do_harm_are_replaced(curious: Server, given: str) -> None:
    answer = curious.get("/health", headers={b"x-request-id": given.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])


def raw(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)), timeout=30)
    return found


def test_headers_cannot_be_injected(curious: Server) -> None:
    for path in ("/%0d%0aX-Injected:%201", "/v1/models/%0d%0aX-Injected:%201"):
        with raw(curious) as client:
            client.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            head = everything(client).split(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 404")
        assert b"x-injected" not in head.lower()
    with raw(curious) as client:
        client.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\r\n X-Injected: 1\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert b"\nx-injected" not in everything(client).lower()


def everything(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


# --- too much, too slow -------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_at_once(guarded: Server) -> None:
    for length in (b"1048577", b"9" * 40):
        with raw(guarded) as client:
            client.sendall(
                b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                + KEYS[0].encode() + b"\r\nContent-Length: " + length + b"\r\n\r\n"
            )  # fmt: skip
            assert client.recv(4096).split(b"\r\n")[0] in (
                b"HTTP/1.1 413 Request Entity Too Large",
                b"HTTP/1.1 413 Content Too Large",
                b"HTTP/1.1 400 Bad Request",
            )


def test_an_endless_body_is_cut_off(guarded: Server) -> None:
    sent = 0
    with raw(guarded) as client:
        client.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEYS[0].encode()
            + b"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )  # fmt: skip
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        try:
            while not answer and sent < 200_000_000:
                client.sendall(piece)
                sent += 0x10000
                client.setblocking(False)
                try:
                    answer = client.recv(4096)
                except BlockingIOError:
                    pass
                client.setblocking(True)
        except ConnectionError:
            pass
    assert sent < 20_000_000
    assert not answer or answer.startswith(b"HTTP/1.1 413")
    assert guarded.get("/health").status_code == 200


@pytest.mark.parametrize("piece", [b"a" * 2**16, b"X-One-Of-Many: headers\r\n" * 2000])
def test_an_endless_head_is_cut_off(guarded: Server, piece: bytes) -> None:
    """Nobody needs a key for a head."""
    sent = 0
    with raw(guarded) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        try:
            while sent < 200_000_000:
                client.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            pass
    assert sent < 20_000_000
    assert guarded.get("/health").status_code == 200


def test_a_body_that_trickles_is_given_up(guarded: Server) -> None:
    began = time.monotonic()
    with raw(guarded) as client:
        client.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEYS[0].encode()
            + b"\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )  # fmt: skip
        client.settimeout(0.1)
        answer = b""
        while not answer:
            client.sendall(b" ")
            try:
                answer = client.recv(4096)
            except TimeoutError:
                pass
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 30


def test_a_compressed_body_is_not_inflated(guarded: Server) -> None:
    bomb = gzip.compress(b'{"model": "' + b" " * 100_000_000)
    answer = guarded.post(
        "/v1/responses", content=bomb,
        headers={**authorized(), "content-encoding": "gzip", "content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 400


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose head claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A picture with a compressed comment of 64 MB."""
    body = b"Comment\0\0" + zlib.compress(bytes(64_000_000), 9)
    chunk = (
        struct.pack(">I", len(body))
        + b"zTXt"
        + body
        + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    )
    return png_claiming(10, 10, chunk)


@pytest.mark.parametrize(
    ("status", "bomb"),
    [
        (413, png_claiming(60_000, 60_000)),
        (413, png_claiming(1001, 1000)),
        (400, png_claiming(2**31 - 1, 0)),
        (400, text_bomb()),
    ],
    ids=["billions of pixels", "a few too many", "no height", "a comment"],
)
def test_pictures_that_explode_are_refused(guarded: Server, status: int, bomb: bytes) -> None:
    before = guarded.get("/metrics", headers=authorized()).text
    answer = ask(guarded, chat("ocr", uri(bomb)))
    after = guarded.get("/metrics", headers=authorized()).text
    assert answer.status_code == status
    memory = [
        float(re.search(r"^process_resident_memory_bytes (.+)$", text, re.M)[1])  # type: ignore[index]
        for text in (before, after)
    ]
    assert memory[1] - memory[0] < 50e6


def test_more_pictures_than_allowed(guarded: Server) -> None:
    small = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(small, "PNG")
    answer = ask(guarded, chat("ocr", *[uri(small.getvalue())] * 3))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pages")


# --- paths and addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "file:///etc/passwd", "../../etc/passwd", str(FRUIT), "FILE:///etc/passwd",
     "data:image/png,plain", "data:image/png;base64,!!!", "data:", "", "javascript:1", "//x/y.png",
     "examples/fruit.png"],
)  # fmt: skip
def test_paths_and_odd_addresses_are_refused(curious: Server, path: str) -> None:
    answer = curious.post("/v1/chat/completions", json=chat("ocr", path))
    assert answer.status_code == 400
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/v1/models/..%2f..%2fetc%2fpasswd",
     "/v1/models/%00", "/%2e%2e/configuration.py", "/page/..%2f..%2fserve.py", "//etc/passwd"],
)  # fmt: skip
def test_names_in_addresses_become_no_paths(curious: Server, path: str) -> None:
    with raw(curious) as client:
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = everything(client)
    assert answer.split()[1] == b"404"
    assert b"root:" not in answer
    assert b"import" not in answer


def test_addresses_are_not_fetched_unless_allowed(guarded: Server) -> None:
    answer = ask(guarded, chat("ocr", "http://93.184.216.34/x.png"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_not_allowed")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001",
     "0177.0.0.1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
     "[0:0:0:0:0:ffff:7f00:0001]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.",
     "LOCALHOST", "①②⑦.⓪.⓪.①", "%31%32%37.0.0.1"],
)  # fmt: skip
def test_this_machine_is_not_asked_under_any_name(curious: Server, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        answer = curious.post(
            "/v1/chat/completions", json=chat("ocr", f"http://{host}:{port}/secret.png")
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_refused")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody came


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://[fd00:ec2::254]/",
     "http://100.100.100.200/", "http://user:pw@93.184.216.34/", "http://127.0.0.1\\@example.org/",
     "http://no-such-name.invalid/"],
)  # fmt: skip
def test_private_networks_are_not_asked(curious: Server, url: str) -> None:
    answer = curious.post("/v1/chat/completions", json=chat("ocr", url))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_refused")
