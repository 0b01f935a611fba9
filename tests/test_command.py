"""The command `deepseek-ocr` itself: its help, what it suggests, what it says is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deepseek_ocr import __version__
from deepseek_ocr.cli.commands import COMMANDS
from deepseek_ocr.cli.legacy import translate
from deepseek_ocr.cli.main import main
from tests.conftest import ROOT, need

HEAVY = ("torch", "transformers", "numpy", "fastapi", "pydantic", "rich", "PIL", "httpx", "shtab")
"""Packages that no help needs."""

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from deepseek_ocr.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

HELP_OF_ALL = """
import io
from contextlib import redirect_stdout
for command in sys.argv[1:]:
    with redirect_stdout(io.StringIO()) as shown:
        try:
            main([*command.split(), "--help"])
        except SystemExit as end:
            status = end.code
    usage = f"usage: deepseek-ocr {command or 'COMMAND [options]'}"
    first = shown.getvalue()[: len(usage)]
    print(status, first)
"""


def run(*arguments: str | Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`deepseek-ocr ARGUMENTS` as if the packages `without` were not installed."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=without), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip


def test_no_help_imports_anything_heavy() -> None:
    actions = ("config show", "config init", "weights list", "weights fetch", "weights adopt")
    commands = ["", *COMMANDS, *actions]
    code = BLOCKED.format(blocked=HEAVY).replace("sys.exit(main(sys.argv[1:]))", HELP_OF_ALL)
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"0 usage: deepseek-ocr {command or 'COMMAND [options]'}" for command in commands
    ]


def test_the_help_names_every_command() -> None:
    text = run("--help").stdout
    for name, command in COMMANDS.items():
        assert f"    {name} " in text or f"    {name}\n" in text
        assert " ".join(command.help.split()[:3]) in text


def test_the_help_of_reading_fits_two_screens() -> None:
    lines = run("read", "--help").stdout.splitlines()
    assert len(lines) <= 100  # of 50 lines and 80 columns
    assert max(map(len, lines)) <= 100
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles.index("options:") < titles.index("repetition guard:")


def test_the_help_of_weights_teaches() -> None:
    text = run("weights", "--help").stdout
    for word in (
        "fetch deepseek-ocr",
        "adopt",
        "verify",
        "list",
        "HF_TOKEN",
        "pget",
        "exit status",
    ):
        assert word in text


def test_the_version() -> None:
    assert run("--version", without=HEAVY).stdout == f"deepseek-ocr {__version__}\n"


def test_only_the_chosen_command_is_imported() -> None:
    code = (
        "import sys\n"
        "from deepseek_ocr.cli.commands import COMMANDS, build_parser\n"
        "build_parser(['split'])\n"
        "print(*(name for name, one in COMMANDS.items()\n"
        "        if f'deepseek_ocr.cli.{one.module}' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "split\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raed", "page.png"], "unknown command 'raed'; did you mean read?"),
        (["verify-checkpont"], "did you mean verify-checkpoint?"),
        (["xyz"], "choose one of read, serve, weights"),
        (["examples/invoice.png"], "to read it: deepseek-ocr read examples/invoice.png"),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["read", "page.png", "--nothing"], "unrecognized arguments: --nothing"),
        (["config", "show", "--dtype"], "expected one argument"),
        (["config", "show", "--quant", "x"], "no quant 'x'"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        ([], "usage: deepseek-ocr"),
    ],
)
def test_what_is_wrong_is_said_with_status_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "without", "message"),
    [
        (["serve"], "uvicorn", "serve needs cog-deepseek-ocr[serve] (uvicorn is not installed);"),
        (["synth", "--output", "nowhere"], "fontTools", "as in: pip install '.[train]'"),
        (["completion", "bash"], "shtab", "completion needs shtab, which is not installed: pip"),
        (["read", "--model", "pocket", "examples/invoice.png"], "tokenizers", "read needs "
         "tokenizers, which is not installed: pip install tokenizers"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(arguments: list[str], without: str, message: str) -> None:
    done = run(*arguments, without=(without,))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {command.extra for command in COMMANDS.values()} - {""}
    assert needed <= set(project["optional-dependencies"])


@pytest.mark.parametrize("command", ["config show", "completion bash"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m deepseek_ocr {command} 3>&- | true"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""


# --- completion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    need("bash")
    path = tmp_path_factory.mktemp("completion") / "deepseek-ocr.bash"
    path.write_text(run("completion", "bash").stdout)
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`, as a person who presses Tab sees it."""
    code = """
source "$1"; shift
name=$(complete -p deepseek-ocr | sed -E 's/.*-F ([^ ]+) .*/\\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
"$name" deepseek-ocr "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", script, *words],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_bash_completes_commands_flags_and_paths(bash_script: Path) -> None:
    assert completed(bash_script, "deepseek-ocr", "re") == {"read"}
    assert completed(bash_script, "deepseek-ocr", "we") == {"weights"}
    assert completed(bash_script, "deepseek-ocr", "weights", "f") == {"fetch"}
    assert completed(bash_script, "deepseek-ocr", "read", "--existing") == {"--existing-text"}
    assert completed(bash_script, "deepseek-ocr", "read", "--existing-text", "s") == {"skip"}
    assert "examples/invoice.png" in completed(bash_script, "deepseek-ocr", "read", "examples/inv")


def test_the_script_of_zsh(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef deepseek-ocr")
    if zsh := shutil.which("zsh"):
        (tmp_path / "script").write_text(script)
        subprocess.run([zsh, "-n", tmp_path / "script"], check=True)


# --- the scripts of earlier releases --------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("read", "page.png -o out --devices cuda:0,cuda:1",
         "read page.png -o out --devices cuda:0,cuda:1"),
        ("read", "--model pocket --devices", "devices --model pocket"),
        ("read", "--devices --model pocket", "devices --model pocket"),
        ("read", "--model pocket --doctor", "doctor --model pocket"),
        ("read", "--config c.toml --init-config", "config init --config c.toml"),
        ("read", "--print-config --device cpu", "config show --device cpu"),
        ("read", "--version", "--version"),
        ("serve", "--port 1 --print-config", "config show --port 1"),
        ("serve", "--devices cpu,cpu", "serve --devices cpu,cpu"),
        ("serve", "--version", "--version"),
        ("read", "-", "read -"),
        ("read", "", "read"),
    ],
)  # fmt: skip
def test_old_spellings_become_new_ones(command: str, old: str, new: str) -> None:
    assert translate(old.split(), command) == new.split()


@pytest.mark.parametrize(
    ("arguments", "first", "now"),
    [
        (["ocr.py", "--model", "pocket", "examples/invoice.png"], "Invoice", "read"),
        (["ocr.py", "--print-config"], 'model = "deepseek-ocr"', "config show"),
        (["serve.py", "--port", "1", "--print-config"], 'model = "deepseek-ocr"', "config show"),
        (["serve.py", "--version"], f"deepseek-ocr {__version__}", "serve"),
    ],
)
def test_the_old_scripts_give_notice_and_go_on(arguments: list[str], first: str, now: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"DEEPSEEK_OCR_KERNELS": "plain"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == first
    assert done.stderr == (
        f"{arguments[0]} is now: deepseek-ocr {now} …; it goes away in the next release.\n"
    )
