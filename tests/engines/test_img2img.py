"""Engine img2img: diffusers' numbers for the same seed, its rules of strength, regions, and what SDXL is told."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import enlarger
from enlarger.canvas.geometry import Pass
from enlarger.engines.prompted import guidance_embedding, region_shares
from enlarger.engines.settings import Region
from enlarger.errors import ModelError, SettingsError
from enlarger.size import Size
from tests.engines import tiny
from tests.engines.test_latent_contract import furthest, picture

PLAIN = {"scale": 1, "consistency": 0.0, "prompt": "a cat", "seed": 7}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def xl_parts(tmp_path_factory):
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def upscaler(parts):
    return enlarger.Upscaler("img2img", components=parts)


@pytest.fixture(scope="module")
def xl(xl_parts):
    return enlarger.Upscaler("img2img", components=xl_parts)


def calls_of(parts, **machine):
    """An upscaler, and what its UNet is called with."""
    seen = []
    components = {**parts, "unet": copy.deepcopy(parts["unet"])}

    def note(_, inputs, kwargs):
        seen.append((inputs[0].shape, float(inputs[1]), kwargs))

    components["unet"].register_forward_pre_hook(note, with_kwargs=True)
    return enlarger.Upscaler("img2img", components=components, **machine), seen


# Equal to diffusers


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 0.5, "guidance_scale": 7.5, "negative_prompt": "grey"},
        {"strength": 1.0, "guidance_scale": 1.0},
        {"strength": 0.57, "guidance_scale": 3.0, "eta": 0.6},
    ],
)
def test_equals_diffusers_own_pipeline(parts, upscaler, settings):
    pipe = tiny.diffusers.StableDiffusionImg2ImgPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    source = picture(24, 40)
    generator = torch.Generator().manual_seed(7)
    made = pipe(
        prompt="a cat", image=source[None], num_inference_steps=5, output_type="np", generator=generator, **settings
    ).images[0]
    result = upscaler(source, steps=5, **PLAIN, **settings)
    assert np.abs(result.pixels - made).max() <= 2e-4


@pytest.mark.parametrize("negative", [None, "", "grey"])
def test_sdxl_equals_diffusers_own_pipeline(xl_parts, xl, negative):
    pipe = tiny.diffusers.StableDiffusionXLImg2ImgPipeline(**xl_parts)
    pipe.set_progress_bar_config(disable=True)
    source = picture(32, 24)
    generator = torch.Generator().manual_seed(7)
    made = pipe(
        prompt="a cat", negative_prompt=negative, image=source[None], num_inference_steps=5, strength=0.6,
        guidance_scale=5.0, output_type="np", generator=generator, clip_skip=1,
    ).images[0]  # fmt: skip
    result = xl(source, steps=5, strength=0.6, guidance_scale=5.0, negative_prompt=negative, clip_skip=1, **PLAIN)
    assert np.abs(result.pixels - made).max() <= 2e-4


@pytest.mark.filterwarnings("ignore:You have passed 3 text prompts:FutureWarning")
def test_samples_are_those_of_one_call(parts, upscaler):
    pipe = tiny.diffusers.StableDiffusionImg2ImgPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    source = picture(16, 24)
    made = pipe(
        prompt="a cat", image=source[None], num_inference_steps=4, strength=0.7, num_images_per_prompt=3, eta=1.0,
        output_type="np", generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    ours = upscaler.samples(source, steps=4, strength=0.7, samples=3, eta=1.0, scheduler="ddim", **PLAIN)
    for theirs, result in zip(made, ours, strict=True):
        assert np.abs(result.pixels - theirs).max() <= 2e-4


# Strength


@pytest.mark.parametrize(("steps", "strength", "calls"), [(100, 0.29, 28), (50, 0.57, 28), (4, 0.1, 1), (6, 1.0, 6)])
def test_strength_runs_diffusers_number_of_steps_and_at_least_one(parts, steps, strength, calls):
    up, seen = calls_of(parts)
    up(picture(8, 8), steps=steps, strength=strength, guidance_scale=1.0, **PLAIN)
    assert len(seen) == calls


def test_strength_0_returns_the_enlarged_input(parts):
    up, seen = calls_of(parts)
    result = up(picture(10, 12), **{**PLAIN, "scale": 2.5}, strength=0)
    other = enlarger.upscale(picture(10, 12), engine="interpolate", filter="lanczos", scale=2.5, linear_light=False)
    assert result.size == (25, 30)
    assert not seen
    assert np.abs(result.pixels - np.clip(other.pixels, 0, 1)).max() < 0.02


def test_more_strength_goes_further_from_the_input(upscaler):
    source = picture(24, 24)
    away = [
        float(np.abs(upscaler(source, steps=10, strength=strength, **PLAIN).pixels - source).mean())
        for strength in (0.0, 0.1, 0.9)
    ]
    assert away[0] == 0
    assert away[1] != away[2]


def test_rounds_grow_step_by_step(parts):
    up, seen = calls_of(parts)
    result = up(picture(16, 16), **{**PLAIN, "scale": 4}, rounds=2, steps=2, strength=0.5, guidance_scale=1.0)
    assert result.size == (64, 64)
    assert [tuple(shape[2:]) for shape, _, _ in seen] == [(4, 4), (8, 8)]


# Guidance


def test_a_model_that_takes_the_guidance_scale_as_input_gets_it_and_runs_once(parts):
    torch.manual_seed(9)
    distilled = tiny.unet(in_channels=4, time_cond_proj_dim=8)
    lcm = tiny.diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    components = {**parts, "unet": distilled, "scheduler": lcm}
    up, seen = calls_of(components)
    source = picture(16, 16)
    result = up(source, steps=4, strength=0.5, guidance_scale=8.0, **PLAIN)
    assert {shape[0] for shape, _, _ in seen} == {1}
    assert torch.allclose(seen[0][2]["timestep_cond"], guidance_embedding(8.0, 8))
    pipe = tiny.diffusers.LatentConsistencyModelImg2ImgPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs = pipe.get_guidance_scale_embedding(torch.tensor([8.0 - 1]), embedding_dim=8)
    assert torch.allclose(guidance_embedding(8.0, 8), theirs, atol=1e-4)
    assert furthest(result, up(source, steps=4, strength=0.5, guidance_scale=2.0, **PLAIN)) > 1e-3


def test_few_step_models_run_without_guidance_at_trailing_steps(parts):
    trailing = tiny.diffusers.DDIMScheduler.from_config(parts["scheduler"].config, timestep_spacing="trailing")
    up, seen = calls_of({**parts, "scheduler": trailing})
    up(picture(8, 8), preset="turbo", **PLAIN)
    assert [timestep for _, timestep, _ in seen] == [499.0, 249.0]
    assert {shape[0] for shape, _, _ in seen} == {1}


# Prompts


def test_long_prompts_are_not_cut(upscaler, parts):
    long = "a cat on a chair " * 20
    up, seen = calls_of(parts)
    settings = {**PLAIN, "steps": 2, "strength": 0.5, "guidance_scale": 5.0}
    result = up(picture(8, 8), **{**settings, "prompt": long})
    tokens = seen[0][2]["encoder_hidden_states"].shape
    assert tokens[0] == 2
    assert tokens[1] > 77
    assert tokens[1] % 77 == 0
    parts_read = tokens[1] // 77
    assert result.record()["remarks"] == [f"prompt of {len(long.replace(' ', ''))} tokens: read in {parts_read} parts"]
    assert "remarks" not in upscaler(picture(8, 8), **settings).record()
    assert furthest(result, upscaler(picture(8, 8), **{**settings, "prompt": long + "in rain"})) > 0


def test_weights_change_the_picture_and_quality_words_stand_before_the_prompt(upscaler):
    settings = {**PLAIN, "steps": 4, "strength": 0.9}
    plain = upscaler(picture(16, 16), **settings)
    assert furthest(plain, upscaler(picture(16, 16), **{**settings, "prompt": "a (cat:1.8)"})) > 1e-3
    words = upscaler(picture(16, 16), **settings, quality_words="sharp")
    assert furthest(words, upscaler(picture(16, 16), **{**settings, "prompt": "sharp, a cat"})) == 0
    assert furthest(words, plain) > 1e-3


# Regions


def test_a_region_that_covers_all_is_a_prompt_and_one_tile_is_untiled(upscaler):
    source, settings = picture(32, 48), {**PLAIN, "steps": 4, "strength": 0.9}
    whole = upscaler(source, **{**settings, "prompt": "a dog"})
    covered = upscaler(source, **settings, region="0,0,48,32:a dog")
    assert furthest(whole, covered) < 1e-4


def test_a_region_acts_where_it_is(upscaler):
    """The pictures of both prompts meet: far from the region the one, within it nearer to the other."""
    source = picture(64, 256)
    settings = {**PLAIN, "steps": 1, "strength": 1.0}
    one, other = (upscaler(source, **{**settings, "prompt": text}).pixels for text in ("a cat", "a red house"))
    both = upscaler(source, **settings, region="0,0,64,64:a red house").pixels
    differs = np.abs(one - other).mean()
    assert differs > 1e-3
    assert np.abs(both - one)[:, 200:].mean() < 0.35 * differs
    assert np.abs(both - other)[:, :40].mean() < np.abs(both - one)[:, :40].mean()


def test_shares_of_regions_sum_to_one_and_fade():
    passage = Pass(Size(256, 256), Size(256, 256), 1)
    shares = region_shares([Region(0, 0, 128, 256, "a"), Region(96, 0, 32, 256, "b")], passage, Size(32, 32))
    assert shares.shape == (1, 3, 32, 32)
    assert torch.allclose(shares.sum(1), torch.ones(1, 32, 32))
    assert shares[0, 1, 5, 2] == 1
    assert shares[0, 0, 5, 30] == 1
    assert shares[0, 1, 5, 12] == pytest.approx(0.5)
    alone = region_shares([Region(0, 0, 128, 256, "a")], passage, Size(32, 32))[0, 1, 5]
    assert float(alone.diff().abs().max()) < 0.2
    assert alone[15] == 1
    assert 0 < alone[20] < 1
    assert region_shares([], passage, Size(4, 4)) is None


def test_regions_keep_their_place_in_earlier_rounds():
    whole = Pass(Size(256, 512), Size(256, 512), 1, Size(256, 512))
    half = Pass(Size(128, 256), Size(128, 256), 1, Size(256, 512))
    region = [Region(256, 0, 256, 256, "a")]
    assert region_shares(region, whole, Size(32, 64))[0, 1, 0, 32:].min() == 1
    assert region_shares(region, half, Size(16, 32))[0, 1, 0, 16:].min() == 1
    assert region_shares(region, half, Size(16, 32))[0, 1, 0, 7].item() == pytest.approx(0, abs=0.01)


def test_tiles_see_only_the_regions_that_reach_them(parts):
    up, seen = calls_of(parts)
    up(picture(32, 256), **PLAIN, steps=1, strength=1.0, tile=64, overlap=16, region="0,0,32,32:a dog", batch=1)
    tiles = sum(shape[0] == 2 for shape, _, _ in seen)
    extra = sum(shape[0] == 1 for shape, _, _ in seen)
    assert tiles >= 5
    assert 1 <= extra < tiles


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("0,0,10:a dog", "X,Y,W,H:PROMPT"),
        ("a dog", "X,Y,W,H:PROMPT"),
        ("0,0,0,10:a dog", "above 0"),
        ("-1,0,9,10:a dog", "X,Y,W,H:PROMPT"),
        (
            "900,0,9,10:a dog",
            "outside the result, which has 16x16 pixels: X is below 16 and Y below 16",
        ),
        ("0,16,9,10:a dog", "outside the result"),
        ("0,0,9,9: ", "has no prompt"),
        ("0,0,9,9:a (dog:90)", "0 to 10"),
    ],
)
def test_wrong_regions_are_refused(upscaler, region, said):
    with pytest.raises(SettingsError, match=said):
        upscaler(picture(16, 16), **PLAIN, steps=1, region=[region])


# What SDXL is told


def test_sdxl_is_told_the_whole_size_and_where_a_tile_lies(xl_parts):
    up, seen = calls_of(xl_parts)
    up(picture(64, 96), **PLAIN, steps=1, strength=1.0, guidance_scale=1.0)
    assert seen[0][2]["added_cond_kwargs"]["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]]
    seen.clear()
    up(picture(64, 96), **PLAIN, steps=1, strength=1.0, guidance_scale=1.0, tile=64, overlap=32)
    told = [kwargs["added_cond_kwargs"]["time_ids"].tolist()[0] for _, _, kwargs in seen]
    assert told == [[64, 96, 0, 0, 64, 64], [64, 96, 0, 32, 64, 64]]
    seen.clear()
    up(picture(64, 96), **PLAIN, steps=1, strength=1.0, guidance_scale=1.0, tile=64, overlap=32, batch=2)
    assert seen[0][2]["added_cond_kwargs"]["time_ids"].tolist() == told


def test_sdxl_size_numbers_can_be_chosen_and_each_changes_the_picture(xl_parts, xl):
    source, settings = picture(16, 16), {**PLAIN, "steps": 2, "strength": 1.0}
    plain = xl(source, **settings)
    for name, value in (("original_size", "900x300"), ("target_size", "90x700"), ("crop_left", 300), ("crop_top", 300)):
        assert furthest(plain, xl(source, **settings, **{name: value})) > 1e-4, name
    up, seen = calls_of(xl_parts)
    up(source, **settings, guidance_scale=1.0, original_size="512x256", target_size="30x20", crop_left=4, crop_top=3)
    assert seen[0][2]["added_cond_kwargs"]["time_ids"].tolist() == [[256, 512, 3, 4, 20, 30]]


@pytest.mark.parametrize("name", ["original_size", "target_size", "crop_left", "crop_top"])
def test_what_only_sdxl_is_told_is_refused_for_others(upscaler, name):
    with pytest.raises(SettingsError, match=f"{name} is what SDXL models are told"):
        upscaler(picture(8, 8), **PLAIN, **{name: "9x9" if "size" in name else 3})


# Models that are no text-to-image models


@pytest.mark.parametrize(("channels", "said"), [(9, "inpainting"), (5, "depth"), (8, "pix2pix"), (7, "x4")])
def test_other_networks_are_refused_by_what_they_are(parts, channels, said):
    with pytest.raises(ModelError, match=said):
        enlarger.Upscaler("img2img", components={**parts, "unet": tiny.unet(in_channels=channels)})


def test_wrong_parts_are_refused(parts, xl_parts):
    with pytest.raises(ModelError, match="factor of 4"):
        enlarger.Upscaler("img2img", components={**parts, "vae": tiny.vae(3, 0.08333)})
    with pytest.raises(ModelError, match="tokenizer"):
        enlarger.Upscaler("img2img", components={key: part for key, part in parts.items() if key != "tokenizer"})
    first = {key: part for key, part in xl_parts.items() if not key.endswith("_2")}
    with pytest.raises(ModelError, match="second text encoder"):
        enlarger.Upscaler("img2img", components=first)
    refiner = tiny.unet(
        in_channels=4, cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=5 * 8 + 16,
    )  # fmt: skip
    with pytest.raises(ModelError, match="refiner"):
        enlarger.Upscaler("img2img", components={**xl_parts, "unet": refiner})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"strength": 1.5}, "0 to 1"),
        ({"strength": float("nan")}, "0 to 1"),
        ({"rounds": 0}, "1 to 8"),
        ({"noise_level": 20}, "no setting noise_level"),
        ({"control_scale": 1}, "no setting control_scale"),
        ({"denoising_strength": 0.4}, "strength"),
        ({"original_size": "9"}, "1800x512"),
        ({"clip_skip": 3}, "0 to 2"),
    ],
)
def test_wrong_values_are_refused(upscaler, values, said):
    with pytest.raises(SettingsError, match=said):
        upscaler(picture(8, 8), **PLAIN, **values)
