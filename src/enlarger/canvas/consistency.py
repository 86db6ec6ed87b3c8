"""Back-projection: make a result that, made small again, equals the picture it came from.

Irani and Peleg 1991, "Improving resolution by image registration": what the reduced result lacks is
enlarged and added, a few times. Both operators are antialiased bicubic (a = -0.5), so the whole is local
and runs on a stream of rows, whatever the ratio of the sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enlarger.canvas.rows import ComputedRows, Rows, windowed
from enlarger.canvas.tiles import Span, spans

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 4
"""Corrections; more change little: what is left are the finest grain and what would have to lie beyond 0 or 1."""

TOLERANCE = 1.5
"""Levels of 255 (root mean square) that a photograph's result, made small again, may be away from it at an amount of 1.

Pictures whose pixels alternate between black and white cannot be held to it: what was made small would have to lie
beyond both.
"""

REACH = 5
"""Source pixels that one round looks to each side: 2 to reduce, 2 to enlarge, 1 for the rounding of both."""


def consistent(rows: Rows, source: Tensor, amount: float, stretch: int) -> Rows:
    """Rows whose reduction to the source's size equals the source.

    Args:
        rows: The enlarged picture, 0..1, on no side smaller than the source.
        source: (3, H, W), 0..1.
        amount: 0..1, the share of each correction that is applied; 0 changes nothing.
        stretch: Rows of the enlarged picture worked on at a time, about.

    Returns:
        Rows of the same size, clamped to 0..1.
    """
    height, width = source.shape[-2:]
    factor = rows.size.height // height
    if rows.size != (height * factor, width * factor):
        return _consistent_at_any_ratio(rows, source, amount, stretch)
    pieces = [
        Span(span.start * factor, span.stop * factor, span.outer_start * factor, span.outer_stop * factor)
        for span in spans(height, max(1, stretch // factor), ROUNDS * REACH)
    ]

    def project(seen: Tensor, span: Span) -> Tensor:
        given = source[:, span.outer_start // factor : span.outer_stop // factor]
        top = span.start - span.outer_start
        return back_project(seen, given, amount)[:, top : top + span.stop - span.start]

    return windowed(rows, pieces, project, rows.size)


def back_project(enlarged: Tensor, source: Tensor, amount: float) -> Tensor:
    """Apply `ROUNDS` corrections to a picture (3, H * f, W * f) against its source (3, H, W), both 0..1."""
    result = enlarged[None].clamp(0, 1)
    for _ in range(ROUNDS):
        lacking = source[None] - resized(result, source.shape[-2], source.shape[-1])
        result = (result + amount * resized(lacking, *enlarged.shape[-2:])).clamp_(0, 1)
    return result[0]


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic (a = -0.5) of (B, C, H, W), the rule of MATLAB and Pillow; borders weigh what is there."""
    from torch.nn import functional

    return functional.interpolate(picture, (height, width), mode="bicubic", align_corners=False, antialias=True)


def _consistent_at_any_ratio(rows: Rows, source: Tensor, amount: float, stretch: int) -> Rows:
    """The same where the sides are no whole multiples: a window's rows keep their places in the whole picture."""
    import torch

    from enlarger.picture.resize import resize_rows, rows_needed

    height, tall = source.shape[-2], rows.size.height
    small = source.permute(1, 2, 0).contiguous().numpy()
    stretches = [(start, min(start + stretch, tall)) for start in range(0, tall, stretch)]

    def project(number: int) -> Tensor:
        # Backwards from the rows that are wanted: what each round must be given.
        windows = [(range(*stretches[number]), range(0))]
        for _ in range(ROUNDS):
            below = rows_needed(windows[-1][0], height, tall)
            windows.append((rows_needed(below, tall, height), below))
        seen = windows[-1][0]
        result = rows.read(seen.start, seen.stop).permute(1, 2, 0).clamp(0, 1).contiguous().numpy()
        for (wanted, _), (given, below) in zip(windows[-2::-1], windows[:0:-1], strict=True):
            lacking = small[below.start : below.stop] - resize_rows(
                result, given.start, below, tall, (height, small.shape[1])
            )
            more = resize_rows(lacking, below.start, wanted, height, (tall, rows.size.width))
            result = (result[wanted.start - given.start : wanted.stop - given.start] + amount * more).clip(0, 1)
        return torch.from_numpy(result).permute(2, 0, 1)

    return ComputedRows(rows.size, stretches, project)
