"""Engine controlnet: diffusers' numbers, nets that act only when they should, and what they are given to see."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger.controls.edges import canny
from enlarger.engines import control
from enlarger.errors import ModelError, PictureError, SettingsError
from tests.engines import tiny
from tests.engines.test_latent_contract import furthest, picture

PLAIN = {"scale": 1, "consistency": 0.0, "prompt": "a cat", "seed": 7, "steps": 4}


def checks(height, width):
    """A chequered picture, full of edges; (height, width, 3) float32."""
    y, x = np.mgrid[:height, :width]
    board = ((y // 5 + x // 7) % 2).astype(np.float32)
    return np.stack([board, 1 - board, 0.3 + 0.4 * board], 2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny.with_control(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def two(parts):
    return {**parts, "controlnet": [parts["controlnet"], tiny.controlnet(parts["unet"], seed=8)]}


@pytest.fixture(scope="module")
def xl_parts(tmp_path_factory):
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def upscaler(parts):
    return enlarger.Upscaler("controlnet", components=parts)


@pytest.fixture
def other(tmp_path):
    """A control picture in a file."""
    Image.fromarray((checks(32, 24).transpose(1, 0, 2) * 255).astype(np.uint8)).save(tmp_path / "other.png")
    return tmp_path / "other.png"


def with_calls(parts):
    """An upscaler, and what its ControlNets are called with, by number."""
    seen = []
    given = parts["controlnet"]
    nets = [copy.deepcopy(net) for net in (given if isinstance(given, list) else [given])]
    for number, net in enumerate(nets):
        # The first block and not the net: what sees the picture is put in its place.
        net.conv_in.register_forward_pre_hook(lambda _, inputs, number=number: seen.append((number, inputs[0].shape)))
    return enlarger.Upscaler("controlnet", components={**parts, "controlnet": nets}), seen


def theirs(kind, parts, source, **call):
    more = {} if "text_encoder_2" in parts else {
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    pipe = getattr(tiny.diffusers, kind)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return pipe(
        prompt="a cat", image=source[None], num_inference_steps=4, output_type="np", generator=generator, **call
    ).images[0]


# Equal to diffusers


@pytest.mark.parametrize(
    ("ours", "call"),
    [
        ({"control_scale": 0.7}, {"controlnet_conditioning_scale": 0.7}),
        (
            {"control_start": 0.3, "control_end": 0.7},
            {"control_guidance_start": 0.3, "control_guidance_end": 0.7, "controlnet_conditioning_scale": 1.0},
        ),
        ({"guess_mode": True, "guidance_scale": 4}, {"guess_mode": True, "guidance_scale": 4.0}),
        ({"guess_mode": True, "guidance_scale": 1}, {"guess_mode": True, "guidance_scale": 1.0}),
    ],
)
def test_equals_diffusers_own_pipeline(parts, upscaler, ours, call):
    source = checks(24, 32)
    call = {"strength": 0.8, "guidance_scale": 7.0, "controlnet_conditioning_scale": 1.0, **call}
    made = theirs("StableDiffusionControlNetImg2ImgPipeline", parts, source, control_image=source[None], **call)
    assert np.abs(upscaler(source, **PLAIN, **ours).pixels - made).max() <= 2e-4


def saved(folder, source):
    """A picture as a file, and as it is read again."""
    levels = np.rint(source * 255).astype(np.uint8)
    Image.fromarray(levels).save(folder / "source.png")
    return str(folder / "source.png"), levels.astype(np.float32) / 255


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def test_several_nets_equal_diffusers_own_pipeline(two, other):
    path, source = saved(other.parent, checks(24, 32))
    made = theirs(
        "StableDiffusionControlNetImg2ImgPipeline", two, source, control_image=[source[None], opened(other)],
        strength=0.8, guidance_scale=7.0, controlnet_conditioning_scale=[0.5, 1.0], control_guidance_end=[1.0, 0.6],
    )  # fmt: skip
    seen = {"control_image": [path, other], "control_scale": [0.5, 1.0], "control_end": [1.0, 0.6]}
    result = enlarger.Upscaler("controlnet", components=two)(source, **PLAIN, **seen)
    assert np.abs(result.pixels - made).max() <= 2e-4


def test_sdxl_equals_diffusers_own_pipeline(xl_parts):
    parts = {**xl_parts, "controlnet": tiny.controlnet(xl_parts["unet"])}
    source = checks(24, 32)
    made = theirs(
        "StableDiffusionXLControlNetImg2ImgPipeline", parts, source, control_image=source[None], strength=0.8,
        guidance_scale=5.0, controlnet_conditioning_scale=0.6,
    )  # fmt: skip
    result = enlarger.Upscaler("controlnet", components=parts)(source, **PLAIN, guidance_scale=5.0, control_scale=0.6)
    assert np.abs(result.pixels - made).max() <= 2e-4


@pytest.mark.parametrize("images", [1, 2])
def test_a_union_net_equals_diffusers_own_pipeline(xl_parts, other, images):
    union = tiny.controlnet(xl_parts["unet"], union=True)
    path, source = saved(other.parent, checks(24, 32))
    made = theirs(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline", {**xl_parts, "controlnet": union}, source,
        control_image=[source[None], opened(other)][:images], control_mode=[6, 3][:images], strength=0.8,
        guidance_scale=5.0, controlnet_conditioning_scale=[0.6, 0.9][:images],
    )  # fmt: skip
    components = {**xl_parts, "controlnet": [union] * images}
    up = enlarger.Upscaler("controlnet", components=components)
    seen = {"control_scale": [0.6, 0.9][:images], "control_type": ["tile", "canny"][:images]}
    if images == 2:
        seen["control_image"] = [path, other]
    assert np.abs(up(source, **PLAIN, guidance_scale=5.0, **seen).pixels - made).max() <= 2e-4


# When it acts


def test_a_net_outside_its_share_of_the_steps_is_not_computed(two):
    up, seen = with_calls(two)
    up(checks(16, 16), **{**PLAIN, "steps": 5}, strength=1.0, control_start=[0.0, 0.5], control_end=[0.4, 1.0])
    assert [number for number, _ in seen] == [0, 0, 1, 1]  # steps 1, 2 of net 0, and 4, 5 of net 1: none in step 3
    seen.clear()
    result = up(checks(16, 16), **PLAIN, control_scale=[0, 0])
    assert not seen
    without = {key: part for key, part in two.items() if key != "controlnet"}
    plain = enlarger.Upscaler("img2img", components=without)
    assert furthest(result, plain(checks(16, 16), **PLAIN, strength=0.8, guidance_scale=7.0)) < 1e-5


def test_guess_mode_runs_the_net_on_the_prompts_half_alone(parts):
    up, seen = with_calls(parts)
    up(checks(16, 16), **PLAIN, guidance_scale=5.0)
    assert {shape[0] for _, shape in seen} == {2}
    seen.clear()
    up(checks(16, 16), **PLAIN, guidance_scale=5.0, guess_mode=True)
    assert {shape[0] for _, shape in seen} == {1}


def test_the_control_holds_the_form(parts, upscaler):
    """At full strength a net that sees the chequers gives another picture than one that sees nothing."""
    source = checks(24, 24)
    held = upscaler(source, **PLAIN, strength=1.0)
    assert furthest(held, upscaler(source, **PLAIN, strength=1.0, control_scale=0.0)) > 1e-2


# What it sees


def test_the_hint_is_read_the_same_in_tiles(parts, monkeypatch):
    net = control._net("net", parts["controlnet"], "")
    seen = torch.rand(1, 3, 168, 232, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = net.hint(seen)
        monkeypatch.setattr(control, "STRETCH", 64)
        tiled = control.read_hint(net, seen, torch.device("cpu"), torch.float32)
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) < 1e-5 * float(whole.abs().max())
    monkeypatch.setattr(control, "REACH", 16)  # less than the convolutions see: then it must show
    with torch.no_grad():
        short = control.read_hint(net, seen, torch.device("cpu"), torch.float32)
    assert float((short - whole).abs().max()) > 1e-3


def test_a_net_that_wants_blue_first_gets_it(parts):
    """Its pipeline turns the picture's channels round before the net reads it."""
    torch.manual_seed(0)
    module = copy.deepcopy(parts["controlnet"])
    module.register_to_config(controlnet_conditioning_channel_order="bgr")
    net = control._net("net", module, "")
    seen = torch.rand(1, 3, 16, 24)
    text = torch.randn(1, 7, 32)
    asked = {"sample": torch.randn(1, 4, 2, 3), "timestep": torch.tensor(5), "encoder_hidden_states": text}
    with torch.no_grad():
        theirs = module(**asked, controlnet_cond=seen, return_dict=False)[1]
        hint = control.read_hint(net, seen, torch.device("cpu"), torch.float32)
        assert torch.allclose(net.body(**asked, controlnet_cond=hint, return_dict=False)[1], theirs, atol=1e-5)


