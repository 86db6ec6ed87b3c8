from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from enlarger.evaluation.sheet import Column, disagreement, draw, places


def test_the_first_place_is_where_results_differ_most():
    results = [np.full((60, 80, 3), 100, np.uint8) for _ in range(3)]
    results[1][40:48, 50:58] = 200
    results[2][5:13, 5:13] = 130
    spots = places(disagreement(results), 8, 2)
    assert spots == [(40, 50), (5, 5)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), st.integers(0, 9))
def test_places_lie_inside_and_never_overlap(height, width, side, count, seed):
    spots = places(np.random.default_rng(seed).random((height, width)), side, count)
    side = min(side, height, width)
    assert 1 <= len(spots) <= count
    for i, (top, left) in enumerate(spots):
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
        assert all(abs(top - y) >= side or abs(left - x) >= side for y, x in spots[:i])


def test_crops_are_shown_pixel_by_pixel_and_labels_never_widen_the_sheet():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    sheet = np.asarray(draw(pixels, [Column("x" * 500, pixels)] * 3, [(10, 20)], 16, 6))
    assert sheet.shape[1] == 12 + 3 * (96 + 12)
    shown = sheet[-(96 + 12) : -12, 12 + 108 : 12 + 108 + 96]
    assert np.array_equal(shown[::6, ::6], pixels[10:26, 20:36])
    assert np.array_equal(shown[5::6, 5::6], pixels[10:26, 20:36])


def test_a_picture_smaller_than_a_crop_is_shown_whole():
    pixels = np.zeros((5, 9, 3), np.uint8)
    assert draw(pixels, [Column("a", pixels)], places(np.zeros((5, 9)), 64, 3), 64, 2).height > 0
