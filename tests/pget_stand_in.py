"""A stand-in for pget v0.11 that keeps its contract, for tests of `deepseek-ocr weights`.

    pget [-f] [-c N] [-m SIZE] [-r N] [--connect-timeout D] URL DEST
    pget multifile MANIFEST                      lines of `URL DEST`, paths without blanks

Like the real one it runs once at a time, by a lock on a file (/run/pget.pid, or PGET_PID_FILE);
refuses a destination that exists; takes options from `PGET_*` too; exits 1 on any error; checks no
sums, waits for a silent server for ever, and leaves partial files where they are. Unlike it, it
does not wait between retries, and appends what it was called with to PGET_STAND_IN_RECORD.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import sys
import threading
import urllib.request


def main() -> int:
    flags, rest = _flags()
    _record()
    with open(flags.pid_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pairs = _manifest(rest[1]) if rest[0] == "multifile" else [(rest[0], rest[1])]
        for _, destination in pairs:
            if os.path.exists(destination) and not flags.force:
                return _fail(f"destination {destination} already exists")
        errors: list[str] = []
        threads = [
            threading.Thread(target=_download, args=(url, destination, flags.retries, errors))
            for url, destination in pairs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _fail(f"error downloading files: {errors[0]}") if errors else 0


def _flags() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    env = os.environ
    parser.add_argument("-f", "--force", action="store_true", default=bool(env.get("PGET_FORCE")))
    parser.add_argument("-x", "--extract", action="store_true")
    parser.add_argument("-c", "--concurrency", type=int)
    parser.add_argument("-m", "--chunk-size")
    parser.add_argument("-r", "--retries", type=int, default=int(env.get("PGET_RETRIES", "5")))
    parser.add_argument("--connect-timeout")
    parser.add_argument("--pid-file", default=env.get("PGET_PID_FILE", "/run/pget.pid"))
    parser.add_argument("rest", nargs=2)
    flags = parser.parse_args()
    if flags.extract and flags.rest[0] == "multifile":
        raise SystemExit(_fail("cannot use --extract with multifile mode"))
    return flags, flags.rest


def _record() -> None:
    if path := os.environ.get("PGET_STAND_IN_RECORD"):
        with open(path, "a") as record:
            call = {"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}
            record.write(json.dumps(call) + "\n")


def _manifest(path: str) -> list[tuple[str, str]]:
    with open(path) as file:
        lines = [line.split() for line in file if line.strip()]
    return [(words[0], words[1]) for words in lines]


def _download(url: str, destination: str, retries: int, errors: list[str]) -> None:
    error: Exception | None = None
    for _ in range(retries + 1):
        try:
            _once(url, destination)
            return
        except (OSError, http.client.HTTPException) as problem:
            error = problem
    errors.append(f"{url}?X-Signature=not-for-logs {error}")


def _once(url: str, destination: str) -> None:
    with urllib.request.urlopen(url) as response, open(destination, "wb") as file:
        expected = int(response.headers["Content-Length"])
        while block := response.read1(65536):
            file.write(block)
            file.flush()
            expected -= len(block)
    if expected:
        raise OSError(f"downloaded {expected} bytes too few")


def _fail(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
