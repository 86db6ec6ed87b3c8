"""LPIPS: a distance of deep features that was fitted to human judgements.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, version 0.1 of the
authors' weights ("lin"): features after each ReLU are divided by their length over the channels, their squared
differences weighted by a learned 1x1 head, averaged over the map and summed over the layers.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import PictureError
from enlarger.evaluation.backbones import alexnet_features, vgg_features
from enlarger.evaluation.parameters import Tensors
from enlarger.evaluation.pixels import Pixels, as_bytes, same_size

# The authors' "scaling layer", for RGB in -1..1.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

SMALLEST = {"alex": 31, "vgg": 16}


class Lpips:
    """LPIPS with one of its two networks."""

    def __init__(self, network: Literal["alex", "vgg"], backbone: Tensors, heads: Tensors) -> None:
        """Keep the weights in float32.

        Args:
            network: which backbone.
            backbone: its convolutions, `features.N.{weight,bias}`.
            heads: `<network>.lin{0..4}.model.1.weight`, (1, C, 1, 1).
        """
        self.network = network
        self.backbone = {key: value.float() for key, value in backbone.items()}
        self.heads = [heads[f"{network}.lin{layer}.model.1.weight"].float() for layer in range(5)]

    def _features(self, pixels: Pixels) -> list[Tensor]:
        levels = torch.from_numpy(as_bytes(pixels).copy()).permute(2, 0, 1)[None].float()
        x = (levels / 127.5 - 1 - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        if self.network == "alex":
            features = alexnet_features(x, self.backbone)
        else:
            features = vgg_features(x, self.backbone, lambda map_: F.max_pool2d(map_, 2))
        return [feature / (feature.square().sum(1, keepdim=True).sqrt() + 1e-10) for feature in features]

    @torch.inference_mode()
    def __call__(self, result: Pixels, reference: Pixels) -> float:
        """Distance of two whole RGB pictures (no border crop): 0 for equal ones, seldom above 1, lower is better."""
        same_size(result, reference)
        height, width = result.shape[:2]
        if min(height, width) < SMALLEST[self.network]:
            least = SMALLEST[self.network]
            raise PictureError(f"LPIPS-{self.network} needs at least {least}x{least} pixels, got {width}x{height}")
        layers = zip(self._features(result), self._features(reference), self.heads, strict=True)
        return sum(float(F.conv2d((first - second).square(), head).mean()) for first, second, head in layers)
