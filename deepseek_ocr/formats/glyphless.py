"""A font of plain boxes, for text that is never drawn but searched, selected and copied.

Every character that is used gets a number, a width and, in the ToUnicode table, its meaning. Its
glyph is a box as wide as the character: PDFium takes the rectangles that it highlights from the
outlines, and finds no text on turned pages if there are none. So every script works, no font file
is needed, and nothing depends on the fonts of this machine or the reader's.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import accumulate

import pikepdf
from pikepdf import Array, Dictionary, Name

HELVETICA = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
)  # fmt: skip
"""Widths of the ASCII characters from the space on, in 1/1000 of the size (Adobe's metrics)."""

ASCENT, DESCENT = 800, -200
"""Upper and lower edge of every glyph, in 1/1000 of the size."""

_LAST = 0xFFFF
_UNKNOWN = "\ufffd"


def width(sign: str) -> int:
    """About how wide `sign` is printed, in 1/1000 of the size."""
    if " " <= sign <= "~":
        return HELVETICA[ord(sign) - 32]
    if unicodedata.combining(sign) or unicodedata.category(sign) == "Cf":
        return 0
    return 1000 if unicodedata.east_asian_width(sign) in "WF" else 556


def width_of(text: str) -> float:
    """About how wide `text` is printed, in its size."""
    return sum(map(width, text)) / 1000


class GlyphlessFont:
    """The characters used so far in one PDF, and the font made of them at the end."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self._codes: dict[str, int] = {}
        self.object = pdf.make_indirect(Dictionary(Type=Name.Font, Subtype=Name.Type0))

    def encode(self, text: str) -> str:
        """`text` as a hexadecimal string operand; beyond 65,534 characters they are unknown."""
        return "<" + "".join(f"{self._code(sign):04x}" for sign in text) + ">"

    def _code(self, sign: str) -> int:
        if 0xD800 <= ord(sign) <= 0xDFFF:
            sign = _UNKNOWN
        if sign not in self._codes:
            if len(self._codes) >= _LAST - 1 and sign != _UNKNOWN:
                return self._code(_UNKNOWN)
            self._codes[sign] = len(self._codes) + 1
        return self._codes[sign]

    def finish(self) -> None:
        """Complete the font object with what was used."""
        widths = [width(sign) for sign in self._codes]
        glyphs = sorted({0, *widths})
        glyph_of_code = [0, *(glyphs.index(wide) for wide in widths)]
        descriptor = self._pdf.make_indirect(
            Dictionary(
                Type=Name.FontDescriptor, FontName=Name.GlyphLess, Flags=4,
                FontBBox=Array([0, DESCENT, glyphs[-1], ASCENT]), ItalicAngle=0, Ascent=ASCENT,
                Descent=DESCENT, CapHeight=700, StemV=80,
                FontFile2=self._stream(font_file(glyphs)),
            )
        )  # fmt: skip
        descendant = Dictionary(
            Type=Name.Font, Subtype=Name.CIDFontType2, BaseFont=Name.GlyphLess,
            CIDSystemInfo=Dictionary(Registry="Adobe", Ordering="Identity", Supplement=0),
            FontDescriptor=descriptor, DW=0, W=Array([1, Array(widths)]),
            CIDToGIDMap=self._stream(struct.pack(f">{len(glyph_of_code)}H", *glyph_of_code)),
        )  # fmt: skip
        self.object.BaseFont = Name.GlyphLess
        self.object.Encoding = Name("/Identity-H")
        self.object.DescendantFonts = Array([self._pdf.make_indirect(descendant)])
        self.object.ToUnicode = self._stream(self._to_unicode())

    def _to_unicode(self) -> bytes:
        lines = [
            "/CIDInit /ProcSet findresource begin 12 dict begin begincmap",
            "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def",
            "/CMapName /Adobe-Identity-UCS def /CMapType 2 def",
            "1 begincodespacerange <0000> <ffff> endcodespacerange",
        ]
        pairs = [f"<{at:04x}> <{sign.encode('utf-16-be').hex()}>" for sign, at in
                 self._codes.items()]  # fmt: skip
        for at in range(0, len(pairs), 100):
            chunk = pairs[at : at + 100]
            lines += [f"{len(chunk)} beginbfchar", *chunk, "endbfchar"]
        lines.append("endcmap CMapName currentdict /CMap defineresource pop end end")
        return "\n".join(lines).encode("ascii")

    def _stream(self, data: bytes) -> pikepdf.Object:
        return self._pdf.make_indirect(compressed(self._pdf, data))


def compressed(pdf: pikepdf.Pdf, data: bytes, **entries: object) -> pikepdf.Stream:
    """`data` as a compressed stream of `pdf`."""
    return pikepdf.Stream(pdf, zlib.compress(data), Filter=Name.FlateDecode, **entries)


def font_file(widths: Sequence[int]) -> bytes:
    """A TrueType font of a box for each of `widths` (1/1000 of the size, ascending), no more than
    the format and PDF readers ask for."""
    boxes = [_box(wide) for wide in widths]
    ends = list(accumulate(map(len, boxes), initial=0))
    count, widest = len(boxes), widths[-1]
    tables = {
        b"cmap": struct.pack(">HHHHIHHH", 0, 1, 3, 1, 12, 6, 10, 0) + struct.pack(">HH", 32, 0),
        b"glyf": b"".join(boxes),
        # version, revision, checksum (filled in below), magic, flags, em, dates, box, …
        b"head": struct.pack(">IIIIHHqqhhhhHHhhh", 0x10000, 0x10000, 0, 0x5F0F3CF5, 3, 1000,
                             0, 0, 0, DESCENT, widest, ASCENT, 0, 8, 2, 1, 0),
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 0x10000, ASCENT, DESCENT, 0, widest, 0, 0,
                             widest, 1, 0, 0, 0, 0, 0, 0, 0, count),
        b"hmtx": b"".join(struct.pack(">Hh", wide, 0) for wide in widths),
        b"loca": struct.pack(f">{count + 1}I", *ends),
        b"maxp": struct.pack(">I14H", 0x10000, count, 4, 1, 0, 0, 1, *[0] * 8),
        b"post": struct.pack(">IIhhIIIII", 0x30000, 0, -100, 50, 0, 0, 0, 0, 0),
    }  # fmt: skip
    start = 12 + 16 * len(tables)
    directory, body = b"", b""
    for tag, data in tables.items():
        padded = data + bytes(-len(data) % 4)
        directory += struct.pack(">4sIII", tag, _checksum(padded), start + len(body), len(data))
        body += padded
    font = struct.pack(">IHHHH", 0x10000, len(tables), 128, 3, 0) + directory + body
    adjustment = (0xB1B0AFBA - _checksum(font)) & 0xFFFFFFFF
    at = font.index(struct.pack(">I", 0x5F0F3CF5)) - 4
    return font[:at] + struct.pack(">I", adjustment) + font[at + 4 :]


def _box(wide: int) -> bytes:
    """The outline of a box in four points; a mark, which has no width, gets its height alone."""
    outline = struct.pack(">5h2H", 1, 0, DESCENT, wide, ASCENT, 3, 0)
    outline += bytes([1] * 4)  # all points are on the curve
    outline += struct.pack(">8h", 0, 0, wide, 0, DESCENT, ASCENT - DESCENT, 0, DESCENT - ASCENT)
    return outline + bytes(-len(outline) % 4)


def _checksum(padded: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 4}I", padded)
    return sum(words) & 0xFFFFFFFF
