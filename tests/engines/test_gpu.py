"""What is promised on a GPU; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import enlarger
from tests.engines.test_latent_contract import FAST, MAKERS, picture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def furthest(one, other) -> float:
    return float(np.abs(one.pixels - other.pixels).max())


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_picture_as_on_the_cpu(parts, name):
    cpu = enlarger.Upscaler(name, components=parts[name], device="cpu", dtype="float32")
    gpu = enlarger.Upscaler(name, components=parts[name], device="cuda", dtype="float32")
    assert furthest(cpu(picture(16, 20), **FAST), gpu(picture(16, 20), **FAST)) < 2e-3


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_finite_and_near(parts, name, dtype):
    full = enlarger.Upscaler(name, components=parts[name], device="cuda", dtype="float32")
    half = enlarger.Upscaler(name, components=parts[name], device="cuda", dtype=dtype)
    made = half(picture(16, 20), **FAST)
    assert np.isfinite(made.pixels).all()
    # Tiny random networks amplify rounding; the full-size figure is printed by benchmarks/x4.py --check-dtypes.
    assert float(np.abs(made.pixels - full(picture(16, 20), **FAST).pixels).mean()) < 2e-2


def test_pocket_on_the_gpu_is_pocket_on_the_cpu():
    cpu, gpu = enlarger.Upscaler("pocket", device="cpu"), enlarger.Upscaler("pocket", device="cuda", dtype="float32")
    assert furthest(cpu(picture(40, 50)), gpu(picture(40, 50))) < 1e-3
    tiled = gpu(picture(40, 130), tile=128)
    assert furthest(tiled, gpu(picture(40, 130), tile=4096)) < 1e-4
