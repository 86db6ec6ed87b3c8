"""Making large pictures small and bad, as training recipes of this field do: seeded, in batches, on tensors.

* `bicubic`: MATLAB's antialiased bicubic alone, the classic test sets.
* `realesrgan`: Wang et al. 2021, "Real-ESRGAN", section 3: blur, resize, noise, JPEG, all of it twice, with ringing.
* `stablesr`: Wang et al. 2023, "StableSR", the same with milder ranges.

A picture's degradation is a function of the picture and its seed alone: neither the batch nor what was made before
changes it. Pictures are (B, 3, H, W), 0..1, sRGB-encoded, float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from enlarger.picture.bicubic import resize_floats

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")

Shape = Literal["gaussian", "generalized", "plateau"]

KERNEL_SIDE = 21
"""Every kernel is padded to this side, so that kernels of one batch stack."""


# --- single operations, none of which draws anything -------------------------------------------------------------


def blur_kernel(
    size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, *, shape: Shape = "gaussian", beta: float = 1.0
) -> Tensor:
    """A blur kernel (size, size), float32, summing to 1.

    With q the squared Mahalanobis distance from the centre: exp(-q / 2), exp(-q^beta / 2) ("generalized") or
    1 / (q^beta + 1) ("plateau").

    Args:
        size: odd side.
        sigma_x: width along the first axis of the ellipse, pixels.
        sigma_y: width along the second.
        theta: angle of the first axis, radians.
        shape: the profile.
        beta: how flat its top is; 1 for "gaussian".
    """
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    cos, sin = math.cos(theta), math.sin(theta)
    along = cos * x[None, :] + sin * x[:, None]
    across = -sin * x[None, :] + cos * x[:, None]
    squared = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    if shape == "plateau":
        kernel = 1 / (squared**beta + 1)
    else:
        kernel = torch.exp(-0.5 * squared ** (beta if shape == "generalized" else 1.0))
    return (kernel / kernel.sum()).float()


def sinc_kernel(cutoff: float, size: int) -> Tensor:
    """A circular low-pass (size, size), which makes ringing: w J1(w r) / (2 pi r); Real-ESRGAN, eq. 6.

    Args:
        cutoff: w, radians per pixel, up to pi.
        size: odd side.
    """
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = torch.sqrt(x[None, :] ** 2 + x[:, None] ** 2)
    middle = size // 2
    radius[middle, middle] = 1.0
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[middle, middle] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def widened(kernel: Tensor, side: int = KERNEL_SIDE) -> Tensor:
    """A kernel with zeros around it, up to an odd `side`."""
    spare = (side - kernel.shape[-1]) // 2
    return functional.pad(kernel, (spare, spare, spare, spare))


def _reflected(x: Tensor, pad: int) -> Tensor:
    """Reflect without repeating the border, as often as needed: works for any size of picture."""
    for axis in (-2, -1):
        length = x.shape[axis]
        places = torch.arange(-pad, length + pad).abs() % max(2 * (length - 1), 1)
        x = x.index_select(axis, torch.where(places < length, places, 2 * (length - 1) - places).to(x.device))
    return x


def filtered(pictures: Tensor, kernels: Tensor) -> Tensor:
    """Each picture correlated with its kernel, edges reflected.

    Args:
        pictures: (B, 3, H, W).
        kernels: (B, k, k), k odd.
    """
    count, channels, height, width = pictures.shape
    side = kernels.shape[-1]
    padded = _reflected(pictures, side // 2).reshape(1, count * channels, height + side - 1, width + side - 1)
    weights = kernels.to(pictures).repeat_interleave(channels, 0)[:, None]
    return functional.conv2d(padded, weights, groups=count * channels).reshape(pictures.shape)


def sharpened(pictures: Tensor, weight: float = 0.5, size: int = 51, threshold: float = 10.0) -> Tensor:
    """Unsharp masking with a soft mask, before both recipes: Real-ESRGAN, section 3.4.

    Where the difference to the blurred picture exceeds `threshold` levels of 255, `weight` times it is added; the mask
    is blurred by the same Gaussian (sigma by OpenCV's rule for `size`, 8.0 pixels for 51).
    """
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    kernel = blur_kernel(size, sigma, sigma).expand(len(pictures), size, size)
    rest = pictures - filtered(pictures, kernel)
    mask = filtered((rest.abs() * 255 > threshold).to(pictures), kernel)
    return mask * (pictures + weight * rest).clamp(0, 1) + (1 - mask) * pictures


def resized(
    pictures: Tensor, mode: Mode, *, factor: float | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Resized as training code does it, without antialiasing: by a factor (sides rounded down) or to a size (h, w)."""
    aligned = None if mode == "area" else False
    if size is not None:
        return functional.interpolate(pictures, size=size, mode=mode, align_corners=aligned)
    return functional.interpolate(pictures, scale_factor=factor, mode=mode, align_corners=aligned)


class Draws(Protocol):
    """Where random fields come from."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal values."""

    def poisson(self, rate: Tensor) -> Tensor:
        """Counts of the given rates."""


class Generated:
    """Fields from one CPU generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, shape: Sequence[int]) -> Tensor:
        """See `Draws.normal`."""
        return torch.randn(tuple(shape), generator=self.generator)

    def poisson(self, rate: Tensor) -> Tensor:
        """See `Draws.poisson`."""
        return torch.poisson(rate, generator=self.generator)


def with_gaussian_noise(picture: Tensor, sigma: float, grey: bool, draws: Draws) -> Tensor:
    """One picture (1, 3, H, W) with normal noise, clipped.

    Args:
        picture: 0..1.
        sigma: standard deviation, levels of 255.
        grey: the same for all channels.
        draws: gives the grey field (H, W) if wanted, then always the coloured one.
    """
    field = draws.normal(picture.shape[2:]) if grey else None
    coloured = draws.normal(picture.shape)
    return (picture + (coloured if field is None else field) * (sigma / 255)).clamp(0, 1)


def poisson_rate(picture: Tensor) -> tuple[Tensor, float]:
    """Counts to expect for a picture in bytes, and how many make white: 2^ceil(log2(distinct levels))."""
    rounded = (picture * 255).round().clamp(0, 255) / 255
    levels = 2.0 ** math.ceil(math.log2(len(torch.unique(rounded))))
    return rounded * levels, levels


def with_poisson_noise(picture: Tensor, scale: float, grey: bool, draws: Draws) -> Tensor:
    """One picture (1, 3, H, W) with shot noise of `scale` times its own strength, clipped; grey: from its luma."""
    noise: Tensor | None = None
    if grey:
        weights = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1).to(picture)
        rate, levels = poisson_rate((picture * weights).sum(1, keepdim=True))
        noise = (draws.poisson(rate) - rate) / levels
    rate, levels = poisson_rate(picture)
    coloured = (draws.poisson(rate) - rate) / levels
    return (picture + (coloured if noise is None else noise) * scale).clamp(0, 1)


_LUMA_ROWS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Luma table of the JPEG standard (ITU-T T.81, table K.1)."""

_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
"""The corner of the chroma table (K.2) that is not 99."""


def jpeg_factor(quality: float) -> float:
    """What the standard's tables are multiplied by for a quality of 1..100."""
    return 50 / quality if quality < 50 else 2 - quality / 50


def _cosines() -> Tensor:
    """Orthonormal 8-point DCT-II, (frequency, place)."""
    place = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * place[None, :] + 1) * place[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.float()


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """A plane (B, H, W), sides multiples of 8, through DCT, rounding by a table (B, 8, 8), and back."""
    count, height, width = plane.shape
    basis = _cosines().to(plane)
    blocks = plane.reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    spectrum = basis @ blocks @ basis.T
    steps = table[:, None, None]
    back = basis.T @ ((spectrum / steps).round() * steps) @ basis
    return back.transpose(2, 3).reshape(count, height, width)


def jpeg(pictures: Tensor, quality: Sequence[float]) -> Tensor:
    """Pictures as JPEG at 4:2:0 would leave them; a model of it in torch, as the recipes' training code has it.

    Differences from a real encoder, kept because the recipes were tuned with them: tables are not rounded to whole
    numbers, the luma table is transposed, the picture is filled up to multiples of 16 with black.

    Args:
        pictures: (B, 3, H, W), 0..1.
        quality: 1..100 for each picture.
    """
    height, width = pictures.shape[2:]
    padded = functional.pad(pictures, (0, -width % 16, 0, -height % 16)) * 255
    red, green, blue = padded.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blue_difference = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    red_difference = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    factors = torch.tensor([jpeg_factor(value) for value in quality]).to(pictures).view(-1, 1, 1)
    luma_table = torch.tensor(_LUMA_ROWS, dtype=torch.float32).T.to(pictures) * factors
    chroma_table = torch.full((8, 8), 99.0)
    chroma_table[:4, :4] = torch.tensor(_CHROMA_CORNER)
    chroma_table = chroma_table.to(pictures) * factors
    luma = _quantised(luma - 128, luma_table) + 128
    halves = []
    for plane in (blue_difference, red_difference):
        small = functional.avg_pool2d(plane[:, None], 2)[:, 0]
        back = _quantised(small - 128, chroma_table)
        halves.append(back.repeat_interleave(2, 1).repeat_interleave(2, 2))
    blue_difference, red_difference = halves
    red = luma + 1.402 * red_difference
    green = luma - 0.344136 * blue_difference - 0.714136 * red_difference
    blue = luma + 1.772 * blue_difference
    made = torch.stack([red, green, blue], 1)[..., :height, :width] / 255
    return made.clamp(0, 1)


# --- recipes -------------------------------------------------------------------------------------------------------

Range = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """The ranges of one round of blur, resize, noise and JPEG; see the table in the recipes' papers.

    Attributes:
        blur: probability that there is any.
        sigma: of the blur, pixels.
        generalized: beta of generalised Gaussians.
        plateau: beta of plateau kernels.
        resize: probabilities of up, down and keep.
        scale: smallest and largest factor.
        gaussian: probability of Gaussian noise; Poisson noise else.
        noise: its standard deviation, levels of 255.
        poisson: scale of Poisson noise.
        grey: probability that noise is grey.
        quality: of JPEG.
    """

    blur: float
    sigma: Range
    generalized: Range
    plateau: Range
    resize: tuple[float, float, float]
    scale: Range
    gaussian: float
    noise: Range
    poisson: Range
    grey: float
    quality: Range


@dataclass(frozen=True)
class Recipe:
    """A second-order degradation.

    Attributes:
        first: the first round, on the large picture.
        second: the second, around the small one's size.
        sinc: probability that a blur kernel is a sinc.
        final_sinc: probability of a sinc at the end.
        rounded: whether the result is rounded to bytes.
    """

    first: Stage
    second: Stage
    sinc: float = 0.1
    final_sinc: float = 0.8
    rounded: bool = True


_UP_DOWN = ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))