def test_a_tile_takes_its_part_of_the_whole_hint(parts, upscaler, monkeypatch):
    """Each tile's control is the whole's at its place, not the whole picture made small nor the first corner."""
    taken = []

    class Spy(control.Acting):
        def __call__(self, arguments, count):
            taken.append(self.hints[0].clone())
            return super().__call__(arguments, count)

    monkeypatch.setattr("enlarger.engines.controlled.Acting", Spy)
    source = checks(64, 96)
    upscaler(source, **{**PLAIN, "steps": 1}, strength=1.0, tile=64, overlap=32)
    hint = control._net("net", parts["controlnet"], "").hint
    with torch.no_grad():
        whole = hint(torch.from_numpy(source).permute(2, 0, 1)[None])
    assert len(taken) == 2
    assert torch.allclose(taken[0], whole[..., :8], atol=1e-5)
    assert torch.allclose(taken[1], whole[..., 4:], atol=1e-5)


def test_maps_are_made_of_what_the_net_sees(parts, upscaler, other, monkeypatch):
    seen = []
    original = control.read_hint

    def spy(net, image, *rest):
        seen.append(image)
        return original(net, image, *rest)

    monkeypatch.setattr(control, "read_hint", spy)
    source = checks(24, 32)
    settings = {**PLAIN, "steps": 1}
    upscaler(source, **settings)
    assert torch.allclose(seen[-1][0].permute(1, 2, 0), torch.from_numpy(source))
    upscaler(source, **settings, control_map="canny", canny_low=50, canny_high=90)
    assert np.array_equal(seen[-1][0, 1].numpy(), canny(source, 50, 90))
    upscaler(picture(24, 32), **settings, control_image=other)
    there = np.asarray(opened(other), np.float32) / 255
    assert float((seen[-1][0].permute(1, 2, 0) - torch.from_numpy(there)).abs().max()) < 1e-6
    upscaler(picture(40, 50), **settings, control_image=other)  # another size: made to fit, padded to whole cells
    assert seen[-1].shape == (1, 3, 40, 56)
    assert 0 <= float(seen[-1].min()) <= float(seen[-1].max()) <= 1


