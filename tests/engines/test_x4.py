"""Engine x4: diffusers' numbers for the same seed, any size, and no seam where a network invites one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import enlarger
from enlarger.errors import ModelError, SettingsError
from tests.engines import tiny
from tests.engines.test_latent_contract import picture


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
