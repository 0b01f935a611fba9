"""Split a folder of annotated pictures into train.json and test.json.

    deepseek-ocr split --data_root DIR --output_dir DIR [--test_fraction 0.1] [--seed 0]

Every picture (`NAME.png`, `.jpg`, …) goes with `NAME.json` beside it. Each pair is checked and the
picture opened; what cannot be used is listed with its reason in rejected.json. The same picture
twice, whatever its name and format, is always on one side.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deepseek_ocr.console import one_line
from deepseek_ocr.errors import InputError, OcrError
from deepseek_ocr.progress import track
from deepseek_ocr.training.data.samples import (
    LARGEST_ANNOTATION,
    Rejection,
    Sample,
    describe_unknown,
    parse_annotation,
    samples_to_json,
    unknown_keys,
)
from deepseek_ocr.files import json_bytes, read_json, write_files

ALL_USED, SOME_REJECTED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".heic", ".heif", ".avif", ".jp2", ".ppm"),
}
"""Of files that are taken for pictures, in any case."""

OUTPUTS = ("train.json", "test.json", "rejected.json")

MOST_SHOWN = 20
"""Rejections printed; all are in rejected.json."""


@dataclass
class Found:
    """What a data folder holds: usable samples with the hash of their pixels, and the rest."""

    samples: list[tuple[Sample, str]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    strangers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    more_pages: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Split what `arguments` name; the exit status is in the help text."""
    flags = _parser().parse_args(arguments)
    try:
        found = gather(flags.data_root, flags.output_dir)
        if not found.samples:
            _list_rejections(found.rejections)
            raise InputError(
                f"{flags.data_root} holds no usable pair of a picture and its annotation; "
                "training/README.md describes them."
            )
        train, test = split(found.samples, flags.test_fraction, flags.seed)
        write_files(
            {
                flags.output_dir / "rejected.json": json_bytes(list(map(asdict, found.rejections))),
                flags.output_dir / "test.json": samples_to_json(flags.data_root, test),
                flags.output_dir / "train.json": samples_to_json(flags.data_root, train),
            }
        )
    except OcrError as error:
        _complain(str(error))
        return COULD_NOT_START
    except OSError as error:  # a folder that is somebody else's
        _complain(f"{error.filename} cannot be read: {error.strerror}.")
        return COULD_NOT_START
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written.")
        return INTERRUPTED
    _summarise(found, train, test)
    return SOME_REJECTED if found.rejections else ALL_USED


def gather(data_root: Path, output_dir: Path) -> Found:
    """Check every picture and annotation below `data_root`; what `output_dir` holds of an earlier
    split is passed over, and so is what begins with a dot.

    Raises `InputError` where there is no such folder, or where a split would be written over an
    annotation.
    """
    if not data_root.is_dir():
        raise InputError(f"{data_root} is not a folder; give the one that holds the pictures.")
    pictures: dict[Path, list[Path]] = defaultdict(list)
    annotations: set[Path] = set()
    outputs = {(output_dir / name).resolve() for name in OUTPUTS}
    found = Found()
    for path in _files(data_root, found):
        if path.suffix.lower() in SUFFIXES:
            pictures[path.with_suffix("")].append(path)
        elif path.suffix.lower() == ".json" and path.resolve() not in outputs:
            annotations.add(path)
        elif path.suffix.lower() == ".json":
            _check_earlier(path)
    for stem in track(sorted(pictures), len(pictures), "checking"):
        _take(found, data_root, pictures[stem])
    for path in sorted(annotations):
        if path.with_suffix("") not in pictures:
            _reject(found, data_root, path, "there is no picture of the same name beside it.")
    return found


