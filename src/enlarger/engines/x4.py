"""The Stable Diffusion x4 upscaler: the input, a little noised, stands beside the latent on channels.

Order of draws: the low-res noise (1, 3, H, W), then the start (1, 4, H, W), then whatever the scheduler asks for;
diffusers' StableDiffusionUpscalePipeline draws in this order, so equal seeds give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines import diffusion
from enlarger.engines.catalog import X4
from enlarger.engines.diffusion import DiffusionEngine, Parts, Prompts
from enlarger.engines.engine import Conditioning, Engine, Prediction
from enlarger.engines.settings import ModelMachine, X4Settings
from enlarger.errors import ModelError
from enlarger.sampling.scheduler import add_noise
from enlarger.sampling.steps import Moment, Steps
from enlarger.settings import Machine

SCALING = 0.08333
"""What a latent is multiplied by before diffusion."""


@dataclass(frozen=True)
class X4Conditioning(Conditioning):
    """What a prediction looks at.

    Attributes:
        low_res: The noised input, (1, 3, H, W), about -1..1; one pixel a latent cell.
        noise_level: How much it was noised, as the network is told.
        prompts: Encoded.
    """

    low_res: Plane
    noise_level: int
    prompts: Prompts


class X4Upscaler(DiffusionEngine):
    """See `engines.engine.Engine`."""

    facts = X4

    def __init__(self, parts: Parts) -> None:
        """Take a loaded model.

        Raises:
            ModelError: Its parts are not those of an x4 upscaler.
        """
        config: Any = parts.unet.config
        wanted = parts.latent_channels + 3
        if config.in_channels != wanted or getattr(config, "num_class_embeds", True) is None:
            lacking = "" if config.in_channels != wanted else " and no noise level"
            raise ModelError(
                f"this UNet takes {config.in_channels} channels{lacking}: engine x4 needs the UNet of a Stable "
                f"Diffusion x4 upscaler, which takes {wanted} and a noise level"
            )
        if parts.autoencoder.factor != X4.grid:
            raise ModelError(
                f"this autoencoder has a factor of {parts.autoencoder.factor}: engine x4 needs one of {X4.grid}"
            )
        # Some copies of the model say another scale, or none; it was trained with this one, and diffusers sets it, too.
        parts.autoencoder.scaling = SCALING
        self.parts = parts
        self.loaded = parts.loaded
        self.device, self.dtype = parts.device, parts.dtype

    @classmethod
    def load(cls, model: str | None, machine: Machine, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `components` may be those of a StableDiffusionUpscalePipeline."""
        assert isinstance(machine, ModelMachine)
        configs = ("low_res_scheduler",)
        return cls(diffusion.load_parts("x4", ("x4",), model, machine, components, configs=configs, vae="vae-x4"))

    def prepare(self, settings: X4Settings) -> Prompts:
        """See `Engine.prepare`: the encoded prompts."""
        return diffusion.read_prompts(self.parts, settings)

    def steps(self, settings: X4Settings) -> Steps:
        """See `Engine.steps`."""
        return diffusion.make_steps(self.parts, settings)

    def later(self, settings: X4Settings) -> X4Settings:
        """See `Engine.later`: what the first pass invented is not invented anew."""
        return replace(settings, noise_level=0)

    def condition(
        self, source: Tensor, passage: Pass, prepared: Prompts, settings: X4Settings, noise: NoiseSource
    ) -> X4Conditioning:
        """See `Engine.condition`: noises the input as the low-res schedule says (Ho et al. 2021, section 4)."""
        schedule = self.parts.configs["low_res_scheduler"]
        low_res = add_noise(schedule, source * 2 - 1, noise.draw(source.shape), settings.noise_level)
        return X4Conditioning(
            Plane(source),
            Plane(low_res.to(self.device)),
            settings.noise_level,
            prepared,
            remarks=diffusion.lengths(prepared),
        )

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        """See `Engine.predict`."""
        assert isinstance(conditioning, X4Conditioning)
        seen = torch.cat([noisy, conditioning.low_res.tensor], 1).to(self.dtype)
        labels = torch.full((seen.shape[0],), conditioning.noise_level, device=self.device)
        return diffusion.guided(self.parts.unet, seen, moment, conditioning.prompts, class_labels=labels)