def test_thresholds_soft_edges_and_key_points_change_the_picture(upscaler, tmp_path):
    source, settings = picture(32, 32), {**PLAIN, "strength": 1.0}
    edges = upscaler(source, **settings, control_map="canny")
    assert furthest(edges, upscaler(source, **settings, control_map="canny", canny_low=400, canny_high=400)) > 1e-3
    low = upscaler(source, **settings, control_map="canny", canny_high=400, canny_low=400)
    assert furthest(low, upscaler(source, **settings, control_map="canny", canny_high=400, canny_low=100)) > 1e-4
    assert furthest(edges, upscaler(source, **settings, control_map="soft")) > 1e-3
    body = [0.0] * 54
    body[6:12] = [4, 20, 1, 28, 20, 1]
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": body}]}))
    posed = upscaler(source, **settings, control_image=path, control_size="32x32")
    assert furthest(edges, posed) > 1e-3
    assert furthest(posed, upscaler(source, **settings, control_image=path, control_size="64x64")) > 1e-3


def test_a_depth_map_comes_from_the_users_model(parts, tmp_path):
    from tests.controls.test_maps import write_depth

    folder = write_depth(tmp_path / "depth")
    up = enlarger.Upscaler("controlnet", components=parts, map_model=str(folder))
    source, settings = picture(24, 32), {**PLAIN, "strength": 1.0}
    depth = up.engine.maps.depth(source)
    assert depth.shape == (24, 32)
    assert (float(depth.min()), float(depth.max())) == (0.0, 1.0)
    made = up(source, **settings, control_map="depth")
    assert furthest(made, up(source, **settings)) > 1e-3


def test_a_pose_comes_from_the_users_models_and_they_are_in_the_record(parts, tmp_path, monkeypatch, other):
    from enlarger.controls import people
    from tests.controls.test_maps import write_pose

    folder = write_pose(tmp_path / "vitpose")
    up = enlarger.Upscaler("controlnet", components=parts, map_model=str(folder))
    monkeypatch.setattr(people, "SURE", -100.0)
    source, settings = checks(32, 40), {**PLAIN, "strength": 1.0}
    made = up(source, **settings, control_map="pose")
    assert furthest(made, up(source, **settings)) > 1e-3
    assert furthest(made, up(source, **settings, control_map="pose", control_image=other)) > 1e-4
    assert "vitpose" in made.model
    assert made.digest != enlarger.Upscaler("controlnet", components=parts).engine.loaded.digest
    assert str(tmp_path) not in json.dumps(made.record())
    seen = []
    monkeypatch.setattr(control, "read_hint", lambda net, image, *rest: seen.append(image) or net.hint(image))
    up(source, **settings, control_map="pose")
    assert float(seen[0].min()) == 0  # bones and joints on black
    assert float(seen[0].max()) > 0.9


