"""Which fast paths are used: the one place where they are switched on and off by name."""

from __future__ import annotations

from deepseek_ocr.errors import SettingsError

NAMES = {
    "vision": "no position bias ever built in the SAM encoder; weights as the processor wants them",
    "decoder": "a cache allocated once, and decoding steps that copy no weights",
    "graphs": "on CUDA, decoding steps replayed as graphs",
    "flash": "on CUDA, flash-attn for prompts, if it is installed and knows the card",
    "compiled": "kernels compiled on this machine, where it has a compiler",
}
"""Every fast path, and what it does."""

ON_REQUEST = {
    "unfold": "convolutions as cut-out windows and a matrix product; by itself where the device "
    "cannot convolve",
}
"""What replaces operators that some devices lack: no faster, and so only by name or by need."""


def parse(text: str) -> frozenset[str]:
    """Names of the fast paths to use: "auto" is all, "plain" none, "auto,-compiled" all but one,
    "vision,decoder" just these; "auto,unfold" forces what is otherwise done by need. Raises
    `SettingsError` for an unknown name."""
    chosen, known = set[str](), NAMES | ON_REQUEST
    for word in text.replace(" ", "").lower().split(","):
        name = word.removeprefix("-")
        if word == "auto":
            chosen |= set(NAMES)
        elif word == "plain":
            chosen.clear()
        elif name not in known:
            raise SettingsError(
                f"There is no fast path called {name!r}; use auto, plain, {', '.join(known)}, "
                "and - before a name to leave it out, as in auto,-compiled."
            )
        elif word == name:
            chosen.add(name)
        else:
            chosen.discard(name)
    return frozenset(chosen)
