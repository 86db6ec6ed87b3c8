"""ControlNet with the picture as start and, as it is (Tile) or as edges, depth or a pose, as control.

The enlarged picture's latent is noised part of the way and denoised again, as `img2img` does; ControlNets hold it to
what they see meanwhile, so much more of the way can be gone. Order of draws: the autoencoder's sample (1, 4, h, w), the
noise of the start, then the scheduler's; diffusers' ControlNet image-to-image pipelines draw in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines import diffusion
from enlarger.engines.catalog import CONTROLNET
from enlarger.engines.controlled import ControlledConditioning, ControlledEngine, ControlledScript
from enlarger.engines.engine import Conditioning, Engine
from enlarger.engines.settings import ControlNetSettings
from enlarger.errors import ModelError
from enlarger.sampling.steps import Steps


class ControlNet(ControlledEngine):
    """See `engines.engine.Engine`."""

    @classmethod
    def load(cls, model: str | None, machine: Any, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `components` may be those of a ControlNet pipeline, of one net or several.

        Raises:
            ModelError: Also where no ControlNet is named.
        """
        named = machine.control or (components or {}).get("controlnet") is not None
        if not named and (model or components):
            raise ModelError(
                "engine controlnet needs a ControlNet beside the model: name it with --control, such as the folder or "
                "file of control_v11f1e_sd15_tile; or take engine img2img, which needs none"
            )
        return cls(CONTROLNET, *cls.loaded_parts(CONTROLNET, model, machine, components))

    def steps(self, settings: ControlNetSettings) -> Steps | None:
        """See `Engine.steps`; at strength 0 nothing is denoised."""
        if settings.strength == 0:
            return None
        return diffusion.make_steps(self.parts, settings, strength=settings.strength)

    def condition(
        self,
        source: Tensor,
        passage: Pass,
        prepared: ControlledScript,
        settings: ControlNetSettings,
        noise: NoiseSource,
    ) -> ControlledConditioning:
        """See `Engine.condition`."""
        if settings.strength == 0:
            return ControlledConditioning(Plane(source, 8))
        start, remarks = self.encode(source, noise)
        return ControlledConditioning(**self.controlled(source, passage, prepared, settings, start, remarks))

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Engine.decode`; what was not denoised is the enlarged picture itself."""
        assert isinstance(conditioning, ControlledConditioning)
        return latent if conditioning.start is None else super().decode(latent, conditioning)