RECIPES: Mapping[str, Recipe] = {
    "realesrgan": Recipe(
        Stage(1, (0.2, 3), (0.5, 4), (1, 2), _UP_DOWN[0], (0.15, 1.5), 0.5, (1, 30), (0.05, 3), 0.4, (30, 95)),
        Stage(0.8, (0.2, 1.5), (0.5, 4), (1, 2), _UP_DOWN[1], (0.3, 1.2), 0.5, (1, 25), (0.05, 2.5), 0.4, (30, 95)),
    ),
    "stablesr": Recipe(
        Stage(1, (0.2, 1.5), (0.5, 2), (1, 1.5), _UP_DOWN[0], (0.3, 1.5), 0.5, (1, 15), (0.05, 2), 0.4, (60, 95)),
        Stage(0.5, (0.2, 1), (0.5, 2), (1, 1.5), _UP_DOWN[1], (0.6, 1.2), 0.5, (1, 12), (0.05, 1), 0.4, (60, 100)),
        rounded=False,
    ),
}  # fmt: skip
"""The two published settings; `bicubic` beside them needs no draws."""

KERNEL_SHARES: tuple[tuple[Shape, bool, float], ...] = (
    ("gaussian", False, 0.45),
    ("gaussian", True, 0.25),
    ("generalized", False, 0.12),
    ("generalized", True, 0.03),
    ("plateau", False, 0.12),
    ("plateau", True, 0.03),
)
"""Profile, whether it is an ellipse, and how often; the same in both recipes."""


