"""Text to image: everything starts from noise. Not an engine of `enlarger upscale`; `enlarger.generator` runs it.

Order of draws: the start (1, 4, h, w), then whatever the scheduler asks for; diffusers' text-to-image pipelines draw in
this order, with ControlNets and without, so equal seeds give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines import diffusion
from enlarger.engines.catalog import GENERATE
from enlarger.engines.controlled import ControlledConditioning, ControlledEngine, ControlledScript
from enlarger.engines.engine import Engine
from enlarger.engines.settings import GenerateSettings
from enlarger.sampling.steps import Steps
from enlarger.size import Size


class Generate(ControlledEngine):
    """See `engines.engine.Engine`; the picture that goes in only says how large the result is."""

    needs_image = True

    @classmethod
    def load(cls, model: str | None, machine: Any, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `components` may be those of any text-to-image pipeline, with ControlNets or without."""
        return cls(GENERATE, *cls.loaded_parts(GENERATE, model, machine, components))

    def size(self, settings: GenerateSettings) -> Size:
        """Size of the result: what was asked for, or what the model was trained on."""
        return Size(settings.height or self.trained.height, settings.width or self.trained.width)

    def steps(self, settings: GenerateSettings) -> Steps:
        """See `Engine.steps`."""
        return diffusion.make_steps(self.parts, settings)

    def condition(
        self,
        source: Tensor,
        passage: Pass,
        prepared: ControlledScript,
        settings: GenerateSettings,
        noise: NoiseSource,
    ) -> ControlledConditioning:
        """See `Engine.condition`."""
        return ControlledConditioning(**self.controlled(source, passage, prepared, settings))
