"""Engine x4: diffusers' numbers for the same seed, any size, and no seam where a network invites one."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import enlarger
from enlarger.canvas import blend
from enlarger.engines.engine import Decoded
from enlarger.errors import ModelError, SettingsError
from enlarger.evaluation.artefacts import seam_score
from tests.engines import tiny, toy
from tests.engines.test_latent_contract import picture
from tests.sampling.test_loop import hard


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny.x4(tmp_path_factory.mktemp("x4"))


@pytest.fixture(scope="module")
def upscaler(parts):
    return enlarger.Upscaler("x4", components=parts)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 9.0, "noise_level": 20, "negative_prompt": "grey"},
        {"guidance_scale": 1.0, "noise_level": 0},
        {"guidance_scale": 0.0, "noise_level": 350},
        {"guidance_scale": 3.0, "noise_level": 100, "eta": 0.7},
    ],
)
def test_equals_diffusers_own_pipeline(parts, upscaler, settings):
    pipe = tiny.diffusers.StableDiffusionUpscalePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    source = picture(12, 20)
    generator = torch.Generator().manual_seed(7)
    call = {"prompt": "a cat", "image": source[None], "num_inference_steps": 3, "output_type": "np", **settings}
    made = pipe(**call, generator=generator).images[0]
    result = upscaler(source, prompt="a cat", steps=3, seed=7, consistency=0.0, **settings)
    assert result.pixels.shape == made.shape
    assert np.abs(result.pixels - made).max() <= 2e-4


def test_450_by_128_gives_exactly_1800_by_512(upscaler):
    result = upscaler(picture(128, 450), steps=1, guidance_scale=1.0)
    assert result.size == (512, 1800)


def test_the_input_is_kept_by_default(upscaler):
    """Random weights make anything; back-projection, on by default, still returns the input when made small again."""
    source = picture(16, 16)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(upscaler(source, steps=1).pixels).permute(2, 0, 1)[None], (16, 16), mode="bicubic",
        antialias=True,
    )  # fmt: skip
    assert float((small[0].permute(1, 2, 0) - torch.from_numpy(source)).pow(2).mean().sqrt()) < 0.02


@pytest.mark.parametrize("level", [-1, 351, 20.7, "high", True])
def test_the_noise_level_is_checked(upscaler, level):
    with pytest.raises(SettingsError, match="noise_level"):
        upscaler(picture(6, 6), noise_level=level)


def test_a_second_pass_invents_nothing_on_what_the_first_invented(upscaler):
    assert upscaler.engine.later(upscaler.settings(noise_level=50)).noise_level == 0
    assert upscaler(picture(5, 6), steps=1, scale=7, guidance_scale=1.0).size == (35, 42)


class TiledMean(nn.Module):
    """Stands for a UNet whose norms see the whole of a tile: its clean value moves with the mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(in_channels=7)

    def forward(self, seen: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        noisy = seen[:, :4]
        alpha, beta = toy.levels(float(timestep))
        spread = 0.1**2
        centre = 0.5 * torch.tanh(20 * noisy.mean(dim=(2, 3), keepdim=True)).expand_as(noisy)
        clean = (alpha * spread * noisy + beta**2 * centre) / (alpha**2 * spread + beta**2)
        epsilon = (noisy - alpha * clean) / beta
        return (alpha * epsilon - beta * clean,)


def test_no_seam_at_the_default_tiles_and_the_meter_sees_one_without_blending(parts, monkeypatch):
    scheduler = toy.config("v_prediction")
    up = enlarger.Upscaler("x4", components={**parts, "unet": TiledMean(), "scheduler": scheduler})
    latents: list[torch.Tensor] = []

    def listen(latent: torch.Tensor, conditioning: Any, progress: Any = None) -> Decoded:
        latents.append(latent)
        return Decoded(torch.zeros(1, 3, 4 * latent.shape[2], 4 * latent.shape[3]))

    monkeypatch.setattr(up.engine, "decode_canvas", listen)
    settings = {"steps": 5, "guidance_scale": 1.0, "consistency": 0.0, "batch": 8}
    source = np.full((192, 320, 3), 0.5, np.float32)
    up(source, **settings)
    monkeypatch.setattr(blend, "axis_weights", hard)
    up(source, **settings)
    plan = up.plan(enlarger.Size(192, 320), up.settings(**settings))
    tiles = plan.tiling(up.engine, plan.canvas.passes[0], up.settings(**settings)).plan(enlarger.Size(192, 320))
    side = tiles[0].height
    assert len(tiles) > 4
    scores = []
    for latent in latents:
        shown = (0.5 + 0.25 * latent[0, :3].permute(1, 2, 0)).clamp(0, 1).double().numpy()
        lines = []
        for axis in (0, 1):
            starts = sorted({tile[axis] for tile in tiles})
            edges = {*starts[1:], *(start + side for start in starts[:-1])}
            middles = [later + (earlier + side - later) // 2 for earlier, later in pairwise(starts)]
            lines.append((sorted(edges), middles))
        scores.append(max(seam_score(shown, lines[0][place], lines[1][place]) for place in (0, 1)))
    assert scores[0] <= 1.05
    assert scores[1] > 1.5


def test_parts_of_another_model_are_refused_by_what_they_are(parts):
    with pytest.raises(ModelError, match="takes 4 channels"):
        enlarger.Upscaler("x4", components={**parts, "unet": tiny.unet()})
    with pytest.raises(ModelError, match="no noise level"):
        enlarger.Upscaler("x4", components={**parts, "unet": tiny.unet(in_channels=7)})
    with pytest.raises(ModelError, match="factor of 8"):
        enlarger.Upscaler("x4", components={**parts, "vae": tiny.vae(4, 0.18215)})


def test_another_autoencoder_changes_the_picture_and_is_part_of_the_record(parts, tmp_path):
    tiny.save(tmp_path / "x4", parts)
    tiny.vae(3, 0.08333, seed=9).save_pretrained(tmp_path / "better")
    plain = enlarger.Upscaler("x4", str(tmp_path / "x4"))
    other = enlarger.Upscaler("x4", str(tmp_path / "x4"), vae=str(tmp_path / "better"))
    settings = {"steps": 1, "guidance_scale": 1.0, "consistency": 0.0}
    one, two = plain(picture(8, 8), **settings), other(picture(8, 8), **settings)
    assert np.abs(one.pixels - two.pixels).max() > 1e-3
    assert one.model == "x4"
    assert two.model == "x4 + better"
    assert len({one.digest, two.digest, ""}) == 3


def test_an_autoencoder_that_says_another_scale_is_used_as_it_was_trained(parts):
    wrong = {**parts, "vae": tiny.vae(3, 0.18215)}
    settings = {"steps": 1, "guidance_scale": 1.0, "consistency": 0.0}
    made = enlarger.Upscaler("x4", components=wrong)(picture(8, 8), **settings)
    right = enlarger.Upscaler("x4", components={**parts, "vae": tiny.vae(3, 0.08333)})(picture(8, 8), **settings)
    assert np.array_equal(made.pixels, right.pixels)
