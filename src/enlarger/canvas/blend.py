"""Planes and their crops; blending overlapping tiles.

Blending happens at the level of the network's output (Mixture of Diffusers, Jimenez 2023, arXiv 2302.02412;
StableSR, Wang et al. 2024, section 3.3): every tile's output is weighted, and the weights over a cell sum to
one. The weights are separable and so is their sum over a grid of tiles, so all of them are vectors along one
axis, normalised before any network runs; no plane of weights is ever as large as the canvas.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from enlarger.canvas.tiles import Placement, Tile, blended_starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from enlarger.size import Size

Record = TypeVar("Record")

Weights = Literal["cosine", "gaussian", "gaussian-original", "flat"]
"""`cosine`: flat, with a raised cosine over the overlap. `gaussian`: StableSR's and Mixture of Diffusers' bell.
`gaussian-original`: the same as StableSR's code has it, half a cell lower than the middle. `flat`: a plain average."""


@dataclass(frozen=True)
class Plane:
    """A tensor that lies on the picture.

    Attributes:
        tensor: (B, C, H, W).
        ratio: Its cells per cell of the state that tiles are planned on: 8 for a hint in pixels beside an
            f=8 latent, 1 for x4's low-res picture beside its latent.
    """

    tensor: Tensor
    ratio: int = 1


