from __future__ import annotations

import numpy as np
import pytest

from enlarger.evaluation.statistics import difference, estimate


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(120):
        given = estimate(rng.normal(5, 2, 40))
        hits += given.low <= 5 <= given.high
    assert 0.88 <= hits / 120 <= 0.99


def test_its_width_is_that_of_the_standard_error():
    values = np.random.default_rng(2).normal(0, 1, 400)
    given = estimate(values)
    assert given.high - given.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert given.mean == pytest.approx(values.mean())
    assert given.pictures == 400


def test_pairing_takes_out_what_pictures_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(25, 4, 30)
    first, second = hard + rng.normal(0, 0.1, 30), hard + 0.3 + rng.normal(0, 0.1, 30)
    gain = difference(second, first)
    assert gain.low > 0.2
    assert gain.high - gain.low < 0.2
    assert estimate(first).high - estimate(first).low > 2


def test_the_same_numbers_give_the_same_interval_and_one_number_has_none():
    assert estimate([1.0, 2.0, 4.0]) == estimate([1.0, 2.0, 4.0])
    single = estimate([3.5])
    assert (single.low, single.mean, single.high, single.pictures) == (3.5, 3.5, 3.5, 1)
