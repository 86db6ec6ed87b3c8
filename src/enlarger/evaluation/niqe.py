"""NIQE: how far the statistics of a picture's blocks are from those of pristine photographs; needs no reference.

Mittal, Soundararajan, Bovik 2013, "Making a 'Completely Blind' Image Quality Analyzer". Features: asymmetric
generalised Gaussians fitted to contrast-normalised luma and to its products with four neighbours, at two scales.
The constants are those of the authors' MATLAB release.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import PictureError
from enlarger.evaluation.pixels import Floats, Pixels, as_bytes, as_levels, luma, without_border
from enlarger.picture.bicubic import resize_floats

BLOCK = 96
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
SHAPES: Floats = np.arange(0.2, 10.0005, 0.001)


def _log_gamma(x: Floats) -> Floats:
    return np.array([math.lgamma(value) for value in x])


# Ratio (E|x|)^2 / E x^2 of a generalised Gaussian for each shape: moment matching looks it up backwards.
RATIOS: Floats = np.exp(2 * _log_gamma(2 / SHAPES) - _log_gamma(1 / SHAPES) - _log_gamma(3 / SHAPES))


def _smooth(plane: Floats) -> Floats:
    """Gaussian window 7x7, sigma 7/6, edges repeated."""
    x = np.arange(-3, 4)
    line = np.exp(-(x**2) / (2 * (7 / 6) ** 2))
    line /= line.sum()
    padded = np.pad(plane, 3, mode="edge")
    height, width = plane.shape
    rows = sum(weight * padded[i : i + height] for i, weight in enumerate(line))
    return np.asarray(sum(weight * rows[:, i : i + width] for i, weight in enumerate(line)), dtype=np.float64)


def _normalised(plane: Floats) -> Floats:
    """Mean-subtracted, contrast-normalised luma: (I - mu) / (sigma + 1), eq. 1."""
    mean = _smooth(plane)
    sigma = np.sqrt(np.abs(_smooth(plane**2) - mean**2))
    return np.asarray((plane - mean) / (sigma + 1), dtype=np.float64)


def _asymmetric_fit(block: Floats) -> tuple[float, float, float]:
    """Shape and left and right scale of an asymmetric generalised Gaussian (Lasmar et al. 2009), by moments."""
    values = block.ravel()
    negative, positive = values[values < 0], values[values > 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        left = float(np.sqrt(np.mean(negative**2))) if negative.size else math.nan
        right = float(np.sqrt(np.mean(positive**2))) if positive.size else math.nan
        gamma = np.float64(left) / np.float64(right)
        ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
        wanted = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    # A block without any contrast has no fit; its NaN features are left out of the means below.
    shape = float(SHAPES[np.argmin((RATIOS - wanted) ** 2)])
    spread = math.sqrt(math.exp(math.lgamma(1 / shape) - math.lgamma(3 / shape)))
    return shape, left * spread, right * spread


def _features(block: Floats) -> list[float]:
    """18 features of one block at one scale (table I)."""
    shape, left, right = _asymmetric_fit(block)
    features = [shape, (left + right) / 2]
    for shift in SHIFTS:
        # Neighbours are taken around the block's edge, as in the authors' release.
        shape, left, right = _asymmetric_fit(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * math.exp(math.lgamma(2 / shape) - math.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return features


class Niqe:
    """NIQE with a pristine model."""

    def __init__(self, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> None:
        """Keep the pristine model: mean (36,) and covariance (36, 36) of its block features."""
        self.mean = mean
        self.covariance = covariance

    def __call__(self, result: Pixels, border: int = 0) -> float:
        """Distance to pristine photographs, 0..inf, lower is better; good photographs have 2 to 5.

        On bytes, BT.601 luma rounded to whole levels, `border` pixels left out on each side, whole blocks of 96x96.
        Papers differ in the border (0 or the factor); the number differs with it. Noise and over-sharpening can
        lower it, so never read it without a reference metric beside it.

        Raises:
            PictureError: smaller than two blocks, which a covariance needs.
        """
        plane = np.round(without_border(luma(as_levels(as_bytes(result, "result"))), border))
        rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
        if rows * columns < 2:
            height, width = plane.shape
            raise PictureError(f"NIQE needs at least two blocks of {BLOCK}x{BLOCK} pixels, got {width}x{height}")
        plane = plane[: rows * BLOCK, : columns * BLOCK]
        scales = []
        for scale in (1, 2):
            normalised = _normalised(plane)
            side = BLOCK // scale
            scales.append(
                [
                    _features(normalised[y * side : (y + 1) * side, x * side : (x + 1) * side])
                    for x in range(columns)
                    for y in range(rows)
                ]
            )
            if scale == 1:
                plane = resize_floats(plane / 255, plane.shape[0] // 2, plane.shape[1] // 2) * 255
        features = np.concatenate([np.array(scale) for scale in scales], axis=1)
        complete = features[~np.isnan(features).any(axis=1)]
        if len(complete) < 2:
            raise PictureError("NIQE: fewer than two blocks of this picture have any contrast")
        difference = self.mean - np.nanmean(features, axis=0)
        pooled = (self.covariance + np.cov(complete, rowvar=False)) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))
