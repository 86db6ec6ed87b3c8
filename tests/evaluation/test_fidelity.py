from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from enlarger.errors import PictureError
from enlarger.evaluation import fidelity
from enlarger.picture.bicubic import resize, shrink

# What other people's code gives; the command that made it is in make_references.py.
SKIMAGE = json.loads(Path(__file__).with_name("references.json").read_text())["scikit-image 0.26.0"]


@pytest.mark.parametrize("on_luma", [True, False])
def test_psnr_and_ssim_equal_scikit_image(result, reference, on_luma):
    channels = "y" if on_luma else "rgb"
    psnr = fidelity.psnr(result, reference, on_luma=on_luma, border=4)
    ssim = fidelity.ssim(result, reference, on_luma=on_luma, border=4)
    assert psnr == pytest.approx(SKIMAGE[f"psnr-{channels}"], abs=1e-6)
    assert ssim == pytest.approx(SKIMAGE[f"ssim-{channels}"], abs=1e-6)


def test_floats_are_rounded_to_the_bytes_a_file_would_hold(result, reference):
    shaken = result / 255 + np.linspace(-0.0019, 0.0019, result.size).reshape(result.shape)
    assert fidelity.psnr(shaken.astype(np.float32), reference) == fidelity.psnr(result, reference)


def test_equal_pictures_have_a_hundred_decibels_and_similarity_one(reference):
    assert fidelity.psnr(reference, reference) == 100
    assert fidelity.ssim(reference, reference) == pytest.approx(1)


def test_different_sizes_are_refused_and_never_resized(result, reference):
    for metric in (fidelity.psnr, fidelity.ssim):
        with pytest.raises(PictureError, match=r"90x71 and 90x72"):
            metric(result[1:], reference)


def test_pictures_that_cannot_be_measured_say_why(result, reference):
    broken = (result / 255).astype(np.float32)
    broken[3, 4, 1] = np.nan
    with pytest.raises(PictureError, match="1 values are NaN"):
        fidelity.psnr(broken, reference)
    with pytest.raises(PictureError, match="need \\(height, width, 3\\)"):
        fidelity.psnr(result[..., 0], reference)
    with pytest.raises(PictureError, match="smaller border"):
        fidelity.psnr(result, reference, border=36)
    with pytest.raises(PictureError, match="at least 11x11"):
        fidelity.ssim(result[:18], reference[:18], border=4)


def test_consistency_falls_when_the_result_leaves_the_input(reference):
    source = shrink(reference[:, :88], 4)
    faithful = reference[:, :88]
    assert fidelity.consistency(faithful, source) == 100
    moved = np.roll(faithful, 2, axis=1)
    # Added detail that averages out is no fault; a shift by half an input pixel is.
    checker = (np.indices(faithful.shape[:2]).sum(axis=0) % 2 * 8 - 4)[..., None]
    detailed = np.clip(faithful.astype(int) + checker, 0, 255).astype(np.uint8)
    assert fidelity.consistency(moved, source) < 40 < 48 < fidelity.consistency(detailed, source)


def test_consistency_map_shows_where(reference):
    source = shrink(reference[:, :88], 4)
    touched = reference[:, :88].copy()
    touched[32:40, 40:48] = 255 - touched[32:40, 40:48]
    where = fidelity.consistency_map(touched, source)
    assert where.shape == (18, 22)
    assert np.unravel_index(where.argmax(), where.shape) in [(y, x) for y in (8, 9) for x in (10, 11)]
    assert where[:6].max() == 0


def test_colour_shift_is_the_difference_of_the_means(reference):
    source = shrink(reference[:, :88], 4)
    redder = resize(source, 72, 88).astype(int)
    redder[..., 0] += 5
    redder = np.clip(redder, 0, 255).astype(np.uint8)
    assert fidelity.colour_shift(redder, source) == pytest.approx(5, abs=0.3)
    assert fidelity.colour_shift(resize(source, 72, 88), source) < 0.3


def test_block_shift_sees_shifts_that_cancel_out_over_the_picture():
    source = np.full((32, 32, 3), 120, np.uint8)
    tilted = np.full((128, 128, 3), 120, np.uint8)
    tilted[:64] += 6
    tilted[64:] -= 6
    assert fidelity.colour_shift(tilted, source) == 0
    assert fidelity.block_shift(tilted, source) == pytest.approx(6, abs=0.2)


def test_deviation_is_the_standard_deviation_over_seeds():
    rng = np.random.default_rng(3)
    seeds = [np.clip(rng.normal(128, 7, (64, 64, 3)), 0, 255).astype(np.uint8) for _ in range(6)]
    assert fidelity.deviation(seeds) == pytest.approx(7 * 0.9515, rel=0.02)  # c4(6): the mean of the root is lower
    assert fidelity.deviation([seeds[0]] * 3) == 0
    with pytest.raises(PictureError, match="at least two"):
        fidelity.deviation(seeds[:1])