# Refusals


def test_a_net_of_another_base_is_refused_with_both_names(parts, xl_parts):
    for base, net in ((parts, tiny.controlnet(xl_parts["unet"])), (xl_parts, parts["controlnet"])):
        with pytest.raises(ModelError, match=r"made for .*, and the model is .*") as caught:
            enlarger.Upscaler("controlnet", components={**base, "controlnet": net})
        assert "Stable Diffusion XL" in str(caught.value)
    with pytest.raises(ModelError, match="no ControlNet"):
        enlarger.Upscaler("controlnet", components={**parts, "controlnet": parts["vae"]})


def test_without_a_net_the_engine_says_what_to_name(parts):
    with pytest.raises(ModelError, match=r"--control, such as .*img2img"):
        enlarger.Upscaler("controlnet", components={**parts, "controlnet": None})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"control_scale": [0.5, 0.6]}, "2 values for one ControlNet"),
        ({"control_scale": 3}, "0 to 2"),
        ({"control_scale": float("nan")}, "0 to 2"),
        ({"control_start": 1.5}, "0 to 1"),
        ({"control_start": 0.6, "control_end": 0.5}, "never act"),
        ({"control_map": "cany"}, "did you mean canny"),
        ({"control_map": "pose"}, "OpenPose's JSON .*--map-model.*--control-image FILE --control-map picture"),
        ({"control_map": "depth"}, "--map-model, or a ready-made map with --control-image FILE"),
        (
            {"control_map": "line"},
            "--control-image FILE --control-map picture, or take canny or soft",
        ),
        ({"control_map": "Lineart"}, "ready-made one with --control-image FILE"),
        ({"control_type": "tile"}, "for union nets"),
        ({"canny_low": 300, "control_map": "canny"}, "above canny_high"),
        ({"canny_low": 50}, "--control-map canny"),
        ({"control_size": "9x9"}, "key points"),
        ({"controlnet_conditioning_scale": 0.5}, "control_scale"),
    ],
)
def test_wrong_values_are_refused(upscaler, values, said):
    with pytest.raises(SettingsError, match=said):
        upscaler(picture(8, 8), **PLAIN, **values)


def test_control_pictures_that_cannot_be_read_are_refused(upscaler, tmp_path):
    with pytest.raises(PictureError, match="none"):
        upscaler(picture(8, 8), **PLAIN, control_image=tmp_path / "none.png")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(PictureError, match="key points"):
        upscaler(picture(8, 8), **PLAIN, control_image=tmp_path / "a.json")
    with pytest.raises(SettingsError, match="leave out --control-map"):
        upscaler(picture(8, 8), **PLAIN, control_image=tmp_path / "a.json", control_map="canny")


def test_a_union_net_says_what_it_knows(xl_parts):
    union = tiny.controlnet(xl_parts["unet"], union=True)
    union.config["num_control_type"] = 8
    small = copy.deepcopy(union)
    small.register_to_config(num_control_type=6)
    up = enlarger.Upscaler("controlnet", components={**xl_parts, "controlnet": small})
    with pytest.raises(SettingsError, match="not tile"):
        up(picture(8, 8), **PLAIN)


# Files


def test_a_net_that_is_named_twice_is_one_net(parts, tmp_path):
    parts["controlnet"].save_pretrained(tmp_path / "tile")
    base = {key: part for key, part in parts.items() if key != "controlnet"}
    up = enlarger.Upscaler("controlnet", components=base, control=[tmp_path / "tile"] * 2)
    assert up.engine.nets[0] is up.engine.nets[1]


def test_nets_are_named_by_folder_subfolder_and_file(parts, tmp_path):
    base = {key: part for key, part in parts.items() if key != "controlnet"}
    tiny.save(tmp_path / "base", base)
    parts["controlnet"].save_pretrained(tmp_path / "nets" / "tile")
    expected = enlarger.Upscaler("controlnet", components=parts)(checks(16, 16), **PLAIN)
    for name in (tmp_path / "nets" / "tile", f"{tmp_path / 'nets'}:tile"):
        up = enlarger.Upscaler("controlnet", str(tmp_path / "base"), control=str(name))
        result = up(checks(16, 16), **PLAIN)
        assert furthest(result, expected) < 1e-5
        assert "tile" in result.model
        assert str(tmp_path) not in json.dumps(result.record())
    with pytest.raises(ModelError, match="needs a ControlNet"):
        enlarger.Upscaler("controlnet", str(tmp_path / "base"), control=str(tmp_path / "base" / "unet"))
