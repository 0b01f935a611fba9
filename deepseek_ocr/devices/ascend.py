"""Ascend's plugin for torch, and what it means if torch or it cannot be imported. Imports no torch
until the plugin is asked for.

With torch-npu installed, `import torch` loads it, and it loads the libraries of Ascend's toolkit
(CANN). Where the toolkit's script was not sourced, the first import of torch fails with a
`RuntimeError` whose cause says `libhccl.so: cannot open shared object file`.
"""

from __future__ import annotations

import re
from typing import Any

SCRIPT = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
"""Where the toolkit puts its script when it is installed for all users."""

_LIBRARY = re.compile(
    r"\blib(hccl|ascendcl|ascend_hal|acl_\w+|ge_\w+|graph|register|runtime|c_sec|hcom\w*|atb"
    r"|opapi|platform|profapi|msprofiler)\.so"
)
"""Libraries of the toolkit and the driver that torch-npu is linked with."""


def advice(error: BaseException) -> str | None:
    """What to do about an import that failed for want of Ascend's toolkit; None for any other
    error."""
    texts = [str(link) for link in _chain(error)]
    library = next((found[0] for text in texts if (found := _LIBRARY.search(text))), None)
    if library is None and not any("backend extension: torch_npu" in text for text in texts):
        return None
    missing = f"{library} was not found" if library else "torch-npu did not load"
    driver = (
        " That library belongs to the driver: in a container, mount /usr/local/Ascend/driver."
        if library == "libascend_hal.so"
        else ""
    )
    return (
        f"Ascend's toolkit is not set up in this shell ({missing}). Run: source {SCRIPT} (or the "
        f"set_env.sh where your toolkit is), then try again.{driver} To run without the NPU, use "
        "an environment that has no torch-npu."
    )


def npu() -> Any:
    """`torch.npu`, which exists once torch-npu is imported."""
    import torch

    return vars(torch)["npu"]


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that led to it."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links
