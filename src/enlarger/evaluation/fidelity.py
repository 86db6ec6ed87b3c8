"""Distances to a reference or to the input: PSNR, SSIM, low-resolution consistency, colour shift."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import PictureError
from enlarger.evaluation.pixels import Floats, Pixels, as_bytes, as_levels, luma, same_size, without_border
from enlarger.picture.bicubic import resize

PSNR_OF_EQUAL = 100.0
"""Decibels given to equal pictures, and the most there is, so that means over pictures stay finite."""


def _psnr(first: Floats, second: Floats) -> float:
    error = float(np.mean((first - second) ** 2))
    return PSNR_OF_EQUAL if error == 0 else min(PSNR_OF_EQUAL, 10 * math.log10(255**2 / error))


def _channels(pixels: Pixels, on_luma: bool, border: int, name: str) -> Floats:
    levels = as_levels(as_bytes(pixels, name))
    return without_border(luma(levels) if on_luma else levels, border)


def psnr(result: Pixels, reference: Pixels, *, on_luma: bool = True, border: int = 0) -> float:
    """Peak signal-to-noise ratio in decibels, higher is better, at most 100 (equal pictures).

    10 log10(255^2 / mean squared error) over the bytes of both pictures without the border; with
    `on_luma` on unrounded BT.601 luma, else over all three channels of RGB together.
    """
    same_size(result, reference)
    return _psnr(
        _channels(result, on_luma, border, "result"),
        _channels(reference, on_luma, border, "reference"),
    )


def _gaussian(size: int, sigma: float) -> Floats:
    x = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _filtered(plane: Floats, weights: Floats) -> Floats:
    """Separable correlation along the first two axes, valid part only."""
    size = len(weights)
    height, width = plane.shape[0] - size + 1, plane.shape[1] - size + 1
    rows = sum(weight * plane[i : i + height] for i, weight in enumerate(weights))
    return np.asarray(sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights)), dtype=np.float64)


def ssim_map(first: Floats, second: Floats) -> Floats:
    """SSIM at each position of the window that lies wholly inside the pictures, -1..1.

    Args:
        first: (H, W) or (H, W, C), 0..255, both sides at least 11.
        second: the same shape.
    """
    if min(first.shape[:2]) < 11:
        height, width = first.shape[:2]
        raise PictureError(f"SSIM needs at least 11x11 pixels without the border; there are {width}x{height}")
    window = _gaussian(11, 1.5)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean1, mean2 = _filtered(first, window), _filtered(second, window)
    var1 = _filtered(first * first, window) - mean1**2
    var2 = _filtered(second * second, window) - mean2**2
    covariance = _filtered(first * second, window) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return np.asarray(luminance * (2 * covariance + c2) / (var1 + var2 + c2), dtype=np.float64)


def ssim(result: Pixels, reference: Pixels, *, on_luma: bool = True, border: int = 0) -> float:
    """Structural similarity, at most 1 (equal pictures), higher is better.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13:
    Gaussian window 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, peak 255, windows wholly inside, mean over
    the map; on BT.601 luma, or with `on_luma` off the mean of the three channels of RGB.
    """
    same_size(result, reference)
    first = _channels(result, on_luma, border, "result")
    second = _channels(reference, on_luma, border, "reference")
    return float(ssim_map(first, second).mean())


def consistency(result: Pixels, source: Pixels) -> float:
    """Low-resolution consistency in decibels, higher is better, at most 100.

    The result is made as small as the input by MATLAB's antialiased bicubic, rounded to bytes, and compared
    with the input by PSNR on luma without border crop. It asks whether the result still is a picture of what
    was there; it says nothing about the detail added. True photographs made small by that rule give 100 by
    definition, and about 59 on Set14's own pairs, whose small pictures were made with other colour handling.
    """
    small = resize(as_bytes(result, "result"), *source.shape[:2])
    return psnr(small, source)


def consistency_map(result: Pixels, source: Pixels) -> Floats:
    """Where the result is no picture of the input: |small result - input|, (h, w), levels of 255, mean of RGB."""
    small = as_levels(resize(as_bytes(result, "result"), *source.shape[:2]))
    return np.asarray(np.abs(small - as_levels(as_bytes(source, "source"))).mean(axis=2), dtype=np.float64)


def colour_shift(result: Pixels, source: Pixels) -> float:
    """Largest difference of a channel's mean between result and input, levels of 255, lower is better, 0..255.

    Sizes may differ: only means are compared. Shifts that cancel out over the picture are invisible to it;
    `block_shift` sees them.
    """
    first, second = as_levels(as_bytes(result, "result")), as_levels(as_bytes(source, "source"))
    return float(np.abs(first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))).max())


def block_shift(result: Pixels, source: Pixels, block: int = 8) -> float:
    """Mean colour error of blocks of the input, levels of 255, lower is better, 0..255.

    The result is made small by MATLAB's bicubic; both are cut into blocks of `block` input pixels (32 result
    pixels at a factor of 4; an incomplete block at the right or bottom is left out, unless the picture is
    smaller than one) and the mean over blocks and channels of the absolute difference of block means is taken.
    """
    small = as_levels(resize(as_bytes(result, "result"), *source.shape[:2]))
    difference = small - as_levels(as_bytes(source, "source"))
    height, width = difference.shape[:2]
    tall, wide = min(block, height), min(block, width)
    rows, columns = height // tall, width // wide
    blocks = difference[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, 3)
    return float(np.abs(blocks.mean(axis=(1, 3))).mean())


class Spread:
    """How much results of different seeds differ, taken in one after the other: none of them is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Pixels = np.zeros((0, 0, 3), np.uint8)
        self._sums: NDArray[np.uint32] | None = None
        self._squares: NDArray[np.uint32] | None = None

    def add(self, result: Pixels) -> None:
        """Take in one more, (H, W, 3); at most 65,000, so that the sums of squares fit.

        Raises:
            PictureError: another size than the ones before.
        """
        levels = as_bytes(result).astype(np.uint32)
        if self._sums is None or self._squares is None:
            self._first = as_bytes(result)
            self._sums, self._squares = np.zeros_like(levels), np.zeros_like(levels)
        same_size(self._first, as_bytes(result), "results of two seeds")
        self._sums += levels
        self._squares += levels * levels
        self.count += 1

    def map(self) -> Floats:
        """Standard deviation of each pixel, (H, W), levels of 255, mean of RGB.

        The unbiased estimate (N - 1), so that it does not grow with the number of seeds.

        Raises:
            PictureError: fewer than two results.
        """
        if self.count < 2 or self._sums is None or self._squares is None:
            raise PictureError(f"deviation over seeds needs at least two results, got {self.count}")
        made = np.empty(self._sums.shape[:2])
        for row in range(len(made)):
            sums = self._sums[row].astype(np.float64)
            variance = (self._squares[row] - sums * sums / self.count) / (self.count - 1)
            made[row] = np.sqrt(np.maximum(variance, 0)).mean(axis=1)
        return made


def deviation_map(results: Iterable[Pixels]) -> Floats:
    """See `Spread.map`.

    Raises:
        PictureError: fewer than two results, or different sizes.
    """
    spread = Spread()
    for result in results:
        spread.add(result)
    return spread.map()


def deviation(results: Iterable[Pixels]) -> float:
    """Mean of `deviation_map`: how much of a picture the method invented, levels of 255; 0 = the same for all seeds."""
    return float(deviation_map(results).mean())
