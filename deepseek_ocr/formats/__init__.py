"""What a document can be written as: `FORMATS`, one entry for each output format.

To add one, write a module with its writer and add its entry here; the command line, the server and
a run over documents take it from this list. Imports neither torch nor the writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from deepseek_ocr.errors import SettingsError


@dataclass(frozen=True)
class Format:
    """An output format.

    - `name`: what users ask for; `docs/outputs.md` says what they get
    - `files`: for each file, the suffix behind the document's name → its writer, as
      "module:function"; the first file stands for the document
    - `media_type`: of the first file
    - `is_text`: True if a writer takes (document, `writing.WriteContext`) and yields pieces of
      text; else it takes (document, context, path), writes a PDF and returns `writing.PdfPages`
    - `uses_figures`: True if the figures of the document must lie in its folder
    """

    name: str
    files: Mapping[str, str]
    media_type: str
    is_text: bool = True
    uses_figures: bool = False

    def writers(self) -> dict[str, Any]:
        """The suffix of each file → the function that writes it, imported now."""
        return {suffix: resolve_name(writer) for suffix, writer in self.files.items()}


_FORMATS = (
    Format("md", {".md": f"{__name__}.markdown:write_markdown"}, "text/markdown",
           uses_figures=True),
    Format("html", {".html": f"{__name__}.html:write_html"}, "text/html", uses_figures=True),
    Format("json", {".json": f"{__name__}.json_document:write_json"}, "application/json"),
    Format("txt", {".txt": f"{__name__}.text:write_plain"}, "text/plain"),
    Format("mmd",
           {".mmd": f"{__name__}.markdown:write_official",
            "_det.mmd": f"{__name__}.markdown:write_official_tagged"},
           "text/markdown", uses_figures=True),
    Format("pdf", {"_layouts.pdf": f"{__name__}.layout_pdf:write_layout_pdf"}, "application/pdf",
           is_text=False),
    Format("searchable-pdf", {".pdf": f"{__name__}.searchable_pdf:write_searchable_pdf"},
           "application/pdf", is_text=False),
    Format("regions", {".regions.jsonl": f"{__name__}.json_document:write_regions"},
           "application/x-ndjson"),
)  # fmt: skip

FORMATS: dict[str, Format] = {one.name: one for one in _FORMATS}
"""Every output format by its name, in the order in which they are listed."""


def find_format(name: str) -> Format:
    """The format called `name`. Raises `SettingsError` if there is none."""
    if name not in FORMATS:
        raise SettingsError(f"There is no format {name!r}; choose among {', '.join(FORMATS)}.")
    return FORMATS[name]
