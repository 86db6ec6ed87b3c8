"""Transparency: no colour shines through that nobody could see, and what is opaque stays opaque."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.picture.alpha import bleed, enlarge_alpha
from enlarger.picture.read import read
from enlarger.picture.resize import resize
from tests.picture.support import waves


@given(st.integers(1, 33), st.integers(1, 33), st.sampled_from([1, 3]), st.integers(0, 5))
def test_what_is_visible_is_untouched_and_gaps_lie_within_what_is_visible(
    height: int, width: int, channels: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.random((height, width, channels), dtype=np.float32)
    alpha = np.where(random.random((height, width)) < 0.7, 0, random.random((height, width))).astype(np.float32)
    filled = bleed(pixels, alpha)
    assert filled.shape == pixels.shape
    np.testing.assert_array_equal(filled[alpha > 0], pixels[alpha > 0])
    if (alpha > 0).any():
        low, high = pixels[alpha > 0].min(axis=0), pixels[alpha > 0].max(axis=0)
        assert (filled >= low - 1e-6).all()
        assert (filled <= high + 1e-6).all()


def test_one_colour_fills_everything() -> None:
    pixels = np.zeros((64, 48, 3), np.float32)
    alpha = np.zeros((64, 48), np.float32)
    pixels[10, 40] = (0.2, 0.5, 0.7)
    alpha[10, 40] = 0.01
    np.testing.assert_allclose(bleed(pixels, alpha), np.broadcast_to(pixels[10, 40], pixels.shape), atol=1e-6)


def test_gaps_take_the_near_side() -> None:
    pixels = np.zeros((32, 64, 1), np.float32)
    alpha = np.zeros((32, 64), np.float32)
    alpha[:, :8] = alpha[:, -8:] = 1
    pixels[:, -8:] = 1
    filled = bleed(pixels, alpha)[..., 0]
    assert filled[:, 8:12].max() < 0.1
    assert filled[:, -12:-8].min() > 0.9


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_all_or_nothing_visible_comes_back_as_it_is(level: float) -> None:
    pixels = waves(6, 5)
    np.testing.assert_array_equal(bleed(pixels, np.full((6, 5), level, np.float32)), pixels)


def test_no_green_halo(good: Path) -> None:
    """The corpus's picture has bright green under alpha 0. Where no green is visible, none may come in by enlarging."""
    picture = read(good / "hidden_colour.png")
    alpha = picture.alpha
    assert alpha is not None
    size = (picture.height * 4, picture.width * 4)
    red = np.where(alpha[..., None] > 0, np.array([1, 0, 0], np.float32), picture.pixels)

    def green_shown(pixels: np.ndarray) -> float:
        return float((np.clip(resize(pixels, size), 0, 1)[..., 1] * enlarge_alpha(alpha, size)).max())

    assert green_shown(red) > 0.1  # the meter can tell
    assert green_shown(bleed(red, alpha)) < 1e-5


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 50), st.integers(1, 50))
def test_flat_alpha_stays_exactly_itself(height: int, width: int, new_height: int, new_width: int) -> None:
    for level in (0.0, 1.0, 77 / 255):
        larger = enlarge_alpha(np.full((height, width), level, np.float32), (new_height, new_width))
        assert larger.shape == (new_height, new_width)
        assert (larger == np.float32(level)).all()


def test_a_mask_keeps_its_full_and_empty_parts_exactly() -> None:
    mask = np.zeros((20, 20), np.float32)
    mask[:, 10:] = 1
    larger = enlarge_alpha(mask, (70, 70))
    assert (larger[:, :24] == 0).all()
    assert (larger[:, 46:] == 1).all()
    assert 0 <= larger.min() <= larger.max() <= 1
    assert ((larger > 0.2) & (larger < 0.8)).any()
