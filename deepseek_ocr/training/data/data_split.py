"""Divide a folder of annotated pictures into train.json and test.json.

Each pair is checked and the picture opened. The same picture twice, whatever its name and format,
is always on one side.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path

from deepseek_ocr.errors import InputError
from deepseek_ocr.files import json_bytes, read_json, write_files
from deepseek_ocr.images.limits import PICTURE_SUFFIXES
from deepseek_ocr.progress import track
from deepseek_ocr.training.data.annotations import (
    LARGEST_ANNOTATION,
    describe_unknown,
    parse_annotation,
    unknown_keys,
)
from deepseek_ocr.training.data.samples import Rejection, Sample, samples_to_json
from deepseek_ocr.training.messages import warn

OUTPUTS = ("train.json", "test.json", "rejected.json")

MOST_SHOWN = 20
"""Rejections printed; all are in rejected.json."""


@dataclass
class FoundPairs:
    """What the data folder `root` holds: usable samples with the hash of their pixels, what was
    rejected, how often each unknown key was seen, and how many pictures hold further pages."""

    root: Path
    samples: list[tuple[Sample, str]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    unknown_keys: Counter[str] = field(default_factory=Counter)
    more_pages: int = 0

    @property
    def twins(self) -> int:
        """How many samples are of a picture that is there already."""
        return len(self.samples) - len({pixels for _, pixels in self.samples})

    def reject(self, path: Path, reason: str) -> None:
        """Note that `path` cannot be used, and why."""
        self.rejections.append(Rejection(path.relative_to(self.root).as_posix(), reason))


def split_folder(
    data_root: Path, output_dir: Path, test_fraction: float, seed: int
) -> tuple[FoundPairs, list[Sample], list[Sample]]:
    """Write train.json, test.json and rejected.json for the pictures in `data_root`, and warn of
    what was not used; gives what was found, and what of it is in train.json and test.json. Raises
    `InputError` if there is no usable pair, `FileWriteError` if the disk is full."""
    found = gather(data_root, output_dir)
    for rejection in found.rejections[:MOST_SHOWN]:
        warn(f"rejected {rejection.name}: {rejection.reason}")
    if len(found.rejections) > MOST_SHOWN:
        warn(f"… and {len(found.rejections) - MOST_SHOWN} more.")
    if not found.samples:
        raise InputError(
            f"{data_root} holds no usable pair of a picture and its annotation; "
            "deepseek_ocr/training/README.md describes them."
        )
    train, test = split(found.samples, test_fraction, seed)
    write_files(
        {
            output_dir / "rejected.json": json_bytes(list(map(asdict, found.rejections))),
            output_dir / "test.json": samples_to_json(data_root, test),
            output_dir / "train.json": samples_to_json(data_root, train),
        }
    )
    if found.unknown_keys:
        warn(describe_unknown(found.unknown_keys))
    if found.more_pages:
        warn(f"{found.more_pages} pictures hold further pages, which are not used; split them.")
    return found, train, test


def gather(data_root: Path, output_dir: Path) -> FoundPairs:
    """Check every picture and annotation below `data_root`; what `output_dir` holds of an earlier
    split is passed over, and so is what begins with a dot. Raises `InputError` if there is no such
    folder, or if a split would be written over an annotation."""
    if not data_root.is_dir():
        raise InputError(f"{data_root} is not a folder; give the one that holds the pictures.")
    pictures: dict[Path, list[Path]] = defaultdict(list)
    annotations: set[Path] = set()
    outputs = {(output_dir / name).resolve() for name in OUTPUTS}
    found = FoundPairs(data_root)
    for path in _files(found):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            pictures[path.with_suffix("")].append(path)
        elif path.suffix.lower() == ".json":
            if path.resolve() in outputs:
                _check_earlier(path)
            else:
                annotations.add(path)
    for stem in track(sorted(pictures), len(pictures), "checking"):
        _take(found, pictures[stem])
    for path in sorted(annotations):
        if path.with_suffix("") not in pictures:
            found.reject(path, "there is no picture of the same name beside it.")
    return found


def split(
    samples: Sequence[tuple[Sample, str]], test_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(train, test) of samples with the hashes of their pixels, each ordered by name.

    Samples of one hash stay together. Which come first into the test set depends on hash and
    seed alone, so that a picture added later moves few of the others. Neither side stays empty
    if there are two different pictures and the fraction lies between 0 and 1.
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
    by_name = attrgetter("name")
    return sorted(train, key=by_name), sorted(test, key=by_name)


def pixel_hash(image_path: Path) -> tuple[str, bool]:
    """Hash of the decoded pixels, and whether the file holds further pages. Raises `ImageError` if
    the picture cannot be opened."""
    from deepseek_ocr.images.image_loading import open_image  # imports torch: seconds

    image = open_image(image_path)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest(), bool(image.info.get("more_pages"))


def _files(found: FoundPairs) -> Iterator[Path]:
    """The files in the data folder that are not hidden; folders that are not searched are rejected,
    so that nobody misses their pages unawares."""

    def reject(error: OSError) -> None:
        found.reject(Path(error.filename), f"cannot be read: {error.strerror}.")

    for folder, folders, names in os.walk(found.root, onerror=reject):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (linked := Path(folder, name)).is_symlink():
                reason = "links to folders are not followed; copy it, or split it on its own."
                found.reject(linked, reason)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            try:
                if path.is_file():
                    yield path
            except OSError as error:
                reject(error)


def _check_earlier(path: Path) -> None:
    """Raises `InputError` if `path`, which will be written, was not written by a split."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise InputError(
            f"{path} is no earlier split and would be written over; rename it (with its picture), "
            "or choose another --output_dir."
        )


def _take(found: FoundPairs, pictures: list[Path]) -> None:
    """Add the pair of a picture and its annotation to `found`, or the reason why not."""
    image = pictures[0]
    file = image.with_suffix(".json")
    if len(pictures) > 1:
        names = ", ".join(path.name for path in pictures)
        for path in pictures:
            found.reject(path, f"{names} share one annotation; rename them.")
        return
    if not file.is_file():
        found.reject(image, f"there is no {file.name} beside it.")
        return
    try:
        raw = read_json(file, LARGEST_ANNOTATION)
        annotation = parse_annotation(raw)
        pixels, more_pages = pixel_hash(image)
        name = image.relative_to(found.root).with_suffix("").as_posix()
        name.encode("utf-8")  # a file name may hold bytes that are no text
    except (InputError, UnicodeEncodeError) as error:
        found.reject(image, str(error))
        return
    found.unknown_keys.update(unknown_keys(raw))
    found.more_pages += more_pages
    found.samples.append((Sample(image, annotation, name), pixels))
