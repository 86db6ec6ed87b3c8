"""Marks that a method leaves: seams between tiles, and the grid of a network's pixel shuffle."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from enlarger.errors import PictureError
from enlarger.evaluation.pixels import Floats, Pixels, as_bytes, as_levels, luma

SEGMENT = 64
"""Pixels along a line that are averaged before the size of a step is taken. A seam has the same sign over many
pixels and survives the mean; texture changes sign and does not."""

NEIGHBOURHOOD = 24
"""Lines on each side with which a border is compared; farther away the picture is another one."""

FLOOR = 1.0
"""Levels of 255 added to both sides of the ratio: what bends by less than a byte can hold is no seam, and a flat
picture without any step gives exactly 1."""


def _bends(levels: Floats) -> Floats:
    """Size of the bend across each vertical line, (W,), for the line between columns x - 1 and x.

    The step across the line minus the mean of the steps before and after it: zero on any plain gradient,
    the full height of the step where two flat areas meet. Lines 0, 1 and W - 1 have no such neighbours and hold NaN.
    """
    height, width = levels.shape[:2]
    bends = np.full(width, np.nan)
    if width < 4:
        return bends
    steps = np.diff(levels, axis=1)
    bend = steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2
    starts = np.arange(0, height, SEGMENT)
    lengths = np.diff(np.append(starts, height)).reshape(-1, 1, 1)
    means = np.add.reduceat(bend, starts, axis=0) / lengths
    # The median: a seam runs all along its border, an edge of the picture that happens to lie there does not.
    bends[2:-1] = np.median(np.abs(means).mean(axis=2), axis=0)
    return bends


def _lines(bends: Floats, borders: Iterable[int], length: int) -> tuple[list[float], list[float]]:
    places = sorted(set(borders))
    outside = [x for x in places if not 2 <= x <= length - 2]
    if outside:
        raise PictureError(
            f"tile borders at {outside} are not inside a picture of {length} pixels (2..{length - 2})", "bad_values"
        )
    # A seam bends the lines beside it too (half its height), so they are no comparison.
    near = {x + d for x in places for d in (-1, 0, 1)}
    at, beside = [], []
    for x in places:
        around = [
            bends[y] for y in range(max(2, x - NEIGHBOURHOOD), min(length - 1, x + NEIGHBOURHOOD + 1)) if y not in near
        ]
        if around:
            at.append(float(bends[x]))
            beside.append(float(np.mean(around)))
    return at, beside


def seam_score(result: Pixels, rows: Iterable[int] = (), columns: Iterable[int] = ()) -> float:
    """How much stronger the picture bends across tile borders than beside them; 1 = no seam, lower is better, 0..inf.

    (mean bend at the borders + 1) / (mean bend at up to 24 lines on each side + 1), where a bend is the step
    between two neighbouring pixels less the mean of the steps before and after, averaged with its sign over 64 pixels
    along the line, then taken absolute; levels of 255, mean of R, G and B, median along the line. Floats are measured
    as they are, not rounded: rounding a slow gradient makes steps of its own. Plain gradients count as nothing.

    Photographs without seams scatter around 1: Set14 cut at multiples of 128 has 0.8 to 1.45, mean 1.00; steps of 3
    levels between its tiles raise the mean to 1.6. So judge tiles on flat and smooth pictures, or against the untiled
    result.

    Args:
        result: the picture, uint8 or floats in 0..1.
        rows: y of each horizontal border, the first row of the lower tile, in result pixels.
        columns: x of each vertical border. Name both edges of every overlap.

    Raises:
        PictureError: no border, or one that is not inside the picture.
    """
    levels = as_levels(result)
    at: list[float] = []
    beside: list[float] = []
    for array, borders in ((levels, columns), (levels.transpose(1, 0, 2), rows)):
        borders = list(borders)
        if borders:
            here, there = _lines(_bends(array), borders, array.shape[1])
            at += here
            beside += there
    if not at:
        raise PictureError("seam score: no tile border named, or none with room for comparison beside it")
    return (float(np.mean(at)) + FLOOR) / (float(np.mean(beside)) + FLOOR)


def grid_score(result: Pixels, period: int = 4) -> float:
    """How much stronger steps on a grid of `period` pixels are than the others; 1 = no grid, lower is better, 0..inf.

    Mean absolute step of luma across the columns at multiples of `period` over the mean across all other columns;
    the same for rows; the mean of the two ratios; on bytes. More than 0.02 above the score of the true picture is a
    mark of the network's pixel shuffle. The true pictures of Set14 have 1.012 (worst 1.107); bicubic enlarging by 4
    has 1.225, for its own reasons: it bends only there.

    Raises:
        PictureError: a side shorter than two periods.
    """
    plane = luma(as_levels(as_bytes(result, "result")))
    if min(plane.shape) < 2 * period:
        height, width = plane.shape
        raise PictureError(f"grid score needs at least {2 * period} pixels each way, got {width}x{height}")
    ratios = []
    for array in (plane, plane.T):
        steps = np.abs(np.diff(array, axis=1)).mean(axis=0)
        on_grid = np.arange(1, array.shape[1]) % period == 0
        on, off = float(steps[on_grid].mean()), float(steps[~on_grid].mean())
        # The floor gives 1 where no step is anywhere, and keeps a single step on a flat picture finite.
        ratios.append((on + 1e-3) / (off + 1e-3))
    return sum(ratios) / 2
