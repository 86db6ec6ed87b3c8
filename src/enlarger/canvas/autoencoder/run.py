"""Runs a list of operations, over a whole picture or tile by tile.

In tiles the run goes operation by operation: all tiles of one, then all tiles of the next. So when a group norm is
read, the map before it is finished and its statistics are those of the whole picture; a convolution reads the rim of
its neighbours' tiles from the stored map, and zeros stand only beyond the true border. Nothing depends on where tiles
lie, whatever is put into the list. A whole picture is a run with one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from enlarger.canvas.autoencoder.maps import FileMap, Map, MemoryMap, Statistics, affine, stretches
from enlarger.canvas.autoencoder.operations import Activation, Attend, Convolve, Norm, Operation, Program, Shape
from enlarger.canvas.autoencoder.plan import in_place, last_uses, latent_size, multiplications
from enlarger.canvas.tiles import Tile, spans

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.autoencoder.plan import Plan

Progress = Callable[[float], None]
"""Told the share of the work that is done, 0..1; what it raises ends the run."""

QUERIES = 1024
"""Queries that attention works on at a time."""


class Run:
    """One run of a program.

    Args:
        program: What is done.
        plan: How.
        maps: The maps that are there before, by name; they stay open.
        device: Where tiles are worked on; a whole picture's maps stay there too.
        dtype: What is computed in.
        folder: Where temporary files go.
        progress: Told after every tile.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        maps: Mapping[str, Map],
        *,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        self.program = program
        self.plan = plan
        self.shapes = program.shapes({name: each.shape for name, each in maps.items()})
        self.maps = dict(maps)
        self.device, self.dtype = device, dtype
        self.folder = folder
        self._latent = latent_size(self.shapes, program)
        self._made = {operation.into: operation for operation in program.operations}
        self._given = frozenset(maps)
        self._normed = {name for each in program.operations if each.norm is not None for name in each.sources}
        self._normed.update(program.kept)
        self._spent: set[str] = set()
        self._progress = progress
        self._work = multiplications(program, self.shapes, plan.pool)
        self._done = 0.0

    def __call__(self) -> dict[str, Map]:
        """Run.

        Returns:
            The result and the maps that are kept; the caller closes them.
        """
        wanted = {self.program.result, *self.program.kept}
        finished = False
        try:
            with torch.inference_mode():
                for operation, ending in zip(self.program.operations, last_uses(self.program), strict=True):
                    self._perform(operation, ending)
            finished = True
        finally:
            for name, each in self.maps.items():
                if name not in self._given and not (finished and name in wanted):
                    each.close()
        return {name: self.maps[name] for name in wanted}

    def tiles(self, shape: Shape) -> list[Tile]:
        """The parts of a map that are made one after the other; their borders are the same on every map."""
        if self.plan.tile is None:
            return [Tile(0, 0, *shape.size)]
        axes = []
        for length, latent in zip(shape.size, self._latent, strict=True):
            cuts = [span.start * shape.ratio for span in spans(latent, self.plan.tile, 0)]
            axes.append(list(zip(cuts, [*cuts[1:], length], strict=True)))
        return [Tile(top, left, bottom - top, right - left) for top, bottom in axes[0] for left, right in axes[1]]

    def _perform(self, operation: Operation, ending: set[str]) -> None:
        into = operation.into
        owned = {name for name, each in self.maps.items() if name not in self._given and not isinstance(each, _Remade)}
        if into in self.program.remade:
            assert isinstance(operation, Convolve)
            self.maps[into] = _Remade(self, operation, self.shapes[into])
            return
        gathered = self._gather(operation)
        place = in_place(operation, self.shapes, ending, owned)
        target = self.maps[place] if place is not None else self.maps.setdefault(into, self._new(into))
        # What nobody reads again may be normed where it stands; in tiles, neighbours still read its rim.
        self._spent = ending & owned - {place} if self.plan.tile is None else set()
        statistics = Statistics()
        make = self._attention(operation) if isinstance(operation, Attend) else self._convolution(operation)
        for part in self.tiles(self.shapes[into]):
            cells = make(part)
            if into in self._normed:
                statistics.add(cells)
            target.write(part, cells)
            del cells
            self._tell(into)
        for each in gathered:
            each.gathering = False
        target.statistics = statistics
        if place is not None:
            del self.maps[place]
        self.maps[into] = target
        for name in ending - {place}:
            if name not in self._given:
                self.maps.pop(name).close()

    def _new(self, name: str) -> Map:
        shape = self.shapes[name]
        if name in self.plan.filed:
            return FileMap(shape, self.folder)
        return MemoryMap(shape, self.device if self.plan.tile is None else torch.device("cpu"))

    def _gather(self, operation: Operation) -> list[_Remade]:
        """See to it that the statistics of remade maps are there when a norm needs them."""
        gathered = []
        for name in operation.sources:
            remade = self.maps[name]
            if not isinstance(remade, _Remade) or remade.statistics.count or name not in self._normed:
                continue
            pointwise = isinstance(operation, Convolve) and (operation.kernel is None or operation.kernel.side == 1)
            remade.gathering = True
            if pointwise and operation.norm is None:
                gathered.append(remade)  # this operation reads each part once: a by-product
                continue
            for part in self.tiles(remade.shape):
                remade.view(part)
            remade.gathering = False
        return gathered

    def _tell(self, made: str) -> None:
        """A tile of a map is made."""
        self._done += self._work[made] / len(self.tiles(self.shapes[made]))
        if self._progress is not None:
            self._progress(min(1.0, self._done / self.plan.work))

    # Convolution

    def _convolution(self, operation: Convolve) -> Callable[[Tile], Tensor]:
        return lambda part: self.convolve(operation, part)

    def convolve(self, operation: Convolve, part: Tile) -> Tensor:
        """A part of what an operation makes, (h, w, C), on the device."""
        kernel = operation.kernel
        if operation.enlarge == 2:
            result = self._doubled(operation, part)
        elif kernel is None:
            result = _planes(self._read(operation, part, free=True))
        else:
            seen = Tile(
                part.top * kernel.stride - kernel.before,
                part.left * kernel.stride - kernel.before,
                (part.height - 1) * kernel.stride + kernel.side,
                (part.width - 1) * kernel.stride + kernel.side,
            )
            planes, padding = self._padded(operation, seen)
            result = functional.conv2d(planes, kernel.weight, kernel.bias, kernel.stride, padding)
            del planes
        if operation.after is not None:
            result = operation.after(result)
        if operation.factor != 1:
            result = result.mul_(operation.factor)
        cells = _cells(result)
        for term in operation.terms:
            self._add(cells, term.source, part, term.factor)
        return cells

    def _doubled(self, operation: Convolve, part: Tile) -> Tensor:
        """Nearest neighbour x2 and a 3x3 kernel, as four 2x2 kernels on the small map."""
        kernel = operation.kernel
        assert kernel is not None
        top, left = part.top // 2, part.left // 2
        height, width = -(-part.bottom // 2) - top, -(-part.right // 2) - left
        planes, padding = self._padded(operation, Tile(top - 1, left - 1, height + 2, width + 2))
        if padding != (0, 0):
            planes = functional.pad(planes, (padding[1], padding[1], padding[0], padding[0]))
        cells = planes.new_empty((2 * height, 2 * width, kernel.weight.shape[0]))
        for number, weight in enumerate(kernel.phases):
            row, column = divmod(number, 2)
            seen = planes[:, :, row : row + height + 1, column : column + width + 1]
            cells[row::2, column::2] = _cells(functional.conv2d(seen, weight, kernel.bias))
        within = part.within(Tile(2 * top, 2 * left, 2 * height, 2 * width))
        return _planes(cells[within.top : within.bottom, within.left : within.right])

    def _padded(self, operation: Convolve, seen: Tile) -> tuple[Tensor, tuple[int, int]]:
        """What a kernel sees, (1, C, h, w), and the zeros (rows, columns) still to be put on both sides of it."""
        size = self.maps[operation.sources[0]].shape.size
        top, left = max(seen.top, 0), max(seen.left, 0)
        bottom, right = min(seen.bottom, size.height), min(seen.right, size.width)
        planes = _planes(self._read(operation, Tile(top, left, bottom - top, right - left)))
        missing = (left - seen.left, seen.right - right, top - seen.top, seen.bottom - bottom)
        if missing[0] == missing[1] and missing[2] == missing[3]:
            return planes, (missing[2], missing[0])
        return functional.pad(planes, missing), (0, 0)

    def _add(self, cells: Tensor, name: str, part: Tile, factor: float) -> None:
        source = self.maps[name]
        view = source.view(part)
        for start, stop in stretches(part.height, part.width * cells.shape[-1], cells.device):
            if view is None:
                rows = torch.empty_like(cells[start:stop])
                source.read(Tile(part.top + start, part.left, stop - start, part.width), rows)
            else:
                rows = view[start:stop].to(cells)
            cells[start:stop].add_(rows, alpha=factor)

    # Reading

    def _read(self, operation: Operation, part: Tile, *, free: bool = False) -> Tensor:
        """An operation's sources side by side, normed and activated, (h, w, C), on the device.

        Args:
            operation: Whose sources.
            part: Which part, within the maps.
            free: Whether the caller may change what it gets.
        """
        activation = operation.before if isinstance(operation, Convolve) else None
        norm = operation.norm
        maps = [self.maps[name] for name in operation.sources]
        views = [each.view(part) for each in maps]
        spent = len(maps) == 1 and operation.sources[0] in self._spent
        changed = free or norm is not None or activation is not None
        if len(maps) == 1 and views[0] is not None and (spent or not changed):
            cells = views[0].to(self.device, self.dtype)
            if not changed:
                return cells
            maps = []
        else:
            channels = sum(each.shape.channels for each in maps)
            cells = torch.empty((part.height, part.width, channels), dtype=self.dtype, device=self.device)
        normalise = None if norm is None else self._normaliser(norm, operation.sources, part)
        for start, stop in stretches(part.height, part.width * cells.shape[-1], cells.device):
            rows = cells[start:stop]
            first = 0
            for each, view in zip(maps, views, strict=False):
                block = rows[..., first : first + each.shape.channels]
                if view is None:
                    each.read(Tile(part.top + start, part.left, stop - start, part.width), block)
                else:
                    block.copy_(view[start:stop])
                first += each.shape.channels
            if normalise is not None:
                rows = normalise(rows)
            if activation is not None:
                activation(rows)
        return cells

    def _normaliser(self, norm: Norm, sources: tuple[str, ...], part: Tile) -> Activation:
        """Norms cells (n, w, C) in place with the statistics of the whole maps."""
        whole = affine(norm, [self.maps[name].statistics for name in sources])
        middle, scale, shift = (each.to(self.device, self.dtype) for each in whole)

        def normalise(rows: Tensor) -> Tensor:
            # The mean first: x * scale + (shift - mean * scale) would lose digits on a nearly flat map.
            return rows.sub_(middle).mul_(scale).add_(shift)

        return normalise

    # Attention

    def _attention(self, operation: Attend) -> Callable[[Tile], Tensor]:
        """Make keys and values of the whole map, then answer tile by tile."""
        pooled, counts = self._pooled(operation)
        made = torch.empty_like(pooled)
        for start in range(0, len(pooled), QUERIES):
            # The values take the place of what they are made of: of many cells, each copy is half a gigabyte.
            part = pooled[start : start + QUERIES]
            made[start : start + QUERIES] = functional.linear(part, *operation.key)
            part[:] = functional.linear(part, *operation.value)
        keys, values = (_heads(each, operation.heads) for each in (made, pooled))
        # A key that stands for n cells counts n times; only at the border does n differ.
        mask = None if (counts == counts[0]).all() else counts.log()[None]

        def attend(part: Tile) -> Tensor:
            tokens = self._read(operation, part).reshape(part.height * part.width, -1)
            for start in range(0, len(tokens), QUERIES):
                queries = functional.linear(tokens[start : start + QUERIES], *operation.query)
                looked = functional.scaled_dot_product_attention(
                    _heads(queries, operation.heads), keys, values, attn_mask=mask
                )
                flat = looked[0].transpose(0, 1).reshape(len(queries), -1)
                tokens[start : start + QUERIES] = functional.linear(flat, *operation.out)
            cells = tokens.view(part.height, part.width, -1)
            self._add(cells, operation.source, part, 1.0)
            return cells

        self._spent = set()  # the source is read twice
        return attend

    def _pooled(self, operation: Attend) -> tuple[Tensor, Tensor]:
        """The normed map averaged over blocks of cells, (n, C), and the cells in each block, (n,).

        A key and a value are linear in the cell they come from: averages of cells give averages of keys.
        """
        shape = self.shapes[operation.source]
        pool = self.plan.pool
        rows, columns = (-(-side // each) for side, each in zip(shape.size, pool, strict=True))
        sums = torch.zeros((rows, columns, shape.channels), dtype=self.dtype, device=self.device)
        self._spent = set()
        for part in self.tiles(shape):
            cells = self._read(operation, part)
            below = torch.arange(part.top, part.bottom, device=self.device) // pool[0]
            across = torch.arange(part.left, part.right, device=self.device) // pool[1]
            first, start = part.top // pool[0], part.left // pool[1]
            band = cells.new_zeros((int(below[-1]) + 1 - first, part.width, shape.channels))
            band.index_add_(0, below - first, cells)
            block = sums[first : first + len(band), start : int(across[-1]) + 1]
            block.index_add_(1, across - start, band)
        heights, widths = (
            torch.tensor([min(side, (number + 1) * each) - number * each for number in range(count)])
            for side, each, count in zip(shape.size, pool, (rows, columns), strict=True)
        )
        counts = (heights[:, None] * widths).to(sums).flatten()
        return sums.flatten(0, 1).div_(counts[:, None]), counts


class _Remade:
    """A map of which every part is made when it is read."""

    def __init__(self, run: Run, operation: Convolve, shape: Shape) -> None:
        self.shape = shape
        self.statistics = Statistics()
        self.gathering = False
        self._run, self._operation = run, operation

    def read(self, part: Tile, out: Tensor) -> None:
        """See `Map`."""
        out.copy_(self.view(part))

    def view(self, part: Tile) -> Tensor:
        """See `Map`."""
        cells = self._run.convolve(self._operation, part)
        if self.gathering:
            self.statistics.add(cells)
        return cells

    def write(self, part: Tile, cells: Tensor) -> None:
        """See `Map`."""
        raise AssertionError("a remade map is not written")

    def close(self) -> None:
        """See `Map`."""


def _planes(cells: Tensor) -> Tensor:
    """(h, w, C) as (1, C, h, w), channels last."""
    return cells.permute(2, 0, 1)[None]


def _cells(planes: Tensor) -> Tensor:
    """(1, C, h, w) as (h, w, C)."""
    return planes[0].permute(1, 2, 0)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(n, C) as (1, heads, n, C / heads)."""
    return tokens.view(len(tokens), heads, -1).transpose(0, 1)[None]