@dataclass(frozen=True)
class Noise:
    """Noise of one round: its level is a standard deviation of 255 (Gaussian) or a scale (Poisson)."""

    gaussian: bool
    level: float
    grey: bool


@dataclass(frozen=True)
class Round:
    """What one round does to one picture.

    Attributes:
        kernel: (k, k), or None for no blur.
        factor: of the resize, relative to what comes in (first round) or to the small size (second).
        mode: of the resize.
        noise: which noise.
        quality: of JPEG.
    """

    kernel: Tensor | None
    factor: float
    mode: Mode
    noise: Noise
    quality: float


@dataclass(frozen=True)
class Plan:
    """Every choice for one picture; only the noise fields are drawn while it is carried out.

    Attributes:
        first: the first round.
        second: the second round.
        last_mode: of the resize to the final size.
        last_kernel: (k, k), the sinc at the end, or None.
        resize_first: whether the last resize and sinc come before JPEG.
    """

    first: Round
    second: Round
    last_mode: Mode
    last_kernel: Tensor | None
    resize_first: bool


def _within(rng: np.random.Generator, bounds: Range) -> float:
    return float(rng.uniform(*bounds))


def _sinc(rng: np.random.Generator, final: bool) -> Tensor:
    size = int(rng.choice(np.arange(7, KERNEL_SIDE + 1, 2)))
    least = math.pi / 3 if final or size < 13 else math.pi / 5
    return sinc_kernel(_within(rng, (least, math.pi)), size)


