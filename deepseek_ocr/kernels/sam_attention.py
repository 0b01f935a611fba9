"""Attention of a SAM layer without its position bias, which is as large as all scores.

The bias of a score is a term for the row of its key and one for the column, both of the query with
a learned table. `folded` makes them part of the dot product: the query carries all its terms
behind its own numbers, the key a one in the place of its row and one in that of its column.
`by_rows` builds the bias of a few rows of queries at a time.

Shapes: query, key and value `[N, height * width, dim]`, N being images, windows and heads alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from deepseek_ocr.model.position_tables import kept

QUERIES = 128
"""Queries whose scores are in cache together; half and twice as many take as long."""

_QUERIES_BY_ROWS = 512
"""Queries whose bias exists at one time in `by_rows`."""

_WIDTH_STEP = 8
"""Fused attention on a GPU wants the length of queries and keys to be a multiple of this."""


@dataclass(frozen=True)
class Heads:
    """What one attention is of: query, key and value, and the map they lie on."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    size: tuple[int, int]


class Positions:
    """The two learned position tables of one layer, resized once for each size of map."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._rows: dict[object, torch.Tensor] = {}
        self._columns: dict[object, torch.Tensor] = {}

    def tables(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[2 * height - 1, dim]` and `[2 * width - 1, dim]`, by query minus key, lowest first."""
        height, width = size
        rows = kept(self._rows, self._attention.rel_pos_h, (height, height), _resize)
        columns = kept(self._columns, self._attention.rel_pos_w, (width, width), _resize)
        return rows, columns

    def terms(self, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
        """What each row and each column of keys adds to the scores of each query:
        `[N, height * width, height]` and `[N, height * width, width]`."""
        height, width = heads.size
        rows, columns = self.tables(heads.size)
        query = heads.query.reshape(len(heads.query), *heads.size, -1)
        by_row = torch.einsum("nhwc,hkc->nhwk", query, _by_pair(rows, height))
        by_column = torch.einsum("nhwc,wkc->nhwk", query, _by_pair(columns, width))
        return by_row.flatten(1, 2), by_column.flatten(1, 2)


def _resize(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """As the library does it: linear, in the table's own type."""
    return interpolate(table.t()[None], 2 * size[0] - 1, mode="linear")[0].t().contiguous()


def _by_pair(table: torch.Tensor, side: int) -> torch.Tensor:
    """`[query, key, dim]` from a table by query minus key."""
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]


def folded(heads: Heads, positions: Positions) -> Heads:
    """The same attention with the bias inside longer queries and keys, to be scaled by 1."""
    height, width = heads.size
    count, _, dim = heads.query.shape
    cells = torch.arange(height * width, device=heads.key.device)
    ones = torch.zeros(len(cells), height + width, dtype=heads.key.dtype, device=heads.key.device)
    ones[cells, cells // width] = 1
    ones[cells, height + cells % width] = 1
    query = torch.cat([heads.query * dim**-0.5, *positions.terms(heads)], dim=-1)
    key = torch.cat([heads.key, ones.expand(count, -1, -1)], dim=-1)
    return Heads(query, key, heads.value, heads.size)


def fused(heads: Heads, positions: Positions) -> torch.Tensor:
    """Attention over folded heads in one call, all as long as the longest, for a GPU's sake."""
    long = folded(heads, positions)
    length = -(-long.query.shape[-1] // _WIDTH_STEP) * _WIDTH_STEP
    query, key, value = (
        pad(part, (0, length - part.shape[-1]))[None] for part in (long.query, long.key, long.value)
    )
    mixed = scaled_dot_product_attention(query, key, value, scale=1.0)[0]
    return mixed[..., : heads.value.shape[-1]]


def blocked(heads: Heads, positions: Positions) -> torch.Tensor:
    """Attention over folded heads, `QUERIES` of one head at a time, scores in the heads' type."""
    long = folded(heads, positions)
    mixed = torch.empty_like(heads.value)
    cells = heads.query.shape[1]
    scores = long.query.new_empty(QUERIES, cells)
    for head in range(len(mixed)):
        keys = long.key[head].t()
        for first in range(0, cells, QUERIES):
            queries = long.query[head, first : first + QUERIES]
            some = torch.mm(queries, keys, out=scores[: len(queries)])
            shares = torch.softmax(some, -1)
            torch.mm(shares, heads.value[head], out=mixed[head, first : first + QUERIES])
    return mixed


def by_rows(heads: Heads, positions: Positions) -> torch.Tensor:
    """Attention with the bias of about `_QUERIES_BY_ROWS` queries at a time."""
    height, width = heads.size
    by_row, by_column = positions.terms(heads)
    step = max(1, _QUERIES_BY_ROWS // width) * width
    parts = []
    for first in range(0, height * width, step):
        some = slice(first, first + step)
        bias = by_row[:, some, :, None] + by_column[:, some, None, :]
        mixed = scaled_dot_product_attention(
            heads.query[None, :, some], heads.key[None], heads.value[None], bias.flatten(2)[None]
        )
        parts.append(mixed[0])
    return torch.cat(parts, dim=1)
