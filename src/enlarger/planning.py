"""What a run will do, decided before any work: sizes, passes, tiles, batch, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enlarger.canvas.blend import Tiling
from enlarger.canvas.geometry import Canvas, Pass, place, target_size
from enlarger.errors import SettingsError
from enlarger.sampling.memory import BASE_MEMORY, RESERVE, fit_tile, free_memory
from enlarger.sampling.stream import stages
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.engines.engine import Engine, Facts
    from enlarger.settings import Loading

ONE_TILE = 1.5
"""A picture up to so many default tiles long is not cut: halos would cost more than the memory is worth."""

MOST_TILES = 8
"""Tiles in a forward pass that a GPU is given where its memory allows; more are no faster."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before any work.

    Attributes:
        canvas: Sizes and passes.
        tile: Side of a tile in output pixels.
        batch: Tiles in one forward pass.
        steps: Denoising steps of a pass; 0 for engines without denoising.
        tiles: Tiles in one step, all passes together.
        memory: Bytes that the run is expected to take at its peak.
        work: Output pixels, each counted once for every step and pass.
        warnings: What is not as it was asked for, one line each.
    """

    canvas: Canvas
    tile: int
    batch: int
    steps: int
    tiles: int
    memory: int
    work: int
    warnings: tuple[str, ...] = ()

    def tiling(self, engine: Engine, passage: Pass, settings: Any) -> Tiling:
        """How a blended engine's canvas is cut, in cells of its state."""
        return tiling(engine, passage, settings, self.tile, self.batch)


