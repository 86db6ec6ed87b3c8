from __future__ import annotations

import numpy as np
import pytest

from enlarger.errors import PictureError
from enlarger.evaluation.artefacts import grid_score, seam_score

BORDERS = (32, 64, 96)


def tiles_of_their_own_tone(picture, step=3.0):
    """What unblended tiles do: each has its own brightness."""
    toned = picture.astype(np.float64) / 255
    for i, start in enumerate((0, *BORDERS)):
        toned[:, start:] += (step / 255) * (-1) ** i
    return toned


def blended_over_sixteen(picture, step=3.0):
    x = np.arange(128)
    tone = np.zeros(128)
    for i, start in enumerate((0, *BORDERS)):
        ramp = 0.5 - 0.5 * np.cos(np.pi * np.clip((x + 0.5 - (start - 8)) / 16, 0, 1))
        tone += (step / 255) * (-1) ** i * (ramp if start else 1)
    return picture.astype(np.float64) / 255 + tone[None, :, None]


def both_edges():
    return [border + side for border in BORDERS for side in (-8, 8)]


@pytest.mark.parametrize("kind", ["flat", "gradient", "texture"])
def test_hard_borders_score_above_one_and_a_half_and_blended_ones_near_one(kind, texture):
    ramp = np.repeat(np.linspace(0, 250, 128)[None, :, None], 96, axis=0).repeat(3, axis=2)
    picture = {"flat": np.full((96, 128, 3), 120.0), "gradient": ramp, "texture": texture}[kind]
    assert seam_score(tiles_of_their_own_tone(picture), columns=BORDERS) > 1.5
    limit = 1.15 if kind == "texture" else 1.05
    assert seam_score(blended_over_sixteen(picture), columns=both_edges()) < limit
    assert seam_score(picture / 255, columns=BORDERS) < limit


@pytest.fixture
def texture():
    # Smooth random fields, as photographs have: neighbouring pixels hang together.
    field = np.random.default_rng(2).normal(0, 60, (200, 144, 3))
    for _ in range(2):
        height, width = field.shape[0] - 7, field.shape[1] - 7
        field = sum(field[i : i + height, j : j + width] for i in range(8) for j in range(8)) / 40
    return np.clip(120 + field[:, :128], 0, 255)


def test_rows_and_columns_are_told_apart(texture):
    toned = tiles_of_their_own_tone(texture)
    turned = toned.transpose(1, 0, 2)
    assert seam_score(turned, rows=BORDERS) == pytest.approx(seam_score(toned, columns=BORDERS))
    assert seam_score(toned, rows=(32, 64)) < 1.2


def test_a_step_between_flat_tiles_scores_its_height_and_one():
    assert seam_score(tiles_of_their_own_tone(np.full((96, 128, 3), 120.0)), columns=BORDERS) == pytest.approx(4)


def test_a_flat_picture_scores_exactly_one():
    assert seam_score(np.full((64, 64, 3), 99, np.uint8), (32,), (32,)) == 1


def test_borders_that_are_not_in_the_picture_are_refused(texture):
    with pytest.raises(PictureError, match="no tile border"):
        seam_score(texture / 255)
    with pytest.raises(PictureError, match=r"\[128\]"):
        seam_score(texture / 255, columns=(64, 128))


def test_grid_score_sees_a_grid_of_four_and_nothing_else(texture):
    def with_grid(period):
        # Cells of their own tone: steps only where a cell begins, not where it ends.
        rows, columns = (np.arange(side) // period for side in texture.shape[:2])
        tone = (rows[:, None] * 7 + columns * 5) % 11 * 1.5
        return np.clip(texture + tone[..., None], 0, 255).astype(np.uint8)

    clean = grid_score(texture.astype(np.uint8))
    assert clean == pytest.approx(1, abs=0.03)
    assert grid_score(with_grid(4)) > clean + 0.1
    assert grid_score(with_grid(5)) == pytest.approx(clean, abs=0.05)


def test_grid_score_of_a_flat_picture_is_one_and_tiny_ones_are_refused():
    assert grid_score(np.full((16, 16, 3), 7, np.uint8)) == 1
    with pytest.raises(PictureError, match="at least 8"):
        grid_score(np.zeros((7, 30, 3), np.uint8))


@pytest.mark.slow
def test_grid_score_of_set14_is_as_the_trial_measured(benchmarks):
    """reference/pocket_trial.md: true pictures 1.012 in the mean, 1.107 at worst."""
    from enlarger.evaluation.folders import pictures_in
    from enlarger.picture.read import read_rgb

    scores = [grid_score(read_rgb(path)) for path in pictures_in(benchmarks / "Set14" / "HR").values()]
    assert (np.mean(scores), max(scores)) == pytest.approx((1.012, 1.107), abs=6e-4)
