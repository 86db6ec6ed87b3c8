"""The one exact resize at the end of the way, on a stream of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enlarger.canvas.rows import ComputedRows, Rows
from enlarger.size import Size

if TYPE_CHECKING:
    from torch import Tensor


def exactly(rows: Rows, size: Size, filter: str, *, linear_light: bool, stretch: int) -> Rows:
    """The same picture at another size.

    Args:
        rows: (C, n, W) rows, 0..1.
        size: Size wanted, in pixels.
        filter: nearest, bilinear, bicubic or lanczos; antialiased when reducing.
        linear_light: Resize light instead of sRGB code values.
        stretch: Rows made at a time.
    """
    import torch

    from enlarger.picture.resize import resize_rows, rows_needed

    if size == rows.size:
        return rows
    stretches = [(start, min(start + stretch, size.height)) for start in range(0, size.height, stretch)]

    def resize(number: int) -> Tensor:
        wanted = range(*stretches[number])
        needed = rows_needed(wanted, rows.size.height, size.height, filter)
        seen = rows.read(needed.start, needed.stop).permute(1, 2, 0).numpy()
        made = resize_rows(seen, needed.start, wanted, rows.size.height, size, filter, linear_light=linear_light)
        return torch.from_numpy(made).permute(2, 0, 1)

    return ComputedRows(size, stretches, resize)
