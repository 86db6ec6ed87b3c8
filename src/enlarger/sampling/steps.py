"""The step protocol: what the loop asks of a diffusion process, whoever wrote it.

Diffusers' schedulers come onto it through `sampling.scheduler`, pocket's residual process is
`sampling.residual`. A `Steps` object is made fresh for each picture and is not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.noise import NoiseSource


@dataclass(frozen=True)
class Moment:
    """Where in the process a prediction is made.

    Attributes:
        index: Position counted from the lowest timestep: `count - 1` comes first, 0 last.
        count: Number of moments.
        timestep: What the network gets (a training index for Stable Diffusion, eta for pocket).
        sigma: Noise standard deviation of the state at this moment, in the state's own units.
    """

    index: int
    count: int
    timestep: float
    sigma: float


Adjust = Callable[["Tensor", Moment], "Tensor"]
"""An engine's change of the clean estimate x0 on the whole canvas."""


class Steps(Protocol):
    """A diffusion process cut into moments; the coefficients belong to it alone.

    `noise` gives the standard normal values that the process asks for, in the order it asks.
    """

    @property
    def moments(self) -> Sequence[Moment]:
        """All moments, noisiest first."""

    def start(self, noise: NoiseSource, shape: Sequence[int], latent: Tensor | None = None) -> Tensor:
        """The state at the first moment: pure noise, or `latent` (B, C, h, w) with that moment's noise."""

    def scale(self, noisy: Tensor, moment: Moment) -> Tensor:
        """The state as the network wants to see it (identity for most processes)."""

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The state at the next moment; after the last one, the clean result.

        Args:
            prediction: The network's output for `scale(noisy, moment)`, (B, C, h, w), guidance already applied.
            noisy: The state at `moment`, (B, C, h, w).
            moment: One of `moments`.
            noise: Where fresh noise comes from, for processes that need it.
            adjust: Optional change of the clean estimate.
        """

    def clean(self, prediction: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The clean estimate x0 that `prediction` stands for."""
