"""The energy score: a loss that is least when samples spread as the truth does.

For samples x, x' of a model and a truth y, E d(x, y) - 1/2 E d(x, x') with the Euclidean distance d is a strictly
proper scoring rule (Gneiting and Raftery 2007, section 4.3): of all distributions, the truth's own has the lowest mean
score.  It trains samplers without an opponent: "Distributional diffusion models with scoring rules" (De Bortoli et al.
2025, arXiv 2502.02483) and engression (Shen and Meinshausen 2024, arXiv 2307.00835).  Here it is taken of *local*
feature vectors (a patch, the channels of a VGG layer), so that texture counts place by place.
"""

from __future__ import annotations

from torch import Tensor


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance over the channels of two feature maps (B, C, H, W), averaged over places: (B,).

    Not squared: squared distances cancel the spread of the samples but for their mean.  The small constant keeps the
    gradient finite where the two are equal, as two samples of an untrained model are.
    """
    squared = (first - second).square().sum(1)
    return (squared + 1e-8).sqrt().mean((1, 2))


def energy_score(first: Tensor, second: Tensor, truth: Tensor, spread: Tensor) -> Tensor:
    """The energy score of two samples, for each picture of the batch.

    Args:
        first: features of one sample, (B, C, H, W).
        second: features of another sample of the same input.
        truth: features of the truth.
        spread: weight of the samples' distance, (B,): 1 is the proper score, 0 the plain distance, between them the
            samples spread less than the truth does.

    Returns:
        The scores, (B,).
    """
    error = (distance(first, truth) + distance(second, truth)) / 2
    return error - spread / 2 * distance(first, second)
