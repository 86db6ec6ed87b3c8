"""`pocket`: our own small few-step diffusion model in pixel space, shipped in the package.

The process runs on the residual between the picture and its bicubic enlargement (`sampling.residual`);
one network predicts it at every step (`networks.pocket`). Fidelity is a condition of the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from enlarger.canvas.blend import Plane
from enlarger.checkpoints.digests import digest_of
from enlarger.checkpoints.load import SHIPPED, fill
from enlarger.checkpoints.tensors import open_tensors
from enlarger.engines.catalog import POCKET
from enlarger.engines.device import pick_device, pick_dtype
from enlarger.engines.engine import Conditioning, Engine, Loaded, Prediction
from enlarger.errors import ModelError
from enlarger.networks.pocket import PocketNet
from enlarger.sampling.residual import ResidualSteps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from enlarger.canvas.geometry import Pass
    from enlarger.canvas.noise import NoiseSource
    from enlarger.engines.settings import PocketSettings
    from enlarger.settings import Machine

WEIGHTS: Path = SHIPPED / "pocket.safetensors"


@dataclass(frozen=True)
class PocketConditioning(Conditioning):
    """What a prediction looks at.

    Attributes:
        strength: 0..1, how much may be invented: 1 - fidelity.
    """

    strength: float = 1.0


class Pocket(Engine):
    """The engine around `PocketNet`."""

    facts = POCKET

    def __init__(self, network: PocketNet, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        network = network.to(device, dtype).eval().requires_grad_(False)
        self.network: PocketNet = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls, model: str | None, machine: Machine, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `model` may name a .safetensors file that `enlarger train pocket` wrote."""
        from pathlib import Path

        if components:
            raise ModelError("engine pocket has no parts to take from memory: it loads its own weights")
        path = WEIGHTS if model is None else Path(model)
        network = PocketNet()
        fill(network, {name: tensor.load() for name, tensor in open_tensors(path).items()}, path.name)
        device = pick_device(machine.device)
        engine = cls(network, device, pick_dtype(machine.dtype, device, half=False))
        engine.loaded = Loaded(path.stem, digest_of([path], path.parent))
        return engine

    def steps(self, settings: PocketSettings) -> ResidualSteps:
        """See `Engine.steps`."""
        return ResidualSteps(settings.steps, strength=1 - settings.fidelity)

    def later(self, settings: PocketSettings) -> PocketSettings:
        """See `Engine.later`: a second pass enlarges invented texture, so it keeps closer to what it sees."""
        return dataclasses.replace(settings, fidelity=(1 + settings.fidelity) / 2)

    def condition(
        self,
        source: Tensor,
        passage: Pass,
        prepared: Any,
        settings: PocketSettings,
        noise: NoiseSource,
    ) -> PocketConditioning:
        """See `Engine.condition`."""
        return PocketConditioning(Plane(source), strength=1 - settings.fidelity)

    def predict(self, noisy: Tensor, moment: Any, conditioning: Conditioning) -> Prediction:
        """The clean residual (B, 3, 4h, 4w) in -1..1 units, from the noisy one."""
        assert isinstance(conditioning, PocketConditioning)
        source = self._network_range(conditioning.source.tensor)
        count = len(source)
        eta = source.new_full((count,), moment.timestep)
        strength = source.new_full((count,), conditioning.strength)
        return Prediction(self.network(source, noisy.to(source), eta, strength).float().cpu())

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """Residual (B, 3, 4h, 4w) plus bicubic enlargement, 0..1."""
        enlarged: Tensor = self.network.enlarge(self._network_range(conditioning.source.tensor)).float().cpu()
        return (latent + enlarged + 1) / 2

    def _network_range(self, source: Tensor) -> Tensor:
        return source.to(self.device, self.dtype) * 2 - 1
