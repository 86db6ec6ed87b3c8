"""Diffusers' schedulers as `Steps`: one adapter for all of them.

The arithmetic stays diffusers', so equal names give equal pictures; this file only says which class, with which
configuration, in which order it is called, and where its noise comes from. A scheduler counts its calls and keeps
a history, so every picture gets a fresh one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from enlarger.errors import ModelError, SettingsError
from enlarger.sampling import names
from enlarger.sampling.steps import Adjust, Moment

if TYPE_CHECKING:
    from enlarger.canvas.noise import NoiseSource

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "x0", "original_sample": "x0"}
"""Diffusers' word for what the network predicts -> ours."""

_WITHOUT_X0 = {"PNDMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"}
"""They refuse a prediction of x0; it reaches them as the epsilon that it stands for."""

_EXPLODING = {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"}
"""Their state is x0 + sigma * noise (variance exploding); all others keep sqrt(abar) * x0 + sqrt(1 - abar) * noise."""


class DiffusersSteps:
    """One of diffusers' schedulers, set up for one picture (see `sampling.steps.Steps`).

    Attributes:
        name: Our name of the scheduler, also when the model's configuration chose it.
        prediction: What the network predicts: "epsilon", "v_prediction" or "x0".
        raised: Whether `strength` asked for less than one step and one is run.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        steps: int,
        *,
        name: str | None = None,
        prediction: str = "",
        spacing: str | None = None,
        eta: float = 0.0,
        strength: float | None = None,
    ) -> None:
        """Set up a scheduler.

        Args:
            config: The model's own scheduler configuration, as scheduler_config.json holds it. Only the keys that
                stand there go over to another scheduler, all others get that one's own defaults: diffusers' rule.
            steps: Steps of a full run; Heun and PNDM evaluate the network more often.
            name: Any name of a scheduler (see `names.find`); None takes the model's own.
            prediction: What the network predicts; "" takes the configuration's word.
            spacing: How timesteps are chosen; None takes the configuration's word.
            eta: Share of fresh noise, 0 .. 1, DDIM only.
            strength: Share of the steps that is run, the last ones; at least one step. None is a full run, as 1 is.

        Raises:
            SettingsError: An unknown name, or a value that this scheduler cannot take.
            ModelError: Diffusers is not installed, or the configuration names a scheduler that is not among ours.
        """
        own = str(config.get("_class_name", ""))
        try:
            scheduler = names.find(own if name is None else name)
        except SettingsError:
            if name is not None:
                raise
            raise ModelError(
                f"the model's configuration asks for the scheduler {own or '(none)'}, which is not among ours: "
                f"choose one of {', '.join(names.SCHEDULERS)} with --scheduler"
            ) from None
        # The model's own scheduler keeps all that its configuration says (a solver's order, Karras sigmas).
        changes = {} if name is None else dict(scheduler.changes)
        if spacing is not None:
            changes["timestep_spacing"] = names.check_spacing(spacing, scheduler)
        names.check_eta(eta, scheduler)
        self.prediction = _prediction(prediction or str(config.get("prediction_type", "epsilon")))
        self._as_epsilon = self.prediction == "x0" and scheduler.kind in _WITHOUT_X0
        theirs = next(word for word, ours in _PREDICTIONS.items() if ours == self.prediction)
        changes["prediction_type"] = "epsilon" if self._as_epsilon else theirs
        self._scheduler = _make(scheduler.kind, config, changes)
        if self._scheduler.config.get("use_karras_sigmas") and scheduler.name == "dpm++2m":
            scheduler = names.SCHEDULERS["dpm++2m-karras"]
        self.name = scheduler.name
        begin, self.raised = self._set_steps(steps, strength)
        self._timesteps = list(self._scheduler.timesteps[begin:])
        self._levels = self._read_levels(begin, scheduler.kind in _EXPLODING)
        count = len(self._timesteps)
        self._moments = tuple(
            Moment(count - 1 - position, count, float(timestep), sigma)
            for position, (timestep, (_, sigma)) in enumerate(
                zip(self._scheduler.timesteps[begin:].tolist(), self._levels, strict=True)
            )
        )
        self._done = 0
        self._options: dict[str, Any] = {"eta": eta} if scheduler.eta else {}
        self._draws = "generator" in inspect.signature(self._scheduler.step).parameters

    @property
    def moments(self) -> Sequence[Moment]:
        """The scheduler's own timesteps, noisiest first; PNDM and Heun repeat some."""
        return self._moments

    def start(self, noise: NoiseSource, shape: Sequence[int], latent: Tensor | None = None) -> Tensor:
        """The state at the first moment; one draw of `shape`.

        Args:
            noise: Where the draw comes from.
            shape: Of the state, (B, C, h, w).
            latent: What the process starts from, of that shape; None is pure noise.

        Returns:
            float32. With a latent it is noised as far as the first moment says, also at strength 1.
        """
        drawn = noise.draw(shape)
        if latent is None:
            return drawn * float(self._scheduler.init_noise_sigma)
        latent = latent.float()
        noisy: Tensor = self._scheduler.add_noise(latent, drawn.to(latent.device), self._timesteps[0][None])
        return noisy

    def scale(self, noisy: Tensor, moment: Moment) -> Tensor:
        """The state as the network wants it: Euler's and Heun's divided by sqrt(sigma^2 + 1)."""
        scaled: Tensor = self._scheduler.scale_model_input(noisy, self._timesteps[self._position(moment)])
        return scaled

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The state at the next moment; moments come in their order, each once.

        A changed clean estimate goes to the scheduler as the prediction that stands for it, so histories
        (DPM++, UniPC, PNDM) hold the change too.
        """
        position = self._position(moment)
        if position != self._done:
            raise ValueError(f"step {position} of a scheduler that stands at step {self._done}")
        if adjust is not None:
            clean = adjust(self.clean(prediction, noisy, moment), moment)
            prediction = self._standing_for(clean, noisy, position, "epsilon" if self._as_epsilon else self.prediction)
        elif self._as_epsilon:
            prediction = self._standing_for(prediction, noisy, position, "epsilon")
        options = dict(self._options)
        answered: AbstractContextManager[Any] = nullcontext()
        if self._draws:
            # Diffusers' own way where there is a generator; it moves what a CPU generator draws to the device.
            options["generator"] = getattr(noise, "generator", None)
            answered = nullcontext() if options["generator"] else _Answered(noise, prediction.device)
        with answered:
            following: Tensor = self._scheduler.step(
                prediction, self._timesteps[position], noisy, **options, return_dict=False
            )[0]
        self._done += 1
        return following

    def clean(self, prediction: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The clean estimate x0, before any clipping that a configuration asks for.

        Eps and x0: noisy = signal * x0 + sigma * eps. V (Salimans and Ho 2022, arXiv 2202.00512, appendix D):
        v = alpha * eps - beta * x0 for alpha, beta of a state whose alpha^2 + beta^2 = 1.
        """
        signal, sigma = self._levels[self._position(moment)]
        if self.prediction == "x0":
            return prediction
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / signal
        length = math.hypot(signal, sigma)
        return (signal / length**2) * noisy - (sigma / length) * prediction

    def _standing_for(self, clean: Tensor, noisy: Tensor, position: int, kind: str) -> Tensor:
        """The prediction of a kind that stands for a clean estimate: `clean` turned round."""
        signal, sigma = self._levels[position]
        if kind == "x0":
            return clean
        if kind == "epsilon":
            return (noisy - signal * clean) / sigma
        length = math.hypot(signal, sigma)
        return (signal / (length * sigma)) * noisy - (length / sigma) * clean

    def _position(self, moment: Moment) -> int:
        return moment.count - 1 - moment.index

    def _set_steps(self, steps: int, strength: float | None) -> tuple[int, bool]:
        """Choose the timesteps; the index of the first that is run, and whether strength was too small for one."""
        scheduler = self._scheduler
        training = int(scheduler.config.num_train_timesteps)
        most = int(scheduler.config.get("original_inference_steps") or training)
        if not 1 <= steps <= most:
            raise SettingsError(f"steps {steps} is out of range for scheduler {self.name}: 1 to {most}")
        if strength is not None and not 0 < strength <= 1:
            raise SettingsError(f"strength {strength} is out of range: above 0 and at most 1")
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError) as error:
            raise SettingsError(f"scheduler {self.name} cannot run {steps} steps: try fewer, or another one") from error
        # int(steps * strength) exactly as diffusers has it: 100 * 0.29 is 28 there as well.
        asked = steps if strength is None else min(int(steps * strength), steps)
        begin = (steps - max(1, asked)) * int(scheduler.order)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        return begin, asked < 1

    def _read_levels(self, begin: int, exploding: bool) -> list[tuple[float, float]]:
        """Signal and noise of the states from index `begin` on: a state is signal * x0 + noise * (a normal value)."""
        scheduler = self._scheduler
        if not hasattr(scheduler, "sigmas"):
            kept = scheduler.alphas_cumprod[scheduler.timesteps[begin:].long()].tolist()
            return [(math.sqrt(share), math.sqrt(1 - share)) for share in kept]
        sigmas = scheduler.sigmas[begin : begin + len(self._timesteps)].tolist()
        if exploding:
            return [(1.0, sigma) for sigma in sigmas]
        return [(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)) for sigma in sigmas]


