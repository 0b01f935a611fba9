"""Every error this project raises on purpose, as one tree.

Each message is one or two sentences that end with what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class OcrError(Exception):
    """Base of all errors raised on purpose; catch this one to catch them all."""


class InputError(OcrError, ValueError):
    """What was handed in cannot be used."""


class ImageError(InputError):
    """Not an image, damaged, or in a form that cannot be opened."""


class ImageTooLargeError(ImageError):
    """Refused before decoding, because of its bytes or its pixels."""


class DocumentError(InputError):
    """A document, or a page of it, that cannot be opened or rendered."""


class RecordError(InputError):
    """A kept page record that is damaged, was edited, or is of another version."""


class PromptError(InputError):
    """A prompt or a reference that the model must not be given."""


class SettingsError(InputError):
    """A setting outside its range, or one that nobody knows."""


class CheckpointError(OcrError):
    """A model folder that is missing, damaged, or of another kind."""


class DeviceError(OcrError):
    """A device or a number type that is not available on this machine, or a device that failed."""


class GenerationError(OcrError):
    """The network produced numbers that mean nothing (not a number, infinity), or has not the
    memory to read a page."""


class OutputError(OcrError):
    """A document that could not be written in all formats that were asked for.

    `formats` are those that are missing, with the reason; `files` those that were written.
    """

    def __init__(self, formats: Mapping[str, str], files: Sequence[Path]) -> None:
        self.formats, self.files = dict(formats), tuple(files)
        failed = "; ".join(f"{name} could not be written: {why}" for name, why in formats.items())
        written = f" Written: {', '.join(file.name for file in files)}." if files else ""
        super().__init__(
            f"{failed}.{written} Remove the cause and write it again, or leave that format out."
        )


class FileWriteError(OcrError):
    """A file or folder that cannot be written: the disk is full, or the folder read-only."""


class CancelledError(OcrError):
    """A page that was given up, by its caller or because the engine was closed."""
