"""Edges of a picture, without networks: thin and hard (Canny), or soft.

Both give what the ControlNets of that name were trained on: light lines on black, at the size of the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LOW, HIGH = 100.0, 200.0
"""Canny's thresholds in the examples of the ControlNet papers and of diffusers."""

_TAN = 0.4142135623730951
"""tan(22.5 degrees): where a gradient counts as level, and its inverse where it counts as upright."""


def canny(pixels: Floats, low: float = LOW, high: float = HIGH) -> Floats:
    """Thin edges (Canny 1986), as OpenCV's `Canny` finds them with its 3x3 Sobel filter and sums of absolute values.

    Args:
        pixels: (H, W, 3), 0..1.
        low: Gradient, in levels of 255 and Sobel's weights (0 to 2040), that an edge must have everywhere.
        high: Gradient that it must have at one point at least.

    Returns:
        (H, W), 0 or 1; a picture has one edge pixel across an edge.
    """
    across, down = _strongest(np.rint(pixels * 255))
    strength = np.abs(across) + np.abs(down)
    weak = _ridges(across, down, strength) & (strength > low)
    return _connected(weak, strength > high).astype(np.float32)


def soft(pixels: Floats) -> Floats:
    """Soft edges: gradients of the picture blurred by 1, 2 and 4 pixels, the strongest of the three.

    Strengths are in units of the picture's own strong edges (its 99th percentile), so that a hazy picture has edges,
    too; below 0.02 of full contrast nothing counts as one. It stands in for the networks (HED, PiDiNet) that the soft
    edge ControlNets were trained with: lines lie where theirs do, but know nothing of objects.

    Args:
        pixels: (H, W, 3), 0..1.

    Returns:
        (H, W), 0..1.
    """
    strongest: Floats = np.zeros(pixels.shape[:2], np.float32)
    for sigma in (1.0, 2.0, 4.0):
        across, down = _strongest(_blurred(pixels, sigma))
        # Sobel's weights sum to 8; a blur spreads a step over sigma * sqrt(2 pi) pixels: so a step of 1 gives 1.
        strength = np.hypot(across, down) / 8 * (sigma * 2.5066)
        np.maximum(strongest, strength, out=strongest)
    full = max(float(np.percentile(strongest, 99)), 0.02)
    return np.asarray(np.clip(strongest / full, 0, 1), np.float32)


def _strongest(pixels: Floats) -> tuple[Floats, Floats]:
    """Sobel's derivatives (H, W) across and down, of the channel where they are largest; edges are repeated."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across, down = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]
    channel = np.argmax(np.abs(across) + np.abs(down), axis=2)[..., None]
    return np.take_along_axis(across, channel, 2)[..., 0], np.take_along_axis(down, channel, 2)[..., 0]


def _ridges(across: Floats, down: Floats, strength: Floats) -> NDArray[np.bool_]:
    """Where the gradient is larger than on both sides of the edge, in one of four directions."""
    around = np.pad(strength, 1)
    height, width = strength.shape

    def beside(y: int, x: int) -> Floats:
        return around[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    level = np.abs(down) < _TAN * np.abs(across)
    upright = ~level & (np.abs(down) > (2 + _TAN) * np.abs(across))
    falling = ~level & ~upright & (across * down >= 0)
    rising = ~level & ~upright & ~falling
    # Of two equal neighbours the first one counts, so an edge is one pixel wide.
    return (
        (level & (strength > beside(0, -1)) & (strength >= beside(0, 1)))
        | (upright & (strength > beside(-1, 0)) & (strength >= beside(1, 0)))
        | (falling & (strength > beside(-1, -1)) & (strength > beside(1, 1)))
        | (rising & (strength > beside(-1, 1)) & (strength > beside(1, -1)))
    )


def _connected(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pieces of `weak`, touching at sides or corners, that hold a strong pixel.

    Neighbours take the smaller of their numbers, and each number the number it stands for, until nothing changes.
    """
    height, width = weak.shape
    places = np.flatnonzero(weak)
    number = np.full(height * width, -1, np.int64)
    number[places] = np.arange(len(places))
    grid = number.reshape(height, width)
    pairs = []
    for one, other in (
        (grid[:, :-1], grid[:, 1:]),
        (grid[:-1], grid[1:]),
        (grid[:-1, :-1], grid[1:, 1:]),
        (grid[:-1, 1:], grid[1:, :-1]),
    ):
        both = (one >= 0) & (other >= 0)
        pairs.append(np.stack([one[both], other[both]]))
    first, second = np.concatenate(pairs, axis=1)
    root = np.arange(len(places))
    while True:
        smaller = np.minimum(root[first], root[second])
        before = root.copy()
        for end in (first, second):
            np.minimum.at(root, root[end], smaller)
            np.minimum.at(root, end, smaller)
        while not np.array_equal(further := root[root], root):
            root = further
        if np.array_equal(root, before):
            break
    alive = np.zeros(len(places), bool)
    alive[root[strong.ravel()[places]]] = True
    kept = np.zeros(height * width, bool)
    kept[places] = alive[root]
    return kept.reshape(height, width)


def _blurred(pixels: Floats, sigma: float) -> Floats:
    """Gaussian blur of (H, W, C), edges repeated."""
    reach = int(3 * sigma + 0.5)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        wide = [(reach, reach) if axis == each else (0, 0) for each in range(3)]
        padded = np.pad(pixels, wide, mode="edge")
        length = pixels.shape[axis]
        pixels = sum(
            (tap * padded.take(range(place, place + length), axis) for place, tap in enumerate(taps)),
            np.zeros_like(pixels),
        )
    return pixels
