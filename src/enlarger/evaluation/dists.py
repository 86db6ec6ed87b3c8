"""DISTS: structure and texture similarity of VGG16's features.

Ding et al. 2020, "Image Quality Assessment: Unifying Structure and Texture Similarity", eqs. 5 to 8.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import PictureError
from enlarger.evaluation.backbones import vgg_features
from enlarger.evaluation.parameters import Tensors
from enlarger.evaluation.pixels import Pixels, as_bytes, same_size

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
CHANNELS = [3, 64, 128, 256, 512, 512]
STABILISER = 1e-6  # c1 and c2 of eqs. 5 and 6


def _l2_pool(x: Tensor) -> Tensor:
    """Halve by the root of Hanning-weighted squares (eq. 1), which unlike the maximum does not alias."""
    line = torch.tensor(np.hanning(5)[1:-1], dtype=x.dtype)
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class Dists:
    """DISTS with the authors' channel weights."""

    def __init__(self, vgg: Tensors, weights: Tensors) -> None:
        """Keep the weights in float32.

        Args:
            vgg: the convolutions of VGG16, `features.N.{weight,bias}`.
            weights: `alpha` (texture) and `beta` (structure), (1, 1475, 1, 1): the picture's three channels, then
                those of the five stages.
        """
        self.vgg = vgg
        total = weights["alpha"].double().sum() + weights["beta"].double().sum()
        self.alpha = torch.split((weights["alpha"].double() / total).flatten().float(), CHANNELS)
        self.beta = torch.split((weights["beta"].double() / total).flatten().float(), CHANNELS)

    def _features(self, pixels: Pixels) -> list[Tensor]:
        x = torch.from_numpy(as_bytes(pixels).copy()).permute(2, 0, 1)[None].float() / 255
        normalised = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)
        return [x, *vgg_features(normalised, self.vgg, _l2_pool)]

    @torch.inference_mode()
    def __call__(self, result: Pixels, reference: Pixels) -> float:
        """Distance of two whole RGB pictures at their own size: 0 for equal ones, at most about 1, lower is better.

        The authors' demo shrinks pictures to 256 pixels first; papers of this field, like this function, do not.
        """
        same_size(result, reference)
        height, width = result.shape[:2]
        if min(height, width) < 16:
            raise PictureError(f"DISTS needs at least 16x16 pixels, got {width}x{height}")
        similarity = 0.0
        pairs = zip(self._features(result), self._features(reference), self.alpha, self.beta, strict=True)
        for first, second, alpha, beta in pairs:
            mean1, mean2 = first.mean((0, 2, 3)), second.mean((0, 2, 3))
            centred1, centred2 = first - mean1.view(1, -1, 1, 1), second - mean2.view(1, -1, 1, 1)
            variance1, variance2 = centred1.square().mean((0, 2, 3)), centred2.square().mean((0, 2, 3))
            covariance = (centred1 * centred2).mean((0, 2, 3))
            texture = (2 * mean1 * mean2 + STABILISER) / (mean1.square() + mean2.square() + STABILISER)
            structure = (2 * covariance + STABILISER) / (variance1 + variance2 + STABILISER)
            similarity += float((alpha * texture + beta * structure).sum())
        return 1 - similarity
