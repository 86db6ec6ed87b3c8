"""Toy latent engines: the whole seam of an engine, with networks so small that their answers are known.

All know Stable Diffusion's noise schedule as a real network does, by the timestep, and answer with the mean of the
clean value given the noisy one for Gaussian data (so whole runs have a closed form), dressed as epsilon, v or x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines.engine import Conditioning, Engine, Facts, Prediction
from enlarger.sampling.steps import Moment
from enlarger.settings import Machine, SeededSettings
from enlarger.size import Size

CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""Stable Diffusion's scheduler_config.json without the class's name and the prediction type."""

KINDS = ("epsilon", "v_prediction", "x0")

_KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def config(kind: str = "epsilon", name: str = "DDIMScheduler", **changes: Any) -> dict[str, Any]:
    """A model's scheduler configuration."""
    theirs = "sample" if kind == "x0" else kind
    return {**CONFIG, "_class_name": name, "prediction_type": theirs, **changes}


def levels(timestep: float) -> tuple[float, float]:
    """Signal and noise (alpha, beta) of what the network sees at a timestep."""
    low = min(int(timestep), 998)
    share = timestep - low
    kept = float(torch.exp((1 - share) * _KEPT[low].log() + share * _KEPT[low + 1].log()))
    return kept**0.5, (1 - kept) ** 0.5


@dataclass(frozen=True)
class ToyConditioning(Conditioning):
    """What the toys look at: the source (one pixel a cell), a hint of 8 x 8 pixels a cell, prompts (a contrast)."""

    hint: Plane | None = None
    text: float = 0.0
    negative: float | None = None


def conditioning(
    size: Size, *, value: float | None = None, hint: bool = False, text: float = 0.0, negative: float | None = None
) -> ToyConditioning:
    """A source of low-frequency waves, or of one value, for a canvas in cells."""
    rows = torch.arange(size.height, dtype=torch.float32)[:, None] / 17
    columns = torch.arange(size.width, dtype=torch.float32)[None] / 23
    source = (rows.sin() + columns.cos()) / 2 if value is None else torch.full(tuple(size), value)
    plane = Plane(source.expand(1, 4, *size).contiguous())
    big = None
    if hint:
        numbers = torch.arange(size.area * 64, dtype=torch.float32).reshape(1, 1, size.height * 8, size.width * 8)
        big = Plane((numbers * 0.618).sin(), 8)
    return ToyConditioning(plane, big, text, negative)


class Toy(Engine):
    """Exact for Gaussian data: every cell of the clean latent is normal around the source with a known deviation.

    Attributes:
        kind: What it predicts.
        deviation: Of the clean values around the source.
        start_at: A latent to start from.
        shapes: The shapes of all batches its network has seen.
    """

    facts = Facts(name="toy", summary="A toy.", settings=SeededSettings, grid=8, tile=256)
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, kind: str = "epsilon", deviation: float = 0.1, start_at: Tensor | None = None) -> None:
        self.kind = kind
        self.deviation = deviation
        self.start_at = start_at
        self.shapes: list[tuple[int, ...]] = []

    @classmethod
    def load(cls, model: str | None, machine: Machine, components: Mapping[str, Any] | None = None) -> Toy:
        return cls()

    def condition(
        self, source: Tensor, passage: Pass, prepared: Any, settings: Any, noise: NoiseSource
    ) -> ToyConditioning:
        return ToyConditioning(Plane(source))

    def latent(self, conditioning: Conditioning) -> Tensor | None:
        return self.start_at

    def state_channels(self) -> int:
        return 4

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        assert isinstance(conditioning, ToyConditioning)
        if conditioning.negative is None:
            return Prediction(self.network(noisy, moment, conditioning, conditioning.text))
        # One forward pass of twice the batch, as real engines do it.
        pair = [self.network(noisy, moment, conditioning, text) for text in (conditioning.negative, conditioning.text)]
        self.shapes[-2:] = [(2 * noisy.shape[0], *noisy.shape[1:])]
        return Prediction(pair[1], pair[0])

    def network(self, noisy: Tensor, moment: Moment, conditioning: ToyConditioning, text: float) -> Tensor:
        self.shapes.append(tuple(noisy.shape))
        alpha, beta = levels(moment.timestep)
        centre = self.centre(noisy, conditioning) * (1 + text)
        spread = self.deviation**2
        clean = (alpha * spread * noisy + beta**2 * centre) / (alpha**2 * spread + beta**2)
        if self.kind == "x0":
            return clean
        epsilon = (noisy - alpha * clean) / beta
        return epsilon if self.kind == "epsilon" else alpha * epsilon - beta * clean

    def centre(self, noisy: Tensor, conditioning: ToyConditioning) -> Tensor:
        """Mean of the clean values, like `noisy`."""
        return conditioning.source.tensor

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        return latent[:, :3]


class Local(Toy):
    """Purely convolutional: looks 2 cells far, and sees zeros beyond its tile."""

    def centre(self, noisy: Tensor, conditioning: ToyConditioning) -> Tensor:
        kernel = torch.outer(torch.tensor([1.0, 4, 6, 4, 1]), torch.tensor([1.0, 4, 6, 4, 1])).expand(4, 1, 5, 5) / 256
        return 0.9 * functional.conv2d(conditioning.source.tensor, kernel, padding=2, groups=4)


class GlobalNorm(Toy):
    """Global, as group norms and attention are: all of a tile moves with the tile's mean."""

    def centre(self, noisy: Tensor, conditioning: ToyConditioning) -> Tensor:
        mean = noisy.mean(dim=(2, 3), keepdim=True)
        return conditioning.source.tensor + 0.5 * torch.tanh(20 * mean)


class Hinted(Toy):
    """Looks at a hint of 8 x 8 pixels a cell, each with a weight of its own, so that any shift is seen."""

    def centre(self, noisy: Tensor, conditioning: ToyConditioning) -> Tensor:
        assert conditioning.hint is not None
        kernel = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8) / 8
        return conditioning.source.tensor + functional.conv2d(conditioning.hint.tensor, kernel, stride=8)
