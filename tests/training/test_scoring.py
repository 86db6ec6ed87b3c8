"""The energy score asks for the truth's spread, and for as much less as it is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from enlarger.training.scoring import distance, energy_score


def mean_score(deviation: float, spread: float, dimensions: int) -> float:
    """The mean score of a model N(0, deviation^2) where the truth is N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    first, second, truth = torch.randn(3, 1, dimensions, 400, 400, generator=generator)
    return float(energy_score(first * deviation, second * deviation, truth, torch.tensor([spread])))


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("spread", [1.0, 0.8])
def test_the_best_spread_is_the_truths_or_less(spread: float, dimensions: int) -> None:
    # In one dimension E|x - y| = sqrt(2/pi) sqrt(1 + s^2) and E|x - x'| = sqrt(2/pi) sqrt(2) s, hence the best s;
    # a norm in more dimensions scales both alike.
    best = math.sqrt((spread**2 / 2) / (1 - spread**2 / 2))
    assert best == pytest.approx(1.0) or spread < 1
    score = mean_score(best, spread, dimensions)
    assert score < mean_score(best + 0.15, spread, dimensions)
    assert score < mean_score(best - 0.15, spread, dimensions)


def test_without_spread_the_best_sample_is_no_sample() -> None:
    assert mean_score(0.0, 0.0, 1) < mean_score(0.2, 0.0, 1) < mean_score(0.5, 0.0, 1)


def test_a_wrong_place_costs() -> None:
    first, second, truth = torch.randn(3, 1, 2, 200, 200, generator=torch.Generator().manual_seed(0))
    full = torch.ones(1)
    assert energy_score(first + 0.3, second + 0.3, truth, full) > energy_score(first, second, truth, full) + 0.01


def test_distance_is_euclidean_over_channels_and_a_mean_over_places() -> None:
    first = torch.zeros(2, 2, 1, 2)
    second = torch.tensor([[[[3.0, 0.0]], [[4.0, 1.0]]], [[[0.0, 0.0]], [[2.0, 0.0]]]])
    assert distance(first, second).tolist() == pytest.approx([3.0, 1.0], abs=1e-3)


def test_equal_samples_have_a_finite_gradient() -> None:
    same: Tensor = torch.zeros(1, 3, 4, 4, requires_grad=True)
    energy_score(same, same, torch.ones(1, 3, 4, 4), torch.ones(1)).sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