def split(
    samples: Sequence[tuple[Sample, str]], test_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(train, test) of samples with the hashes of their pixels, each ordered by name.

    Samples of one hash stay together. Which come first into the test set depends on hash and
    seed alone, so that a picture added later moves few of the others. Neither side stays empty
    where there are two different pictures and the fraction lies between 0 and 1.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample, pixels in samples:
        groups[pixels].append(sample)
    order = sorted(groups, key=lambda pixels: hashlib.sha256(f"{seed}:{pixels}".encode()).digest())
    wanted = test_fraction * len(samples)
    test: list[Sample] = []
    train: list[Sample] = []
    for at, pixels in enumerate(order):
        first = at == 0 and len(order) > 1 and test_fraction > 0
        last = at == len(order) - 1 and test_fraction < 1
        fits = len(test) + len(groups[pixels]) / 2 <= wanted
        (test if first or (fits and not last) else train).extend(groups[pixels])
    return _by_name(train), _by_name(test)


def pixel_hash(image_path: Path) -> tuple[str, bool]:
    """Hash of the decoded pixels, and whether the file holds further pages.

    Raises `ImageError` where the picture cannot be opened.
    """
    from deepseek_ocr.images.views import open_image  # imports torch: seconds

    image = open_image(image_path)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest(), bool(image.info.get("more_pages"))


def _files(data_root: Path, found: Found) -> Iterator[Path]:
    """The files below `data_root` that are not hidden; folders that are not searched are rejected,
    so that nobody misses their pages unawares."""

    def reject(error: OSError) -> None:
        _reject(found, data_root, Path(error.filename), f"cannot be read: {error.strerror}.")

    for folder, folders, names in os.walk(data_root, onerror=reject):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (linked := Path(folder, name)).is_symlink():
                reason = "links to folders are not followed; copy it, or split it on its own."
                _reject(found, data_root, linked, reason)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            try:
                if path.is_file():
                    yield path
            except OSError as error:
                reject(error)


def _check_earlier(path: Path) -> None:
    """Raises `InputError` where `path`, which will be written, was not written by a split."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise InputError(
            f"{path} is no earlier split and would be written over; rename it (with its picture), "
            "or choose another --output_dir."
        )


def _take(found: Found, data_root: Path, pictures: list[Path]) -> None:
    """Add the pair of a picture and its annotation to `found`, or the reason why not."""
    image = pictures[0]
    file = image.with_suffix(".json")
    if len(pictures) > 1:
        names = ", ".join(path.name for path in pictures)
        for path in pictures:
            _reject(found, data_root, path, f"{names} share one annotation; rename them.")
        return
    if not file.is_file():
        _reject(found, data_root, image, f"there is no {file.name} beside it.")
        return
    try:
        raw = read_json(file, LARGEST_ANNOTATION)
        annotation = parse_annotation(raw)
        pixels, more_pages = pixel_hash(image)
        name = image.relative_to(data_root).with_suffix("").as_posix()
        name.encode("utf-8")  # a file name may hold bytes that are no text
    except (InputError, UnicodeEncodeError) as error:
        _reject(found, data_root, image, str(error))
        return
    for key in unknown_keys(raw):
        found.strangers[key] += 1
    found.more_pages += more_pages
    found.samples.append((Sample(image, annotation, name), pixels))


def _reject(found: Found, data_root: Path, path: Path, reason: str) -> None:
    found.rejections.append(Rejection(path.relative_to(data_root).as_posix(), reason))


def _by_name(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.name)


def _summarise(found: Found, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    _list_rejections(found.rejections)
    if found.strangers:
        _complain(describe_unknown(found.strangers))
    if found.more_pages:
        _complain(
            f"{found.more_pages} pictures hold further pages, which are not used; split them."
        )
    twins = len(found.samples) - len({pixels for _, pixels in found.samples})
    print(
        f"{len(train)} samples in train.json, {len(test)} in test.json, "
        f"{len(found.rejections)} rejected (rejected.json), {twins} of a picture that is there "
        "already (kept on one side)"
    )


def _list_rejections(rejections: Sequence[Rejection]) -> None:
    for rejection in rejections[:MOST_SHOWN]:
        _complain(f"rejected {rejection.name}: {rejection.reason}")
    if len(rejections) > MOST_SHOWN:
        _complain(f"… and {len(rejections) - MOST_SHOWN} more.")


def _complain(text: str) -> None:
    print(f"split: {one_line(text, most=1000)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepseek-ocr split",
        description="Split annotated pictures into train.json and test.json.",
        epilog="""\
examples:
  deepseek-ocr split --data_root scans --output_dir scans
  deepseek-ocr split --data_root scans --output_dir data --test_fraction 0.2 --seed 7

Beside NAME.png (or .jpg, .webp, .tif, …) lies NAME.json, an object such as {"text": "Invoice 498"};
training/README.md describes all of it. The same folder and seed always give the same split.

exit status: 0 all pairs are used, 1 some were rejected (see rejected.json), 2 nothing was written,
130 interrupted
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data_root", type=Path, required=True, metavar="DIR",
        help="folder with pictures and annotations, searched with all folders in it",
    )  # fmt: skip
    parser.add_argument(
        "--output_dir", type=Path, required=True, metavar="DIR",
        help="where train.json, test.json and rejected.json go; may be the data folder",
    )  # fmt: skip
    parser.add_argument(
        "--test_fraction", type=_fraction, default=0.1, metavar="X",
        help="share of the samples for the test set, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, another split (default: %(default)s)"
    )
    return parser


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number such as 0.1.")
    return value


if __name__ == "__main__":
    sys.exit(main())
