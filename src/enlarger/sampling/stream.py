"""The loop for networks with a stated receptive field: moment after moment, on a stream of rows.

It is the loop of `sampling.loop` for engines whose predictions are local. Since every step looks only a
stated number of pixels far, each moment becomes a stage that turns rows of the state into rows of the
next state, and tiles with that halo change nothing. Memory is bounded by the height of a tile times the
picture's width, whatever the picture's height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from enlarger.canvas.blend import crop
from enlarger.canvas.rows import ComputedRows, Rows
from enlarger.canvas.tiles import HaloTile, Span, Tile, halo_tile, halo_tiles, spans
from enlarger.errors import ResourceError
from enlarger.sampling.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.geometry import Pass
    from enlarger.canvas.noise import PositionalNoise
    from enlarger.engines.engine import Conditioning, Engine
    from enlarger.sampling.steps import Moment, Steps

LEAST_TILE = 16
"""Source pixels; tiles are not halved below this when memory runs out."""


@dataclass
class Cutting:
    """How work is cut into halo tiles, and who is told about it.

    Attributes:
        tile: Side of a tile in source pixels.
        batch: Tiles in one forward pass.
        advance: Told the output pixels of every finished tile; may raise to stop the work.
        warn: Told in one line when memory ran out and the work was cut smaller.
    """

    tile: int
    batch: int
    advance: Callable[[int], None]
    warn: Callable[[str], None]


def stages(steps: Steps | None, decode_field: int) -> int:
    """Times that every tile is visited: once a moment, once more if decoding cannot ride on the last moment."""
    moments = len(steps.moments) if steps else 0
    return moments if moments and not decode_field else moments + 1


def stream(
    engine: Engine,
    conditioning: Conditioning,
    steps: Steps | None,
    noise: PositionalNoise,
    passage: Pass,
    cutting: Cutting,
) -> Rows:
    """Run an engine over one pass's canvas.

    Args:
        engine: Its facts state `field`, the source pixels that one prediction sees on each side.
        conditioning: For the whole canvas; planes are planned on source pixels.
        steps: The process, or None when decoding is all there is to do.
        noise: For the whole canvas.
        passage: The geometry.
        cutting: How work is cut.

    Returns:
        Rows (3, n, width) of the decoded picture of size `passage.padded * factor`. Nothing is computed
        before they are read.
    """
    facts = engine.facts
    factor = passage.factor
    field = facts.field or 0
    if steps is None:

        def enlarge(tiles: Sequence[HaloTile], _: Tensor | None) -> Tensor:
            seen = crop(conditioning, [tile.outer for tile in tiles])
            return engine.decode(seen.source.tensor.to(engine.device), seen)

        return _Stage(enlarge, None, 3, field, passage, cutting, facts.stride).rows()

    def moment_stage(moment: Moment, rows: Rows | None, last: bool) -> Rows:
        def predict(tiles: Sequence[HaloTile], state: Tensor | None) -> Tensor:
            seen = crop(conditioning, [tile.outer for tile in tiles])
            values = noise.crop([tile.outer.times(factor) for tile in tiles])
            if state is None:
                outer = tiles[0].outer.times(factor)
                state = steps.start(values, (len(tiles), engine.state_channels(), outer.height, outer.width))
            prediction = engine.predict(steps.scale(state, moment), moment, seen).conditional
            state = steps.step(prediction, state, moment, values)
            return engine.decode(state, seen) if last and not facts.decode_field else state

        return _Stage(predict, rows, engine.state_channels(), field, passage, cutting, facts.stride).rows()

    rows: Rows | None = None
    for moment in steps.moments:
        rows = moment_stage(moment, rows, last=moment is steps.moments[-1])
    assert rows is not None
    if not facts.decode_field:
        return rows

    def decode(tiles: Sequence[HaloTile], state: Tensor | None) -> Tensor:
        assert state is not None
        return engine.decode(state, crop(conditioning, [tile.outer for tile in tiles]))

    return _Stage(decode, rows, 3, facts.decode_field, passage, cutting, facts.stride).rows()


Work = Callable[[Sequence[HaloTile], "Tensor | None"], "Tensor"]
"""Makes tiles' outer rectangles, (B, C, h, w) in output pixels, from the same rectangles of the state before."""


