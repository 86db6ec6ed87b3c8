"""What every metric accepts: (H, W, 3) arrays, sRGB-encoded RGB, uint8 or floats in 0..1.

All metrics but the seam score look at bytes, because a result is a file of bytes: comparing unrounded
floats would give a method a few hundredths of a decibel that nobody who opens its file can have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import PictureError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]


def checked(pixels: Pixels, name: str = "picture") -> Pixels:
    """Give the array back if it is a picture that can be measured.

    Args:
        pixels: the candidate.
        name: what the message calls it.

    Raises:
        PictureError: not (H, W, 3), empty, another dtype, or (floats) values that are not finite.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise PictureError(f"{name}: array of shape {pixels.shape}; metrics need (height, width, 3), RGB", "bad_values")
    if 0 in pixels.shape:
        raise PictureError(f"{name}: no pixels, shape {pixels.shape}", "empty")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise PictureError(f"{name}: values of type {pixels.dtype}; metrics need uint8 or floats in 0..1", "bad_values")
    bad = int(np.count_nonzero(~np.isfinite(pixels)))
    if bad:
        raise PictureError(f"{name}: {bad} values are NaN or infinite; nothing can be measured on it", "bad_values")
    return pixels


def as_bytes(pixels: Pixels, name: str = "picture") -> Bytes:
    """The picture as (H, W, 3) uint8; floats are clipped to 0..1 and rounded, halves up."""
    pixels = checked(pixels, name)
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, dtype=np.uint8)
    scaled = np.floor(np.clip(pixels.astype(np.float64), 0, 1) * 255 + 0.5)
    return scaled.astype(np.uint8)


def as_levels(pixels: Pixels, name: str = "picture") -> Floats:
    """The picture as (H, W, 3) float64 on the 0..255 scale, neither clipped nor rounded."""
    pixels = checked(pixels, name)
    levels = pixels.astype(np.float64)
    return levels if pixels.dtype == np.uint8 else levels * 255


def luma(levels: Floats) -> Floats:
    """Studio-range luma of ITU-R BT.601 as MATLAB's rgb2ycbcr has it, (H, W), 16..235, not rounded.

    Papers of this field mean this Y when they say PSNR-Y. The full-range Y of JPEG would give about
    1.3 dB less (a factor 255/219 on every difference).

    Args:
        levels: (H, W, 3), 0..255.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.asarray(16 + levels @ weights, dtype=np.float64)


def without_border(array: Floats, border: int) -> Floats:
    """The array without `border` pixels on each of its four sides.

    Raises:
        PictureError: nothing would be left.
    """
    height, width = array.shape[:2]
    if min(height, width) <= 2 * border:
        raise PictureError(
            f"a picture of {width}x{height} has nothing left without a border of {border} pixels; use a smaller border",
            "bad_values",
        )
    return array[border : height - border, border : width - border]


def same_size(first: Pixels, second: Pixels, what: str = "result and reference") -> None:
    """Raise a PictureError unless both pictures have the same height and width."""
    if first.shape[:2] != second.shape[:2]:
        sizes = f"{first.shape[1]}x{first.shape[0]} and {second.shape[1]}x{second.shape[0]}"
        raise PictureError(f"{what} differ in size: {sizes}; they must be equal, nothing is resized here", "bad_values")
