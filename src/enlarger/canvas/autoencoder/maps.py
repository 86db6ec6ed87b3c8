"""Maps between operations: in memory or in a temporary file, with the statistics of every channel.

A map is stored row by row and cell by cell, the channels of a cell together: the part of a row that a tile covers is
one stretch, in memory and in a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from enlarger.canvas.tiles import Tile
from enlarger.errors import ResourceError

if TYPE_CHECKING:
    from typing import BinaryIO

    from torch import Tensor

    from enlarger.canvas.autoencoder.operations import Norm, Shape

CHUNK = 1 << 18
"""Numbers that pointwise work on a CPU takes at a time, so that they stay in the processor's cache."""


def stretches(rows: int, row: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Cut rows of `row` numbers into stretches of about `CHUNK`; on a GPU one stretch does."""
    step = max(1, CHUNK // max(1, row)) if device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class Statistics:
    """Mean and variance of every channel of a map, gathered part by part.

    Parts are pooled by the formula of Chan, Golub and LeVeque (1983): their own variances and the variance between
    their means. Because every channel keeps its own, they also pool to any group norm over any maps side by side.
    """

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, cells: Tensor) -> None:
        """Take in cells (h, w, C); no cell may come twice."""
        height, width, channels = cells.shape
        for start, stop in stretches(height, width * channels, cells.device):
            part = cells[start:stop].reshape(-1, channels).float()
            mean = part.mean(0)
            # Not E[x^2] - mean^2: that loses all digits where the mean is large.
            squares = (part - mean).square_().sum(0)
            self._parts.append((len(part), mean.cpu().double(), squares.cpu().double()))
        self.count += height * width
        if len(self._parts) > 64:
            self._parts = [self._pooled()]

    def _pooled(self) -> tuple[int, Tensor, Tensor]:
        counts = torch.tensor([count for count, _, _ in self._parts], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in self._parts])
        mean = counts @ means / counts.sum()
        squares = torch.stack([own for _, _, own in self._parts]).sum(0) + counts @ (means - mean).square()
        return self.count, mean, squares

    def moments(self) -> tuple[int, Tensor, Tensor]:
        """Cells, mean and sum of squared deviations of each channel, float64 (C,)."""
        self._parts = [self._pooled()]
        return self._parts[0]


def affine(norm: Norm, statistics: list[Statistics]) -> tuple[Tensor, Tensor, Tensor]:
    """What a group norm does to each channel once its statistics are known: (x - mean) * scale + shift.

    Args:
        norm: Over the channels of maps side by side.
        statistics: Of these maps.

    Returns:
        mean, scale and shift, (C,), float32 on the CPU.
    """
    moments = [each.moments() for each in statistics]
    count = moments[0][0]
    channels = torch.cat([mean for _, mean, _ in moments]).view(norm.groups, -1)
    squares = torch.cat([own for _, _, own in moments]).view(norm.groups, -1)
    mean = channels.mean(1, keepdim=True)
    between = count * (channels - mean).square().sum(1, keepdim=True)
    variance = (squares.sum(1, keepdim=True) + between) / (count * channels.shape[1])
    scale = (variance + norm.eps).rsqrt().expand_as(channels).flatten()
    middle = mean.expand_as(channels).flatten()
    if norm.weight is not None:
        scale = scale * norm.weight.cpu().double()
    shift = torch.zeros_like(middle) if norm.bias is None else norm.bias.cpu()
    return middle.float(), scale.float(), shift.float()


class Map(Protocol):
    """A map that can be read in parts."""

    shape: Shape
    statistics: Statistics

    def read(self, part: Tile, out: Tensor) -> None:
        """Copy a part into `out`, (h, w, C)."""

    def view(self, part: Tile) -> Tensor | None:
        """A part without copying, (h, w, C), not to be changed; None where there is nothing to look at."""

    def write(self, part: Tile, cells: Tensor) -> None:
        """Set a part to (h, w, C)."""

    def close(self) -> None:
        """Give the memory or the file back."""


class MemoryMap:
    """A map in memory, in the dtype of what is written to it."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.statistics = Statistics()
        self._device = device
        self._cells: Tensor | None = None

    def read(self, part: Tile, out: Tensor) -> None:
        """See `Map`."""
        assert self._cells is not None
        out.copy_(self._cells[part.top : part.bottom, part.left : part.right])

    def view(self, part: Tile) -> Tensor | None:
        """See `Map`."""
        assert self._cells is not None
        return self._cells[part.top : part.bottom, part.left : part.right]

    def write(self, part: Tile, cells: Tensor) -> None:
        """See `Map`; a part that is the whole map is kept without copying."""
        size = self.shape.size
        if part.size == size:
            self._cells = cells.to(self._device)
            return
        if self._cells is None:
            self._cells = torch.empty((*size, self.shape.channels), dtype=cells.dtype, device=self._device)
        self._cells[part.top : part.bottom, part.left : part.right] = cells

    def close(self) -> None:
        """See `Map`."""
        self._cells = None


class FileMap:
    """A map in a temporary file without a name, float32: it is gone with the process, however that ends.

    Args:
        shape: Of the map.
        folder: Where the file is.

    Raises:
        ResourceError: The folder takes no file.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.statistics = Statistics()
        self._folder = folder
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        except OSError as error:
            raise ResourceError(
                f"no temporary file can be made in {folder} ({error.strerror}): set TMPDIR to a folder with room, "
                "raise --max-memory or ask for a smaller result"
            ) from None

    def read(self, part: Tile, out: Tensor) -> None:
        """See `Map`."""
        rows = torch.empty((part.width, self.shape.channels))
        bytes_of = _bytes(rows)
        straight = out.dtype == torch.float32 and out.device.type == "cpu" and out.stride()[1:] == rows.stride()
        for number in range(part.height):
            self._seek(part, number)
            target = _bytes(out[number]) if straight else bytes_of
            done = 0
            while done < len(target):
                got = self._file.readinto(target[done:])  # type: ignore[attr-defined]
                if not got:
                    raise AssertionError("a map was read before it was written")
                done += got
            if not straight:
                out[number].copy_(rows)

    def view(self, part: Tile) -> Tensor | None:
        """See `Map`."""
        return None

    def write(self, part: Tile, cells: Tensor) -> None:
        """See `Map`.

        Raises:
            ResourceError: The disk is full.
        """
        cells = cells.to("cpu", torch.float32).contiguous()
        for number in range(part.height):
            self._seek(part, number)
            source = _bytes(cells[number])
            try:
                while source:
                    source = source[self._file.write(source) :]
            except OSError as error:
                raise ResourceError(
                    f"the temporary folder {self._folder} took no more ({error.strerror}); this map alone needs "
                    f"{self.shape.bytes / 1e9:.1f} GB: set TMPDIR to a folder with room, raise --max-memory or ask "
                    "for a smaller result"
                ) from None

    def _seek(self, part: Tile, number: int) -> None:
        cell = (part.top + number) * self.shape.size.width + part.left
        self._file.seek(4 * self.shape.channels * cell)

    def close(self) -> None:
        """See `Map`."""
        self._file.close()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.numpy()).cast("B")  # type: ignore[arg-type]


def spill_folder() -> Path:
    """Where large temporary files belong: TMPDIR if set, else /var/tmp, since /tmp may be memory itself."""
    lasting = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())
