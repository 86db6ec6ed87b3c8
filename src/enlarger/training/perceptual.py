"""Features of VGG16 in which training compares pictures, read from a file that the user names.

Never AlexNet: LPIPS with AlexNet is the judge, and a model trained on its judge's features learns the judge.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
"""Places of VGG16's convolutions in torchvision's `features`, as its keys name them."""
POOLED = (5, 10, 17)
"""Convolutions that a 2x2 max pool precedes."""
TAPS = {"relu1_2": 2, "relu2_2": 7, "relu3_1": 10, "relu3_3": 14, "relu4_1": 17, "relu4_3": 21}
HEADS = {"relu1_2": 0, "relu2_2": 1, "relu3_3": 2, "relu4_3": 3}
"""Which LPIPS head weighs a layer; layers without one of their own take that of their block."""
HEADS_OF_BLOCK = {"relu3_1": 2, "relu4_1": 3}


class PerceptualFeatures:
    """VGG16 up to a layer: features scaled to unit length at each place, channels weighed as LPIPS weighs them.

    The Euclidean distance of two pictures' features at a place is then the square root of LPIPS' (Zhang et al. 2018,
    arXiv 1801.03924) contribution there.
    """

    def __init__(
        self, file: Path, heads: Path | None = None, layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_3")
    ) -> None:
        """Read the weights.

        Args:
            file: safetensors with torchvision's keys `features.N.weight` and `features.N.bias`, any float type.
            heads: safetensors with LPIPS v0.1's heads as `vgg.linN.model.1.weight`; None weighs all channels alike.
            layers: which activations to give, keys of TAPS.
        """
        self.layers = layers
        last = max(TAPS[layer] for layer in layers)
        self.convolutions: dict[int, tuple[Tensor, Tensor]] = {}
        with safe_open(file, framework="pt") as weights:
            for place in CONVOLUTIONS:
                if place <= last:
                    weight = weights.get_tensor(f"features.{place}.weight").float()
                    self.convolutions[place] = (weight, weights.get_tensor(f"features.{place}.bias").float())
        self.scales: dict[str, Tensor | None] = dict.fromkeys(layers)
        if heads is not None:
            with safe_open(heads, framework="pt") as weights:
                for layer in layers:
                    head = weights.get_tensor(f"vgg.lin{(HEADS | HEADS_OF_BLOCK)[layer]}.model.1.weight").float()
                    self.scales[layer] = head.clamp(min=0).sqrt().view(1, -1, 1, 1)
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        self.deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        """Give the features of `pictures` (B, 3, H, W) in -1..1, one (B, C, h, w) for each layer."""
        features: list[Tensor] = []
        hidden = ((pictures + 1) / 2 - self.mean) / self.deviation
        places = {TAPS[layer]: layer for layer in self.layers}
        for place, (weight, bias) in self.convolutions.items():
            if place in POOLED:
                hidden = functional.max_pool2d(hidden, 2)
            hidden = functional.relu(functional.conv2d(hidden, weight, bias, padding=1))
            if place in places:
                features.append(self._scaled(hidden, self.scales[places[place]]))
        return features

    @staticmethod
    def _scaled(hidden: Tensor, scale: Tensor | None) -> Tensor:
        unit = hidden * (hidden.square().sum(1, keepdim=True) + 1e-6).rsqrt()
        return unit / hidden.shape[1] ** 0.5 if scale is None else unit * scale