def crop(record: Record, tiles: Sequence[Tile]) -> Record:
    """A conditioning record for a batch of tiles of one size.

    Args:
        record: A frozen dataclass; its `Plane` fields are cut, all others pass unchanged.
        tiles: In cells of the state; all of one size.

    Returns:
        The same type; planes hold one item for each tile, (len(tiles), C, height * ratio, width * ratio).
    """
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, item.name)
        if isinstance(value, Plane):
            cut = crop_tensor(value.tensor, [tile.times(value.ratio) for tile in tiles])
            changes[item.name] = Plane(cut, value.ratio)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def crop_tensor(tensor: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """A batch of tiles of one plane.

    A tile may be larger than the plane: what lies beyond the bottom and right is the plane's mirror image. The
    mirror stands *between* cells (the last row comes twice), so planes of every ratio are mirrored alike.

    Args:
        tensor: (1, C, H, W).
        tiles: In the tensor's own cells; all of one size.

    Returns:
        (len(tiles), C, height, width); a view where one tile lies within the plane.
    """
    import torch

    parts = []
    for tile in tiles:
        part = tensor
        for axis, start, stop in ((-2, tile.top, tile.bottom), (-1, tile.left, tile.right)):
            length = part.shape[axis]
            if stop <= length:
                part = part.narrow(axis, start, stop - start)
            else:
                part = part.index_select(axis, _mirrored(start, stop, length).to(tensor.device))
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mirrored(start: int, stop: int, length: int) -> Tensor:
    """Cells (stop - start,) within 0 .. length - 1 that stand for cells `start` to `stop` beyond a mirror."""
    import torch

    cells = torch.arange(start, stop) % (2 * length)
    return torch.minimum(cells, 2 * length - 1 - cells)


@dataclass(frozen=True)
class Tiling:
    """How a canvas is cut into blended tiles, all numbers in cells of the state.

    Attributes:
        tile: Side of a tile; None is the whole canvas, whatever its shape.
        overlap: Least number of cells that neighbours share.
        batch: Tiles in one forward pass.
        weights: How tiles fade into each other.
        placement: Where they start.
        fill: Give the network full tiles even where the canvas is smaller, mirrored beyond its borders. Only
            what the network sees is mirrored: state, noise and result have the canvas's size.
        smallest: Side below which a tile is not halved when memory runs out.
    """

    tile: int | None = None
    overlap: int = 0
    batch: int = 1
    weights: Weights = "cosine"
    placement: Placement = "even"
    fill: bool = False
    smallest: int = 16

    def plan(self, size: Size) -> list[Tile]:
        """Tiles of one size that cover the canvas, row by row (by columns: see `Placement`).

        Raises:
            ValueError: The overlap is not below the tile.
        """
        if self.tile is None:
            return [Tile(0, 0, size.height, size.width)]
        height, width = (self.tile if self.fill else min(self.tile, side) for side in size)
        tops = blended_starts(size.height, self.tile, self.overlap, self.placement)
        lefts = blended_starts(size.width, self.tile, self.overlap, self.placement)
        if self.placement == "columns":
            return [Tile(top, left, height, width) for left in lefts for top in tops]
        return [Tile(top, left, height, width) for top in tops for left in lefts]

    def group(self, tiles: Sequence[Tile], start: int) -> list[Tile]:
        """The tiles from `start` on that go into one forward pass."""
        group = list(tiles[start : start + self.batch])
        if self.placement == "columns":
            return [tile for tile in group if tile.left == group[0].left]
        return group

    def smaller(self, size: Size) -> Tiling | None:
        """What to try when memory ran out: half the batch, then half the tile; None at the smallest tile."""
        batch = min(self.batch, len(self.plan(size)))
        if batch > 1:
            return dataclasses.replace(self, batch=batch // 2)
        side = max(size) if self.tile is None or not self.fill else self.tile
        tile = min(side, self.tile or side) // 2
        if tile < self.smallest:
            return None
        # Networks halve their input a few times: whole multiples of 8 keep their skips aligned.
        tile = tile // 8 * 8 if tile >= 16 else tile
        return dataclasses.replace(self, tile=tile, batch=1, overlap=min(self.overlap or tile // 4, tile // 2))


WHOLE = Tiling()
"""One tile: exactly the canvas, any shape, nothing padded, nothing blended."""


def cosine(length: int, ramp: int) -> Tensor:
    """A weight (length,), float64, in 0 .. 1: flat, with a raised cosine over `ramp` cells at either end."""
    import torch

    position = torch.arange(length, dtype=torch.float64) + 0.5
    rising = 0.5 - 0.5 * torch.cos(math.pi * (position / max(ramp, 0.5)).clamp(max=1))
    return rising * rising.flip(0)


def gaussian(length: int, centre: float | None = None) -> Tensor:
    """A weight (length,), float64, in 0 .. 1: a bell of standard deviation a tenth of the length.

    Mixture of Diffusers (arXiv 2302.02412) and StableSR, section 3.3, variance 0.01 in units of the tile. At
    the ends it is e^-12.5 of the centre, 1e-11 in a tile's corner: far within float32, beyond float16.

    Args:
        length: Cells.
        centre: Where the bell stands, in cells; the middle if None.
    """
    import torch

    middle = (length - 1) / 2 if centre is None else centre
    return torch.exp(-((torch.arange(length, dtype=torch.float64) - middle) ** 2) / (2 * 0.01 * length**2))


def axis_weights(starts: Sequence[int], tile: int, shape: Weights) -> Tensor:
    """What each tile along one axis contributes to each of its cells.

    Args:
        starts: Increasing starts of the tiles, in cells.
        tile: Cells of a tile.
        shape: How tiles fade into each other; the raised cosine takes all of the smallest overlap.

    Returns:
        (len(starts), tile), float32, all above 0; over every covered cell they sum to 1.
    """
    import torch

    if len(starts) == 1:
        return torch.ones(1, tile)
    overlap = tile - max(later - earlier for earlier, later in itertools.pairwise(starts))
    profile = _profile(tile, overlap, shape)
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += profile
    return torch.stack([profile / total[start : start + tile] for start in starts]).float()


def _profile(tile: int, overlap: int, shape: Weights) -> Tensor:
    """A tile's weight along one axis, (tile,), float64, not normalised."""
    import torch

    if shape == "flat":
        return torch.ones(tile, dtype=torch.float64)
    if shape == "cosine":
        return cosine(tile, overlap)
    return gaussian(tile, tile / 2 if shape == "gaussian-original" else None)


class Blend:
    """Collects the outputs of tiles into one plane after the other, float32.

    One tile is passed through as it is: nothing is multiplied or rounded.
    """

    def __init__(self, tiles: Sequence[Tile], size: Size, *, weights: Weights = "cosine", ratio: int = 1) -> None:
        """Prepare for the tiles of a plan.

        Args:
            tiles: All tiles, a grid (every row of tiles has the same lefts), of one size.
            size: Of the canvas, in the cells of `tiles`.
            weights: How tiles fade into each other.
            ratio: Output cells per cell of `tiles`, along each side.
        """
        tops = sorted({tile.top for tile in tiles})
        lefts = sorted({tile.left for tile in tiles})
        assert len(tiles) == len(tops) * len(lefts), "tiles of a blend form a grid"
        self.ratio = ratio
        self.size = size.times(ratio)
        self._single = len(tiles) == 1
        self._plane: Tensor | None = None
        if not self._single:
            height, width = (ratio * side for side in tiles[0].size)
            rows = axis_weights([ratio * top for top in tops], height, weights)
            across: Weights = "gaussian" if weights == "gaussian-original" else weights
            columns = axis_weights([ratio * left for left in lefts], width, across)
            self._rows = dict(zip(tops, rows, strict=True))
            self._columns = dict(zip(lefts, columns, strict=True))

    def add(self, output: Tensor, tiles: Sequence[Tile]) -> None:
        """Add the outputs of some tiles; every tile once.

        Args:
            output: (len(tiles), C, height * ratio, width * ratio), any float type.
            tiles: Of the plan, in the order of `output`.
        """
        import torch

        if self._single:
            fits = output.shape[-2:] == tuple(self.size)
            self._plane = (output if fits else output[..., : self.size.height, : self.size.width]).float()
            return
        if self._plane is None:
            self._plane = torch.zeros(1, output.shape[1], *self.size, device=output.device)
        for item, tile in zip(output, tiles, strict=True):
            place = tile.times(self.ratio)
            plane = self._plane[0, :, place.top : place.bottom, place.left : place.right]
            height, width = plane.shape[-2:]  # less than the tile's where it is larger than the canvas
            row = self._rows[tile.top][:height].to(output.device)
            column = self._columns[tile.left][:width].to(output.device)
            plane.addcmul_(item[:, :height, :width].float(), row[:, None] * column)

    def result(self) -> Tensor:
        """The blended plane (1, C, H, W), once all tiles are in; the next tile begins a new one."""
        plane, self._plane = self._plane, None
        assert plane is not None, "no tile was added"
        return plane


def batches(tiles: Sequence[Tile], batch: int) -> Iterator[Sequence[Tile]]:
    """The tiles in groups of at most `batch`."""
    for start in range(0, len(tiles), batch):
        yield tiles[start : start + batch]


def over_tiles(
    fn: Callable[[Sequence[Tile]], Tensor],
    tiles: Sequence[Tile],
    size: Size,
    *,
    batch: int = 1,
    weights: Weights = "cosine",
    ratio: int = 1,
) -> Tensor:
    """Run a function tile by tile and blend what it gives.

    Args:
        fn: From a group of tiles to its output (len(group), C, height * ratio, width * ratio).
        tiles: All tiles, as `Tiling.plan` makes them.
        size: Of the canvas, in the cells of `tiles`.
        batch: Tiles in one call.
        weights: How tiles fade into each other.
        ratio: Output cells per cell of `tiles`.

    Returns:
        (1, C, H * ratio, W * ratio), float32; with one tile exactly what `fn` gave.
    """
    blend = Blend(tiles, size, weights=weights, ratio=ratio)
    for group in batches(tiles, batch):
        blend.add(fn(group), group)
    return blend.result()
