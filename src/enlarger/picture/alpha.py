"""Transparency: what lies under it must not shine through when a picture is enlarged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enlarger.picture.resize import resize

Floats = NDArray[np.float32]


def bleed(pixels: Floats, alpha: Floats) -> Floats:
    """Fills the colour under fully transparent pixels from their visible neighbours.

    Files hold anything there, often black: a filter or a network would mix it into the edge as a dark fringe.
    Push-pull: averages of the visible colour at every power of two, then each gap takes the finest that has any.

    Args:
        pixels: (H, W, C), 0..1.
        alpha: (H, W), 0..1.

    Returns:
        (H, W, C): unchanged wherever alpha is above zero. A picture with nothing visible comes back as it is.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return pixels
    levels: list[tuple[Floats, Floats]] = []
    weight = visible.astype(np.float32)[..., None]
    colour = pixels * weight
    while not (weight > 0).all():
        levels.append((colour, weight))
        colour, weight = _halve(colour), _halve(weight)
        colour = np.divide(colour, weight, out=np.zeros_like(colour), where=weight > 0)
        # From here a cell counts once, however little of it is visible: the near edge matters, not its area.
        weight = (weight > 0).astype(np.float32)
    filled = colour
    for colour, weight in reversed(levels):
        height, width = weight.shape[:2]
        coarse = resize(filled, (2 * filled.shape[0], 2 * filled.shape[1]), "bilinear")[:height, :width]
        filled = np.where(weight > 0, colour, coarse)
    return np.where(visible[..., None], pixels, np.clip(filled, 0, 1)).astype(np.float32, copy=False)


def enlarge_alpha(alpha: Floats, size: tuple[int, int]) -> Floats:
    """Resizes alpha by bicubic, clipped to 0..1; where it is flat it stays exactly what it was.

    Args:
        alpha: (H, W), 0..1.
        size: (height, width) of the result.
    """
    first = alpha.flat[0]
    if (alpha == first).all():
        return np.full(size, first, np.float32)
    larger = resize(alpha, size, "bicubic")
    # Bicubic overshoots, and its weights sum to one only up to rounding: opaque must stay opaque in floats too.
    larger[larger < 1e-6] = 0
    larger[larger > 1 - 1e-6] = 1
    return larger


def _halve(cells: Floats) -> Floats:
    """Sums 2x2 blocks of (H, W, C); an odd edge is padded with nothing."""
    height, width = cells.shape[:2]
    padded = np.pad(cells, ((0, height % 2), (0, width % 2), (0, 0)))
    summed: Floats = padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2]
    return summed
