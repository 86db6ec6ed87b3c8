"""StableSR's modulation: the encoder's maps act on every residual block of the denoising UNet.

Wang et al. 2024 (arXiv 2305.07015), section 3.1, with the layer of Park et al. 2019, "Semantic Image Synthesis with
Spatially-Adaptive Normalization" (arXiv 1903.07291), section 3.1: what a block's second convolution gives is normed,
then scaled and shifted cell by cell, as two small convolutions on the level's map say.

The UNet is not ours. `modulate` hangs a `Spade` on each of its residual blocks, which it finds by the names of their
parts, and `maps` says for the time of one forward pass which maps they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN = 128
"""Channels between a map and its scale and shift."""

_MAPS: ContextVar[Sequence[Tensor]] = ContextVar("_MAPS")
"""The maps of the forward pass that is under way in this thread."""


class Spade(nn.Module):
    """One layer; names are the published checkpoints'. Its norm has a learned scale and shift of its own."""

    def __init__(self, channels: int, map_channels: int) -> None:
        """Make a layer for features of `channels`, told by a map of `map_channels`."""
        super().__init__()
        self.param_free_norm = nn.GroupNorm(32, channels, eps=1e-5)
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        """Modulated features.

        Args:
            features: (n * B, channels, h, w); with guidance the batch stands there n = 2 times.
            told: (B, map_channels, h, w).

        Raises:
            ValueError: The map is of another size.
        """
        if features.shape[-2:] != told.shape[-2:]:
            raise ValueError(
                f"a map of {told.shape[-2]}x{told.shape[-1]} cells for features of "
                f"{features.shape[-2]}x{features.shape[-1]}: both nets must see the same tile"
            )
        hidden = self.mlp_shared(told)
        scale, shift = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        times = len(features) // len(told)
        if times > 1:
            scale, shift = (part.repeat(times, 1, 1, 1) for part in (scale, shift))
        normed = functional.group_norm(
            features.float(), 32, self.param_free_norm.weight.float(), self.param_free_norm.bias.float(), 1e-5
        ).to(features.dtype)
        made: Tensor = normed * (1 + scale) + shift
        return made


def blocks(unet: nn.Module) -> list[tuple[nn.Module, int]]:
    """Every residual block of a diffusers UNet with its level, 0 the largest; in the order of the forward pass.

    The network is told by its parts: `down_blocks`, `mid_block` and `up_blocks`, each with `resnets`.
    """
    parts: Any = unet
    last = len(parts.down_blocks) - 1
    found = [(block, level) for level, stage in enumerate(parts.down_blocks) for block in stage.resnets]
    found += [(block, last) for block in parts.mid_block.resnets]
    found += [(block, last - place) for place, stage in enumerate(parts.up_blocks) for block in stage.resnets]
    return found


def modulate(unet: nn.Module, map_channels: int) -> None:
    """Give every residual block of a diffusers UNet a `spade`, called on what its second convolution gives.

    The network keeps its names: weights of the UNet alone, and adapters, fit as before.
    """
    for block, level in blocks(unet):
        conv: Any = block.conv2
        spade = Spade(conv.out_channels, map_channels)
        block.add_module("spade", spade)
        conv.register_forward_hook(_hook(spade, level))


def _hook(spade: Spade, level: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def modulated(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        made: Tensor = spade(output, _MAPS.get()[level])
        return made

    return modulated


@contextmanager
def maps(told: Sequence[Tensor]) -> Iterator[None]:
    """While it is active, in this thread, a modulated UNet reads these maps, one for each level."""
    token = _MAPS.set(told)
    try:
        yield
    finally:
        _MAPS.reset(token)
