"""Image to image (SDEdit, arXiv 2108.01073): the enlarged picture's latent, noised part of the way, is denoised again.

Order of draws: the autoencoder's sample (1, 4, h, w), then the noise that the latent is given, of the same shape, then
whatever the scheduler asks for; diffusers' image-to-image pipelines draw in this order, so equal seeds give equal
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines import diffusion
from enlarger.engines.catalog import IMG2IMG
from enlarger.engines.engine import Conditioning, Engine
from enlarger.engines.prompted import PromptedConditioning, PromptedEngine, Script
from enlarger.engines.settings import Img2ImgSettings
from enlarger.sampling.steps import Steps


class Img2Img(PromptedEngine):
    """See `engines.engine.Engine`."""

    @classmethod
    def load(cls, model: str | None, machine: Any, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `components` may be those of any Stable Diffusion pipeline of text or image to image."""
        return cls(IMG2IMG, cls.parts_of(IMG2IMG, model, machine, components))

    def steps(self, settings: Img2ImgSettings) -> Steps | None:
        """See `Engine.steps`; at strength 0 nothing is denoised."""
        if settings.strength == 0:
            return None
        return diffusion.make_steps(self.parts, settings, strength=settings.strength)

    def condition(
        self, source: Tensor, passage: Pass, prepared: Script, settings: Img2ImgSettings, noise: NoiseSource
    ) -> PromptedConditioning:
        """See `Engine.condition`."""
        if settings.strength == 0:
            return PromptedConditioning(Plane(source, 8))
        start, remarks = self.encode(source, noise)
        return PromptedConditioning(**self.shared(source, passage, prepared, settings, start, remarks))

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Engine.decode`; what was not denoised is the enlarged picture itself."""
        assert isinstance(conditioning, PromptedConditioning)
        return latent if conditioning.start is None else super().decode(latent, conditioning)
