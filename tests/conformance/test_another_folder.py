"""The conformance script on a folder that it has never seen: other networks, sizes, seeds, schedulers and calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conformance import scripts
from tests.engines import tiny

pytestmark = pytest.mark.slow

SD = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PROMPTS = {"prompt": "a red fox", "negative_prompt": "grey"}

EARLY = ("clip_sample", "steps_offset")

CASES: list[dict[str, Any]] = [
    {
        "name": "sd15_img2img_two", "pipeline": "StableDiffusionImg2ImgPipeline", "model": "sd15", "seed": 3,
        "scheduler_override": {"cls": "EulerAncestralDiscreteScheduler"}, "pictures": {"image": "small"},
        "call": {**PROMPTS, "num_inference_steps": 5, "strength": 0.45, "num_images_per_prompt": 2},
    },
    {
        "name": "sd15_img2img_trailing", "pipeline": "StableDiffusionImg2ImgPipeline", "model": "sd15", "seed": 11,
        "scheduler_override": {"cls": "DDIMScheduler", "timestep_spacing": "trailing"}, "pictures": {"image": "wide"},
        "call": {"prompt": "", "num_inference_steps": 3, "strength": 0.99, "eta": 0.4, "guidance_scale": 2.5},
    },
    {
        "name": "sd15_txt2img_default_size", "pipeline": "StableDiffusionPipeline", "model": "sd15", "seed": 4,
        "scheduler_folder": "scheduler_v", "pictures": {},
        "call": {**PROMPTS, "num_inference_steps": 2, "guidance_scale": 4.0, "guidance_rescale": 0.3},
    },
    {
        "name": "sd15_cn_txt2img_two", "pipeline": "StableDiffusionControlNetPipeline", "model": "sd15", "seed": 5,
        "controlnets": 2, "pictures": {"image": ["small", "other"]},
        "call": {
            **PROMPTS, "num_inference_steps": 4, "controlnet_conditioning_scale": [0.5, 0.9],
            "control_guidance_start": [0.0, 0.5], "control_guidance_end": 1.0, "num_images_per_prompt": 2,
        },
    },
    {
        "name": "sd15_cn_img2img", "pipeline": "StableDiffusionControlNetImg2ImgPipeline", "model": "sd15", "seed": 6,
        "scheduler_override": {"cls": "PNDMScheduler"}, "controlnets": 1,
        "pictures": {"image": "small", "control_image": "other"},
        "call": {**PROMPTS, "num_inference_steps": 6, "strength": 0.5, "guess_mode": True, "guidance_scale": 4.0},
    },
    {
        "name": "sd15_img2img_as_it_is", "pipeline": "StableDiffusionImg2ImgPipeline", "model": "sd15", "seed": 9,
        "pictures": {"image": "small"}, "call": {**PROMPTS, "num_inference_steps": 4, "strength": 0.8},
    },
    {
        "name": "sd15_cn_as_it_is", "pipeline": "StableDiffusionControlNetPipeline", "model": "sd15", "seed": 10,
        "controlnets": 1, "pictures": {"image": "other"}, "call": {**PROMPTS, "num_inference_steps": 3},
    },
    {
        "name": "sdxl_img2img", "pipeline": "StableDiffusionXLImg2ImgPipeline", "model": "sdxl", "seed": 7,
        "pictures": {"image": "wide"},
        "call": {"prompt": "a red fox", "num_inference_steps": 4, "strength": 0.7, "clip_skip": 1},
    },
    {
        "name": "sdxl_two_img2img", "pipeline": "StableDiffusionXLImg2ImgPipeline", "model": "sdxl", "seed": 12,
        "scheduler_override": {"cls": "EulerAncestralDiscreteScheduler"}, "pictures": {"image": "small"},
        "call": {**PROMPTS, "num_inference_steps": 4, "strength": 0.6, "num_images_per_prompt": 2},
    },
    {
        "name": "sdxl_two_txt2img", "pipeline": "StableDiffusionXLPipeline", "model": "sdxl", "seed": 13,
        "scheduler_override": {"cls": "DDIMScheduler"}, "pictures": {},
        "call": {
            # Gently: diffusers itself rounds a batch of two otherwise than two of one, and guidance makes that larger.
            "prompt": "a red fox", "num_inference_steps": 2, "guidance_scale": 1.5, "num_images_per_prompt": 2,
            "height": 32, "width": 48,
        },
    },
    {
        "name": "sdxl_cn_txt2img", "pipeline": "StableDiffusionXLControlNetPipeline", "model": "sdxl", "seed": 8,
        "controlnets": 1, "scheduler_override": {"cls": "UniPCMultistepScheduler"}, "pictures": {"image": "other"},
        "call": {**PROMPTS, "num_inference_steps": 3, "guidance_scale": 6.0, "original_size": [300, 200]},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, pictures and what diffusers makes of them."""
    place = tmp_path_factory.mktemp("recorded")
    models = {"sd15": tiny.sd(place / "words"), "sdxl": tiny.sdxl(place / "words-xl")}
    nets = {"sd15": "controlnet_tile", "sdxl": "controlnet_sdxl"}
    for name, parts in models.items():
        tiny.save(place / name, parts)
        tiny.controlnet(parts["unet"], seed=21).save_pretrained(place / nets[name])
    # As the folders of early models are: without two words whose defaults diffusers' pipelines then correct, or not.
    early = place / "sd15" / "scheduler" / "scheduler_config.json"
    kept = {name: value for name, value in json.loads(early.read_text()).items() if name not in EARLY}
    early.write_text(json.dumps(kept))
    index = place / "sdxl" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": False}))
    velocity = tiny.diffusers.DDIMScheduler(**tiny.SCHEDULER, prediction_type="v_prediction")
    velocity.save_pretrained(place / "sd15" / "scheduler_v")
    (place / "pictures").mkdir()
    for name, size in (("small", (24, 32)), ("other", (24, 32)), ("wide", (16, 48))):
        levels = np.random.default_rng(sum(map(ord, name))).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(levels).save(place / "pictures" / f"{name}.png")
    (place / "expected").mkdir()
    for case in CASES:
        record(place, case, models[case["model"]], place / nets[case["model"]])
    (place / "manifest.json").write_text(json.dumps({"cases": CASES}))
    return place


