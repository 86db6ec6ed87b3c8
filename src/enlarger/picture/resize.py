"""Exact resizing of float pictures, whole or band by band.

Pillow does the arithmetic, one channel at a time in its mode F: double precision sums, antialiased when reducing,
edges clamped. Its result for an output row depends on the rows under the filter alone, which is what lets a
band of rows be made from a window of the input with the very numbers that the whole would give.
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
    "lanczos": (Image.Resampling.LANCZOS, 3.0),
}
"""Name -> Pillow's filter and its support in input pixels when enlarging."""


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
        filter: nearest, bilinear, bicubic (a = -0.5) or lanczos (3 lobes); all widen when reducing.
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
    # Rounding in the caller's fractions may step over the edge by less than a millionth of a pixel.
    corners = (max(left, 0.0), max(top, 0.0), min(left + box_width, columns), min(top + box_height, rows))
    whole = corners == (0, 0, columns, rows)
    if whole and (height, width) == (rows, columns):
        return np.array(pixels, dtype=np.float32, order="C")
    if pixels.ndim == 2:
        return np.array(_resize_channel(pixels, (width, height), filter, corners), dtype=np.float32)
    result = np.empty((height, width, pixels.shape[2]), np.float32)
    for channel in range(pixels.shape[2]):
        result[..., channel] = np.asarray(_resize_channel(pixels[..., channel], (width, height), filter, corners))
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
    ratio = height / size[0]
    box = (rows.start * ratio - first, 0.0, len(rows) * ratio, float(window.shape[1]))
    return resize(window, (len(rows), size[1]), filter, box=box, linear_light=linear_light)


def _nearest(count: int, start: float, length: float, limit: int) -> NDArray[np.intp]:
    # 1e-9: a centre that falls on a border between two pixels goes to the right one in every band.
    centres = start + (np.arange(count) + 0.5) * (length / count)
    indices: NDArray[np.intp] = np.clip(np.floor(centres + 1e-9), 0, limit - 1).astype(np.intp)
    return indices


def _resize_channel(
    channel: Floats, size: tuple[int, int], filter: str, corners: tuple[float, float, float, float]
) -> Image.Image:
    plane = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return plane.resize(size, FILTERS[filter][0], box=corners)
