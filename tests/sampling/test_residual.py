"""pocket's process: the closed form, one noise for all steps, strength as temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from enlarger.networks.pocket import KAPPA
from enlarger.sampling.residual import SCHEDULES, ResidualSteps, run, state_at


class Fixed:
    """A positional source: the same place always gets the same values."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def draw(self, shape: Sequence[int]) -> Tensor:
        assert tuple(shape) == tuple(self.values.shape)
        return self.values


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def predicted(state: Tensor, eta: float) -> Tensor:
    """Stands for the network: any function of state and eta."""
    return 0.3 * state.sin() + 0.1 * eta


@pytest.mark.parametrize("count", sorted(SCHEDULES))
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_steps_follow_the_closed_form(count: int, strength: float, noise: Tensor) -> None:
    steps = ResidualSteps(count, strength)
    source = Fixed(noise)
    state = steps.start(source, noise.shape)
    residual = torch.zeros_like(noise)
    for place, moment in enumerate(steps.moments):
        eta = SCHEDULES[count][place]
        assert (moment.index, moment.count, moment.timestep) == (count - 1 - place, count, eta)
        assert moment.sigma == pytest.approx(strength * 0.25 * math.sqrt(eta))
        expected = (1 - eta) * residual + strength * 0.25 * math.sqrt(eta) * noise
        assert torch.allclose(state, expected, atol=1e-6)
        residual = predicted(state, eta)
        state = steps.step(residual, state, moment, source)
    assert torch.equal(state, residual)


@pytest.mark.parametrize("count", sorted(SCHEDULES))
def test_training_and_sampling_go_the_same_way(count: int, noise: Tensor) -> None:
    def predict(source: Tensor, state: Tensor, eta: Tensor, strength: Tensor) -> Tensor:
        return predicted(state, float(eta[0])) + 0.01 * strength.view(-1, 1, 1, 1)

    trained, _ = run(predict, torch.zeros(2, 3, 2, 2), noise, torch.tensor([0.6, 0.6]), SCHEDULES[count])
    steps = ResidualSteps(count, 0.6)
    source = Fixed(noise)
    state = steps.start(source, noise.shape)
    for moment in steps.moments:
        state = steps.step(predicted(state, moment.timestep) + 0.01 * 0.6, state, moment, source)
    assert trained is not None
    assert torch.allclose(trained, state, atol=1e-6)


def test_the_state_has_the_stated_spread() -> None:
    values = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    residual = torch.full_like(values, 0.2)
    state = state_at(0.36, residual, values, torch.tensor([0.5]))
    assert state.mean() == pytest.approx(0.64 * 0.2, abs=1e-3)
    assert state.std() == pytest.approx(0.5 * KAPPA * 0.6, rel=0.01)


def test_no_strength_means_no_noise(noise: Tensor) -> None:
    assert not ResidualSteps(4, 0.0).start(Fixed(noise), noise.shape).any()


def test_a_change_of_the_clean_estimate_is_used(noise: Tensor) -> None:
    steps = ResidualSteps(2, 1.0)
    source = Fixed(noise)
    state = steps.start(source, noise.shape)
    zero = steps.step(torch.ones_like(noise), state, steps.moments[0], source, adjust=lambda clean, _: clean * 0)
    assert torch.allclose(zero, KAPPA * math.sqrt(0.35) * noise)


@pytest.mark.parametrize(("count", "strength"), [(3, 0.5), (0, 0.5), (2, -0.1), (2, 1.1)])
def test_what_the_process_has_not_is_refused(count: int, strength: float) -> None:
    with pytest.raises(ValueError, match="not"):
        ResidualSteps(count, strength)
