"""Bicubic resizing as MATLAB's imresize does it, the rule behind the low-resolution pictures of every classic test set.

Keys' cubic with a = -0.5 (Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing"). When the
picture gets smaller the kernel is stretched by the factor, so it also filters (antialiasing). Edges are mirrored
with the border pixel repeated. Pixel centres lie at half-integers. (The module `resize` has Pillow's
rule, which enlarges and shrinks for users: it differs from this one at the picture's edges only.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]


def cubic(distance: Floats) -> Floats:
    """Keys' kernel with a = -0.5 at the given distances, in pixels; zero from 2 on."""
    x = np.abs(distance)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def taps(length: int, target: int, scale: float) -> tuple[Floats, NDArray[np.int64]]:
    """Weights and source positions of each output sample along one axis.

    Args:
        length: samples there are.
        target: samples wanted.
        scale: output samples per input sample.

    Returns:
        Weights (target, K), each row summing to 1, and indices (target, K) into the source.
    """
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    centre = (np.arange(target) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64)
    # Two more than the width: the window starts at a whole position, so it may lap over on both sides.
    positions = first[:, None] + np.arange(int(np.ceil(width)) + 2)
    weights = stretch * cubic(stretch * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(weights != 0, axis=0)
    positions, weights = positions[:, used], weights[:, used]
    period = positions % (2 * length)
    mirrored = np.where(period < length, period, 2 * length - 1 - period)
    return weights, mirrored


def _along(array: Floats, axis: int, target: int, scale: float) -> Floats:
    weights, positions = taps(array.shape[axis], target, scale)
    moved = np.moveaxis(array, axis, 0)
    out = np.zeros((target, *moved.shape[1:]))
    for k in range(weights.shape[1]):
        out += weights[:, k].reshape(-1, *[1] * (moved.ndim - 1)) * moved[positions[:, k]]
    return np.moveaxis(out, 0, axis)


def resize_floats(array: Floats, height: int, width: int) -> Floats:
    """An array of (H, W) or (H, W, C) resized to `height` x `width`; neither clipped nor rounded."""
    scales = ((height / array.shape[0], 0, height), (width / array.shape[1], 1, width))
    for scale, axis, target in sorted(scales):
        if target != array.shape[axis]:
            array = _along(array, axis, target, scale)
    return array


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """A picture resized by MATLAB's rule.

    Args:
        pixels: (H, W, 3) uint8 or floats.
        height: rows wanted, at least 1.
        width: columns wanted, at least 1.

    Returns:
        The same type. Bytes are clipped and rounded (halves up); floats are not clipped, so they may leave
        0..1 a little beside strong edges.
    """
    resized = resize_floats(pixels.astype(np.float64), height, width)
    if pixels.dtype == np.uint8:
        return np.clip(np.floor(resized + 0.5), 0, 255).astype(np.uint8)
    return resized.astype(np.float32) if pixels.dtype == np.float32 else resized


def shrink(pixels: Pixels, factor: int) -> Pixels:
    """A picture made `factor` times smaller; both sides must be multiples of `factor`."""
    height, width = pixels.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"{width}x{height} is not a multiple of {factor}")
    return resize(pixels, height // factor, width // factor)
