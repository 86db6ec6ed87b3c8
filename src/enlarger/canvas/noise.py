"""Where random numbers come from: drawn once for a canvas, never for a tile, never from global state.

Two sources of draws. `SequentialNoise` is one CPU generator whose draws follow each other in an order that the
engine documents; it equals what diffusers draws for the same seed. `PositionalNoise` is a function of
seed and position alone, so any part of a canvas can be made without the rest. Several samples of one picture
are one draw with an item for each of them; `SampledNoise` is one item's part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from enlarger.canvas.tiles import Tile


class NoiseSource(Protocol):
    """Gives standard normal values, float32, on the CPU."""

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next values, in the given shape."""


class SequentialNoise:
    """One CPU generator; a draw continues where the last one ended.

    Draws depend on their element count (a prefix of a longer draw is in general not the shorter draw),
    so a canvas's noise is drawn for the canvas padded only to the engine's grid, and never cropped.
    """

    def __init__(self, seed: int) -> None:
        import torch

        self.generator: torch.Generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Values (any shape), the generator moved on by as many."""
        import torch

        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float32)


class SampledNoise:
    """One sample's part of draws that are made for several samples at once, as diffusers draws them.

    Args:
        source: What all samples share; what was drawn from it before is common to all of them.
        samples: How many there are.
        sample: Which one this is, from 0.
    """

    def __init__(self, source: NoiseSource, samples: int, sample: int) -> None:
        self.source = source
        self.samples = samples
        self.sample = sample

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Values (1, ...) of this sample; `shape` is a single item's."""
        if shape[0] != 1:
            raise ValueError(f"a sample is one item, and {shape[0]} were asked for")
        return self.source.draw((self.samples, *shape[1:]))[self.sample : self.sample + 1]


class PositionalNoise:
    """Noise that is a function of seed and position: counter-based, row by row.

    The value at row y, column x, channel c comes from row y's stretch of a Philox-4x64 stream keyed by the
    seed (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), made normal by Box and Muller's
    transform; two values a 64-bit word. numpy guarantees the raw words to stay as they are.

    Args:
        seed: 0 to 2^63-1.
        channels: Values at each position.
        passage: Number of the pass, so that a second pass sees noise of its own.
        sample: Number of the sample, for the same reason.
    """

    def __init__(self, seed: int, channels: int = 3, passage: int = 0, sample: int = 0) -> None:
        self.seed = seed
        self.channels = channels
        self.passage = passage
        self.sample = sample

    def crop(self, tiles: Sequence[Tile]) -> TileNoise:
        """The source for a batch of rectangles of one size; each of its draws gives the same values."""
        return TileNoise(self, tiles)

    def values(self, tile: Tile) -> Tensor:
        """Noise (channels, height, width) of a rectangle, float32."""
        import torch

        # A counter step gives 4 words = 8 values: start on the step that holds the first column.
        first, last = tile.left * self.channels, tile.right * self.channels
        jump, skip = divmod(first, 8)
        words = -(-(last - jump * 8) // 2)
        raw = np.empty((tile.height, words), np.uint64)
        for row in range(tile.height):
            counter = np.array([jump, tile.top + row, self.passage, self.sample], np.uint64)
            raw[row] = np.random.Philox(key=self.seed, counter=counter).random_raw(words)
        # One word gives a pair: its halves are the radius's and the angle's uniform number (Box and Muller 1958).
        halves = torch.from_numpy(raw.view(np.int64))
        radius = (halves & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32).float().log_().mul_(-2).sqrt_()
        angle = (halves >> 32).float().mul_(2 * math.pi * 2.0**-32)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 2)
        normal = pairs.view(tile.height, 2 * words)[:, skip : skip + last - first]
        return normal.reshape(tile.height, tile.width, self.channels).permute(2, 0, 1).contiguous()


class TileNoise:
    """A batch of rectangles of a `PositionalNoise`; residual processes draw the same noise at every step."""

    def __init__(self, source: PositionalNoise, tiles: Sequence[Tile]) -> None:
        self.source = source
        self.tiles = tiles
        self._values: Tensor | None = None

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Values (len(tiles), channels, height, width) of the rectangles."""
        import torch

        if self._values is None:
            self._values = torch.stack([self.source.values(tile) for tile in self.tiles])
        if tuple(shape) != tuple(self._values.shape):
            raise ValueError(f"noise of shape {tuple(shape)} asked of tiles that have {tuple(self._values.shape)}")
        return self._values
