"""The two classification networks whose features the perceptual metrics compare, as functions of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from enlarger.evaluation.parameters import VGG_CONVOLUTIONS, Tensors

ALEXNET_GEOMETRY = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
"""Stride and padding of AlexNet's convolutions by their index in torchvision's `features`."""


def alexnet_features(x: Tensor, weights: Tensors) -> Iterator[Tensor]:
    """Features after each of AlexNet's five convolutions and ReLU.

    Args:
        x: (B, 3, H, W), normalised by the caller, each side at least 31.
        weights: `features.{0,3,6,8,10}.{weight,bias}`.
    """
    for index, (stride, padding) in ALEXNET_GEOMETRY.items():
        if index in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], stride, padding)
        x = F.relu(x)
        yield x


def vgg_features(x: Tensor, weights: Tensors, pool: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Features of VGG16 after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
        x: (B, 3, H, W), normalised by the caller, each side at least 16.
        weights: `features.N.{weight,bias}` for all thirteen convolutions.
        pool: halves the picture between two stages; the network was trained with 2x2 maximum.
    """
    for index in VGG_CONVOLUTIONS:
        if index in (5, 10, 17, 24):
            x = pool(x)
        x = F.relu(F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1))
        if index in (2, 7, 14, 21, 28):
            yield x
