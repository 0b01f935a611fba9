"""Annotated pages as batches: what can be used, in which order, on which process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from deepseek_ocr.errors import GenerationError, InputError, OcrError
from deepseek_ocr.images.image_loading import open_image
from deepseek_ocr.images.views import make_views
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.training.data.batches import (
    IGNORED,
    Batch,
    EncodedExample,
    collate,
    encode_example,
)
from deepseek_ocr.training.data.samples import Example, Rejection

Made = TypeVar("Made")


@dataclass(frozen=True)
class Encoding:
    """How examples become tensors: tokenizer, views, longest sequence in tokens, padding id."""

    codec: Codec
    crop: CropSettings
    max_tokens: int
    pad_id: int

    def __call__(self, example: Example) -> EncodedExample:
        """Raises `ImageError` and `ExampleError`."""
        views = make_views(open_image(example.image), self.crop)
        return encode_example(self.codec, views, example.prompt, example.answer, self.max_tokens)


@dataclass(frozen=True)
class MicroBatch:
    """Examples by number that go through the network together. One that does not `count` only
    keeps its process in step with the others and teaches nothing."""

    numbers: tuple[int, ...]
    counts: bool = True


def batch_of(examples: Sequence[Example], encoding: Encoding, planned: MicroBatch) -> Batch:
    """A micro-batch as tensors. Raises `InputError` if a page cannot be read any more."""
    encoded: list[EncodedExample] = []
    for example in (examples[number] for number in planned.numbers):
        try:
            encoded.append(encoding(example))
        except OcrError as error:  # it was checked before, so it has changed since
            raise InputError(f"{example.name}: {error}") from error
    batch = collate(encoded, encoding.pad_id)
    if planned.counts:
        return batch
    return replace(batch, labels=torch.full_like(batch.labels, IGNORED))


def _reason(encoding: Encoding, example: Example) -> str:
    """Why an example cannot be used, or nothing."""
    try:
        encoding(example)
    except (OcrError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def loader(items: Sequence[Any], make: Callable[[Any], Made], workers: int) -> Iterable[Made]:
    """What `make` makes of each item, in order, ahead by `workers` processes (0: by this one)."""
    return DataLoader(
        cast(Dataset[Any], items),
        batch_size=None,
        collate_fn=make,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )


def in_order(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, whose processes' errors become those of this project: `InputError`
    for a page that cannot be read any more, `GenerationError` for a process that was killed."""
    try:
        yield from batches
    except OcrError as error:
        if "Traceback" not in str(error):
            raise
        # torch puts the other process's traceback into the message; its last line says what it is.
        last = str(error).strip().rpartition("\n")[2]
        raise InputError(last.partition("Error: ")[2] or last) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise GenerationError(
            "A process that prepares pages was killed, as a rule for want of memory; use fewer "
            "--workers (0: none), or give a container more (docker run --shm-size 2g)."
        ) from error


def check(
    examples: Sequence[Example], encoding: Encoding, workers: int
) -> Iterator[Rejection | None]:
    """Open and encode every example as training will: None, or why it cannot be used."""
    reasons = loader(examples, partial(_reason, encoding), workers)
    for example, reason in zip(examples, reasons, strict=True):
        yield Rejection(example.page, reason) if reason else None


def plan_epoch(
    count: int, seed: int, epoch: int, batch_size: int, grad_accum: int, processes: int
) -> list[list[list[MicroBatch]]]:
    """`plan[step][process]`: the micro-batches of each process in each step of an epoch. All
    `count` examples appear once, in an order that `seed` and `epoch` decide. Which examples share a
    step depends on the effective batch alone, not on how it is spread."""
    order = list(range(count))
    Random(f"{seed}:{epoch}").shuffle(order)
    effective = batch_size * grad_accum * processes
    steps: list[list[list[MicroBatch]]] = []
    for at in range(0, count, effective):
        numbers = order[at : at + effective]
        parts = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
        chunks = [MicroBatch(tuple(part)) for part in parts]
        filler = MicroBatch((numbers[0],), counts=False)
        steps.append([chunks[rank::processes] or [filler] for rank in range(processes)])
    return steps


def _one_thread(worker: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
