"""`pocket`: a small few-step diffusion network that enlarges a picture by four, in pixel space.

The network sees the small picture and a noisy *residual* (what the picture lacks beyond its bicubic enlargement) and
predicts the clean residual.  The residual form of the process is that of ResShift (Yue et al. 2023, arXiv 2307.12348);
see `enlarger.sampling.residual`.  Two numbers condition it: `eta`, how far the state is from clean, and `strength`,
how much may be invented (0 is a plain regression, 1 a sample).

All convolutions but the fixed bicubic run on the small picture's grid or on half of it: the state is folded by four
into channels (space to depth), which makes a step cost 69 thousand multiply-adds for each output pixel.  There is no
norm and no global pooling, so the result at a place depends on a bounded neighbourhood only, and tiles with that halo
give the whole picture's result.  One level works at half the grid; tiles must therefore start on even pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FACTOR = 4
"""Output pixels per input pixel, along each side."""

STRIDE = 2
"""Tiles must start, and the sides of `source` must be, at multiples of this many input pixels."""

RECEPTIVE_FIELD = 40
"""How far one evaluation looks, in input pixels to each side: 39, rounded up to the stride.

11 for the head and encoder, 11 for decoder and tail, 16 for the middle (8 convolutions on half the grid), and one more
because a cell of the half grid holds two pixels.  The bicubic enlargement looks 2 pixels far, well within.
"""

KAPPA = 0.25
"""Standard deviation of the noise at eta = 1, for pictures in -1..1 (ResShift's kappa, chosen for pixels)."""

RESIDUAL_DEVIATION = 0.12
"""Typical standard deviation of HR - bicubic(LR) in -1..1; brings the state to unit scale before the first layer."""


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981), the one of MATLAB's and Pillow's bicubic."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def bicubic_kernels(factor: int = FACTOR) -> Tensor:
    """The fixed kernels that enlarge by `factor`: one 5x5 kernel per output phase.

    Returns:
        (3 * factor ** 2, 1, 5, 5), ordered for a convolution of three groups followed by a pixel shuffle.
    """
    phase = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5
    taps = keys_cubic(phase[:, None] - torch.arange(-2, 3, dtype=torch.float64))
    kernels = torch.einsum("ai,bj->abij", taps, taps).reshape(factor * factor, 1, 5, 5)
    return kernels.repeat(3, 1, 1, 1).float()


