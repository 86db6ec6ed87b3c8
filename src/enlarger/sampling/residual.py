"""The diffusion process of `pocket`: a residual that is shifted to zero while noise is added.

The clean signal is the residual r = HR - enlarged(LR).  At level eta, 0 < eta <= 1, the state is

    z = (1 - eta) r + strength * kappa * sqrt(eta) * noise

which is ResShift's marginal (Yue et al. 2023, arXiv 2307.12348, eq. 2) written for the residual.  The network predicts
r from z, so one evaluation is already a picture, and a step replaces r by its prediction.  The noise is drawn once for
a picture and kept for all steps: the steps refine one sample instead of drawing another, and with noise that is a
function of the position every step is a local operation.  `strength` is the temperature: at 0 the process is a
regression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from enlarger.networks.pocket import KAPPA
from enlarger.sampling.steps import Adjust, Moment

if TYPE_CHECKING:
    from enlarger.canvas.noise import NoiseSource

SCHEDULES: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (1.0, 0.35), 4: (1.0, 0.6, 0.3, 0.1)}
"""The levels eta of each number of steps, noisiest first; the first is 1, where nothing of r is known yet."""


class Predictor(Protocol):
    """What predicts the clean residual: `PocketNet`, or anything called like it."""

    def __call__(self, source: Tensor, state: Tensor, eta: Tensor, strength: Tensor) -> Tensor:
        """Predict r, (B, 3, 4h, 4w)."""


def state_at(eta: float, residual: Tensor | None, noise: Tensor, strength: float | Tensor) -> Tensor:
    """The state z at level `eta`.

    Args:
        eta: the level, 0..1.
        residual: r or a prediction of it, (B, 3, H, W); None where nothing is known (only eta = 1 needs nothing).
        noise: standard normal values, (B, 3, H, W).
        strength: the temperature, a number or (B,) in 0..1.
    """
    if isinstance(strength, Tensor):
        strength = strength.view(-1, 1, 1, 1)
    noisy = noise * (strength * (KAPPA * math.sqrt(eta)))
    return noisy if residual is None else (1 - eta) * residual + noisy


def run(
    predict: Predictor, source: Tensor, noise: Tensor, strength: Tensor, levels: Sequence[float]
) -> tuple[Tensor | None, Tensor | None]:
    """Go through `levels`, from nothing known.

    Args:
        predict: the network.
        source: the small picture, (B, 3, h, w) in -1..1.
        noise: standard normal values, (B, 3, 4h, 4w), the same at every level.
        strength: the temperature, (B,) in 0..1.
        levels: eta of each evaluation; empty to evaluate nothing.

    Returns:
        The last prediction of the residual and the state it was made from, (B, 3, 4h, 4w); None without levels.
    """
    residual: Tensor | None = None
    state: Tensor | None = None
    for eta in levels:
        state = state_at(eta, residual, noise, strength)
        residual = predict(source, state, torch.full_like(strength, eta), strength)
    return residual, state


class ResidualSteps:
    """The process as the sampling loop asks for it (`enlarger.sampling.steps.Steps`)."""

    def __init__(self, count: int, strength: float) -> None:
        """Cut the process into `count` steps (1, 2 or 4) at temperature `strength` in 0..1."""
        if count not in SCHEDULES:
            raise ValueError(f"pocket runs in 1, 2 or 4 steps, not {count}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in 0..1, not {strength}")
        self.strength = strength
        self._moments = tuple(
            Moment(count - 1 - place, count, eta, strength * KAPPA * math.sqrt(eta))
            for place, eta in enumerate(SCHEDULES[count])
        )

    @property
    def moments(self) -> Sequence[Moment]:
        """All moments, noisiest first; a timestep is an eta, a sigma the deviation of the noise in the state."""
        return self._moments

    def start(self, noise: NoiseSource, shape: Sequence[int], latent: Tensor | None = None) -> Tensor:
        """The state at the first moment; `latent` is a known residual. `noise` is positional: it never runs on."""
        return state_at(self._moments[0].timestep, latent, noise.draw(shape), self.strength)

    def scale(self, noisy: Tensor, moment: Moment) -> Tensor:
        """The state as it is: the network scales it itself."""
        return noisy

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The state at the next moment, or after the last one the clean residual.

        Nothing is remembered between calls, so tiles may be at different moments; `noise` is positional and gives
        the same values at every step.
        """
        residual = self.clean(prediction, noisy, moment)
        if adjust is not None:
            residual = adjust(residual, moment)
        if moment.index == 0:
            return residual
        following = self._moments[moment.count - moment.index]
        return state_at(following.timestep, residual, noise.draw(residual.shape), self.strength)

    def clean(self, prediction: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The clean residual: the prediction itself."""
        return prediction
