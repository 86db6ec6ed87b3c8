"""What a run will take, decided before it: tiles, what is held in memory and what goes to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enlarger.canvas.autoencoder.operations import Attend, Convolve, Operation, Program, Shape
from enlarger.canvas.tiles import spans
from enlarger.size import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOKENS = 65_536
"""Cells that attention looks at exactly, 256 x 256: 2048 x 2048 pixels at 8 a cell, where that is a fifth of the
convolutions' work. Four times as many cells are sixteen times as much, and as much as everything else."""

KEYS = 16_384
"""Averages that the cells of a larger map look at."""

TILES = (128, 96, 64, 48, 40, 32, 24, 16, 12, 8)
"""Sides that are tried, in cells of the latent, largest first."""

SIDE = 256
"""Pixels beyond which a larger tile gains nothing."""

SLACK = 96 << 20
"""Bytes on top of every sum: what torch takes when it first works, and what its allocator does not give back."""


@dataclass(frozen=True)
class Plan:
    """How a run goes.

    Attributes:
        tile: Side of a tile in cells of the latent; None is the whole picture at once.
        memory: Most bytes it takes beside the weights.
        disk: Most bytes its temporary files take.
        filed: Names of the maps that go to files.
        pool: Rows and columns of cells that one key of the attention stands for; (1, 1) is exact.
        work: Multiplications with weights or keys.
    """

    tile: int | None
    memory: int
    disk: int = 0
    filed: frozenset[str] = field(default_factory=frozenset)
    pool: tuple[int, int] = (1, 1)
    work: int = 0

    @property
    def attention(self) -> str:
        """How the attention is computed, in words for the user."""
        if self.pool == (1, 1):
            return "exact"
        return f"keys averaged over {self.pool[0]}x{self.pool[1]} cells"