def _blur(rng: np.random.Generator, stage: Stage, sinc: float) -> Tensor:
    if rng.random() < sinc:
        return _sinc(rng, final=False)
    size = int(rng.choice(np.arange(7, KERNEL_SIDE + 1, 2)))
    shape, ellipse, _ = KERNEL_SHARES[rng.choice(len(KERNEL_SHARES), p=[share for *_, share in KERNEL_SHARES])]
    sigma_x = _within(rng, stage.sigma)
    sigma_y = _within(rng, stage.sigma) if ellipse else sigma_x
    theta = _within(rng, (-math.pi, math.pi)) if ellipse else 0.0
    low, high = stage.plateau if shape == "plateau" else stage.generalized
    beta = _within(rng, (low, 1.0) if rng.random() < 0.5 else (1.0, high))
    return blur_kernel(size, sigma_x, sigma_y, theta, shape=shape, beta=beta)


def _round(rng: np.random.Generator, stage: Stage, sinc: float) -> Round:
    kernel = _blur(rng, stage, sinc) if rng.random() < stage.blur else None
    direction = rng.choice(3, p=stage.resize)
    low, high = stage.scale
    factor = (_within(rng, (1.0, high)), _within(rng, (low, 1.0)), 1.0)[direction]
    mode = MODES[rng.integers(3)]
    gaussian = bool(rng.random() < stage.gaussian)
    noise = Noise(gaussian, _within(rng, stage.noise if gaussian else stage.poisson), bool(rng.random() < stage.grey))
    return Round(kernel, factor, mode, noise, _within(rng, stage.quality))


def plan(recipe: Recipe, rng: np.random.Generator) -> Plan:
    """Draw every choice for one picture."""
    first, second = _round(rng, recipe.first, recipe.sinc), _round(rng, recipe.second, recipe.sinc)
    last = _sinc(rng, final=True) if rng.random() < recipe.final_sinc else None
    return Plan(first, second, MODES[rng.integers(3)], last, bool(rng.random() < 0.5))


def _noisy(picture: Tensor, noise: Noise, draws: Draws) -> Tensor:
    add = with_gaussian_noise if noise.gaussian else with_poisson_noise
    return add(picture, noise.level, noise.grey, draws)


def carried_out(choices: Plan, picture: Tensor, size: tuple[float, float], draws: Draws) -> Tensor:
    """One picture (1, 3, H, W), sharpened before if that is wanted, degraded to `size` (h, w); clipped, not rounded.

    Sides that are no whole numbers are cut down in the end; the resize between takes its share of what they are.
    """
    end = (int(size[0]), int(size[1]))

    def blurred(x: Tensor, kernel: Tensor | None) -> Tensor:
        return x if kernel is None else filtered(x, kernel[None])

    first, second = choices.first, choices.second
    x = resized(blurred(picture, first.kernel), first.mode, factor=first.factor)
    x = jpeg(_noisy(x, first.noise, draws), [first.quality])
    between = (max(1, int(size[0] * second.factor)), max(1, int(size[1] * second.factor)))
    x = resized(blurred(x, second.kernel), second.mode, size=between)
    x = _noisy(x, second.noise, draws)

    def last(x: Tensor) -> Tensor:
        return blurred(resized(x, choices.last_mode, size=end), choices.last_kernel)

    x = jpeg(last(x), [second.quality]) if choices.resize_first else last(jpeg(x, [second.quality]))
    return x.clamp(0, 1)


def degrade(
    pictures: Tensor, recipe: str | Recipe, seeds: Sequence[int], size: tuple[int, int] | None = None
) -> Tensor:
    """Degraded pictures.

    Args:
        pictures: (B, 3, H, W), 0..1.
        recipe: "bicubic", "realesrgan", "stablesr", or ranges of your own.
        seeds: one for each picture; unused by "bicubic".
        size: (h, w) of the result; a quarter of the sides, rounded down, if None.

    Returns:
        (B, 3, h, w), 0..1; on whole bytes, but for recipes that do not round.
    """
    if len(seeds) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many seeds, not {len(seeds)}")
    size = size or (max(1, pictures.shape[2] // 4), max(1, pictures.shape[3] // 4))
    if recipe == "bicubic":
        return _matlab(pictures, size)
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    made = []
    for picture, seed in zip(pictures, seeds, strict=True):
        rng = np.random.default_rng(seed)
        draws = Generated(torch.Generator().manual_seed(int(rng.integers(2**62))))
        made.append(carried_out(plan(chosen, rng), sharpened(picture[None]), size, draws))
    stacked = torch.cat(made)
    return (stacked * 255).round() / 255 if chosen.rounded else stacked


def _matlab(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """All pictures (B, C, H, W) in one resize: what lies along the third axis does not meet."""
    count, channels, height, width = pictures.shape
    levels = (pictures * 255).round().clamp(0, 255).reshape(count * channels, height, width).permute(1, 2, 0)
    small = np.floor(resize_floats(levels.cpu().numpy().astype(np.float64), *size) + 0.5).clip(0, 255)
    return torch.from_numpy(small).to(pictures).permute(2, 0, 1).reshape(count, channels, *size) / 255


NAMES: tuple[str, ...] = ("bicubic", *RECIPES)