def add_noise(config: Mapping[str, Any], clean: Tensor, noise: Tensor, level: int) -> Tensor:
    """A picture noised as far as a place in a schedule's table says: sqrt(abar) * clean + sqrt(1 - abar) * noise.

    Args:
        config: A scheduler's configuration; its class is among ours.
        clean: (B, C, h, w).
        noise: Standard normal, of the same shape.
        level: 0 .. the training's number of timesteps - 1; 0 adds a little noise, too.
    """
    scheduler = _make(names.find(str(config.get("_class_name", ""))).kind, config, {})
    noisy: Tensor = scheduler.add_noise(clean, noise, torch.tensor([level]))
    return noisy


def _prediction(word: str) -> str:
    """Our word for what a network predicts.

    Raises:
        ModelError: Neither eps, v nor x0.
    """
    ours = _PREDICTIONS.get(word, word)
    if ours not in _PREDICTIONS.values():
        raise ModelError(f"prediction type {word!r} is not known: epsilon, v_prediction or x0 (sample) are")
    return ours


def _make(kind: str, config: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """A fresh scheduler of diffusers' class `kind`."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f'diffusion schedulers need an extra that is not installed ({error}): pip install "enlarger[diffusers]"'
        ) from error
    scheduler = getattr(diffusers, kind)
    # Words of other schedulers are dropped before diffusers warns of them on stderr; "_..." is its bookkeeping.
    expected = inspect.signature(scheduler.__init__).parameters
    kept = {word: value for word, value in config.items() if word in expected or word.startswith("_")}
    return scheduler.from_config(kept, **changes)


class _Answered(TorchFunctionMode):
    """While it is active, in this thread, `torch.randn` is answered by the picture's noise source.

    Schedulers draw inside `step`, from a torch generator only; this way noise that has none (recorded noise, above
    all) takes its place, and no scheduler ever reads global random state.
    """

    def __init__(self, noise: NoiseSource, device: torch.device) -> None:
        super().__init__()
        self._noise = noise
        self._device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.randn:
            return self._noise.draw(args[0]).to(self._device)
        return func(*args, **(kwargs or {}))
