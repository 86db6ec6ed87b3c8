"""Tiles: where they start, how they overlap, what they see. Integers only, no torch.

Two kinds. *Halo tiles* are for networks that state their receptive field: every tile sees that much
more than it gives, so tiles change nothing. *Blended tiles* are for all other networks: they overlap
and their predictions are averaged with weights (`canvas.blend`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from enlarger.size import Size

Placement = Literal["even", "flush", "columns"]
"""`even`: all overlaps alike. `flush`: fixed stride, the last tile moved back to the border (StableSR). `columns`: as
`flush`, column after column, and no forward pass spans two of them (the original's order; no result depends on it)."""


class Tile(NamedTuple):
    """A rectangle in cells of the plane it was planned on."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)

    def times(self, ratio: int) -> Tile:
        """The same rectangle on a plane with `ratio` cells for each of these."""
        return Tile(*(ratio * value for value in self))

    def within(self, outer: Tile) -> Tile:
        """This rectangle in the coordinates of `outer`, which holds it."""
        return Tile(self.top - outer.top, self.left - outer.left, self.height, self.width)


class HaloTile(NamedTuple):
    """What a tile gives (`inner`) and what it must see for that (`outer`)."""

    inner: Tile
    outer: Tile


@dataclass(frozen=True)
class Span:
    """A stretch of one axis: what it gives and what it sees."""

    start: int
    stop: int
    outer_start: int
    outer_stop: int


def blended_starts(length: int, tile: int, overlap: int, placement: Placement = "even") -> list[int]:
    """Where blended tiles start on one axis, in cells.

    Args:
        length: Cells of the axis.
        tile: Cells of a tile.
        overlap: Least number of cells that neighbours share, below `tile`.
        placement: See `Placement`.

    Returns:
        Strictly increasing starts; both ends are covered. One start, 0, when `length` is not above `tile`.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and below the tile's {tile}")
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile - overlap)) + 1
    if placement == "even":
        return [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [min(index * (tile - overlap), length - tile) for index in range(count)]


def blended_tiles(size: Size, tile: int, overlap: int, placement: Placement = "even") -> list[Tile]:
    """Overlapping tiles that cover a plane, row by row; a tile is never larger than the plane."""
    height, width = min(tile, size.height), min(tile, size.width)
    return [
        Tile(top, left, height, width)
        for top in blended_starts(size.height, tile, overlap, placement)
        for left in blended_starts(size.width, tile, overlap, placement)
    ]


def spans(length: int, tile: int, halo: int, stride: int = 1) -> list[Span]:
    """Cut one axis into stretches of about `tile` cells, each seeing `halo` more where the axis goes on.

    Args:
        length: Cells of the axis.
        tile: Most cells that a stretch gives; all but the last start on multiples of `stride`.
        halo: Cells seen beyond on either side.
        stride: Cells that an outer start must be a multiple of.

    Returns:
        Stretches whose inner parts tile the axis exactly, of nearly equal length.
    """
    tile = max(stride, tile // stride * stride)
    halo = -(-halo // stride) * stride
    count = -(-length // tile)
    even = math.ceil(math.ceil(length / count) / stride) * stride
    result = []
    for start in range(0, length, even):
        stop = min(start + even, length)
        result.append(Span(start, stop, max(0, start - halo), min(length, stop + halo)))
    return result


def halo_tile(row: Span, column: Span) -> HaloTile:
    """The tile where a row's and a column's stretch meet."""
    return HaloTile(
        Tile(row.start, column.start, row.stop - row.start, column.stop - column.start),
        Tile(
            row.outer_start,
            column.outer_start,
            row.outer_stop - row.outer_start,
            column.outer_stop - column.outer_start,
        ),
    )


def halo_tiles(size: Size, tile: int, halo: int, stride: int = 1) -> list[HaloTile]:
    """Tiles with halos that cover a plane, row by row (see `spans`)."""
    columns = spans(size.width, tile, halo, stride)
    return [halo_tile(row, column) for row in spans(size.height, tile, halo, stride) for column in columns]
