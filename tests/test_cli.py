"""`deepseek-ocr read` as a person runs it: a process, its output, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from deepseek_ocr.formats import FORMATS
from deepseek_ocr.kernels import compiling
from tests import papers
from tests.conftest import POCKET, ROOT

READ = (sys.executable, "-m", "deepseek_ocr", "read")
INVOICE, TOTAL = "examples/invoice.png", "examples/total.png"


@pytest.fixture(autouse=True)
def _no_word_about_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler it is said at every start that reading is slower."""
    if compiling.library() is None:
        monkeypatch.setenv("DEEPSEEK_OCR_KERNELS", "auto,-compiled")


def ocr(*arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*READ, *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=120,
        env=os.environ | environ,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_text_goes_to_standard_output_and_nothing_else() -> None:
    assert ocr("--model", "pocket", INVOICE) == (0, "Invoice\n", "")


def test_several_pages_are_headed_by_their_names() -> None:
    status, out, err = ocr("--model", "pocket", INVOICE, TOTAL)
    assert (status, err) == (0, "")
    assert out == f"==> {INVOICE} <==\nInvoice\n\n==> {TOTAL} <==\nTotal 498\n"


def test_the_model_may_be_a_folder_or_come_from_the_environment() -> None:
    sized = ("--task", "ocr", "--size", "tiny")
    assert ocr("--model", str(POCKET), *sized, INVOICE)[1] == "Invoice\n"
    assert ocr(INVOICE, DEEPSEEK_OCR_MODEL="pocket")[1] == "Invoice\n"


def test_standard_input_is_a_page() -> None:
    status, out, _ = ocr("--model", "pocket", "-", stdin=(ROOT / INVOICE).read_bytes())
    assert (status, out) == (0, "Invoice\n")
    status, _, err = ocr("--model", "pocket", "-")
    assert status == 1
    assert "empty" in err


def test_json_has_pages_with_all_that_is_known() -> None:
    status, out, err = ocr("--model", "pocket", "--format", "json", INVOICE, "gone.png")
    assert status == 1
    assert "gone.png does not exist" in err
    good, bad = json.loads(out)["pages"]
    assert good["text"] == good["markdown"] == "Invoice"
    assert (good["finish_reason"], good["width"], good["height"]) == ("stop", 512, 512)
    assert {"regions", "confidence", "counts", "timings"} <= good.keys()
    assert (bad["source"], "text" in bad) == ("gone.png", False)
    assert "gone.png does not exist" in bad["error"]


def test_a_page_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status, out, err = ocr("--model", "pocket", str(tmp_path / "broken.png"), INVOICE)
    assert status == 1
    assert "Invoice\n" in out
    assert "broken.png" in err
    assert "1 of 2 pages failed" in err


def test_markdown_is_cleaned_and_a_cut_answer_is_told() -> None:
    status, out, err = ocr("--model", "pocket", "--format", "md", "--max-new-tokens", "3", INVOICE)
    assert (status, out) == (0, "Inv\n")
    assert "--max-new-tokens" in err


def test_what_a_person_should_know_is_told(tmp_path: Path) -> None:
    white = Image.new("RGB", (512, 512), "white")
    white.save(tmp_path / "pages.tiff", save_all=True, append_images=[white])
    status, out, err = ocr("--model", "pocket", str(tmp_path / "pages.tiff"))
    assert status == 0
    assert "page 2: nothing was read" in err
    assert out.count("pages.tiff, page") == 2


def test_the_bundled_folder_has_the_defaults_of_its_name() -> None:
    assert ocr("--model", "checkpoints/pocket", INVOICE)[1] == "Invoice\n"


def test_a_message_names_the_page_once() -> None:
    assert ocr("--model", "pocket", "gone.png")[2].count("gone.png") == 1


def test_interrupting_while_loading_ends_at_once() -> None:
    process = subprocess.Popen(
        [*READ, "--model", "pocket", INVOICE],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "libtorch" not in children.read_text():  # in the middle of the imports
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert (out, err) == (b"", b"")


def test_a_prompt_of_ones_own() -> None:
    assert ocr("--model", "pocket", "--prompt", "Free OCR.", INVOICE)[1] == "Invoice\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image given"),
        (["--task", "locate", INVOICE], "needs a reference"),
        (["--task", "locate", "--reference", "<|ref|>", INVOICE], "special tokens"),
        (["--task", "ocr", "--reference", "x", INVOICE], "only used with"),
        (["-", "-"], "once only"),
        (["--prompt", " ", INVOICE], "--prompt is empty"),
        (["--prompt", "x", "--task", "ocr", INVOICE], "replaces --task"),
        (["--prompt", "<image><image>", INVOICE], "<image> once"),
        (["--size", "tiny", "--base-size", "640", INVOICE], "--base-size is for"),
        (["--prompt", "x", "--reference", "y", INVOICE], "--reference belongs to"),
        (["--task", "nothing", INVOICE], "no task 'nothing'"),
        (["--size", "huge", INVOICE], "no preset 'huge'"),
        (["--base-size", "100", INVOICE], "multiple of 64"),
        (["--temperature", "9", INVOICE], "temperature"),
        (["--max-new-tokens", "0", INVOICE], "max_new_tokens"),
        (["--max-new-tokens", "many", INVOICE], "invalid int"),
        (["--format", "docx", INVOICE], "no format 'docx'"),
        (["--config", "no-such-file.toml", INVOICE], "cannot be read"),
        (["--model", "no-such-model", INVOICE], "no checkpoint called"),
        (["--model", "pocket", "--device", "npu:0", INVOICE], "this machine has"),
        (["--model", "pocket", "--device", "abacus", INVOICE], "no device called"),
        (["--model", "pocket", "--dtype", "int3", INVOICE], "no type"),
        (["--checkpoints", "/nowhere", INVOICE], "not in"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_start_says_why_and_exits_with_2(arguments: list[str], message: str) -> None:
    status, out, err = ocr(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["--task", "nothing", "x.png"]])
def test_help_and_bad_arguments_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from deepseek_ocr.cli.main import main; sys.exit(main(['read', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if "nothing" in arguments else 0)


def test_help_says_what_pocket_is() -> None:
    text = " ".join(ocr("--help")[1].split())
    assert "a toy" in text
    assert "Real pages need" in text


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [*READ, "--model", "pocket", *[INVOICE] * 6],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(60)


def test_interrupting_keeps_what_was_printed() -> None:
    process = subprocess.Popen(
        [*READ, "--model", "pocket", *[INVOICE] * 400],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"==> {INVOICE} <==\n".encode()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err


def test_interrupting_json_prints_the_pages_read() -> None:
    process = subprocess.Popen(
        [*READ, "--model", "pocket", "--format", "json", "gone.png",
         *[INVOICE] * 2000],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert b"gone.png" in process.stderr.readline()  # reading has begun
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["pages"][0]["source"] == "gone.png"


def test_an_interruption_after_the_last_page_does_not_wait_for_threads() -> None:
    code = (
        "import atexit, runpy, sys, threading\n"
        "atexit.register(threading.Event().wait)\n"  # as for a thread that takes long to end
        "atexit.register(print, 'waiting', flush=True)\n"
        f"sys.argv = ['deepseek-ocr', 'read', '--model', 'pocket', {INVOICE!r}]\n"
        "runpy.run_module('deepseek_ocr', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"waiting\n":
        assert line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert b"Traceback" not in err


@pytest.mark.parametrize("form", ["txt", "json"])
def test_a_full_disk_is_told_and_no_page_is_blamed(form: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("wb") as sink:
        done = subprocess.run(
            [*READ, "--model", "pocket", "--format", form, INVOICE, TOTAL],
            cwd=ROOT, stdout=sink, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr == "deepseek-ocr: standard output cannot be written: No space left on device.\n"
    )


@pytest.mark.parametrize("closing", ["<&-", ">&-"])
def test_closed_standard_streams_are_no_crash(closing: str) -> None:
    page = "-" if closing == "<&-" else INVOICE
    command = f"exec {sys.executable} -m deepseek_ocr read --model pocket {page} {closing}"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "closed" in done.stderr or "empty" in done.stderr


def test_help_survives_a_percent_sign_in_a_path(tmp_path: Path) -> None:
    assert ocr("--help", XDG_CONFIG_HOME=str(tmp_path / "50%off"))[0] == 0


def test_a_model_that_does_not_fit_its_device_cannot_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepseek_ocr.cli.main import main
    from deepseek_ocr.engine.ocr_engine import OcrEngine

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(OcrEngine, "from_options", full)
    assert main(["read", "--model", "pocket", str(ROOT / INVOICE)]) == 2
    assert "CUDA out of memory" in capsys.readouterr().err


def test_a_page_is_read_with_the_network_out_of_reach() -> None:
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from deepseek_ocr.cli.main import main
sys.exit(main(["read", "--model", "pocket", "examples/invoice.png"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "Invoice\n"), done.stderr


def test_nothing_in_a_page_can_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from deepseek_ocr.cli import terminal

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal.write("a\x1b]0;owned\x07b\r\x9b2Jc\n\td")
    assert screen.getvalue() == "a\ufffd]0;owned\ufffdb\ufffd\ufffd2Jc\n\td"


# --- documents ----------------------------------------------------------------------------------


def test_pages_of_documents_are_printed_one_after_the_other(tmp_path: Path) -> None:
    path = papers.picture_pdf(tmp_path / "two.pdf", [ROOT / INVOICE, ROOT / TOTAL])
    status, out, err = ocr("--model", "pocket", "--stdout", str(path))
    assert (status, err) == (0, "")
    assert out == f"==> {path}, page 1 <==\nInvoice\n\n==> {path}, page 2 <==\nTotal 498\n"
    last = ocr(
        "--model", "pocket", "--pages", "-1", "--format", "json", "-", stdin=path.read_bytes()
    )
    (page,) = json.loads(last[1])["pages"]
    assert (page["number"], page["text"], page["source"]) == (2, "Total 498", "-")


def test_a_folder_is_printed_and_what_fails_in_it_told(tmp_path: Path) -> None:
    papers.encrypted(tmp_path / "locked.pdf", "secret")
    papers.picture_pdf(tmp_path / "open.pdf", [ROOT / INVOICE])
    (tmp_path / "notes.txt").touch()
    status, out, err = ocr("--model", "pocket", str(tmp_path))
    assert status == 1
    assert "Invoice\n" in out
    assert "encrypted" in err
    assert "1 of 2 pages failed" in err
    assert "1 file has no suffix of a page" in err


def test_every_format_is_written_of_every_kind_of_document(tmp_path: Path) -> None:
    """With the bundled model, from the file to the output, good pages and bad."""
    pictures = [ROOT / INVOICE, ROOT / TOTAL]
    source = tmp_path / "in"
    source.mkdir()
    papers.picture_pdf(source / "a.pdf", pictures)
    papers.archive(source / "b.zip", {path.name: path.read_bytes() for path in pictures})
    with Image.open(pictures[0]) as first, Image.open(pictures[1]) as second:
        blank = Image.new("RGB", (512, 512), "white")
        first.save(source / "c.tiff", save_all=True, append_images=[second, blank])
    (source / "d.png").write_bytes(pictures[0].read_bytes())
    papers.cut_off(source / "e.pdf", [1])
    papers.encrypted(source / "f.pdf", "secret")
    papers.archive(source / "g.zip", {"1.png": pictures[0].read_bytes(), "2.png": b"no picture"})
    command = ("--model", "pocket", str(source), "-o", str(tmp_path / "out"))
    status, out, err = ocr(*command, "--format", ",".join(FORMATS))
    assert (status, out) == (1, ""), err
    assert "9 pages read" in err
    assert "1 page failed, 2 of 7 inputs could not be opened" in err
    for name in "abcdg":
        folder = tmp_path / "out" / name
        assert {path.name for path in folder.iterdir() if path.is_file()} == {
            f"{name}.{ending}"
            for ending in ("md", "html", "json", "txt", "mmd", "pdf", "regions.jsonl")
        } | {f"{name}_det.mmd", f"{name}_layouts.pdf"}
        for ending in ("md", "html", "txt", "mmd"):
            assert "Invoice" in (folder / f"{name}.{ending}").read_text()
    pages = json.loads((tmp_path / "out" / "c" / "c.json").read_text())["pages"]
    assert [page["text"] for page in pages[:2]] == ["Invoice", "Total 498"]
    assert len(pages) == 3
    status, _, err = ocr(*command, "--format", ",".join(FORMATS), "--password", "secret")
    assert status == 1
    assert "1 page read" in err
    assert "9 read before" in err