@dataclass
class _Stage:
    """One stage: the rows that `work` makes of the rows before it, tile by tile.

    Attributes:
        work: What is done to a batch of tiles.
        before: Rows of the state that goes in; None for the first stage.
        channels: Of what comes out.
        halo: Source pixels that a tile sees beyond its own.
        passage: The geometry.
        cutting: How work is cut.
        stride: Source pixels that tiles start on multiples of.
    """

    work: Work
    before: Rows | None
    channels: int
    halo: int
    passage: Pass
    cutting: Cutting
    stride: int

    def rows(self) -> Rows:
        """The rows that come out; nothing is computed before they are read."""
        size, factor = self.passage.padded, self.passage.factor
        stretches = spans(size.height, self.cutting.tile, self.halo, self.stride)
        columns = spans(size.width, self.cutting.tile, self.halo, self.stride)
        return ComputedRows(
            size.times(factor),
            [(row.start * factor, row.stop * factor) for row in stretches],
            lambda number: self._stretch(stretches[number], columns),
        )

    def _stretch(self, row: Span, columns: Sequence[Span]) -> Tensor:
        """Rows (C, n, W) of one stretch."""
        import torch

        factor = self.passage.factor
        seen = self.before.read(row.outer_start * factor, row.outer_stop * factor) if self.before else None
        made = torch.empty(self.channels, (row.stop - row.start) * factor, self.passage.padded.width * factor)
        waiting = [halo_tile(row, column) for column in columns]
        while waiting:
            # Tiles of one batch must be alike; neighbours mostly are.
            alike = list(takewhile(partial(_alike, waiting[0]), waiting))
            batch = alike[: self.cutting.batch]
            try:
                outers = self._outers(batch, seen, row.outer_start)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                waiting = self._smaller(waiting)
                continue
            for tile, outer in zip(batch, outers, strict=True):
                inner = tile.inner._replace(top=tile.inner.top - row.start)
                _cut(made, inner.times(factor)).copy_(_cut(outer, tile.inner.within(tile.outer).times(factor)))
                self.cutting.advance(tile.inner.times(factor).size.area)
            del waiting[: len(batch)]
        return made

    def _outers(self, batch: Sequence[HaloTile], seen: Tensor | None, top: int) -> Tensor:
        """Outer rectangles (B, C, h, w) of a batch, made by `work`."""
        import torch

        state = None
        if seen is not None:
            outers = [tile.outer._replace(top=tile.outer.top - top).times(self.passage.factor) for tile in batch]
            state = torch.stack([_cut(seen, outer) for outer in outers])
        return self.work(batch, state).float().cpu()

    def _smaller(self, waiting: list[HaloTile]) -> list[HaloTile]:
        """What to do when memory ran out: halve the batch, then the tile.

        Raises:
            ResourceError: The tile is as small as it gets.
        """
        if self.cutting.batch > 1:
            self.cutting.batch //= 2
            self.cutting.warn(f"memory ran out: going on with {self.cutting.batch} tiles at once")
            return waiting
        first = waiting[0]
        if max(first.inner.size) <= LEAST_TILE:
            raise ResourceError(
                f"memory ran out on a tile of {first.outer.size} source pixels, the smallest: close other programs"
            )
        self.cutting.tile = max(LEAST_TILE, max(first.inner.size) // 2)
        self.cutting.warn(f"memory ran out: going on with tiles of {self.cutting.tile * self.passage.factor} pixels")
        return [piece for tile in waiting for piece in self._pieces(tile)]

    def _pieces(self, tile: HaloTile) -> list[HaloTile]:
        """Smaller tiles that give the same; each sees its halo, but no more than the whole saw."""
        pieces = []
        for piece in halo_tiles(tile.inner.size, self.cutting.tile, 0, self.stride):
            top, left = tile.inner.top + piece.inner.top, tile.inner.left + piece.inner.left
            inner = Tile(top, left, piece.inner.height, piece.inner.width)
            outer_top = max(tile.outer.top, top - self.halo // self.stride * self.stride - self.stride)
            outer_left = max(tile.outer.left, left - self.halo // self.stride * self.stride - self.stride)
            bottom = min(tile.outer.bottom, inner.bottom + self.halo)
            right = min(tile.outer.right, inner.right + self.halo)
            pieces.append(HaloTile(inner, Tile(outer_top, outer_left, bottom - outer_top, right - outer_left)))
        return pieces


def _cut(tensor: Tensor, tile: Tile) -> Tensor:
    """A rectangle of (C, H, W)."""
    return tensor[:, tile.top : tile.bottom, tile.left : tile.right]


def _alike(one: HaloTile, other: HaloTile) -> bool:
    """Whether two tiles see rectangles of one size."""
    return one.outer.size == other.outer.size
