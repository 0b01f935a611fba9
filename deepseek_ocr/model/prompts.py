"""From a prompt to token ids, with as many placeholders as there will be vision tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deepseek_ocr.errors import CheckpointError, PromptError

IMAGE = "<image>"
"""Stands for the page in a prompt."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; `ids[image_start:image_start + image_tokens]` are placeholders."""

    ids: list[int]
    image_start: int
    image_tokens: int


@dataclass(frozen=True)
class Codec:
    """A tokenizer with the ids that matter here, all read from the checkpoint."""

    tokenizer: Tokenizer
    begin_id: int
    end_ids: frozenset[int]
    image_id: int

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` alone: no begin token, no template."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, tags kept."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def token_ids(self, tokens: tuple[str, ...]) -> frozenset[int]:
        """Ids of those among `tokens` that are single tokens to this tokenizer."""
        encoded = (self.encode_text(token) for token in tokens)
        return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def load_codec(folder: Path, begin_id: int, end_ids: frozenset[int], image_id: int) -> Codec:
    """The tokenizer of the checkpoint in `folder`, with the ids that its config names. Raises
    `CheckpointError` where `tokenizer.json` is missing, damaged, or disagrees with the config about
    the image placeholder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; copy it there from the place the weights came from."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again.") from error
    if tokenizer.token_to_id(IMAGE) != image_id:
        raise CheckpointError(
            f"{path} gives {IMAGE} the id {tokenizer.token_to_id(IMAGE)}, the config {image_id}; "
            "the files are not of one checkpoint, download both again."
        )
    return Codec(tokenizer, begin_id, end_ids, image_id)


def codec_of(folder: Path, config: Any) -> Codec:
    """The tokenizer of the checkpoint in `folder`, whose network has this `config`. Raises
    `CheckpointError` as `load_codec`."""
    text, ends = config.text_config, config.text_config.eos_token_id
    end_ids = frozenset(ends if isinstance(ends, list) else [ends])
    return load_codec(folder, text.bos_token_id, end_ids, config.image_token_id)


def with_image(prompt: str) -> str:
    """`prompt` with the page placed in front where it does not say where the page goes."""
    return prompt if IMAGE in prompt else f"{IMAGE}\n{prompt}"


def encode(codec: Codec, prompt: str, image_tokens: int) -> Prompt:
    """Ids of `begin`, the text before the page, `image_tokens` placeholders, the text after. Raises
    `PromptError` unless `<image>` stands in the prompt exactly once."""
    before, *after = prompt.split(IMAGE)
    if len(after) != 1:
        raise PromptError(
            f"A prompt needs {IMAGE} exactly once, this one has it {len(after)} times; "
            "read several images as several pages."
        )
    ids = [codec.begin_id, *codec.encode_text(before)]
    start = len(ids)
    ids += [codec.image_id] * image_tokens
    ids += codec.encode_text(after[0])
    return Prompt(ids, start, image_tokens)
