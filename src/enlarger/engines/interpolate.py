"""Interpolation, beside which all else is judged: the canvas's one exact resize does all the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from enlarger.canvas.blend import Plane
from enlarger.engines.catalog import INTERPOLATE
from enlarger.engines.engine import Conditioning, Engine
from enlarger.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.geometry import Pass
    from enlarger.canvas.noise import NoiseSource
    from enlarger.engines.settings import InterpolateSettings
    from enlarger.settings import Loading


class Interpolate(Engine):
    """Gives every tile back as it is; its filter is the canvas's."""

    facts = INTERPOLATE

    @classmethod
    def load(cls, model: str | None, machine: Loading, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; there is nothing to load."""
        if model is not None or components:
            raise ModelError("engine interpolate has no model: leave --model out, or choose another engine with -e")
        engine = cls()
        engine.device, engine.dtype = torch.device("cpu"), torch.float32
        return engine

    def resampling(self, settings: InterpolateSettings) -> tuple[str, bool]:
        """See `Engine.resampling`: here it is all there is."""
        return settings.filter, settings.linear_light

    def condition(
        self, source: Tensor, passage: Pass, prepared: Any, settings: Any, noise: NoiseSource
    ) -> Conditioning:
        """See `Engine.condition`."""
        return Conditioning(Plane(source))

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """The tile (B, 3, H, W) itself."""
        return latent
