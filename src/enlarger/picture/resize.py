"""Exact resizing of float pictures, whole or band by band.

Pillow does the arithmetic for whole pictures, one channel at a time in its mode F: double precision sums, antialiased
when reducing, edges clamped. Its boxes are single precision, though, so parts of a picture would come out a little
shifted, the more the further down they lie: for bands and boxes the same sums are done here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from enlarger.errors import SettingsError
from enlarger.picture.colour import to_encoded, to_linear

Floats = NDArray[np.float32]

FILTERS = {
    "nearest": (Image.Resampling.NEAREST, 0.5),
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "bicubic-torch": (None, 2.0),
    "lanczos": (Image.Resampling.LANCZOS, 3.0),
}
"""Name -> Pillow's filter and its support in input pixels when enlarging; not all are Pillow's."""


def resize(
    pixels: Floats,
    size: tuple[int, int],
    filter: str = "bicubic",
    *,
    box: tuple[float, float, float, float] | None = None,
    linear_light: bool = False,
) -> Floats:
    """Resizes a picture; does not clip (bicubic and lanczos overshoot at edges).

    Args:
        pixels: (H, W, C) or (H, W) float32.
        size: (height, width) of the result in pixels.
        filter: nearest, bilinear, bicubic (a = -0.5) or lanczos (3 lobes), which all widen when reducing; or
            bicubic-torch: torch's (a = -0.75, edges repeated, never widened), as training code enlarges.
        box: (top, left, height, width) in input pixels, fractions allowed: the part that becomes the result; what
            lies around it still counts under the filter.
        linear_light: Filter light instead of sRGB-encoded values.

    Returns:
        (height, width, C) or (height, width) float32, contiguous.
    """
    height, width = size
    if height < 1 or width < 1:
        raise SettingsError(f"cannot resize to {width}x{height}: both sides must be at least 1 pixel")
    if filter not in FILTERS:
        raise SettingsError(f"no filter {filter!r}; choose one of {', '.join(FILTERS)}")
    rows, columns = pixels.shape[:2]
    top, left, box_height, box_width = box or (0.0, 0.0, float(rows), float(columns))
    if linear_light:
        light = resize(to_linear(pixels), size, filter, box=box)
        return to_encoded(light)
    if filter == "nearest":
        # Not Pillow's: its nearest steps by adding, so a band would drift from the whole at exact halves.
        y = _nearest(height, top, box_height, rows)
        x = _nearest(width, left, box_width, columns)
        return np.ascontiguousarray(pixels[y][:, x], dtype=np.float32)
    if box is not None or filter == "bicubic-torch":
        part = _along(pixels, _taps(range(width), width / box_width, left, columns, filter), axis=1)
        return _along(part, _taps(range(height), height / box_height, top, rows, filter), axis=0)
    if (height, width) == (rows, columns):
        return np.array(pixels, dtype=np.float32, order="C")
    if pixels.ndim == 2:
        return np.array(_resize_channel(pixels, (width, height), filter), dtype=np.float32)
    result = np.empty((height, width, pixels.shape[2]), np.float32)
    for channel in range(pixels.shape[2]):
        result[..., channel] = np.asarray(_resize_channel(pixels[..., channel], (width, height), filter))
    return result


def rows_needed(rows: range, height: int, new_height: int, filter: str = "bicubic") -> range:
    """Gives the input rows that rows of a resize `height` -> `new_height` depend on.

    Args:
        rows: Output rows wanted, within 0..new_height.
        height: Rows of the input.
        new_height: Rows of the whole result.
        filter: See `resize`.
    """
    ratio = height / new_height
    reach = FILTERS[filter][1] * max(ratio, 1.0) + 1  # one row more: Pillow rounds the ends of its window
    first = math.floor((rows.start + 0.5) * ratio - reach)
    last = math.ceil((rows.stop - 0.5) * ratio + reach)
    return range(max(first, 0), min(last, height))


def resize_rows(
    window: Floats,
    first: int,
    rows: range,
    height: int,
    size: tuple[int, int],
    filter: str = "bicubic",
    *,
    linear_light: bool = False,
) -> Floats:
    """Gives some rows of a whole resize from the input rows that `rows_needed` names.

    Args:
        window: (h, W, C) or (h, W): input rows `first` .. `first + h`, at least those that are needed.
        first: Index of the window's first row in the whole input.
        rows: Output rows wanted.
        height: Rows of the whole input.
        size: (height, width) of the whole result.
        filter, linear_light: See `resize`.

    Returns:
        (len(rows), width, C) or (len(rows), width), equal to those rows of the whole.
    """
    needed = rows_needed(rows, height, size[0], filter)
    if first > needed.start or first + window.shape[0] < needed.stop:
        have = f"{first}..{first + window.shape[0]}"
        raise ValueError(
            f"output rows {rows.start}..{rows.stop} need input rows {needed.start}..{needed.stop}, not {have}"
        )
    if linear_light:
        return to_encoded(resize_rows(to_linear(window), first, rows, height, size, filter))
    if filter == "nearest":
        y = _nearest(size[0], 0.0, float(height), height)[rows.start : rows.stop] - first
        return np.ascontiguousarray(window[y][:, _nearest(size[1], 0.0, float(window.shape[1]), window.shape[1])])
    window = window[needed.start - first : needed.stop - first]
    across = resize(window, (len(needed), size[1]), filter)  # rows stay as they are, so Pillow only goes across
    if size[0] == height:
        return across[rows.start - needed.start : rows.stop - needed.start]
    places, weights = _taps(rows, size[0] / height, 0.0, height, filter)
    return _along(across, (places - needed.start, weights), axis=0)


Taps = tuple[NDArray[np.intp], NDArray[np.float64]]


def _taps(outputs: range, factor: float, origin: float, limit: int, filter: str) -> Taps:
    """Gives, for outputs along one axis, the inputs under the filter and their weights, as Pillow places them.

    Args:
        outputs: Indices of the outputs.
        factor: Outputs per input pixel.
        origin: Where output 0 begins, in input pixels.
        limit: Number of inputs.
        filter: bilinear, bicubic or lanczos.

    Returns:
        Indices (outputs, taps) and weights (outputs, taps) that sum to one; taps past the end have weight zero.
    """
    if filter == "bicubic-torch":
        return _torch_taps(outputs, factor, origin, limit)
    widened = max(1 / factor, 1.0)
    support = FILTERS[filter][1] * widened
    centres = origin + (np.arange(outputs.start, outputs.stop) + 0.5) / factor
    first = np.maximum(np.floor(centres - support + 0.5), 0).astype(np.intp)
    last = np.minimum(np.floor(centres + support + 0.5), limit).astype(np.intp)
    places = first[:, None] + np.arange(int((last - first).max()))
    weights = np.where(places < last[:, None], _kernel((places - centres[:, None] + 0.5) / widened, filter), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(places, limit - 1), weights


def _torch_taps(outputs: range, factor: float, origin: float, limit: int) -> Taps:
    """As `_taps`, for `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: Keys 1981, a = -0.75."""
    # Rounded to single precision where torch does it, products with their sums at once: else a weight is off by 1e-6.
    ratio = np.float64(np.float32(1 / factor))
    centres = (origin + ratio * (np.arange(outputs.start, outputs.stop) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(centres)
    x = np.abs(np.arange(-1, 3, dtype=np.float32) - (centres - first)[:, None])
    near = _fused(_fused(1.25, x, -2.25) * x, x, 1.0)
    far = _fused(_fused(_fused(-0.75, x, 3.75), x, -6.0), x, 3.0)
    places = np.clip(first.astype(np.intp)[:, None] + np.arange(-1, 3), 0, limit - 1)
    return places, np.where(x <= 1, near, far).astype(np.float64)


def _fused(factor: NDArray[np.float32] | float, x: NDArray[np.float32], term: float) -> NDArray[np.float32]:
    """A product and a sum, rounded to single precision once."""
    made: NDArray[np.float32] = (np.float64(factor) * x.astype(np.float64) + term).astype(np.float32)
    return made


def _kernel(distance: NDArray[np.float64], filter: str) -> NDArray[np.float64]:
    x = np.abs(distance)
    if filter == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    if filter == "bicubic":  # Keys 1981, a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _along(values: Floats, taps: Taps, axis: int) -> Floats:
    """Applies taps along an axis; sums in double precision, as Pillow's are."""
    places, weights = taps
    shape = [1] * values.ndim
    shape[axis] = len(places)
    total = np.zeros((*values.shape[:axis], len(places), *values.shape[axis + 1 :]))
    for tap in range(places.shape[1]):
        total += np.take(values, places[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return total.astype(np.float32)


def _nearest(count: int, start: float, length: float, limit: int) -> NDArray[np.intp]:
    # 1e-9: a centre that falls on a border between two pixels goes to the right one in every band.
    centres = start + (np.arange(count) + 0.5) * (length / count)
    indices: NDArray[np.intp] = np.clip(np.floor(centres + 1e-9), 0, limit - 1).astype(np.intp)
    return indices


def _resize_channel(channel: Floats, size: tuple[int, int], filter: str) -> Image.Image:
    plane = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return plane.resize(size, FILTERS[filter][0])