def pooling(size: Size, tokens: int) -> tuple[int, int]:
    """None, (1, 1), up to `tokens` cells; else the least averaging, rows x columns, that leaves at most `KEYS`."""
    rows = columns = 1
    most = tokens if size.area <= tokens else min(tokens, KEYS)
    while -(-size.height // rows) * -(-size.width // columns) > most:
        if rows <= columns:
            rows += 1
        else:
            columns += 1
    return rows, columns


def last_uses(program: Program) -> list[set[str]]:
    """For each operation the names of the maps that nobody reads after it.

    A remade map is read through: whoever reads it reads what it is made of.
    """
    made = {operation.into: operation for operation in program.operations}

    def expanded(names: Iterable[str]) -> set[str]:
        found = set(names)
        for name in names:
            if name in program.remade:
                found |= expanded(made[name].reads)
        return found

    last: dict[str, int] = {}
    for number, operation in enumerate(program.operations):
        for name in expanded(operation.reads):
            last[name] = number
    ends: list[set[str]] = [set() for _ in program.operations]
    for name, number in last.items():
        if name not in (*program.kept, *program.given, program.result):
            ends[number].add(name)
    return ends


def in_place(operation: Operation, shapes: Mapping[str, Shape], ending: set[str], owned: set[str]) -> str | None:
    """The map whose place an operation's result may take: read at the same cell only, and by nobody after it.

    Args:
        operation: The operation.
        shapes: Of all maps.
        ending: Maps that nobody reads after it.
        owned: Maps that are stored by this run.
    """
    names = [operation.source] if isinstance(operation, Attend) else [term.source for term in operation.terms]
    for name in names:
        neighbours = isinstance(operation, Convolve) and name in operation.sources
        if name in ending and name in owned and not neighbours and shapes[name] == shapes[operation.into]:
            return name
    return None


def latent_size(shapes: Mapping[str, Shape], program: Program) -> Size:
    """Size of the plane that tiles are planned on."""
    return next(shape.size for name, shape in shapes.items() if shape.ratio == 1 and name not in program.given)


def side_of(length: int, latent: int, tile: int | None, ratio: int) -> int:
    """The longest stretch that a tile gives on a map, in its cells."""
    if tile is None:
        return length
    return max(span.stop - span.start for span in spans(latent, tile, 0)) * ratio + max(0, length - latent * ratio)


def plan(
    program: Callable[[bool], Program],
    given: Mapping[str, Shape],
    *,
    limit: int | None = None,
    tile: int | None = None,
    tokens: int = TOKENS,
) -> Plan:
    """Decide how a run goes.

    Args:
        program: Makes the list of operations, for a run in tiles (True) or whole (False).
        given: Shapes of the maps that are there before.
        limit: Bytes that it may take beside the weights; None is without limit.
        tile: Side of a tile in cells of the latent; None takes the whole picture if that fits and else the largest
            tile that leaves most of the limit to the maps between operations.
        tokens: Cells up to which attention is exact.

    Returns:
        The plan. Where not even the smallest tile fits into `limit`, `memory` is above it.
    """
    if tile is None:
        whole = _Ledger(program(False), given, None, None, tokens).plan
        if limit is None or whole.memory <= limit:
            return whole
    ledgers = []
    tiled = program(True)
    ratio = max(shape.ratio for shape in tiled.shapes(given).values())
    for side in (tile,) if tile is not None else TILES:
        if tile is None and side * ratio > SIDE and side != TILES[-1]:
            continue
        ledger = _Ledger(tiled, given, side, limit, tokens)
        ledgers.append(ledger)
        if limit is None or (ledger.working <= limit / 3 and ledger.plan.memory <= limit):
            break
    fitting = [ledger for ledger in ledgers if limit is None or ledger.plan.memory <= limit]
    return (fitting or ledgers)[-1].plan


def multiplications(program: Program, shapes: Mapping[str, Shape], pool: tuple[int, int]) -> dict[str, int]:
    """What making each map takes, by its name; a remade map's is made as often as it is read."""
    work: dict[str, int] = {}
    for operation in program.operations:
        shape = shapes[operation.into]
        cells = shape.size.height * shape.size.width
        if isinstance(operation, Attend):
            keys = -(-shape.size.height // pool[0]) * -(-shape.size.width // pool[1])
            own = cells * shape.channels * (2 * keys + 4 * shape.channels)
        else:
            weights = shape.channels if operation.kernel is None else operation.kernel.weight.numel()
            own = cells * (weights * 4 // 9 if operation.enlarge == 2 else weights)
        work[operation.into] = own + sum(work[name] for name in operation.sources if name in program.remade)
    for name in program.remade:
        work[name] = 0
    return work


class _Ledger:
    """Walks through a program as a run would and writes down what it takes."""

    def __init__(
        self, program: Program, given: Mapping[str, Shape], tile: int | None, limit: int | None, tokens: int
    ) -> None:
        self.program = program
        self.shapes = program.shapes(given)
        self.tile = tile
        self.latent = latent_size(self.shapes, program)
        self.made = {operation.into: operation for operation in program.operations}
        pool = (1, 1)
        for operation in program.operations:
            if isinstance(operation, Attend):
                pool = pooling(self.shapes[operation.source].size, tokens)
        self.pool = pool
        works = [self._working(operation) for operation in program.operations]
        self.working = max(works)
        doubled = [each for each in program.operations if isinstance(each, Convolve) and each.enlarge == 2]
        self.steady = SLACK + sum(64 * each.kernel.weight.numel() // 9 for each in doubled if each.kernel is not None)
        result = self.shapes[program.result].bytes
        room = None if limit is None or tile is None else limit - self.steady - self.working - result
        filed, memory, disk = self._walk(works, room)
        work = sum(multiplications(program, self.shapes, pool).values())
        self.plan = Plan(tile, memory + self.steady + result * (tile is not None), disk, filed, pool, work)

    def _walk(self, works: list[int], room: int | None) -> tuple[frozenset[str], int, int]:
        held: dict[str, int] = {}
        filed: dict[str, int] = {}
        names: set[str] = set()
        memory = disk = 0
        operations = self.program.operations
        for operation, ending, work in zip(operations, last_uses(self.program), works, strict=True):
            into, remade = operation.into, operation.into in self.program.remade
            place = in_place(operation, self.shapes, ending, {*held, *filed})
            if place is not None:
                there = held if place in held else filed
                there[into] = there.pop(place)
            elif not remade and not (self.tile is not None and into == self.program.result):
                bytes_of = self.shapes[into].bytes
                if room is not None and sum(held.values()) + bytes_of > room:
                    filed[into] = bytes_of
                    names.add(into)
                else:
                    held[into] = bytes_of
            memory = max(memory, sum(held.values()) + work)
            disk = max(disk, sum(filed.values()))
            for name in ending:
                held.pop(name, None)
                filed.pop(name, None)
        return frozenset(names), memory, disk

    def _cells(self, name: str, halo: int = 0) -> int:
        """Most cells of a map that a tile covers, with a halo."""
        shape = self.shapes[name]
        if self.tile is None:
            return shape.size.height * shape.size.width
        height, width = (
            min(side, side_of(side, latent, self.tile, shape.ratio) + 2 * halo)
            for side, latent in zip(shape.size, self.latent, strict=True)
        )
        return height * width

    def _working(self, operation: Operation) -> int:
        """Bytes that one tile of an operation takes beside stored maps; a whole map's result counts as stored."""
        if isinstance(operation, Attend):
            return self._attention(operation)
        kernel = operation.kernel
        halo = 0 if kernel is None else kernel.side // 2
        channels = self.shapes[operation.into].channels
        numbers = 0
        if self.tile is not None or operation.norm is not None or len(operation.sources) > 1:
            for name in operation.sources:
                numbers += self.shapes[name].channels * self._cells(name, halo)
        if operation.enlarge == 2:
            numbers += channels * self._cells(operation.into) // 4
        if self.tile is not None:
            numbers += channels * self._cells(operation.into) * 2
        for name in operation.sources:
            if name in self.program.remade:
                numbers += self._working(self.made[name]) // 4
        return 4 * numbers + 4 * (0 if kernel is None else kernel.weight.numel())

    def _attention(self, operation: Attend) -> int:
        shape = self.shapes[operation.source]
        keys = -(-shape.size.height // self.pool[0]) * -(-shape.size.width // self.pool[1])
        return 4 * (5 * shape.channels * self._cells(operation.source) + 2 * shape.channels * keys)
