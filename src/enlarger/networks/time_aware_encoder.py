"""StableSR's time-aware encoder: what the network that denoises is told of the picture, anew at every step.

Wang et al. 2024, "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (arXiv 2305.07015), section
3.1: half a UNet that sees the small picture's latent and the timestep, and gives one map of features for each level of
the denoising UNet. Knowing the time, it can say much early on, when little of the picture is known, and less later.

Names of modules are the published checkpoints', so that keys need no mapping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32
"""Of every norm."""


@dataclass(frozen=True)
class EncoderShape:
    """Hyperparameters; the defaults are the published ones.

    Attributes:
        inputs: channels of the latent.
        channels: width of the first level.
        multipliers: width of each level in units of `channels`; each level has half the side of the one before.
        blocks: residual blocks in a level.
        attention: how many times smaller than the latent a level is that has attention after each block.
        heads: of every attention.
        head: channels of a head, where these are the same everywhere instead of the heads; else 0.
        outputs: channels of every map.
    """

    inputs: int = 4
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    heads: int = 4
    outputs: int = 256
    head: int = 0

    def heads_of(self, width: int) -> int:
        """Heads of an attention of so many channels."""
        return width // self.head if self.head else self.heads


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def time_embedding(timestep: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of the timestep at `width / 2` frequencies from 1 down to 1/10000; (B, width), float32.

    Args:
        timestep: (B,), 0 to 999.
        width: even.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], 1)


class ResidualBlock(nn.Module):
    """Two convolutions around the time, added to the input."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        """Make a block from `inputs` to `outputs` channels; `time` is the embedding's width."""
        super().__init__()
        self.in_layers = nn.Sequential(_norm(inputs), nn.SiLU(), _conv(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        # The third place was a dropout's.
        self.out_layers = nn.Sequential(_norm(outputs), nn.SiLU(), nn.Identity(), _conv(outputs, outputs))
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        hidden = self.in_layers(x) + self.emb_layers(embedding)[..., None, None]
        made: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return made


class Attention(nn.Module):
    """Self-attention over all cells, added to the input; a head's queries, keys and values stand side by side."""

    def __init__(self, channels: int, heads: int) -> None:
        """Make one for `channels` in and out."""
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        count, channels, height, width = x.shape
        tokens = x.reshape(count, channels, height * width)
        each = self.qkv(self.norm(tokens)).reshape(count, self.heads, 3, channels // self.heads, height * width)
        query, key, value = (part.transpose(-1, -2) for part in each.unbind(2))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(-1, -2).reshape(count, channels, height * width)
        made: Tensor = tokens + self.proj_out(mixed)
        return made.reshape(x.shape)


class Shrink(nn.Module):
    """Half the side, rounded up."""

    def __init__(self, channels: int) -> None:
        """Make one for `channels` in and out."""
        super().__init__()
        self.op = _conv(channels, channels, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, channels, ceil(h / 2), ceil(w / 2))."""
        made: Tensor = self.op(x)
        return made


class First(nn.Conv2d):
    """The first convolution, called like all blocks."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """(B, inputs, h, w) to (B, channels, h, w)."""
        return super().forward(x)


class TimeAwareEncoder(nn.Module):
    """The whole of it; 52.5 million parameters in the published size.

    Attributes:
        shape: The hyperparameters.
    """

    def __init__(self, shape: EncoderShape = EncoderShape()) -> None:
        """Make an encoder with random weights."""
        super().__init__()
        self.shape = shape
        time = 4 * shape.channels
        self.time_embed = nn.Sequential(nn.Linear(shape.channels, time), nn.SiLU(), nn.Linear(time, time))
        blocks: list[nn.ModuleList] = [nn.ModuleList([First(shape.inputs, shape.channels, 3, padding=1)])]
        channels, widths = shape.channels, []
        for level, multiplier in enumerate(shape.multipliers):
            if level:
                blocks.append(nn.ModuleList([Shrink(channels)]))
            for _ in range(shape.blocks):
                width = multiplier * shape.channels
                parts: list[nn.Module] = [ResidualBlock(channels, width, time)]
                if 2**level in shape.attention:
                    parts.append(Attention(width, shape.heads_of(width)))
                blocks.append(nn.ModuleList(parts))
                channels = width
            widths.append(channels)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = nn.ModuleList(
            [
                ResidualBlock(channels, channels, time),
                Attention(channels, shape.heads_of(channels)),
                ResidualBlock(channels, channels, time),
            ]
        )
        self.fea_tran = nn.ModuleList(ResidualBlock(width, shape.outputs, time) for width in widths)

    def forward(self, latent: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        """The maps for one step.

        Args:
            latent: of the small picture enlarged to the target's size, times the latent scale, (B, inputs, h, w).
            timestep: (B,), of the training's 1000, as the denoising UNet gets it.

        Returns:
            One map for each level, (B, outputs, ceil(h / 2^level), ceil(w / 2^level)), the largest first.
        """
        shape = self.shape
        embedding = self.time_embed(time_embedding(timestep, shape.channels).to(latent.dtype))
        kept, x = [], latent
        for number, block in enumerate(self.input_blocks):
            assert isinstance(block, nn.ModuleList)
            for part in block:
                x = part(x, embedding)
            if number % (shape.blocks + 1) == shape.blocks and number < len(self.input_blocks) - 1:
                kept.append(x)  # the last before a level ends
        for part in self.middle_block:
            x = part(x, embedding)
        kept.append(x)
        return tuple(turn(x, embedding) for turn, x in zip(self.fea_tran, kept, strict=True))
