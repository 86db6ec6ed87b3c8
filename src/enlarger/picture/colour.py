"""Colour as numbers: the sRGB curve, luma, Lab, the final step to integers, and fixes of a colour shift.

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


def quantise(pixels: Floats, depth: int, *, cut: bool = False) -> NDArray[Any]:
    """Rounds 0..1 to the integers of a file, the one place where this happens; clips what lies outside.

    Halves round up (`floor(x * max + 0.5)`), so that the result does not depend on the neighbour being even.
    Elementwise: calling it on bands of rows gives the same as calling it on the whole.

    Args:
        pixels: float32 of any shape.
        depth: 8 or 16 bits; 32 keeps floats and only clips.
        cut: Cut fractions off instead of rounding: half a level darker on average, as some other code has it.
    """
    if depth == 32:
        return np.clip(pixels, 0, 1).astype(np.float32, copy=False)
    top = 255 if depth == 8 else 65535
    scaled = np.multiply(pixels, np.float32(top), dtype=np.float32)
    if not cut:
        scaled += np.float32(0.5)
    np.clip(scaled, 0, top, out=scaled)
    return scaled.astype(np.uint8 if depth == 8 else np.uint16)  # the cast cuts, which is floor for what is >= 0


def to_float(samples: NDArray[Any]) -> Floats:
    """Gives the samples of a file as float32 0..1; the inverse of `quantise`. Floats may come back as they are."""
    result: Floats
    if samples.dtype.kind == "f":
        result = samples.astype(np.float32, copy=False)
    else:
        result = np.divide(samples, np.float32(np.iinfo(samples.dtype).max), dtype=np.float32)
    return result


WAVELET_REACH = 31
"""Rows above and below on which a row of `wavelet` depends: 1 + 2 + 4 + 8 + 16."""


EPSILON = 1e-5 / 4
"""Added to variances, so that a flat picture has a spread: StableSR's 1e-5 for -1..1, in units of 0..1."""


def adain(pixels: Floats, reference: Floats, epsilon: float = EPSILON) -> Floats:
    """Gives the pixels the reference's mean and spread, channel by channel, over the whole picture.

    Adaptive instance normalisation as StableSR's colour fix uses it (unbiased variance). Statistics of single tiles
    would step from tile to tile: give the whole. Does not clip.

    Args:
        pixels: (H, W, C), 0..1.
        reference: (h, w, C), 0..1; only its statistics count, so the small input will do.
        epsilon: Added to the variances.
    """
    mean, spread = statistics(pixels, epsilon)
    wanted_mean, wanted_spread = statistics(reference, epsilon)
    return ((pixels - mean) * (wanted_spread / spread) + wanted_mean).astype(np.float32, copy=False)


def statistics(pixels: Floats, epsilon: float = EPSILON) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of each channel, (C,): what `adain` makes alike."""
    count = pixels.shape[0] * pixels.shape[1]
    mean = pixels.mean(axis=(0, 1), dtype=np.float64)
    square = np.einsum("hwc,hwc->c", pixels, pixels, dtype=np.float64, casting="same_kind")
    variance = np.maximum(square - count * mean**2, 0) / max(count - 1, 1)
    return mean, np.sqrt(variance + epsilon)


def wavelet(pixels: Floats, reference: Floats) -> Floats:
    """Gives the pixels the reference's colours below five octaves of detail; keeps their own detail above.

    The a-trous wavelet of StableSR's colour fix: x - low(x) + low(reference), where low is five blurs by
    [1, 2, 1] / 4 both ways, spread to 1, 2, 4, 8 and 16 pixels, edges repeated. It may be done by bands of rows that
    stand `WAVELET_REACH` rows over at either side where the picture goes on. Does not clip.

    Args:
        pixels: (H, W, C), 0..1.
        reference: (H, W, C), 0..1, of the same size: the input enlarged plainly.
    """
    low = np.subtract(reference, pixels, dtype=np.float32)  # the blurs are linear: one pass over the difference does
    for level in range(5):
        low = blurred(low, 1 << level)
    low += pixels
    return low


def blurred(values: Floats, distance: int) -> Floats:
    """One octave of `wavelet`: (H, W, C) blurred both ways at a distance in pixels."""
    for axis in (0, 1):
        values = _spread(values, distance, axis)
    return values


def _spread(values: Floats, distance: int, axis: int) -> Floats:
    """Blurs along an axis by [1, 2, 1] / 4 at a distance, edges repeated."""
    length = values.shape[axis]
    places = np.arange(length)
    blurred = values * np.float32(0.5)
    for shift in (-distance, distance):
        blurred += np.take(values, np.clip(places + shift, 0, length - 1), axis=axis) * np.float32(0.25)
    return blurred
