"""Invisible text taken out of a PDF page: the layer that an earlier reading left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pikepdf
from pikepdf import Dictionary, Name, Operator

from deepseek_ocr.formats.glyphless import compressed

INVISIBLE = 3
"""The text render mode that neither fills nor strokes."""

_DEEPEST = 10
"""Forms within forms that are looked into."""

_MOST_BYTES = 64 * 2**20
"""Of the contents of a page, and of each form on it."""

_MOST_FORMS = 1000

_SHOWING = ("Tj", "TJ", "'", '"')
_PLACING = ("Td", "TD", "Tm", "T*", "BT")

Instruction = pikepdf.ContentStreamInstruction | pikepdf.ContentStreamInlineImage
Holder = pikepdf.Page | pikepdf.Object


class _NotRemovableError(Exception):
    """The text cannot be taken out without a change to what one sees."""


@dataclass(frozen=True)
class _State:
    """The text state as far as it matters: the render mode; whether the font is of Type 3, which
    is drawn in every mode; and whether text was taken out whose width places the next text."""

    mode: int = 0
    is_type3: bool = False
    is_moved: bool = False

    @property
    def is_invisible(self) -> bool:
        """True while text that is shown is not drawn."""
        return self.mode == INVISIBLE and not self.is_type3


def remove_invisible_text(pdf: pikepdf.Pdf, page: pikepdf.Page, resources: Dictionary) -> bool:
    """Take the text in render mode 3 out of `page`, which uses `resources`, and of its forms; what
    other pages share with it is left alone.

    False, and nothing is changed, if it cannot be done without a change to what one sees.
    """
    try:
        contents, own = _Stripper(pdf).strip(page, resources, _State(), 0)
    except (_NotRemovableError, ValueError, TypeError, KeyError, AttributeError, IndexError,
            RuntimeError, pikepdf.PdfError):  # fmt: skip
        return False
    page.obj.Contents = compressed(pdf, contents)
    page.obj.Resources = own
    return True


class _Stripper:
    """Takes the text out of one page; `_forms` counts the forms that were met."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self._forms = 0

    def strip(
        self, holder: Holder, resources: Dictionary, state: _State, depth: int
    ) -> tuple[bytes, Dictionary]:
        """The contents of a page or form without invisible text, and the resources for them. Raises
        `_NotRemovableError`."""
        if depth > _DEEPEST or _size(holder) > _MOST_BYTES:
            raise _NotRemovableError
        objects = dict(resources.get("/XObject", Dictionary()).items())
        kept: list[Instruction] = []
        saved: list[_State] = []
        for one in pikepdf.parse_content_stream(holder):
            operator = str(one.operator)
            if operator == "q":
                saved.append(state)
            elif operator == "Q" and saved:
                state = saved.pop()
            elif operator in _SHOWING:
                instructions, state = _without_invisible(one, operator, state)
                kept.extend(instructions)
                continue
            if operator == "Do":
                drawn = self._drawn(objects, str(one.operands[0]), resources, state, depth)
                kept.append(_instruction("Do", drawn))
                continue
            kept.append(one)
            state = _after(one, operator, state, resources)
        own = Dictionary(dict(resources.items()))
        if objects:
            own.XObject = Dictionary(objects)
        return pikepdf.unparse_content_stream(kept), own

    def _drawn(
        self,
        objects: dict[str, pikepdf.Object],
        name: str,
        resources: Dictionary,
        state: _State,
        depth: int,
    ) -> Name:
        """The name by which a form without invisible text is drawn, added to `objects`; pictures
        keep theirs."""
        form = objects.get(name)
        if not isinstance(form, pikepdf.Stream) or form.get("/Subtype") != Name.Form:
            return Name(name)
        self._forms += 1
        if self._forms > _MOST_FORMS:
            raise _NotRemovableError
        inner = form.get("/Resources", resources)
        if not isinstance(inner, Dictionary):
            raise _NotRemovableError
        contents, own = self.strip(form, inner, replace(state, is_moved=False), depth + 1)
        new = compressed(self._pdf, contents)
        for key, value in form.items():
            if key not in ("/Length", "/Filter", "/DecodeParms", "/Resources"):
                new[key] = value
        new.Resources = own
        free = f"/Form{self._forms}"
        while free in objects:
            free += "x"
        objects[free] = self._pdf.make_indirect(new)
        return Name(free)


def _instruction(operator: str, *operands: Any) -> Instruction:
    return pikepdf.ContentStreamInstruction([*operands], Operator(operator))


def _after(one: Instruction, operator: str, state: _State, resources: Dictionary) -> _State:
    """The state after an instruction that shows no text."""
    if operator == "Tr":
        return replace(state, mode=int(str(one.operands[0])))
    if operator in _PLACING:
        return replace(state, is_moved=False)
    if operator == "Tf":
        fonts = resources.get("/Font", Dictionary())
        font = fonts.get(str(one.operands[0]), Dictionary())
        return replace(state, is_type3=font.get("/Subtype") == Name.Type3)
    return state


def _without_invisible(
    one: Instruction, operator: str, state: _State
) -> tuple[list[Instruction], _State]:
    """What is left of an instruction that shows text, and the state after it."""
    begins_a_line = operator in ("'", '"')
    if not state.is_invisible:
        if state.is_moved and not begins_a_line:
            raise _NotRemovableError
        return [one], replace(state, is_moved=False)
    left = []
    if operator == '"':
        left += [_instruction("Tw", one.operands[0]), _instruction("Tc", one.operands[1])]
    if begins_a_line:
        left.append(_instruction("T*"))
    return left, replace(state, is_moved=True)


def _size(holder: Holder) -> int:
    """Bytes of the contents when they are unpacked."""
    if not isinstance(holder, pikepdf.Page):
        return len(holder.read_bytes())
    contents = holder.obj.get("/Contents", pikepdf.Array())
    parts = contents if isinstance(contents, pikepdf.Array) else [contents]
    return sum(len(part.read_bytes()) for part in parts)
