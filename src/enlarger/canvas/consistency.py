"""Back-projection: make a result that, made small again, equals the picture it came from.

Irani and Peleg 1991, "Improving resolution by image registration": what the reduced result lacks is
enlarged and added, a few times. Both operators are antialiased bicubic (a = -0.5), so the whole is local
and runs on a stream of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enlarger.canvas.rows import Rows, windowed
from enlarger.canvas.tiles import Span, spans

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 4
"""Corrections; after them a reduced result is within 2/255 of its source and above 55 dB (tests/canvas)."""

REACH = 5
"""Source pixels that one round looks to each side: 2 to reduce, 2 to enlarge, 1 for the rounding of both."""


def consistent(rows: Rows, source: Tensor, factor: int, amount: float, stretch: int) -> Rows:
    """Rows whose reduction by `factor` equals the source.

    Args:
        rows: The enlarged picture, `factor` times the source's size, 0..1.
        source: (3, H, W), 0..1.
        factor: Enlargement of `rows` against `source`.
        amount: 0..1, the share of each correction that is applied; 0 changes nothing.
        stretch: Source rows worked on at a time.

    Returns:
        Rows of the same size, clamped to 0..1.
    """
    height = source.shape[-2]
    pieces = [
        Span(span.start * factor, span.stop * factor, span.outer_start * factor, span.outer_stop * factor)
        for span in spans(height, stretch, ROUNDS * REACH)
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
