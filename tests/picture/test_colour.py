"""Colour as numbers, against others' formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.picture.colour import (
    WAVELET_REACH,
    adain,
    lab_to_srgb,
    luma,
    quantise,
    to_encoded,
    to_float,
    to_linear,
    wavelet,
)
from tests.picture.support import waves


def test_the_srgb_curve_goes_both_ways() -> None:
    values = np.linspace(-0.5, 1.5, 4001, dtype=np.float32)
    np.testing.assert_allclose(to_encoded(to_linear(values)), values, atol=2e-6)
    # IEC 61966-2-1: the light of the 8-bit values 0, 10, 128 and 255
    light = to_linear(np.array([0, 10, 128, 255], np.float32) / 255)
    np.testing.assert_allclose(light, [0, 0.0030353, 0.2158605, 1], atol=1e-6)
    assert to_linear(values).dtype == to_encoded(values).dtype == np.float32


def test_luma_is_what_papers_measure() -> None:
    """MATLAB's rgb2ycbcr: white 235, black 16, and its weights for the primaries."""
    colours = np.array([[[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], np.float32)
    np.testing.assert_allclose(luma(colours)[0], [235, 16, 81.481, 144.553, 40.966], atol=1e-3)
    grey = np.full((2, 2, 1), 0.5, np.float32)
    np.testing.assert_allclose(luma(grey), luma(np.repeat(grey, 3, axis=2)), atol=1e-4)


def test_lab_agrees_with_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    lab = np.stack(np.meshgrid([20.0, 50, 80], [-20.0, 0, 20], [-20.0, 0, 20]), axis=-1).reshape(-1, 1, 3)
    want = skimage.xyz2rgb(
        skimage.lab2xyz(lab, illuminant="D50") @ np.diag(1 / np.array([0.9642, 1, 0.8251])) @ bradford_to_d65()
    )
    got = np.clip(lab_to_srgb(lab.astype(np.float32)), 0, 1)
    np.testing.assert_allclose(got, want, atol=0.01)


def bradford_to_d65() -> np.ndarray:
    """XYZ relative to D50's white -> XYZ under D65, transposed for rows."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8251]), np.array([0.95047, 1, 1.08883])
    adapt = np.linalg.inv(cones) @ np.diag((cones @ d65) / (cones @ d50)) @ cones
    return (adapt @ np.diag(d50)).T


@given(st.sampled_from([8, 16]), st.integers(0, 65535))
def test_every_sample_survives_the_way_through_floats(depth: int, value: int) -> None:
    dtype = np.uint8 if depth == 8 else np.uint16
    samples = np.array([value % (1 << depth)], dtype)
    assert quantise(to_float(samples), depth) == samples
    assert quantise(to_float(samples), depth).dtype == dtype


def test_halves_round_up_and_what_lies_outside_is_clipped() -> None:
    values = np.array([-3, -1e-9, 0.5 / 255, 0.49 / 255, 2.5 / 255, 1, 1 + 1e-6, 7], np.float32)
    assert quantise(values, 8).tolist() == [0, 0, 1, 0, 3, 255, 255, 255]
    assert quantise(values, 16)[-1] == 65535
    floats = quantise(values, 32)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (0, 1)


@given(st.integers(1, 20), st.sampled_from([8, 16, 32]))
def test_bands_are_quantised_as_the_whole(cut: int, depth: int) -> None:
    pixels = waves(21, 5) * np.float32(1.2) - np.float32(0.1)
    whole = quantise(pixels, depth)
    np.testing.assert_array_equal(np.concatenate([quantise(pixels[:cut], depth), quantise(pixels[cut:], depth)]), whole)


def test_quantising_does_not_change_its_input() -> None:
    pixels = waves(4, 4) * 2
    before = pixels.copy()
    for depth in (8, 16, 32):
        quantise(pixels, depth)
    np.testing.assert_array_equal(pixels, before)


# --- colour fixes


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def test_adain_takes_over_mean_and_spread() -> None:
    pixels, reference = noisy(40, 50) * 0.3, waves(20, 25) * 0.5 + 0.2
    fixed = adain(pixels, reference)
    np.testing.assert_allclose(fixed.mean(axis=(0, 1)), reference.mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(fixed.std(axis=(0, 1), ddof=1), reference.std(axis=(0, 1), ddof=1), rtol=1e-3)
    np.testing.assert_allclose(adain(pixels, pixels), pixels, atol=1e-6)


def test_adain_is_the_published_formula() -> None:
    """In -1..1: (x - m) / sqrt(v + 1e-5) * sqrt(v' + 1e-5) + m', unbiased; a flat picture shows the epsilon."""
    pixels, reference = np.full((6, 7, 3), 0.25, np.float32), waves(5, 4)
    pixels[0, 0] = 0.26
    x, p = pixels.astype(np.float64) * 2 - 1, reference.astype(np.float64) * 2 - 1
    spread = [np.sqrt(part.var(axis=(0, 1), ddof=1) + 1e-5) for part in (x, p)]
    want = (x - x.mean(axis=(0, 1))) / spread[0] * spread[1] + p.mean(axis=(0, 1))
    np.testing.assert_allclose(adain(pixels, reference), (want + 1) / 2, atol=1e-5)


def test_wavelet_agrees_with_its_definition() -> None:
    """Five dilated 3 x 3 convolutions of the replicated picture, by torch."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pixels, reference = noisy(45, 70), noisy(45, 70, 1)
    kernel = torch.tensor([1.0, 2, 1])
    kernel = ((kernel[:, None] * kernel) / 16).expand(3, 1, 3, 3)

    def low(array: np.ndarray) -> np.ndarray:
        plane = torch.from_numpy(array.transpose(2, 0, 1).copy())[None]
        for level in range(5):
            reach = 2**level
            padded = torch.nn.functional.pad(plane, (reach,) * 4, mode="replicate")
            plane = torch.nn.functional.conv2d(padded, kernel, groups=3, dilation=reach)
        return plane[0].numpy().transpose(1, 2, 0)

    np.testing.assert_allclose(wavelet(pixels, reference), pixels - low(pixels) + low(reference), atol=2e-6)


def test_wavelet_keeps_detail_and_mends_a_shift_of_colour() -> None:
    pixels = noisy(64, 64)
    np.testing.assert_allclose(wavelet(pixels, pixels), pixels, atol=1e-7)
    np.testing.assert_allclose(wavelet(pixels + np.float32(0.1), pixels), pixels, atol=1e-6)


def test_wavelet_by_bands_is_wavelet_of_the_whole() -> None:
    pixels, reference = noisy(150, 20), noisy(150, 20, 1)
    whole = wavelet(pixels, reference)
    for start, stop in ((0, 40), (40, 90), (90, 150)):
        first, last = max(0, start - WAVELET_REACH), min(150, stop + WAVELET_REACH)
        band = wavelet(pixels[first:last], reference[first:last])[start - first : stop - first]
        np.testing.assert_allclose(band, whole[start:stop], atol=1e-6)
    first, last = 40 - WAVELET_REACH + 1, 90 + WAVELET_REACH - 1
    short = wavelet(pixels[first:last], reference[first:last])[40 - first : 90 - first]
    assert np.abs(short - whole[40:90]).max() > 1e-6  # one row less would not do
