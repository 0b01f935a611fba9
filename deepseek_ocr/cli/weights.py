"""`deepseek-ocr weights`: list, fetch, verify and adopt named checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from deepseek_ocr import configuration
from deepseek_ocr.cli.terminal import DONE, INTERRUPTED, SOME_FAILED, complain, write_line
from deepseek_ocr.console import readable
from deepseek_ocr.errors import CheckpointError, SettingsError
from deepseek_ocr.weights import catalog, folders, registry
from deepseek_ocr.weights.folders import Condition

DESCRIPTION = "Fetch and check the checkpoints that the other commands know by name."

EPILOG = """\
examples:
  deepseek-ocr weights list                      what is here
  deepseek-ocr weights fetch deepseek-ocr        6.7 GB, from the first source that gives it
  deepseek-ocr weights fetch deepseek-ocr --source huggingface
  deepseek-ocr weights verify deepseek-ocr       hash the files and compare with the record
  deepseek-ocr weights adopt ~/Downloads/DeepSeek-OCR

sources, tried in this order unless --source (or DEEPSEEK_OCR_SOURCE) names one:
  replicate     one tar; needs room for the tar and the files copied out of it
  huggingface   the pinned revision, checked against the hub's sizes and the sums it has (of
                large files); HF_TOKEN (or hf auth login) is honoured, sent to Hugging Face only
  modelscope    checked against the hub's sums; near where Hugging Face is far

Downloads run by pget (github.com/replicate/pget) if it is installed, by huggingface_hub otherwise.
A fetch that was interrupted is simply started again.

exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted
"""

_Action = Callable[[argparse.Namespace, Path, str], None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def add_action(name: str, purpose: str, action: _Action) -> Callable[..., argparse.Action]:
        one = actions.add_parser(name, help=purpose, description=purpose)
        one.add_argument("--checkpoints", metavar="FOLDER", help="where named checkpoints are kept")
        one.set_defaults(action=action)
        return one.add_argument

    add_action("list", "say which checkpoints are here and whether they are whole", _list)
    names, fetched = ", ".join(catalog.CHECKPOINTS), catalog.FETCHED
    add = add_action("fetch", "download a checkpoint, check it, and put it in place", _fetch)
    add("name", metavar="NAME", choices=fetched, help=", ".join(fetched))
    add("--source", choices=catalog.SOURCE_NAMES, help="where from (default: auto, all)")
    add = add_action("verify", "hash the files and compare them with what came", _verify)
    add("name", metavar="NAME|FOLDER", help=f"{names} or a folder")
    add = add_action("adopt", "take a checkpoint that was downloaded by other means", _adopt)
    add("folder", type=Path, metavar="FOLDER", help="holds config.json and the rest")
    add("--name", choices=fetched, default=fetched[0], help="default: %(default)s")


def run(flags: argparse.Namespace) -> int:
    """Do what `flags` say; the exit status is in the help. Raises `SettingsError`."""
    try:
        settings = configuration.load(
            {"checkpoints": flags.checkpoints, "source": getattr(flags, "source", None)}
        )
        flags.action(flags, _expanded(settings.checkpoints), settings.source)
    except (CheckpointError, OSError) as error:
        complain(str(error))
        return SOME_FAILED
    except KeyboardInterrupt:
        complain("interrupted; the same command starts it again.")
        return INTERRUPTED
    return DONE


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # ~name of a user that does not exist
        raise SettingsError(f"the folder {folder} begins with an unknown user: {error}") from error


def _list(flags: argparse.Namespace, checkpoints: Path, source: str) -> None:
    for name, checkpoint in catalog.CHECKPOINTS.items():
        if not checkpoint.sources:
            write_line(f"{name}: bundled, {registry.ensure(name, checkpoints, fetch=False)}")
            continue
        state = folders.examine(checkpoints / name)
        write_line(f"{name}: {state.condition.value}, {checkpoints / name}")
        if state.condition is Condition.READY:
            record = folders.read_record(checkpoints / name)
            size = sum(entry.size for entry in record.files.values())
            write_line(f"  {readable(size)} from {record.source} {record.revision}".rstrip())
        elif state.condition is Condition.UNRECORDED:
            write_line(f"  record them with: deepseek-ocr weights adopt {checkpoints / name}")
        elif state.condition is not Condition.ABSENT:
            write_line(f"  {state.detail}")


def _fetch(flags: argparse.Namespace, checkpoints: Path, source: str) -> None:
    write_line(f"{flags.name} is in {registry.ensure(flags.name, checkpoints, source)}")


def _verify(flags: argparse.Namespace, checkpoints: Path, source: str) -> None:
    record = registry.verify(flags.name, checkpoints)
    if record is None:
        write_line(f"{flags.name} is whole; it is bundled, without sums to compare with")
    else:
        count = len(record.files)
        write_line(f"{flags.name}: all {count} files are as they came from {record.source}")


def _adopt(flags: argparse.Namespace, checkpoints: Path, source: str) -> None:
    write_line(f"{flags.name} is in {registry.adopt(flags.folder, checkpoints, flags.name)}")
