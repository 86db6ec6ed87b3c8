"""Guidance on the canvas: once for the whole picture, with the whole picture's statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor | None, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance, and the rescale that undoes its overexposure.

    Args:
        conditional: The blended output with the prompt, (B, C, h, w).
        unconditional: The same without it; None while guidance is off.
        scale: 1 is no guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6 with w = scale - 1).
        rescale: 0 .. 1, how far the guided output is brought back to the standard deviation of the conditional
            one (Lin et al. 2024, arXiv 2305.08891, eq. 15 and 16, phi). Statistics are taken over everything but
            the batch, so they are a whole picture's; over tiles they would put a tone step between neighbours.

    Returns:
        (B, C, h, w); `conditional` itself while guidance is off.
    """
    import torch

    if unconditional is None:
        return conditional
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    deviation = guided.std(dim=(1, 2, 3), keepdim=True)
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / deviation
    ratio = torch.where(deviation > 0, ratio, 1.0)  # a constant output has nothing to rescale
    return guided * (rescale * ratio + (1 - rescale))
