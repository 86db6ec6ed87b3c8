"""The loss that StableSR's encoder and modulation are trained with (Wang et al. 2024, arXiv 2305.07015, section 3.1).

Plain denoising: the clean picture's latent is noised to a random timestep, and the network, told of the degraded
picture's latent, is charged the mean squared error of what it predicts, without a weight for the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from enlarger.sampling.respaced import Chain

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From noisy latent, degraded latent, timesteps and text to a prediction: `engines.stablesr.StableSR.network`."""


@dataclass(frozen=True)
class Loss:
    """One batch's loss and what led to it.

    Attributes:
        noisy: (B, 4, h, w), the clean latent, noised.
        target: What should be predicted.
        prediction: What was.
        value: A scalar, to be differentiated.
    """

    noisy: Tensor
    target: Tensor
    prediction: Tensor
    value: Tensor


def denoising_loss(
    network: Network,
    chain: Chain,
    kind: str,
    *,
    clean: Tensor,
    degraded: Tensor,
    timestep: Tensor,
    noise: Tensor,
    context: Tensor,
) -> Loss:
    """The loss of one batch.

    Args:
        network: Predicts, with gradients.
        chain: The training's noise levels.
        kind: What it predicts, "epsilon" or "v_prediction" (Salimans and Ho 2022, arXiv 2202.00512, appendix D).
        clean: Latents of the clean pictures, times the latent scale, (B, 4, h, w).
        degraded: The same of the degraded pictures, enlarged to the same size.
        timestep: (B,), 0 to 999.
        noise: Standard normal values, (B, 4, h, w).
        context: The text, (B, 77, C); published: of the empty prompt.
    """
    shares = torch.from_numpy(chain.alphas_cumprod).to(clean.device)[timestep.to(clean.device)].view(-1, 1, 1, 1)
    signal, sigma = shares.sqrt().to(clean.dtype), (1 - shares).sqrt().to(clean.dtype)
    noisy = signal * clean + sigma * noise
    target = noise if kind == "epsilon" else signal * noise - sigma * clean
    prediction = network(noisy, degraded, timestep, context)
    return Loss(noisy, target, prediction, functional.mse_loss(prediction, target))
