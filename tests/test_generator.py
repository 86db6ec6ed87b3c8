"""Text to a picture: diffusers' numbers, the size asked for, and on into an engine with the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import enlarger
from enlarger.errors import ModelError, SettingsError
from tests.engines import tiny
from tests.engines.test_controlnet import checks
from tests.engines.test_latent_contract import furthest, picture

FAST = {"steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def generator(parts):
    return enlarger.Generator(components=parts)


def theirs(kind, parts, **call):
    more = {} if "text_encoder_2" in parts else {
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    pipe = getattr(tiny.diffusers, kind)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt="a cat", num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(7), **call
    ).images


@pytest.mark.parametrize(
    ("ours", "call"),
    [
        ({"negative_prompt": "grey", "guidance_rescale": 0.5}, {"negative_prompt": "grey", "guidance_rescale": 0.5}),
        ({"guidance_scale": 1, "eta": 0.5}, {"guidance_scale": 1.0, "eta": 0.5}),
    ],
)
def test_equals_diffusers_own_pipeline(parts, generator, ours, call):
    made = theirs("StableDiffusionPipeline", parts, height=40, width=64, **call)[0]
    result = generator("a cat", height=40, width=64, depth=32, **FAST, **ours)
    assert np.abs(result.pixels - made).max() <= 2e-4


def test_sdxl_and_controlnet_equal_diffusers_own_pipelines(tmp_path, parts):
    xl = tiny.sdxl(tmp_path)
    made = theirs("StableDiffusionXLPipeline", xl, height=40, width=64, guidance_scale=5.0)[0]
    result = enlarger.Generator(components=xl)("a cat", height=40, width=64, depth=32, guidance_scale=5, **FAST)
    assert np.abs(result.pixels - made).max() <= 2e-4
    held = {**parts, "controlnet": tiny.controlnet(parts["unet"])}
    source = checks(40, 64)
    from PIL import Image

    image = Image.fromarray((source * 255).round().astype(np.uint8))
    image.save(tmp_path / "edges.png")
    made = theirs("StableDiffusionControlNetPipeline", held, image=image, guidance_scale=7.5)[0]
    seen = {"control_image": tmp_path / "edges.png", "height": 40, "width": 64, "depth": 32}
    result = enlarger.Generator(components=held)("a cat", **FAST, **seen)
    assert np.abs(result.pixels - made).max() <= 2e-4


def test_samples_are_those_of_one_call(parts, generator):
    made = theirs("StableDiffusionPipeline", parts, height=16, width=24, num_images_per_prompt=3)
    ours = generator.samples("a cat", height=16, width=24, samples=3, depth=32, **FAST)
    for one, result in zip(made, ours, strict=True):
        assert np.abs(result.pixels - one).max() <= 2e-4


@pytest.mark.parametrize(("width", "height"), [(16, 16), (50, 33), (128, 24)])
def test_any_size_is_exactly_the_size_asked_for(generator, width, height):
    assert generator("a cat", width=width, height=height, **FAST).size == (height, width)


def test_the_default_size_is_what_the_model_was_trained_on(generator):
    assert generator("a cat", steps=1).size == (128, 128)  # a sample size of 16 cells
    assert generator("a cat", steps=1, width=64).size == (128, 64)


def test_a_model_that_was_trained_on_oblongs_gives_one(parts):
    oblong = tiny.unet(in_channels=4, sample_size=[3, 5])
    assert enlarger.Generator(components={**parts, "unet": oblong})("a cat", steps=1).size == (24, 40)


@pytest.mark.parametrize(("depth", "kind"), [(8, np.uint8), (16, np.uint16), (32, np.float32)])
def test_the_depth_is_the_one_asked_for(generator, depth, kind):
    assert generator("a cat", width=16, height=16, steps=1, depth=depth).pixels.dtype == kind


def test_each_setting_changes_the_picture(generator):
    plain = generator("a cat", width=32, height=32, **FAST)
    for name, value in {
        "seed": 8, "steps": 5, "scheduler": "euler", "guidance_scale": 3, "guidance_rescale": 0.9, "clip_skip": 1,
        "negative_prompt": "grey", "quality_words": "sharp", "eta": 1.0, "spacing": "trailing", "preset": "vivid",
        "region": "0,0,16,16:a dog",
    }.items():  # fmt: skip
        values = {**FAST, "scheduler": "ddim", name: value}
        base = {**FAST, "scheduler": "ddim"}
        same = generator("a cat", width=32, height=32, **base)
        assert furthest(same, generator("a cat", width=32, height=32, **values)) > 0, name
    assert furthest(plain, generator("a house", width=32, height=32, **FAST)) > 0


def test_the_record_says_how_it_was_made_and_names_no_input(generator):
    record = generator("a cat", width=16, height=16, **FAST).record()
    assert record["engine"] == "generate"
    assert record["settings"]["prompt"] == "a cat"
    assert not {"scale", "page", "max_pixels", "consistency", "color_fix"} & set(record["settings"])


def test_it_goes_on_into_engines_with_the_model_that_is_loaded(parts, generator):
    up = generator.share("img2img")
    assert up.engine.parts is generator.engine.parts
    made = generator("a cat", width=32, height=24, depth=32, **FAST)
    larger = up(made.pixels, scale=2, prompt="a cat", steps=4, strength=0.5, seed=3)
    alone = enlarger.Upscaler("img2img", components=parts)
    assert larger.size == (48, 64)
    assert furthest(larger, alone(made.pixels, scale=2, prompt="a cat", steps=4, strength=0.5, seed=3)) == 0
    assert generator.share("controlnet") is None
    assert generator.share("x4") is None
    held = enlarger.Generator(components={**parts, "controlnet": tiny.controlnet(parts["unet"])})
    assert held.share("controlnet")(picture(16, 16), steps=2).size == (32, 32)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": 8}, "16 to 8192"),
        ({"strength": 0.5}, "no setting strength"),
        ({"scale": 2}, "no setting scale"),
        ({"depth": 12}, "8, 16, 32"),
        ({"control_scale": 0.5}, "name it with --control"),
        ({"guess_mode": True}, "name it with --control"),
        ({"steps": 0}, "1 to 1000"),
        ({"samples": 2}, "samples"),
    ],
)
def test_wrong_values_are_refused(generator, values, said):
    with pytest.raises(SettingsError, match=said):
        generator("a cat", **values)


def test_a_net_with_nothing_to_see_and_a_missing_model_are_told(parts):
    held = enlarger.Generator(components={**parts, "controlnet": tiny.controlnet(parts["unet"])})
    with pytest.raises(SettingsError, match="--control-image"):
        held("a cat", width=16, height=16)
    with pytest.raises(ModelError, match="--model"):
        enlarger.generate("a cat")
