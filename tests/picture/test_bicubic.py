from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enlarger.picture.bicubic import resize, resize_floats, shrink, taps
from tests.evaluation.conftest import truth

REFERENCES = json.loads((Path(__file__).parents[1] / "evaluation" / "references.json").read_text())


@pytest.fixture
def reference():
    """The picture that the stored values were made of."""
    return truth(72, 90)


def test_shrinking_equals_basicsr(reference):
    small = resize_floats(reference.astype(np.float64), 36, 45)
    assert small[0, :, 0] == pytest.approx(REFERENCES["basicsr 1.4.2"]["imresize_half_row_0_red"], abs=2e-4)


def test_a_quarter_uses_sixteen_taps_that_filter():
    weights, positions = taps(64, 16, 1 / 4)
    assert weights.shape == (16, 16)
    assert positions[5].tolist() == list(range(14, 30))
    # Keys' cubic stretched by 4, by hand: distance 0.5 / 4 of the two middle samples.
    assert weights[5, 7] * 4 == pytest.approx(1.5 * 0.125**3 - 2.5 * 0.125**2 + 1)


def test_edges_are_mirrored_with_the_border_repeated():
    line = np.arange(8, dtype=np.float64).reshape(1, 8)
    mirrored = np.concatenate([line[:, ::-1], line, line[:, ::-1]], axis=1)
    inner = resize_floats(mirrored, 1, 96)[:, 32:64]
    np.testing.assert_allclose(resize_floats(line, 1, 32), inner, atol=1e-12)


def test_bytes_round_halves_up_and_clip():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:, 2:] = 255
    enlarged = resize(picture, 4, 16)
    assert enlarged.dtype == np.uint8
    assert enlarged.min() == 0
    assert enlarged.max() == 255  # the overshoot beside the edge is clipped, not wrapped around
    assert (resize(picture / 255, 4, 16) > 1).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 255))
def test_a_flat_picture_stays_flat_at_any_size(height, width, tall, wide, level):
    flat = np.full((height, width, 3), level, np.uint8)
    resized = resize(flat, tall, wide)
    assert resized.shape == (tall, wide, 3)
    assert (resized == level).all()


def test_shrink_refuses_sides_that_do_not_divide(reference):
    with pytest.raises(ValueError, match="90x72 is not a multiple of 4"):
        shrink(reference, 4)
