"""Resizing: exact, Pillow's numbers, and band by band the same as at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from enlarger.errors import SettingsError
from enlarger.picture.colour import to_encoded, to_linear
from enlarger.picture.resize import FILTERS, resize, resize_rows, rows_needed
from tests.picture.support import waves

side = st.integers(1, 60)


def random(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(30, 50), (7, 5), (21, 17), (1, 1)])
def test_the_numbers_are_pillows(filter: str, size: tuple[int, int]) -> None:
    pixels = random(13, 17, 3)
    got = resize(pixels, size, filter)
    for channel in range(3):
        plane = Image.fromarray(pixels[..., channel]).resize(size[::-1], getattr(Image.Resampling, filter.upper()))
        np.testing.assert_array_equal(got[..., channel], np.asarray(plane))


@given(side, side, side, side)
def test_nearest_takes_the_pixel_under_the_centre(height: int, width: int, new_height: int, new_width: int) -> None:
    pixels = random(height, width, 1)
    got = resize(pixels, (new_height, new_width), "nearest")
    for row in range(new_height):
        # integers only: floor((row + 1/2) * height / new_height)
        assert got[row, 0, 0] == pixels[(2 * row + 1) * height // (2 * new_height), width // (2 * new_width), 0]


@given(side, side, side, side, st.sampled_from(sorted(FILTERS)), st.data())
def test_a_band_of_rows_equals_those_rows_of_the_whole(
    height: int, width: int, new_height: int, new_width: int, filter: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, new_height - 1))
    stop = data.draw(st.integers(start + 1, new_height))
    pixels = random(height, width, 2)
    whole = resize(pixels, (new_height, new_width), filter)
    needed = rows_needed(range(start, stop), height, new_height, filter)
    window = pixels[needed.start : needed.stop]
    band = resize_rows(window, needed.start, range(start, stop), height, (new_height, new_width), filter)
    np.testing.assert_allclose(band, whole[start:stop], atol=3e-7, rtol=0)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("sizes", [(30_000, 100_001), (50_000, 7_001), (4_000, 30_011)])
def test_bands_far_down_are_no_less_exact(filter: str, sizes: tuple[int, int]) -> None:
    """Single precision, as Pillow's boxes have it, would shift row 100,000 by hundredths of a pixel."""
    height, new_height = sizes
    pixels = random(height, 1, 1)
    whole = resize(pixels, (new_height, 1), filter)
    for start in (0, new_height // 2, new_height - 33):
        rows = range(start, start + 33)
        needed = rows_needed(rows, height, new_height, filter)
        band = resize_rows(pixels[needed.start : needed.stop], needed.start, rows, height, (new_height, 1), filter)
        np.testing.assert_allclose(band, whole[start : start + 33], atol=3e-7, rtol=0)


def test_bands_together_are_the_whole_and_read_only_what_they_need() -> None:
    pixels = random(200, 20, 3)
    size = (800, 70)
    bands = []
    for start in range(0, 800, 40):
        rows = range(start, start + 40)
        needed = rows_needed(rows, 200, 800)
        assert len(needed) <= 40 // 4 + 8
        bands.append(resize_rows(pixels[needed.start : needed.stop], needed.start, rows, 200, size))
    np.testing.assert_allclose(np.concatenate(bands), resize(pixels, size), atol=1e-6, rtol=0)


def test_a_window_that_lacks_rows_is_a_bug_and_says_so() -> None:
    with pytest.raises(ValueError, match="need input rows"):
        resize_rows(random(3, 4, 1), 0, range(40), 10, (40, 16))


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8))
def test_a_box_is_that_part_of_the_whole(top: int, left: int, height: int, width: int) -> None:
    """A box counts its surroundings under the filter, so it is a crop of the whole enlarged."""
    pixels = random(16, 16, 1)
    whole = resize(pixels, (64, 64))
    part = resize(pixels, (4 * height, 4 * width), box=(top, left, height, width))
    want = whole[4 * top : 4 * (top + height), 4 * left : 4 * (left + width)]
    np.testing.assert_allclose(part, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("filter", sorted(FILTERS))
def test_flat_stays_flat_and_the_same_size_stays_the_same(filter: str) -> None:
    np.testing.assert_allclose(resize(np.full((5, 6, 3), 0.3, np.float32), (50, 7), filter), 0.3, atol=1e-6)
    pixels = random(5, 6, 3)
    same = resize(pixels, (5, 6), filter)
    np.testing.assert_array_equal(same, pixels)
    assert not np.shares_memory(same, pixels)


def test_planes_and_pictures_alike() -> None:
    pixels = random(5, 6, 1)
    np.testing.assert_array_equal(resize(pixels, (9, 8))[..., 0], resize(pixels[..., 0], (9, 8)))


def test_linear_light_averages_light() -> None:
    checker = np.indices((16, 16)).sum(axis=0)[..., None].astype(np.float32) % 2
    light = to_linear(resize(checker, (1, 1), "bilinear", linear_light=True))
    assert light[0, 0, 0] == pytest.approx(0.5, abs=0.01)
    assert resize(checker, (1, 1), "bilinear")[0, 0, 0] == pytest.approx(0.5, abs=0.01)
    pixels = waves(9, 8)
    want = to_encoded(resize(to_linear(pixels), (4, 5)))
    np.testing.assert_array_equal(resize(pixels, (4, 5), linear_light=True), want)


def test_reducing_does_not_alias() -> None:
    checker = np.indices((64, 64)).sum(axis=0)[..., None].astype(np.float32) % 2
    for filter in ("bilinear", "bicubic", "lanczos"):
        assert resize(checker, (9, 9), filter)[2:-2, 2:-2].std() < 0.02


@pytest.mark.parametrize(
    ("size", "filter", "says"), [((0, 5), "bicubic", "5x0"), ((5, 5), "cubic", "choose one of nearest")]
)
def test_wrong_sizes_and_filters_are_refused(size: tuple[int, int], filter: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        resize(random(4, 4, 1), size, filter)
