"""The two generators of the ESRGAN family, built from whatever a checkpoint's tensors say.

* `RRDBNet`: Wang et al. 2018, "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", section 3.1;
  with the pixel-unshuffle of Real-ESRGAN's x2 and x1 models (Wang et al. 2021, section 3.2).
* `CompactNet`: the plain network of Real-ESRGAN's "animevideov3" and "general" models (SRVGGNetCompact).

Both take and give RGB in 0..1, are purely convolutional without any norm, and state how far they see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from enlarger.checkpoints.load import fill
from enlarger.errors import ModelError

SLOPE = 0.2
"""Negative slope of every LeakyReLU."""

RESIDUAL_SCALE = 0.2
"""Weight of a block's output beside its input."""


@dataclass(frozen=True)
class RRDBShape:
    """Hyperparameters of an `RRDBNet`, all readable from its tensors.

    Attributes:
        channels: features between blocks.
        growth: features that each convolution of a dense block adds.
        blocks: residual-in-residual dense blocks.
        doublings: how often the features are made twice as large after the blocks.
        unshuffle: how many times smaller the picture is folded before the first convolution.
    """

    channels: int = 64
    growth: int = 32
    blocks: int = 23
    doublings: int = 2
    unshuffle: int = 1


@dataclass(frozen=True)
class CompactShape:
    """Hyperparameters of a `CompactNet`.

    Attributes:
        channels: features between convolutions.
        convolutions: those between the first and the last.
        factor: output pixels per input pixel.
    """

    channels: int = 64
    convolutions: int = 16
    factor: int = 4


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    """LeakyReLU in place: `x` is always a convolution's own output, and half the memory is the features' copies."""
    return functional.leaky_relu(x, SLOPE, inplace=True)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, growth)
        self.conv2 = _conv(channels + growth, growth)
        self.conv3 = _conv(channels + 2 * growth, growth)
        self.conv4 = _conv(channels + 3 * growth, growth)
        self.conv5 = _conv(channels + 4 * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        seen = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(_leaky(conv(torch.cat(seen, 1))))
        last: Tensor = self.conv5(torch.cat(seen, 1))
        return last * RESIDUAL_SCALE + x


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks with a residual around them."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        last: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return last * RESIDUAL_SCALE + x


class RRDBNet(nn.Module):
    """ESRGAN's generator.

    Attributes:
        factor: output pixels per input pixel.
        stride: the sides of the input must be multiples of it.
        receptive_field: input pixels beyond its own on each side that an output pixel can depend on.
    """

    def __init__(self, shape: RRDBShape = RRDBShape()) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.channels
        self.conv_first = _conv(3 * shape.unshuffle**2, channels)
        self.body = nn.Sequential(*(ResidualDenseBlocks(channels, shape.growth) for _ in range(shape.blocks)))
        self.conv_body = _conv(channels, channels)
        for number in range(1, shape.doublings + 1):
            self.add_module(f"conv_up{number}", _conv(channels, channels))
        self.conv_hr = _conv(channels, channels)
        self.conv_last = _conv(channels, 3)
        self.factor = 2**shape.doublings // shape.unshuffle
        self.stride = shape.unshuffle

    @property
    def receptive_field(self) -> int:
        """349 for the usual x4: 2 around the enlarging, 2 for the convolutions around the blocks, 15 for each block."""
        seen = 2  # conv_hr and conv_last, in output pixels
        for _ in range(self.shape.doublings):
            seen = -(-(seen + 1) // 2)
        return (seen + 2 + 15 * self.shape.blocks + (self.shape.unshuffle > 1)) * self.shape.unshuffle

    def enter(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 to the features (B, C, H / stride, W / stride) that the first block takes."""
        features: Tensor = self.conv_first(functional.pixel_unshuffle(x, self.shape.unshuffle))
        return features

    def through(self, features: Tensor, start: int, stop: int) -> Tensor:
        """Features after the blocks `start` to `stop`; every block sees 15 pixels far."""
        for block in list(self.body)[start:stop]:
            features = block(features)
        return features

    def leave(self, features: Tensor, first: Tensor) -> Tensor:
        """From the features after the last block, and those before the first, to the picture."""
        features = first + self.conv_body(features)
        for number in range(1, self.shape.doublings + 1):
            conv = self.get_submodule(f"conv_up{number}")
            features = _leaky(conv(functional.interpolate(features, scale_factor=2, mode="nearest")))
        last: Tensor = self.conv_last(_leaky(self.conv_hr(features)))
        return last

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 to (B, 3, H * factor, W * factor), not clamped."""
        first = self.enter(x)
        return self.leave(self.through(first, 0, self.shape.blocks), first)


class CompactNet(nn.Module):
    """A chain of convolutions with learned slopes, added to the picture enlarged by repeating pixels.

    Attributes:
        factor: output pixels per input pixel.
        stride: 1.
        receptive_field: one input pixel for each convolution.
    """

    stride = 1

    def __init__(self, shape: CompactShape = CompactShape()) -> None:
        super().__init__()
        self.shape = shape
        self.factor = shape.factor
        layers: list[nn.Module] = [_conv(3, shape.channels), nn.PReLU(shape.channels)]
        for _ in range(shape.convolutions):
            layers += [_conv(shape.channels, shape.channels), nn.PReLU(shape.channels)]
        self.body = nn.Sequential(*layers, _conv(shape.channels, 3 * shape.factor**2))

    @property
    def receptive_field(self) -> int:
        """18 for 16 convolutions between the first and the last."""
        return self.shape.convolutions + 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 to (B, 3, H * factor, W * factor), not clamped."""
        added = functional.pixel_shuffle(self.body(x), self.shape.factor)
        return added + functional.interpolate(x, scale_factor=self.shape.factor, mode="nearest")


Tensors = Mapping[str, Tensor]

_BLOCK = r"body.\g<block>.rdb\g<dense>.conv\g<conv>.\g<kind>"
_KIND = r"(?P<kind>weight|bias)"

LAYOUTS: tuple[tuple[str, str], ...] = (
    # Real-ESRGAN and BasicSR
    (rf"body\.(?P<block>\d+)\.rdb(?P<dense>\d)\.conv(?P<conv>\d)\.{_KIND}", _BLOCK),
    (rf"(?P<name>conv_(?:first|body|up\d|hr|last))\.{_KIND}", r"\g<name>.\g<kind>"),
    # the ESRGAN repository
    (rf"RRDB_trunk\.(?P<block>\d+)\.RDB(?P<dense>\d)\.conv(?P<conv>\d)\.{_KIND}", _BLOCK),
    (rf"trunk_conv\.{_KIND}", r"conv_body.\g<kind>"),
    (rf"upconv(?P<number>\d)\.{_KIND}", r"conv_up\g<number>.\g<kind>"),
    (rf"HRconv\.{_KIND}", r"conv_hr.\g<kind>"),
    # its first published files ("old architecture", most community models)
    (rf"model\.1\.sub\.(?P<block>\d+)\.RDB(?P<dense>\d)\.conv(?P<conv>\d)\.0\.{_KIND}", _BLOCK),
)
"""Pattern of a published key -> our key."""


def _numbered(tensors: Tensors) -> dict[str, str]:
    """Our keys for the numbered layers of the old layout: model.0, the trunk's last, then the enlarging layers."""
    numbers = sorted({int(found[1]) for key in tensors if (found := re.fullmatch(r"model\.(\d+)\.weight", key))})
    trunk = [int(found[1]) for key in tensors if (found := re.fullmatch(r"model\.1\.sub\.(\d+)\.weight", key))]
    if len(numbers) < 3 or len(trunk) != 1:
        return {}
    names = ["conv_first", *(f"conv_up{i + 1}" for i in range(len(numbers) - 3)), "conv_hr", "conv_last"]
    places = {f"model.{number}": name for number, name in zip(numbers, names, strict=True)}
    places[f"model.1.sub.{trunk[0]}"] = "conv_body"
    return {f"{place}.{kind}": f"{name}.{kind}" for place, name in places.items() for kind in ("weight", "bias")}


def unwrapped(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """The weights themselves, out of the mappings that training code wraps around them; the averaged ones first."""
    for name in ("params_ema", "params", "state_dict"):
        inner = tensors.get(name)
        if isinstance(inner, Mapping):
            return unwrapped(inner)
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    for prefix in ("params_ema.", "params.", "module."):
        if found and all(key.startswith(prefix) for key in found):
            return unwrapped({key.removeprefix(prefix): value for key, value in found.items()})
    return found


def renamed(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under our keys; keys of no known layout keep their own, so that `fill` can name them."""
    numbered = _numbered(tensors)
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = numbered.get(key, key)
        for pattern, replacement in LAYOUTS:
            found = re.fullmatch(pattern, key)
            if found:
                name = found.expand(replacement)
                break
        ours[name] = tensor
    return ours


def shape_of(tensors: Tensors) -> RRDBShape | CompactShape | None:
    """Hyperparameters, read from the shapes of tensors under our keys; None when it is neither network."""
    first, last = tensors.get("conv_first.weight"), tensors.get("conv_last.weight")
    growth = tensors.get("body.0.rdb1.conv1.weight")
    if first is not None and last is not None and growth is not None:
        blocks = {int(found[1]) for key in tensors if (found := re.match(r"body\.(\d+)\.", key))}
        doublings = sum(re.fullmatch(r"conv_up\d\.weight", key) is not None for key in tensors)
        unshuffle = {3: 1, 12: 2, 48: 4}.get(first.shape[1], 1)
        return RRDBShape(first.shape[0], growth.shape[0], len(blocks), doublings, unshuffle)
    numbers = sorted(int(found[1]) for key in tensors if (found := re.fullmatch(r"body\.(\d+)\.weight", key)))
    if len(numbers) >= 3 and "body.1.weight" in tensors and tensors["body.1.weight"].ndim == 1:
        outputs = tensors[f"body.{numbers[-1]}.weight"].shape[0]
        factor = round((outputs / 3) ** 0.5)
        if 3 * factor**2 == outputs:
            return CompactShape(tensors["body.0.weight"].shape[0], (len(numbers) - 3) // 2, factor)
    return None


def build(checkpoint: Mapping[str, object], name: str) -> RRDBNet | CompactNet:
    """The network that a checkpoint holds, with its weights, float32, ready to evaluate.

    Args:
        checkpoint: tensors in any of the published layouts, wrapped or not.
        name: what errors call the model.

    Raises:
        ModelError: neither network, or tensors that are missing, unexpected or of another shape.
    """
    tensors = renamed(unwrapped(checkpoint))
    shape = shape_of(tensors)
    if shape is None:
        keys = ", ".join(list(tensors)[:3]) or "none"
        raise ModelError(
            f"{name} is no network of the ESRGAN family (ESRGAN, Real-ESRGAN, compact): its tensors are {keys}, ..."
        )
    net = RRDBNet(shape) if isinstance(shape, RRDBShape) else CompactNet(shape)
    fill(net, tensors, name)
    return net.eval().requires_grad_(False)