class Block(nn.Module):
    """Two 3x3 convolutions around a modulated ReLU, added to the input."""

    def __init__(self, channels: int) -> None:
        """Make a block of `channels` in and out that starts close to the identity."""
        super().__init__()
        self.channels = channels
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)
            if self.second.bias is not None:
                self.second.bias.zero_()

    def forward(self, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Refine `features` (B, C, H, W); `scale` and `shift` are (B, C, 1, 1)."""
        hidden = torch.addcmul(shift, self.first(features), scale)
        refined: Tensor = features + self.second(functional.relu(hidden))
        return refined


class PocketNet(nn.Module):
    """The network of `pocket`: 2.2 million parameters, 4.53 billion multiply-adds for a 256x256 output."""

    bicubic: Tensor
    frequencies: Tensor

    def __init__(
        self,
        width: int = 64,
        middle_width: int = 128,
        blocks: tuple[int, int, int] = (5, 4, 5),
        condition_width: int = 64,
    ) -> None:
        """Make the network; the defaults are the shipped sizes, smaller ones serve tests.

        Args:
            width: channels on the input's grid.
            middle_width: channels on half of it.
            blocks: number of blocks in encoder, middle and decoder.
            condition_width: width of the embedding of (eta, strength).
        """
        super().__init__()
        folded = 3 * FACTOR * FACTOR
        self.head = nn.Conv2d(3 + folded, width, 3, padding=1)
        self.encoder = nn.ModuleList(Block(width) for _ in range(blocks[0]))
        self.down = nn.Conv2d(width, middle_width, STRIDE, STRIDE)
        self.middle = nn.ModuleList(Block(middle_width) for _ in range(blocks[1]))
        self.up = nn.Conv2d(middle_width, STRIDE * STRIDE * width, 1)
        self.decoder = nn.ModuleList(Block(width) for _ in range(blocks[2]))
        self.tail = nn.Conv2d(width, folded, 3, padding=1)
        self.condition = nn.Sequential(
            nn.Linear(10, condition_width), nn.SiLU(), nn.Linear(condition_width, condition_width), nn.SiLU()
        )
        self.widths = [width] * blocks[0] + [middle_width] * blocks[1] + [width] * blocks[2]
        self.modulation = nn.Linear(condition_width, 2 * sum(self.widths))
        with torch.no_grad():
            self.tail.weight.mul_(0.1)
            for layer in (self.tail, self.modulation):
                if layer.bias is not None:
                    layer.bias.zero_()
            self.modulation.weight.zero_()
        self.register_buffer("bicubic", bicubic_kernels(), persistent=False)
        self.register_buffer("frequencies", torch.arange(1, 5) * (math.pi / 2), persistent=False)

    def enlarge(self, source: Tensor) -> Tensor:
        """Enlarge `source` (B, 3, h, w) by the fixed bicubic to (B, 3, 4h, 4w); edge pixels repeat beyond it."""
        padded = functional.pad(source, (2, 2, 2, 2), mode="replicate")
        return functional.pixel_shuffle(functional.conv2d(padded, self.bicubic, groups=3), FACTOR)

    def forward(self, source: Tensor, state: Tensor, eta: Tensor, strength: Tensor) -> Tensor:
        """Predict the clean residual HR - bicubic(LR).

        Args:
            source: the small picture, (B, 3, h, w) in -1..1, h and w even.
            state: the noisy residual, (B, 3, 4h, 4w).
            eta: how far the state is from clean, (B,) in 0..1.
            strength: how much may be invented, (B,) in 0..1.

        Returns:
            The prediction of the residual, (B, 3, 4h, 4w), to be added to `enlarge(source)`.
        """
        modulations = self._modulations(eta, strength)
        spread = (1 - eta) ** 2 * RESIDUAL_DEVIATION**2 + KAPPA**2 * eta
        folded = functional.pixel_unshuffle(state * spread.rsqrt().view(-1, 1, 1, 1), FACTOR)
        # channels_last is the faster layout for these convolutions on CPUs; the shuffles lose it, so it is set again.
        stem = self.head(torch.cat([source, folded], 1).contiguous(memory_format=torch.channels_last))
        fine = self._run(self.encoder, stem, modulations[: len(self.encoder)])
        modulations = modulations[len(self.encoder) :]
        coarse = self.down(fine)
        middle = self._run(self.middle, coarse, modulations[: len(self.middle)])
        modulations = modulations[len(self.middle) :]
        raised = functional.pixel_shuffle(self.up(middle + coarse), STRIDE)
        features = self._run(self.decoder, raised.contiguous(memory_format=torch.channels_last) + fine, modulations)
        return functional.pixel_shuffle(self.tail(features + stem), FACTOR)

    def _modulations(self, eta: Tensor, strength: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One (scale, shift) for each block, both (B, C, 1, 1), from eta and strength (B,)."""
        level = eta.sqrt()[:, None]
        waves = level * self.frequencies
        embedded = self.condition(torch.cat([level, strength[:, None], waves.sin(), waves.cos()], 1))
        parts: Sequence[Tensor] = self.modulation(embedded).split([2 * width for width in self.widths], 1)
        pairs = [part.view(part.shape[0], 2, -1, 1, 1) for part in parts]
        return [(1 + pair[:, 0], pair[:, 1]) for pair in pairs]

    @staticmethod
    def _run(blocks: nn.ModuleList, features: Tensor, modulations: list[tuple[Tensor, Tensor]]) -> Tensor:
        for block, (scale, shift) in zip(blocks, modulations, strict=True):
            features = block(features, scale, shift)
        return features


def multiply_adds(net: PocketNet, height: int, width: int, steps: int = 1) -> int:
    """Count the multiply-adds of a run that makes `height` x `width` output pixels.

    Args:
        net: the network whose layers are counted.
        height: output rows, a multiple of 8.
        width: output columns, a multiple of 8.
        steps: evaluations of the network; the bicubic counts once.
    """
    cells = (height // FACTOR) * (width // FACTOR)
    half = cells // STRIDE**2
    coarse = {id(module) for part in (net.down, net.middle, net.up) for module in part.modules()}
    evaluation = 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            evaluation += module.weight.numel() * (half if id(module) in coarse else cells)
        elif isinstance(module, nn.Linear):
            evaluation += module.weight.numel()
    return steps * evaluation + net.bicubic.numel() * cells
