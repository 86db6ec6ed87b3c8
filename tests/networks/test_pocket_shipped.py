"""The shipped weights: a diffusion model with a working dial, not a filter."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from enlarger.networks import pocket
from enlarger.networks.pocket import PocketNet
from enlarger.sampling.residual import SCHEDULES, run

WEIGHTS = Path(pocket.__file__).parents[1] / "checkpoints/shipped/pocket.safetensors"


@pytest.fixture(scope="module")
def net() -> PocketNet:
    net = PocketNet().eval()
    net.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
    return net


@pytest.fixture(scope="module")
def source() -> Tensor:
    """Smooth noise with an edge: something for detail to grow on, (1, 3, 32, 48) in -1..1."""
    coarse = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bicubic").clamp(-2, 2) * 0.3
    picture[..., 24:] += 0.3
    return picture


def enlarge(net: PocketNet, source: Tensor, steps: int, strength: float, seed: int = 0) -> Tensor:
    shape = (1, 3, source.shape[2] * 4, source.shape[3] * 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        residual, _ = run(net, source, noise, torch.tensor([strength]), SCHEDULES[steps])
        assert residual is not None
        return net.enlarge(source) + residual


def test_the_file_is_small_half_precision_and_says_what_it_is() -> None:
    assert WEIGHTS.stat().st_size <= 16 * 2**20
    with WEIGHTS.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    metadata = header.pop("__metadata__")
    assert metadata["model"] == "pocket"
    assert metadata["licence"] == "Apache-2.0"
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}


@pytest.mark.parametrize("steps", sorted(SCHEDULES))
def test_two_seeds_differ_at_full_strength_and_agree_without(net: PocketNet, source: Tensor, steps: int) -> None:
    apart = (enlarge(net, source, steps, 1.0, 0) - enlarge(net, source, steps, 1.0, 1)).abs().mean() * 127.5
    assert apart >= 0.5
    assert torch.equal(enlarge(net, source, steps, 0.0, 0), enlarge(net, source, steps, 0.0, 1))


@pytest.mark.parametrize("steps", sorted(SCHEDULES))
def test_the_dial_spreads_samples_more_and_more(net: PocketNet, source: Tensor, steps: int) -> None:
    spreads = [
        float((enlarge(net, source, steps, strength, 0) - enlarge(net, source, steps, strength, 1)).abs().mean())
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert spreads == sorted(spreads)
    assert spreads[-1] > 2 * spreads[1] > 0


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_colours_stay(net: PocketNet, source: Tensor, strength: float) -> None:
    drift = enlarge(net, source, 1, strength).mean((2, 3)) - source.mean((2, 3))
    assert drift.abs().max() * 127.5 < 1.5
