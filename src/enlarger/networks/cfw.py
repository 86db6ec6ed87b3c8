"""StableSR's controllable feature wrapping (CFW): the decoder sees the picture again, as much as the user likes.

Wang et al. 2024 (arXiv 2305.07015), section 3.2, equation 5: between the levels of the decoder of an autoencoder,
features of the encoder are fused in, weighted by a number that the user chooses. At 0 it is the plain decoder.

Names of modules are the published checkpoints'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from enlarger.networks.rrdb import ResidualDenseBlocks


@dataclass(frozen=True)
class FusionShape:
    """Hyperparameters of all fusion layers; the defaults are the published ones.

    Attributes:
        blocks: residual-in-residual dense blocks in each.
        growth: features that each convolution of a dense block adds.
    """

    blocks: int = 2
    growth: int = 32


class ResidualBlock(nn.Module):
    """Two normed convolutions, added to the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make a block from `inputs` to `outputs` channels."""
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_out = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        made: Tensor = self.conv_out(x) + hidden
        return made


class Fusion(nn.Module):
    """One fusion layer, for one level of the decoder."""

    def __init__(self, channels: int, shape: FusionShape = FusionShape()) -> None:
        """Make a layer for features of `channels`, the encoder's and the decoder's alike."""
        super().__init__()
        self.encode_enc_1 = ResidualBlock(2 * channels, channels)
        self.encode_enc_2 = nn.Sequential(*(ResidualDenseBlocks(channels, shape.growth) for _ in range(shape.blocks)))
        self.encode_enc_3 = ResidualBlock(channels, channels)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """What is added to the decoder's features, at weight 1; (B, channels, h, w) all three."""
        made: Tensor = self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(torch.cat([encoded, decoded], 1))))
        return made


class Weighted(nn.Module):
    """A fusion layer put behind a level of the decoder, as `canvas.autoencoder` takes it (equation 5 of the paper)."""

    def __init__(self, layer: Fusion, weight: float) -> None:
        """Let `layer` count `weight`, 0 (nothing) to 1 (as trained)."""
        super().__init__()
        self.layer = layer
        self.weight = weight

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """The decoder's new map from the encoder's and its own, (1, channels, h, w) all three."""
        made: Tensor = state + self.layer(features, state) * self.weight
        return made


def fused_levels(levels: int) -> tuple[int, ...]:
    """Levels of an autoencoder, 0 the picture's own size, that are fused: all but the first and the last."""
    return tuple(range(1, levels - 1))


class Wrapping(nn.Module):
    """All fusion layers; `fusion_layer_K` belongs to level K."""

    def __init__(self, widths: tuple[int, ...] = (128, 256, 512, 512), shape: FusionShape = FusionShape()) -> None:
        """Make the layers for an autoencoder whose levels have these widths, the picture's own size first."""
        super().__init__()
        self.levels = fused_levels(len(widths))
        for level in self.levels:
            self.add_module(f"fusion_layer_{level}", Fusion(widths[level], shape))

    def layer(self, level: int) -> Fusion:
        """The layer of a level."""
        found = self.get_submodule(f"fusion_layer_{level}")
        assert isinstance(found, Fusion)
        return found