def record(place: Path, case: dict[str, Any], parts: dict[str, Any], net: Path) -> None:
    """A case as diffusers' own pipeline computes it."""
    # From its file, as a pipeline gets it: there every word is the model's own.
    folder = place / case["model"] / case.get("scheduler_folder", "scheduler")
    own = type(parts["scheduler"]).from_pretrained(folder)
    override = dict(case.get("scheduler_override") or {"cls": type(own).__name__})
    scheduler = getattr(tiny.diffusers, override.pop("cls")).from_config(own.config, **override)
    nets = [tiny.diffusers.ControlNetModel.from_pretrained(net) for _ in range(case.get("controlnets", 0))]
    more = {"controlnet": nets[0] if len(nets) == 1 else nets} if nets else {}
    kind = getattr(tiny.diffusers, case["pipeline"])
    extras: dict[str, Any] = SD if case["model"] == "sd15" else {"force_zeros_for_empty_prompt": False}
    pipe = kind(**{**parts, "scheduler": scheduler}, **more, **extras)
    pipe.set_progress_bar_config(disable=True)

    def opened(names: Any) -> Any:
        if isinstance(names, list):
            return [opened(name) for name in names]
        with Image.open(place / "pictures" / f"{names}.png") as image:
            return image.convert("RGB")

    call = {**case["call"], **{name: opened(names) for name, names in case["pictures"].items()}}
    if "original_size" in call:
        call["original_size"] = tuple(call["original_size"])
    made = {}
    for name, kind_of_output in (("latents", "latent"), ("image", "np")):
        generator = torch.Generator().manual_seed(case["seed"])
        made[name] = np.asarray(pipe(**call, output_type=kind_of_output, generator=generator).images)
    np.savez(
        place / "expected" / f"{case['name']}.npz", latents=made["latents"], image=made["image"].astype(np.float16)
    )


@pytest.fixture(scope="module")
def script():
    with scripts.opened("diffusers") as module:
        yield module


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_case_of_another_folder_agrees(folder, script, capsys):
    code = script.main([str(folder)])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"{len(CASES)} of {len(CASES)} cases agree", said
    assert code == 0


def test_the_recorded_cases_agree(request, script, capsys):
    """Those of text-to-image models."""
    recorded = request.getfixturevalue("tiny")
    cases = json.loads((recorded / "manifest.json").read_text())["cases"]
    names = [case["name"] for case in cases if not case["name"].startswith("x4")]
    assert len(names) > 30
    assert script.main([str(recorded), "--only", ",".join(names)]) == 0, capsys.readouterr().out


def test_a_wrong_number_is_found(folder, script, capsys):
    path = folder / "expected" / "sdxl_img2img.npz"
    kept = path.read_bytes()
    recorded = dict(np.load(path))
    recorded["latents"][0, 0, 0, 0] += 0.01
    np.savez(path, **recorded)
    try:
        assert script.main([str(folder), "--only", "sdxl_img2img"]) == 1
        assert "0 of 1 cases agree" in capsys.readouterr().out
        assert script.main([str(folder), "--only", "nothing"]) == 1
    finally:
        path.write_bytes(kept)
