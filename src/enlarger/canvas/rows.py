"""A picture as a stream of rows, so that memory is bounded by the tile and not by the picture.

A stage takes rows and gives rows. Stages are pulled from the end: whoever writes the result asks for
its next rows, and every stage computes just what those need and forgets what nobody can ask for again.
Local operators (convolutions, resizing, back-projection) chain this way without changing a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from enlarger.size import Size

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.tiles import Span


class Rows(ABC):
    """Rows (C, n, W) of one picture of known size, read from top to bottom."""

    def __init__(self, size: Size) -> None:
        self.size = size

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, (C, stop - start, W), float32 on the CPU; not to be changed.

        Reads may overlap, but none may start above the start of an earlier one.
        """


class WholeRows(Rows):
    """Rows of a tensor (C, H, W) that is there as a whole."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(Size(*tensor.shape[-2:]))
        self.tensor = tensor

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows.read`."""
        return self.tensor[:, start:stop]


class CutRows(Rows):
    """The top left part of other rows: the surplus of a padded canvas cut off."""

    def __init__(self, rows: Rows, size: Size) -> None:
        super().__init__(size)
        self.rows = rows

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows.read`."""
        return self.rows.read(start, stop)[..., : self.size.width]


class ComputedRows(Rows):
    """Rows made stretch by stretch when they are asked for.

    Args:
        size: Size of the picture that comes out.
        stretches: Start and stop of each stretch, in output rows, one after the other.
        compute: Makes the rows of the n-th stretch; it may read from other `Rows`.
    """

    def __init__(self, size: Size, stretches: Sequence[tuple[int, int]], compute: Callable[[int], Tensor]) -> None:
        super().__init__(size)
        self.stretches = stretches
        self.compute = compute
        self._kept: deque[tuple[int, Tensor]] = deque()
        self._next = 0

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows.read`."""
        import torch

        while self._kept and self._kept[0][0] + self._kept[0][1].shape[1] <= start:
            self._kept.popleft()
        while self._next < len(self.stretches) and self.stretches[self._next][0] < stop:
            made = self.compute(self._next)
            self._next += 1
            if self.stretches[self._next - 1][1] > start:
                self._kept.append((self.stretches[self._next - 1][0], made))
        parts = [
            made[:, max(0, start - top) : stop - top]
            for top, made in self._kept
            if top < stop and top + made.shape[1] > start
        ]
        if sum(part.shape[1] for part in parts) != stop - start:
            raise AssertionError(f"rows {start} to {stop} were read out of order")
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def windowed(
    rows: Rows, spans: Sequence[Span], compute: Callable[[Tensor, Span], Tensor], size: Size, ratio: int = 1
) -> Rows:
    """A local operator over rows.

    Args:
        rows: What goes in.
        spans: Stretches of its rows: what each gives and what it must see.
        compute: Turns the seen rows (C, n, W) into the given ones (C, m * ratio, W').
        size: Size of what comes out.
        ratio: Rows that come out for one that goes in.
    """

    def stretch(number: int) -> Tensor:
        span = spans[number]
        return compute(rows.read(span.outer_start, span.outer_stop), span)

    return ComputedRows(size, [(span.start * ratio, span.stop * ratio) for span in spans], stretch)
