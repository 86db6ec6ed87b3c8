"""Colour as numbers: the sRGB curve, luma, Lab, and the final step to integers.

All functions take and give float32 arrays of any shape unless they say otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# IEC 61966-2-1, adapted to D50 by Bradford: columns are the XYZ of red, green and blue, as in the ICC's sRGB profile.
SRGB_TO_XYZ = np.array(
    [[0.4360657, 0.3851471, 0.1430664], [0.2224932, 0.7168732, 0.0606079], [0.0139160, 0.0970764, 0.7140961]]
)
D50 = np.array([0.9642, 1.0, 0.8249])  # ICC.1:2022, the white of the profile connection space


def to_linear(encoded: Floats) -> Floats:
    """Gives the light of sRGB-encoded values; values outside 0..1 continue the curve, mirrored at zero."""
    size = np.abs(encoded)
    light = np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return np.copysign(light, encoded).astype(np.float32, copy=False)


def to_encoded(light: Floats) -> Floats:
    """Gives sRGB-encoded values of light; the inverse of `to_linear`."""
    size = np.abs(light)
    encoded = np.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)
    return np.copysign(encoded, light).astype(np.float32, copy=False)


def luma(pixels: Floats) -> Floats:
    """Gives BT.601 luma in 16..235 as super-resolution papers use it.

    Args:
        pixels: (..., 3) or (..., 1), 0..1, sRGB-encoded. Grey counts as R = G = B.
    """
    if pixels.shape[-1] == 1:
        return 16 + np.float32(219.0) * pixels[..., 0]
    return 16 + pixels @ np.array([65.481, 128.553, 24.966], np.float32)


def lab_to_srgb(lab: Floats) -> Floats:
    """Gives sRGB-encoded pixels (not clipped) of CIE L*a*b* under D50.

    Args:
        lab: (..., 3), L 0..100, a and b about -128..127.
    """
    height = (lab[..., 0] + 16) / 116
    f = np.stack([height + lab[..., 1] / 500, height, height - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    return to_encoded((xyz @ np.linalg.inv(SRGB_TO_XYZ).T).astype(np.float32))


def quantise(pixels: Floats, depth: int) -> NDArray[Any]:
    """Rounds 0..1 to the integers of a file, the one place where this happens; clips what lies outside.

    Halves round up (`floor(x * max + 0.5)`), so that the result does not depend on the neighbour being even.
    Elementwise: calling it on bands of rows gives the same as calling it on the whole.

    Args:
        pixels: float32 of any shape.
        depth: 8 or 16 bits; 32 keeps floats and only clips.
    """
    if depth == 32:
        return np.clip(pixels, 0, 1).astype(np.float32, copy=False)
    top = 255 if depth == 8 else 65535
    scaled = np.multiply(pixels, np.float32(top), dtype=np.float32)
    scaled += np.float32(0.5)
    np.clip(scaled, 0, top, out=scaled)
    return scaled.astype(np.uint8 if depth == 8 else np.uint16)  # the cast cuts, which is floor for what is >= 0


def to_float(samples: NDArray[Any]) -> Floats:
    """Gives integer samples of a file as float32 0..1; the inverse of `quantise`."""
    top = {1: 255, 2: 65535}[samples.dtype.itemsize] if samples.dtype.kind == "u" else 1
    result: Floats = np.divide(samples, np.float32(top), dtype=np.float32)
    return result