def tiling(engine: Engine, passage: Pass, settings: Any, tile: int, batch: int) -> Tiling:
    """Blended tiles of about `tile` output pixels; none where one tile holds the canvas."""
    facts = engine.facts_for(settings)
    cells = cells_of(engine, passage)
    side = max(1, tile // facts.grid)
    asked = getattr(settings, "overlap", None)
    overlap = (facts.overlap if asked is None else asked) // facts.grid
    return Tiling(
        tile=None if side >= max(cells) and not facts.fill else side,
        overlap=min(_most_shared(facts, side), overlap),
        batch=batch,
        weights=facts.weights,
        placement=facts.placement,
        fill=facts.fill,
    )


def _most_shared(facts: Facts, side: int) -> int:
    """Cells that neighbouring tiles of a side may share: beyond half a tile a third would lie in the same place."""
    return side - 1 if facts.placement == "columns" else side // 2


def _check_overlap(engine: Engine, settings: Any, tile: int, wanted: int) -> tuple[str, ...]:
    """What to tell of an overlap that was asked for and that tiles made smaller by the memory cannot have.

    Args:
        engine: The engine.
        settings: The engine's record.
        tile: Side of a tile in output pixels.
        wanted: The same as it was asked for, or is usual.

    Raises:
        SettingsError: The tiles that were asked for cannot have it either.
    """
    asked, facts = getattr(settings, "overlap", None), engine.facts_for(settings)
    if asked is None or facts.field is not None:
        return ()
    most, left = (_most_shared(facts, max(1, side // facts.grid)) for side in (wanted, tile))
    if asked // facts.grid > most:
        raise SettingsError(
            f"overlap {asked} is too much for tiles of {wanted} pixels: at most {most * facts.grid}, "
            "or larger tiles with --tile"
        )
    if asked // facts.grid > left:
        return (f"the memory allows tiles of {tile} pixels only: they share {left * facts.grid}, not {asked}",)
    return ()


def cells_of(engine: Engine, passage: Pass) -> Size:
    """Size of a pass's canvas in cells of the engine's state."""
    output = passage.padded.times(passage.factor)
    return Size(output.height // engine.facts.grid, output.width // engine.facts.grid)


def make_plan(engine: Engine, machine: Loading, source: Size, settings: Any) -> Plan:
    """Plan a run on a picture of some size.

    Raises:
        SettingsError: The size or the overlap asked for is not possible.
        ResourceError: It does not fit into the memory.
    """
    facts = engine.facts
    wishes = {name: getattr(settings, name) for name in ("scale", "size", "longest", "megapixels")}
    if not any(wish is not None for wish in wishes.values()):
        wishes["scale"] = facts.default_scale
    canvas = place(
        source,
        target_size(source, **wishes),
        factor=facts.factor,
        stride=facts.stride,
        at_target=facts.at_target,
        rounds=getattr(settings, "rounds", 1),
    )
    canvas = engine.placed(canvas, settings)
    process = engine.steps(settings)
    largest = canvas.passes[-1].padded.times(facts.factor)
    grid = max(facts.grid, facts.factor * facts.stride)
    wanted = settings.tile or facts.tile
    if settings.tile is None and facts.field is not None and max(largest) <= ONE_TILE * facts.tile:
        wanted = -(-max(largest) // grid) * grid
    least = min(16 * grid, wanted)
    budget = _budget(engine, machine)
    cost: _Cost
    batch = settings.batch or 1
    if facts.field is not None:
        visits = stages(process, facts.decode_field)
        cost = _Streamed(engine, canvas, visits)
    else:
        visits = len(process.moments) + 1 if process else 1  # and once to decode
        cost = _Blended(engine, canvas, settings)
        if settings.batch is None:
            batch = _most(engine, cost, min(wanted, max(largest)), budget)
    _check_overlap(engine, settings, wanted, wanted)
    tile = fit_tile(wanted, lambda side: cost(side, batch), budget, grid=grid, least=least)
    if facts.field is not None:
        tiles = sum(
            -(-passage.padded.height * facts.factor // tile) * -(-passage.padded.width * facts.factor // tile)
            for passage in canvas.passes
        )
    else:
        tiles = sum(
            len(tiling(engine, passage, settings, tile, batch).plan(cells_of(engine, passage)))
            for passage in canvas.passes
        )
    work = visits * sum(passage.padded.times(facts.factor).area for passage in canvas.passes)
    warnings = _check_overlap(engine, settings, tile, wanted)
    return Plan(canvas, tile, batch, len(process.moments) if process else 0, tiles, cost(tile, batch), work, warnings)


def _budget(engine: Engine, machine: Loading) -> int:
    """Bytes that a run may take where the engine computes."""
    if machine.max_memory:
        return machine.max_memory
    device = str(getattr(engine, "device", "cpu"))
    return int(free_memory(device) * RESERVE) + (0 if device.startswith("cuda") else BASE_MEMORY)


def _most(engine: Engine, cost: _Cost, tile: int, budget: int) -> int:
    """Tiles in a forward pass: one on a CPU, which gains nothing by more; on a GPU what fits."""
    if getattr(engine, "device", None) is None or engine.device.type == "cpu":
        return 1
    batch = MOST_TILES
    while batch > 1 and cost(tile, batch) > budget:
        batch //= 2
    return batch


_Cost = Callable[[int, int], int]
"""Bytes that a run takes, from a tile's side in output pixels and the number of tiles in a forward pass."""


class _Streamed:
    """Bytes that a run with halo tiles takes: a band of rows for each stage, and one tile in the network."""

    def __init__(self, engine: Engine, canvas: Canvas, visits: int) -> None:
        self.facts = engine.facts
        self.visits = visits
        self.largest = canvas.passes[-1].padded.times(self.facts.factor)
        pictures = (canvas.source.area + canvas.passes[-1].source.area) * 12 + canvas.target.area * 7
        self.fixed = BASE_MEMORY + pictures

    def __call__(self, tile: int, batch: int) -> int:
        side = tile + 2 * (self.facts.field or 0) * self.facts.factor
        height, width = min(side, self.largest.height), min(side, self.largest.width)
        kept = height * self.largest.width * 12 * (self.visits + 1)
        return self.fixed + kept + height * width * self.facts.bytes_per_pixel


class _Blended:
    """Bytes that a run with blended tiles takes: the whole canvas, and either a forward pass or the decoding."""

    def __init__(self, engine: Engine, canvas: Canvas, settings: Any) -> None:
        self.facts = engine.facts
        self.largest = canvas.passes[-1].padded.times(self.facts.factor)
        self.decoding = engine.decode_memory(self.largest)
        full = getattr(engine, "dtype", None)
        self.bytes = self.facts.bytes_per_pixel * (1 if full is None else full.itemsize) // (1 if full is None else 4)
        self.halves = 2 if getattr(settings, "guided", False) else 1
        device = getattr(engine, "device", None)
        pictures = canvas.source.area * 12 + self.largest.area * 36 + canvas.target.area * 7
        self.fixed = BASE_MEMORY + pictures if device is None or device.type == "cpu" else 0

    def __call__(self, tile: int, batch: int) -> int:
        seen = min(tile, self.largest.height) * min(tile, self.largest.width)
        return self.fixed + max(seen * self.bytes * self.halves * batch, self.decoding)
