"""One suite over every engine on Stable Diffusion's networks, with tiny random ones: what each owes the house."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import enlarger
from enlarger.errors import Interrupted, ModelError, SettingsError
from enlarger.sampling.memory import BASE_MEMORY
from enlarger.settings import rules
from tests.engines import tiny

MAKERS = {"x4": tiny.x4, "img2img": tiny.sd, "controlnet": tiny.with_control}
"""Engine -> what makes its tiny parts."""

FAST = {"steps": 2, "prompt": "a cat", "consistency": 0.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def upscalers(parts):
    return {name: enlarger.Upscaler(name, components=parts[name]) for name in MAKERS}


def picture(height: int, width: int) -> np.ndarray:
    """Waves in colour, (height, width, 3) float32, 0..1."""
    y, x = np.mgrid[:height, :width] / 3
    return (np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], 2) / 3 + 0.5).astype(np.float32)


def furthest(one: Any, other: Any) -> float:
    return float(np.abs(one.pixels - other.pixels).max())


each_engine = pytest.mark.parametrize("name", MAKERS)


@each_engine
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (9, 14)])
def test_any_size_gives_exactly_the_size_asked_for(upscalers, name, height, width):
    up = upscalers[name]
    assert up(picture(height, width), scale=4, **FAST).size == (4 * height, 4 * width)
    assert up(picture(height, width), scale=2.5, **FAST).size == (int(2.5 * height + 0.5), int(2.5 * width + 0.5))
    assert up(picture(height, width), size=f"{7 * width}x{5 * height}", **FAST).size == (5 * height, 7 * width)


CHANGES = {
    "seed": 5,
    "steps": 7,
    "scheduler": "euler",
    "spacing": "trailing",
    "eta": 1.0,
    "prompt": "a red house",
    "negative_prompt": "grey",
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
    "clip_skip": 1,
    "noise_level": 200,
    "color_fix": "adain",
    "consistency": 1.0,
    "tile": 48,
    "samples": 2,
    "scale": 3.0,
    "strength": 1.0,
    "rounds": 2,
    "quality_words": "sharp",
    "region": "0,0,20,20:a dog",
    "control_map": "canny",
    "control_scale": 0.3,
    "control_start": 0.5,
    "control_end": 0.5,
    "guess_mode": True,
}
"""A value for each setting that must change the picture."""


@each_engine
def test_every_setting_changes_the_picture(upscalers, name):
    up = upscalers[name]
    start = {**FAST, "prompt": "a cat", "scheduler": "ddim", "scale": 4, "steps": 4}
    plain = up(picture(16, 18), **start)
    same = {"size", "longest", "megapixels", "page", "max_pixels", "batch", "preset", "sample", "overlap"}
    same |= {"original_size", "target_size", "crop_left", "crop_top"}  # SDXL's, in test_img2img.py
    same |= {"control_image", "control_size", "control_type", "canny_low", "canny_high"}  # in test_controlnet.py
    for setting in rules(up.facts.settings):
        if setting in same:
            continue
        more = {"sample": 2} if setting == "samples" else {}
        other = up(picture(16, 18), **{**start, setting: CHANGES[setting], **more})
        assert other.size != plain.size or furthest(other, plain) > 1e-3, setting
    tiled = up(picture(24, 30), **start, tile=48, overlap=8)
    assert furthest(tiled, up(picture(24, 30), **start, tile=48, overlap=24)) > 1e-4


@each_engine
def test_presets_differ_and_single_options_win_over_them(upscalers, name):
    up = upscalers[name]
    record = up.facts.settings
    if not record.presets:
        pytest.skip(f"engine {name} has no dial and no presets")
    made = {preset: up.settings(preset=preset) for preset in record.presets}
    assert len({dataclasses.replace(settings, preset=None) for settings in made.values()}) == len(made)
    for preset, values in record.presets.items():
        first = next(iter(values))
        assert getattr(up.settings(preset=preset, **{first: values[first]}), first) == values[first]
    assert up.settings(preset="faithful", steps=7).steps == 7


@each_engine
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "1 to 1000"),
        ({"guidance_scale": float("nan")}, "0 to 100"),
        ({"guidance_rescale": 1.5}, "0 to 1"),
        ({"scheduler": "dpm2m"}, "dpm\\+\\+2m"),
        ({"spacing": "trail"}, "trailing"),
        ({"scheduler": "euler", "eta": 0.5}, "ddim has one"),
        ({"scheduler": "lcm", "spacing": "linspace"}, "chooses its own"),
        ({"eta": -0.1}, "0 to 1"),
        ({"seed": -1}, "0 to 9223372036854775807"),
        ({"clip_skip": 5}, "0 to 2"),
        ({"samples": 3}, "Upscaler.samples"),
        ({"samples": 3, "sample": 4}, "not one of 3"),
        ({"tile": 8}, "at least 16|16 to"),
        ({"cfg_scale": 7}, "guidance_scale"),
        ({"num_inference_steps": 7}, "steps"),
        ({"fidelity": 0.5}, "no setting fidelity"),
        ({"color_fix": "wavelets"}, "wavelet"),
    ],
)
def test_wrong_values_are_refused_with_what_is_right(upscalers, name, values, said):
    with pytest.raises(SettingsError, match=said):
        upscalers[name](picture(8, 8), **{**FAST, **values})


@each_engine
def test_guidance_off_runs_half_the_work(parts, name):
    seen: list[int] = []
    components = dict(parts[name])
    components["unet"] = copy.deepcopy(components["unet"])
    components["unet"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    up = enlarger.Upscaler(name, components=components)
    for scale, batch in ((7.0, 2), (1.0, 1), (0.0, 1)):
        seen.clear()
        up(picture(8, 8), **FAST, guidance_scale=scale)
        assert set(seen) == {batch}


@each_engine
def test_text_is_encoded_once_for_a_folder(parts, name):
    calls: list[int] = []
    components = dict(parts[name])
    components["text_encoder"] = copy.deepcopy(components["text_encoder"])
    components["text_encoder"].register_forward_pre_hook(lambda *_: calls.append(1))
    up = enlarger.Upscaler(name, components=components)
    for side in (6, 7, 8):
        up(picture(side, side), **FAST, guidance_scale=5.0)
    assert len(calls) <= 2


@each_engine
def test_parts_in_memory_stay_as_they_are(parts, name):
    before = {key: value.clone() for key, value in parts[name]["unet"].state_dict().items()}
    enlarger.Upscaler(name, components=parts[name], dtype="bfloat16")(picture(6, 6), **FAST)
    for key, value in parts[name]["unet"].state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])


@each_engine
def test_in_half_precision_the_autoencoder_stays_in_float32(parts, name):
    up = enlarger.Upscaler(name, components=parts[name], dtype="bfloat16")
    assert next(up.engine.parts.unet.parameters()).dtype == torch.bfloat16
    assert next(up.engine.parts.vae.parameters()).dtype == torch.float32
    full = enlarger.Upscaler(name, components=parts[name])
    assert furthest(up(picture(12, 12), **FAST), full(picture(12, 12), **FAST)) < 0.1


@each_engine
def test_batches_of_tiles_give_the_same_picture(upscalers, name):
    up = upscalers[name]
    one = up(picture(20, 24), scale=4, tile=48, batch=1, **FAST)
    assert furthest(one, up(picture(20, 24), scale=4, tile=48, batch=5, **FAST)) < 1e-4


@each_engine
def test_one_tile_is_the_whole(upscalers, name):
    up = upscalers[name]
    whole = up(picture(11, 13), scale=4, tile=4096, **FAST)
    assert furthest(whole, up(picture(11, 13), scale=4, tile=64, **FAST)) == 0


@each_engine
def test_samples_differ_and_each_can_be_made_again(upscalers, name):
    up = upscalers[name]
    made = list(up.samples(picture(9, 9), samples=3, **FAST))
    assert len(made) == 3
    assert all(furthest(made[0], other) > 1e-3 for other in made[1:])
    assert furthest(up(picture(9, 9), **made[2].settings), made[2]) == 0
    assert made[2].settings["sample"] == 3


@each_engine
def test_a_prediction_that_is_no_number_is_told_with_the_step(parts, name):
    components = dict(parts[name])
    components["unet"] = copy.deepcopy(components["unet"])
    with torch.no_grad():
        components["unet"].conv_out.bias.fill_(float("inf"))
    up = enlarger.Upscaler(name, components=components)
    with pytest.raises(ModelError, match=r"step 1 of [12]"):
        up(picture(6, 6), **FAST)


@each_engine
def test_when_memory_runs_out_batch_and_tile_become_smaller_and_it_is_said(parts, name):
    components = dict(parts[name])
    components["unet"] = copy.deepcopy(components["unet"])

    def short(_: Any, inputs: Any) -> None:
        if inputs[0][:, 0].numel() > 20 * 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    components["unet"].register_forward_pre_hook(short)
    up = enlarger.Upscaler(name, components=components)
    cell = up.facts.grid
    small = max(1, 40 * cell // 4)  # input pixels that become a canvas of 40 x 40 cells at scale 4
    result = up(picture(small, small), scale=4, tile=32 * cell, batch=4, **FAST, guidance_scale=1.0)
    assert result.size == (4 * small, 4 * small)
    said = " ".join(result.warnings)
    assert "memory ran out: one tile" in said or "2 tiles" in said
    assert "tiles of 16" in said


@each_engine
def test_half_the_memory_shrinks_the_tile(parts, name):
    from enlarger.size import Size

    size = Size(400, 400)
    wide = enlarger.Upscaler(name, components=parts[name])
    plan = wide.plan(size, wide.settings(tile=2048))
    tight = enlarger.Upscaler(name, components=parts[name], max_memory=plan.memory * 2 // 3)
    smaller = tight.plan(size, tight.settings(tile=2048))
    assert smaller.tile < plan.tile
    assert smaller.memory <= plan.memory * 2 // 3


@each_engine
def test_decoding_in_tiles_gives_the_same_picture_and_the_record_says_so(parts, name):
    settings = {**FAST, "scale": 4, "tile": 4096}
    whole = enlarger.Upscaler(name, components=parts[name])(picture(40, 36), **settings)
    assert whole.remarks == ()
    roomy = enlarger.Upscaler(name, components=parts[name])
    cells = enlarger.Size(*(side * 4 // roomy.facts.grid for side in (40, 36)))
    needs = [roomy.engine.parts.autoencoder.plan_decode(cells, limit=limit).memory for limit in (None, 1)]
    up = enlarger.Upscaler(name, components=parts[name], max_memory=BASE_MEMORY + sum(needs) // 2)
    up.plan = enlarger.Upscaler(name, components=parts[name]).plan  # the network's tiles stay; only decoding is short
    tiled = up(picture(40, 36), **settings)
    assert any("in tiles of" in remark for remark in tiled.remarks)
    assert tiled.record()["remarks"] == list(tiled.remarks)
    assert furthest(whole, tiled) <= 1e-4


@each_engine
def test_progress_counts_up_to_the_end_and_cancels(upscalers, name):
    up = upscalers[name]
    seen: list[tuple[int, int]] = []
    up(picture(12, 12), scale=4, **FAST, progress=lambda now: seen.append((now.done, now.total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(Interrupted):
        up(picture(12, 12), scale=4, **FAST, progress=lambda now: now.done < now.total // 2)


@each_engine
def test_alpha_grey_and_depth_come_back(upscalers, name):
    up = upscalers[name]
    eight = (picture(8, 10) * 255).astype(np.uint8)
    assert up(eight, scale=4, **FAST).pixels.dtype == np.uint8
    assert up(eight.astype(np.uint16) * 257, scale=4, **FAST).pixels.dtype == np.uint16
    assert up(eight[..., 0], scale=4, **FAST).pixels.shape == (32, 40, 1)
    alpha = np.concatenate([eight, np.full((8, 10, 1), 255, np.uint8)], 2)
    result = up(alpha, scale=4, **FAST)
    assert result.alpha is not None
    assert result.alpha.shape == (32, 40)
    assert result.alpha.min() == 255


@each_engine
def test_nothing_that_is_missing_is_guessed(parts, name):
    for part in ("unet", "vae", "scheduler"):
        less = {key: value for key, value in parts[name].items() if key != part}
        with pytest.raises(ModelError, match=part):
            enlarger.Upscaler(name, components=less)
    with pytest.raises(ModelError, match="--model"):
        enlarger.Upscaler(name)
