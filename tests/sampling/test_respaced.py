from __future__ import annotations

import numpy as np
import pytest
import torch

from enlarger.errors import SettingsError
from enlarger.sampling.respaced import (
    RespacedDDIM,
    RespacedDDPM,
    respaced_timesteps,
    training_chain,
    uniform_timesteps,
)

PREDICTIONS = ("epsilon", "v_prediction")


class Drawn:
    """Recorded noise that counts its draws."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.fields = []

    def draw(self, shape):
        self.fields.append(torch.randn(tuple(shape), generator=self.generator))
        return self.fields[-1]


def toy(noisy, timestep):
    """A network: smooth in state and time."""
    return torch.tanh(noisy * 0.7 + timestep / 1500) * 0.9


def through(steps, noise, latent=None, adjust=None):
    state = steps.start(noise, (1, 4, 3, 5), latent)
    for moment in steps.moments:
        state = steps.step(toy(state, moment.timestep), state, moment, noise, adjust)
    return state


@pytest.mark.parametrize("count", [2, 3, 7, 20, 200, 1000])
def test_kept_timesteps_span_the_training_without_doubles(count):
    kept = respaced_timesteps(count)
    assert len(set(kept)) == count
    assert (kept[0], kept[-1]) == (0, 999)
    assert max(abs(step - i * 999 / (count - 1)) for i, step in enumerate(kept)) <= 0.5 + 1e-9


def test_one_step_starts_at_the_noise_and_not_at_the_picture():
    assert respaced_timesteps(1) == (999,)


def test_published_lists_are_met():
    """Table of the specification; halves round to even there, which 50 and 20 steps show."""
    assert respaced_timesteps(4) == (0, 333, 666, 999)
    assert respaced_timesteps(8) == (0, 143, 285, 428, 571, 714, 856, 999)
    assert respaced_timesteps(50)[:6] == (0, 20, 41, 61, 82, 102)
    assert uniform_timesteps(200)[-1] == 995
    assert uniform_timesteps(3) == (0, 333, 666, 999)  # more than asked for, as published


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [2, 4, 20])
def test_ddpm_is_diffusers_with_the_kept_timesteps(count, prediction):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (the extra 'diffusers')")
    scheduler = diffusers.DDPMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, variance_type="fixed_small",
        prediction_type=prediction,
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=list(reversed(respaced_timesteps(count))))
    noise = Drawn()
    ours = through(RespacedDDPM(count, prediction=prediction), noise)
    fields = iter(noise.fields)
    theirs = next(fields)
    for timestep in scheduler.timesteps:
        output = toy(theirs, float(timestep))
        step = scheduler.step(output, timestep, theirs, generator=torch.Generator().manual_seed(0), return_dict=False)
        # Its own noise is taken out, the recorded one put in.
        quiet, own = step[0], torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
        spread = scheduler._get_variance(timestep) ** 0.5 if timestep > 0 else 0.0
        theirs = quiet - spread * own + (spread * next(fields) if timestep > 0 else 0.0)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert next(fields, None) is None  # the last step draws nothing


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_finds_the_picture(prediction):
    """DDIM without noise, and any number of steps, ends at x0 when the prediction is true."""
    clean = torch.randn(1, 4, 3, 5)
    for steps in (RespacedDDIM(7, prediction=prediction), RespacedDDPM(7, prediction=prediction)):
        state = steps.start(Drawn(), clean.shape)
        for moment in steps.moments:
            signal, sigma = steps._signal[moment.index], steps._noise[moment.index]
            noise = (state - signal * clean) / sigma
            told = noise if prediction == "epsilon" else signal * noise - sigma * clean
            torch.testing.assert_close(steps.clean(told, state, moment), clean, atol=1e-3, rtol=1e-3)
            state = steps.step(told, state, moment, Drawn(1))
        torch.testing.assert_close(state, clean, atol=1e-3, rtol=1e-3)


def test_the_published_ddim_leaves_noise_and_ours_does_not():
    clean = torch.zeros(1, 1, 8, 8)

    def left(steps):
        state = steps.start(Drawn(), clean.shape)
        for moment in steps.moments:
            state = steps.step(state / steps._noise[moment.index], state, moment, Drawn(1))
        return float(state.std())

    assert left(RespacedDDIM(20)) < 1e-5
    assert left(RespacedDDIM(20, published=True)) == pytest.approx(0.029, rel=0.3)  # sqrt(1 - 0.99915)


def test_strength_runs_the_last_steps_from_the_noised_latent():
    latent, noise = torch.full((1, 4, 3, 5), 2.0), Drawn()
    steps = RespacedDDPM(4, strength=0.75)
    assert [moment.timestep for moment in steps.moments] == [666, 333, 0]
    started = steps.start(noise, latent.shape, latent)
    share = training_chain().alphas_cumprod[666]
    torch.testing.assert_close(
        started, share**0.5 * latent + (1 - share) ** 0.5 * noise.fields[0], atol=1e-6, rtol=1e-6
    )
    small = RespacedDDPM(4, strength=0.01)
    assert len(small.moments) == 1
    assert small.raised
    assert not steps.raised


def test_eta_adds_fresh_noise_and_nothing_else_does():
    quiet, loud = Drawn(), Drawn()
    through(RespacedDDIM(6), quiet)
    through(RespacedDDIM(6, eta=1.0), loud)
    assert len(quiet.fields) == 1
    assert len(loud.fields) == 6  # the start, and each step but the last
    at_full = RespacedDDIM(6, eta=1.0)
    variance = np.exp(RespacedDDPM(6).chain.posterior_log_variance_clipped)
    assert at_full.sigmas[1:] ** 2 == pytest.approx(variance[1:], rel=1e-3)  # eta 1 is DDPM's own noise


@pytest.mark.parametrize("make", [RespacedDDPM, RespacedDDIM])
def test_a_changed_estimate_is_where_the_last_step_ends(make):
    goal = torch.full((1, 4, 3, 5), -3.0)
    made = through(make(5), Drawn(), adjust=lambda clean, moment: goal)
    torch.testing.assert_close(made, goal, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RespacedDDPM(0), "steps 0 is out of range"),
        (lambda: RespacedDDIM(1001), "steps 1001 is out of range"),
        (lambda: RespacedDDPM(4, strength=1.5), "strength 1.5"),
        (lambda: RespacedDDIM(4, eta=-1), "eta -1"),
    ],
)
def test_what_is_out_of_range_is_told(make, said):
    with pytest.raises(SettingsError, match=said):
        make()
