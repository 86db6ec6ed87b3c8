"""StableSR's processes as `Steps`: ancestral DDPM and DDIM over few of the training's 1000 steps.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), equations 6, 7 and 15; respaced after
Nichol and Dhariwal 2021, "Improved DDPM" (arXiv 2102.09672), section 4: the noise between two kept steps is that of all
steps between them. DDIM after Song et al. 2021 (arXiv 2010.02502), equations 12 and 16. The networks get the training's
own timesteps; coefficients are the respaced chain's.

Both are stateless: a step is a function of the moment and of what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from enlarger.errors import SettingsError
from enlarger.sampling.steps import Adjust, Moment

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.noise import NoiseSource

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_VARIANCE = 1e-20
"""The posterior's variance of the last step is 0; its logarithm is cut here."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of noise levels and everything that follows from it; index 0 is the least noisy.

    Attributes:
        timesteps: Of the training, ascending; what networks get.
        betas: Share of noise that each step of the chain adds, float64.
    """

    timesteps: tuple[int, ...]
    betas: Array

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def alphas_cumprod(self) -> Array:
        """Share of the clean signal's variance in each state (Ho et al., alpha-bar), float64."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Array:
        """The same one step closer to the picture; 1 before the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_variance(self) -> Array:
        """Of a state, given the next one and the clean signal (Ho et al., equation 7)."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Array:
        """Its logarithm; finite for the last step too."""
        return np.log(np.maximum(self.posterior_variance, LEAST_VARIANCE))

    @cached_property
    def posterior_mean_coef1(self) -> Array:
        """Weight of the clean signal in the posterior's mean."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Array:
        """Weight of the state in it."""
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)


def training_chain(start: float = 0.00085, end: float = 0.012, count: int = 1000) -> Chain:
    """The chain that Stable Diffusion is trained with: linear in the square root of beta."""
    return Chain(tuple(range(count)), np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2)


def respaced_timesteps(count: int, training: int = 1000) -> tuple[int, ...]:
    """The kept timesteps, ascending: equal strides from first to last, each rounded (half to even).

    Raises:
        SettingsError: More steps than the training has, or none.
    """
    if not 1 <= count <= training:
        raise SettingsError(f"steps {count} is out of range: 1 to {training}")
    if count == 1:
        return (training - 1,)  # the published rule keeps 0 alone, which denoises nothing
    stride, place, kept = (training - 1) / (count - 1), 0.0, []
    for _ in range(count):
        kept.append(round(place))
        place += stride
    return tuple(sorted(set(kept)))


def uniform_timesteps(count: int, training: int = 1000) -> tuple[int, ...]:
    """Every (training // count)-th timestep from 0 on, ascending; may be more than `count`."""
    return tuple(range(0, training, training // count))


def respaced(chain: Chain, timesteps: Sequence[int]) -> Chain:
    """The chain that keeps only some timesteps, with all noise between them."""
    # Single precision here is the published arithmetic; it shifts the noisiest steps by some 1e-5.
    kept = chain.alphas_cumprod.astype(np.float32)[list(timesteps)]
    before = np.append(np.float32(1), kept[:-1])
    return Chain(tuple(timesteps), (np.float32(1) - kept / before).astype(np.float64))


class _Kept:
    """What both processes share: which moments are run, and how they begin.

    Attributes:
        prediction: What the network predicts, "epsilon" or "v_prediction".
        raised: Whether `strength` asked for less than one step and one is run.
    """

    def __init__(
        self, chain: Chain, timesteps: Sequence[int], shares: Array, prediction: str, strength: float | None
    ) -> None:
        """Set up.

        Args:
            chain: The training's, for the start.
            timesteps: What the networks get, ascending.
            shares: Alpha-bar of each state.
            prediction: "epsilon" or "v_prediction".
            strength: Share of the steps that is run, the last ones; None is all, as 1 is.

        Raises:
            SettingsError: A strength out of range.
        """
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction {prediction!r} must be epsilon or v_prediction")
        if strength is not None and not 0 < strength <= 1:
            raise SettingsError(f"strength {strength} is out of range: above 0 and at most 1")
        self.prediction = prediction
        whole = len(timesteps)
        asked = whole if strength is None else int(whole * strength)
        self.raised = asked < 1
        count = max(1, asked)
        self._signal: list[float] = np.sqrt(shares).tolist()
        self._noise: list[float] = np.sqrt(1.0 - shares).tolist()
        self._moments = tuple(
            Moment(index, count, float(timesteps[index]), self._noise[index]) for index in reversed(range(count))
        )
        first = chain.alphas_cumprod[timesteps[count - 1]]
        self._start = math.sqrt(first), math.sqrt(1.0 - first)

    @property
    def moments(self) -> Sequence[Moment]:
        """The kept timesteps that are run, noisiest first."""
        return self._moments

    def start(self, noise: NoiseSource, shape: Sequence[int], latent: Tensor | None = None) -> Tensor:
        """The state at the first moment; one draw of `shape`.

        Args:
            noise: Where the draw comes from.
            shape: Of the state, (B, C, h, w).
            latent: What the process starts from, noised as far as the training has it at that timestep; None is
                pure noise.
        """
        drawn = noise.draw(shape)
        if latent is None:
            return drawn
        signal, sigma = self._start
        return signal * latent.float() + sigma * drawn.to(latent.device)

    def scale(self, noisy: Tensor, moment: Moment) -> Tensor:
        """The state as it is."""
        return noisy

    def clean(self, prediction: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The clean estimate x0, never clipped.

        Epsilon: noisy = signal * x0 + sigma * epsilon. V: x0 = signal * noisy - sigma * v (Salimans and Ho 2022,
        arXiv 2202.00512, appendix D).
        """
        signal, sigma = self._signal[moment.index], self._noise[moment.index]
        clean: Tensor
        if self.prediction == "v_prediction":
            clean = signal * noisy - sigma * prediction
        else:
            clean = noisy / signal - (sigma / signal) * prediction
        return clean


class RespacedDDPM(_Kept):
    """Ancestral sampling: a step draws from the posterior of the state before (Ho et al. 2020, equation 6)."""

    def __init__(
        self, count: int, *, prediction: str = "epsilon", strength: float | None = None, chain: Chain | None = None
    ) -> None:
        """Cut the process.

        Args:
            count: Steps of a full run, 1 to 1000.
            prediction: What the network predicts, "epsilon" or "v_prediction".
            strength: Share of the steps that is run, the last ones; at least one step.
            chain: The training's; Stable Diffusion's if None.

        Raises:
            SettingsError: Steps or strength out of range.
        """
        training = chain or training_chain()
        self.chain = respaced(training, respaced_timesteps(count, len(training)))
        super().__init__(training, self.chain.timesteps, self.chain.alphas_cumprod, prediction, strength)

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The state at the next moment: one draw, but for the last step, which ends at x0 itself."""
        clean = self.clean(prediction, noisy, moment)
        if adjust is not None:
            clean = adjust(clean, moment)
        mean = self.mean(clean, noisy, moment)
        if moment.index == 0:
            return mean
        deviation = math.exp(0.5 * float(self.chain.posterior_log_variance_clipped[moment.index]))
        return mean + deviation * noise.draw(noisy.shape).to(noisy.device)

    def mean(self, clean: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The posterior's mean, (B, C, h, w)."""
        of_clean = float(self.chain.posterior_mean_coef1[moment.index])
        of_noisy = float(self.chain.posterior_mean_coef2[moment.index])
        return of_clean * clean + of_noisy * noisy


class RespacedDDIM(_Kept):
    """DDIM: a step goes along the predicted noise, with a share of fresh noise (Song et al. 2021, equation 12).

    Attributes:
        shares: Alpha-bar of the state at each moment, index 0 the least noisy.
        shares_prev: The same one step closer to the picture.
        sigmas: Deviation of the fresh noise of each step.
    """

    def __init__(
        self,
        count: int,
        *,
        prediction: str = "epsilon",
        eta: float = 0.0,
        strength: float | None = None,
        published: bool = False,
        timesteps: Sequence[int] | None = None,
        chain: Chain | None = None,
    ) -> None:
        """Cut the process.

        Args:
            count: Steps of a full run, 1 to 1000.
            prediction: What the network predicts, "epsilon" or "v_prediction".
            eta: Share of fresh noise, 0 to 1.
            strength: Share of the steps that is run, the last ones; at least one step.
            published: The original scripts' coefficients: those of uniform timesteps, whatever the networks get, and
                no last step, so that noise of 0.029 stays in the latent. Only for comparing with them.
            timesteps: What the networks get, ascending; `respaced_timesteps` if None.
            chain: The training's; Stable Diffusion's if None.

        Raises:
            SettingsError: Steps, eta or strength out of range.
        """
        if not 0 <= eta <= 1:
            raise SettingsError(f"eta {eta} is out of range: 0 to 1")
        training = chain or training_chain()
        seen = tuple(timesteps) if timesteps is not None else respaced_timesteps(count, len(training))
        levels = uniform_timesteps(count, len(training))[:count] if published else seen
        kept = training.alphas_cumprod.astype(np.float32).astype(np.float64)
        self.shares: Array = kept[list(levels)]
        self.shares_prev: Array = np.append(kept[0] if published else 1.0, self.shares[:-1])
        self.sigmas: Array = ddim_sigmas(self.shares, self.shares_prev, eta)
        super().__init__(training, seen, self.shares, prediction, strength)

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The state at the next moment; one draw wherever fresh noise is added."""
        signal, sigma = self._signal[moment.index], self._noise[moment.index]
        clean = self.clean(prediction, noisy, moment)
        if adjust is not None:
            clean = adjust(clean, moment)
        towards = (noisy - signal * clean) / sigma
        before, fresh = float(self.shares_prev[moment.index]), float(self.sigmas[moment.index])
        following = math.sqrt(before) * clean + math.sqrt(max(0.0, 1 - before - fresh**2)) * towards
        if fresh:
            following = following + fresh * noise.draw(noisy.shape).to(noisy.device)
        return following


def ddim_sigmas(shares: Array, shares_prev: Array, eta: float) -> Array:
    """Deviation of the fresh noise of each DDIM step (Song et al. 2021, equation 16)."""
    spread: Array = np.sqrt((1 - shares_prev) / (1 - shares)) * np.sqrt(np.maximum(1 - shares / shares_prev, 0))
    return eta * spread
