"""Recorded runs of diffusers' pipelines, made again by Enlarger, number for number.

    python tests/conformance/diffusers.py FOLDER [--only PREFIX,...]

FOLDER holds models in diffusers' layout, pictures, `expected/*.npz` and `manifest.json`, which says how each case was
made. Every case goes through `Upscaler` and the production loop; no pipeline class of diffusers is called. One line
for each case with its largest difference; exit 0 only if all agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python looks for modules beside a script first, and this one has the name of the package that it must not hide.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from enlarger import Generator, Upscaler
from enlarger.checkpoints.open import Checkpoint, open_checkpoint
from enlarger.engines.diffusion import PARTS
from enlarger.engines.engine import Conditioning, Decoded, Engine
from enlarger.errors import EnlargerError
from enlarger.size import Size

LATENTS = 1e-4
"""Largest difference of latents, times their standard deviation where that is above 1."""

PIXELS = 2e-3
"""Largest difference of pixels, 0..1, recorded as float16."""

WORDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "noise_level": "noise_level",
    "eta": "eta",
    "clip_skip": "clip_skip",
    "num_images_per_prompt": "samples",
    "strength": "strength",
    "original_size": "original_size",
    "target_size": "target_size",
    "crops_coords_top_left": "crop",
    "controlnet_conditioning_scale": "control_scale",
    "control_guidance_start": "control_start",
    "control_guidance_end": "control_end",
    "guess_mode": "guess_mode",
    "height": "height",
    "width": "width",
}
"""Diffusers' argument -> our setting."""


class Unknown(Exception):
    """A case that asks for something that Enlarger does not do, yet."""


@dataclass(frozen=True)
class Outcome:
    """What our run gave: (N, C, h, w) latents, and (N, H, W, 3) pixels in 0..1."""

    latents: np.ndarray[Any, Any]
    pixels: np.ndarray[Any, Any]


def settings_of(call: Mapping[str, Any], words: Mapping[str, str] = WORDS) -> dict[str, Any]:
    """Our settings for the arguments of a recorded call.

    Raises:
        Unknown: An argument that has no word here.
    """
    call = {name: value for name, value in call.items() if name != "cross_attention_kwargs"}  # see `adapters_of`
    strange = sorted(set(call) - set(words))
    if strange:
        raise Unknown(f"arguments not known: {', '.join(strange)}")
    settings = {words[name]: value for name, value in call.items() if value is not None}
    for name in {"original_size", "target_size"} & set(settings):  # (height, width) there
        settings[name] = Size(*settings[name])
    if "crop" in settings:
        settings["crop_top"], settings["crop_left"] = settings.pop("crop")
    return settings


def checkpoint_of(folder: Path, case: Mapping[str, Any], families: tuple[str, ...], engine: str) -> Checkpoint:
    """The model of a case: its folder, or a single file with the folder as its configuration."""
    model = folder / case["model"]
    if case.get("single_file"):
        return open_checkpoint(str(folder / case["single_file"]), families=families, engine=engine, config=model)
    return open_checkpoint(str(model), families=families, engine=engine)


def scheduler_of(folder: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's configuration of a case: the model's own, or another class made from it."""
    path = folder / case["model"] / case.get("scheduler_folder", "scheduler") / "scheduler_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    override = dict(case.get("scheduler_override") or {})
    if override:
        config["_class_name"] = override.pop("cls")
    return {**config, **override}


def picture(folder: Path, name: str, case: str) -> np.ndarray[Any, Any]:
    """A picture of the folder, (H, W, 3) float32 in 0..1; resized first where diffusers did it on the quiet."""
    image = Image.open(folder / "pictures" / f"{name}.png").convert("RGB")
    resized = re.search(r"resized(\d+)x(\d+)", case)
    if resized:
        height, width = map(int, resized.groups())
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def enlarged(upscaler: Upscaler, image: np.ndarray[Any, Any], **settings: Any) -> Outcome:
    """All samples of one picture, through the public way."""
    latents = listened(upscaler.engine)
    results = list(upscaler.samples(image, **settings))
    return Outcome(np.concatenate(latents), np.stack([result.pixels for result in results]))


def listened(engine: Engine) -> list[np.ndarray[Any, Any]]:
    """Latents as they come to an engine's decoder, once it runs."""
    latents: list[np.ndarray[Any, Any]] = []
    decode = engine.decode_canvas

    def listen(latent: Any, conditioning: Conditioning, progress: Any = None) -> Decoded:
        latents.append(latent.float().numpy().copy())
        return decode(latent, conditioning, progress)

    engine.decode_canvas = listen  # type: ignore[method-assign]
    return latents


def run_x4(folder: Path, case: Mapping[str, Any]) -> Outcome:
    """StableDiffusionUpscalePipeline."""
    checkpoint = checkpoint_of(folder, case, ("x4",), "x4")
    import torch

    names = ["unet", "vae", "text_encoder", "tokenizer", "low_res_scheduler"]
    components = checkpoint.components(names, dtype=torch.float32, device=torch.device("cpu"))
    components["scheduler"] = scheduler_of(folder, case)
    upscaler = Upscaler("x4", components=components, device="cpu", **adapters_of(folder, case))
    settings = {**DEFAULTS[case["pipeline"]], **settings_of(case["call"])}
    image = picture(folder, case["pictures"]["image"], case["name"])
    return enlarged(upscaler, image, seed=case["seed"], scale=4, consistency=0.0, color_fix="none", **settings)


def components_of(folder: Path, case: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The parts of a case's text-to-image model, with its scheduler."""
    import torch

    checkpoint = checkpoint_of(folder, case, ("sd15", "sd2", "sdxl"), engine)
    names = [name for name in (*PARTS, "vae") if checkpoint.has(name)]
    components = checkpoint.components(names, dtype=torch.float32, device=torch.device("cpu"))
    index = json.loads((folder / case["model"] / "model_index.json").read_text())
    zeros = {name: index[name] for name in ("force_zeros_for_empty_prompt",) if name in index}
    return {**components, **zeros, "scheduler": scheduler_of(folder, case)}


def adapters_of(folder: Path, case: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a case puts into its model, as settings: LoRAs with their scales, embeddings with their words.

    Raises:
        Unknown: A call that has no word here.
    """
    found: dict[str, list[str]] = {}
    scale = (case["call"].get("cross_attention_kwargs") or {}).get("scale", 1.0)
    loras: list[str] = []
    for call in filter(None, re.split(r";\s*", case.get("setup") or "")):
        if lora := re.match(r"load_lora_weights\(([^,)]+)\)", call):
            loras.append(lora[1])
        elif fused := re.match(r"fuse_lora\(lora_scale=([\d.]+)\)", call):
            scale = float(fused[1])
        elif taught := re.match(r"load_textual_inversion\(([^,)]+)(?:, token='([^']+)')?\)", call):
            word = f":{taught[2]}" if taught[2] else ""
            found.setdefault("embedding", []).append(f"{folder / taught[1]}{word}")
        else:
            raise Unknown(call)
    if loras:
        found["lora"] = [f"{folder / name}:{scale:g}" for name in loras]
    return found


def run_img2img(folder: Path, case: Mapping[str, Any]) -> Outcome:
    """StableDiffusionImg2ImgPipeline and its SDXL sister."""
    components = components_of(folder, case, "img2img")
    upscaler = Upscaler("img2img", components=components, device="cpu", **adapters_of(folder, case))
    settings = {**DEFAULTS[case["pipeline"]], **settings_of(case["call"])}
    image = picture(folder, case["pictures"]["image"], case["name"])
    return enlarged(upscaler, image, seed=case["seed"], scale=1, consistency=0.0, color_fix="none", **settings)


def controls_of(folder: Path, case: Mapping[str, Any]) -> list[str]:
    """The case's ControlNets: one folder, named as often as there are copies."""
    name = "controlnet_sdxl" if "XL" in case["pipeline"] else "controlnet_tile"
    return [str(folder / name)] * int(case.get("controlnets") or 0)


def control_files(folder: Path, given: str | list[str]) -> list[str]:
    """The control pictures of a case."""
    return [str(folder / "pictures" / f"{name}.png") for name in ([given] if isinstance(given, str) else given)]


def run_controlnet(folder: Path, case: Mapping[str, Any]) -> Outcome:
    """StableDiffusionControlNetImg2ImgPipeline and its SDXL sister."""
    components = components_of(folder, case, "controlnet")
    machine = {"control": controls_of(folder, case), **adapters_of(folder, case)}
    upscaler = Upscaler("controlnet", components=components, device="cpu", **machine)
    settings = {**DEFAULTS[case["pipeline"]], **settings_of(case["call"])}
    settings["control_image"] = control_files(folder, case["pictures"]["control_image"])
    image = picture(folder, case["pictures"]["image"], case["name"])
    return enlarged(upscaler, image, seed=case["seed"], scale=1, consistency=0.0, color_fix="none", **settings)


def run_generate(folder: Path, case: Mapping[str, Any]) -> Outcome:
    """StableDiffusionPipeline and its ControlNet and SDXL sisters."""
    components = components_of(folder, case, "generate")
    machine = {"control": controls_of(folder, case), **adapters_of(folder, case)}
    generator = Generator(components=components, device="cpu", **machine)
    settings = {**DEFAULTS[case["pipeline"]], **settings_of(case["call"])}
    if "image" in case.get("pictures", {}):  # the control picture is also as large as the result
        settings["control_image"] = control_files(folder, case["pictures"]["image"])
        height, width = picture(folder, Path(settings["control_image"][0]).stem, case["name"]).shape[:2]
        settings = {"height": height, "width": width, **settings}
    prompt = settings.pop("prompt")
    latents = listened(generator.engine)
    pixels = [result.pixels for result in generator.samples(prompt, seed=case["seed"], depth=32, **settings)]
    return Outcome(np.concatenate(latents), np.stack(pixels))


DEFAULTS: dict[str, dict[str, Any]] = {
    "StableDiffusionUpscalePipeline": {"steps": 75, "guidance_scale": 9.0, "noise_level": 20},
    "StableDiffusionImg2ImgPipeline": {"steps": 50, "strength": 0.8, "guidance_scale": 7.5},
    "StableDiffusionXLImg2ImgPipeline": {"steps": 50, "strength": 0.3, "guidance_scale": 5.0},
    "StableDiffusionPipeline": {"steps": 50, "guidance_scale": 7.5},
    "StableDiffusionXLPipeline": {"steps": 50, "guidance_scale": 5.0},
    "StableDiffusionControlNetPipeline": {"steps": 50, "guidance_scale": 7.5},
    "StableDiffusionXLControlNetPipeline": {"steps": 50, "guidance_scale": 5.0},
    "StableDiffusionControlNetImg2ImgPipeline": {
        "steps": 50,
        "strength": 0.8,
        "guidance_scale": 7.5,
        "control_scale": 0.8,
    },
    "StableDiffusionXLControlNetImg2ImgPipeline": {
        "steps": 50,
        "strength": 0.8,
        "guidance_scale": 5.0,
        "control_scale": 0.8,
    },
}
"""What diffusers' pipelines take where a call says nothing."""

RUNNERS: dict[str, Callable[[Path, Mapping[str, Any]], Outcome]] = {
    "StableDiffusionUpscalePipeline": run_x4,
    "StableDiffusionImg2ImgPipeline": run_img2img,
    "StableDiffusionXLImg2ImgPipeline": run_img2img,
    "StableDiffusionPipeline": run_generate,
    "StableDiffusionXLPipeline": run_generate,
    "StableDiffusionControlNetPipeline": run_generate,
    "StableDiffusionXLControlNetPipeline": run_generate,
    "StableDiffusionControlNetImg2ImgPipeline": run_controlnet,
    "StableDiffusionXLControlNetImg2ImgPipeline": run_controlnet,
}
"""Diffusers' class -> how Enlarger does the same."""


def compare(folder: Path, case: Mapping[str, Any]) -> tuple[bool, str]:
    """Run a case; whether it agrees, and its line."""
    if case["pipeline"] not in RUNNERS:
        return False, f"not implemented: {case['pipeline']}"
    expected = np.load(folder / "expected" / f"{case['name']}.npz")
    try:
        outcome = RUNNERS[case["pipeline"]](folder, case)
    except Unknown as error:
        return False, f"not implemented: {error}"
    except EnlargerError as error:
        return False, f"refused: {error}"
    differences = []
    agree = True
    for name, ours, limit in (("latents", outcome.latents, LATENTS), ("image", outcome.pixels, PIXELS)):
        if name not in expected:
            continue
        theirs = expected[name].astype(np.float32)
        if name == "latents":
            limit *= max(1.0, float(theirs.std()))
        if theirs.shape != ours.shape:
            return False, f"{name} has shape {ours.shape}, not {theirs.shape}"
        largest = float(np.abs(theirs - ours).max())
        agree = agree and largest <= limit
        differences.append(f"{name} {largest:.2e} (limit {limit:.1e})")
    return agree and bool(differences), ", ".join(differences) or "nothing recorded"


def main(arguments: list[str]) -> int:
    """Run the cases of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="PREFIX,...", help="cases whose names begin so")
    given = parser.parse_args(arguments)
    manifest = json.loads((given.folder / "manifest.json").read_text())
    prefixes = tuple(given.only.split(","))
    cases = [case for case in manifest["cases"] if case["name"].startswith(prefixes)]
    agreed = 0
    for case in cases:
        agree, line = compare(given.folder, case)
        agreed += agree
        print(f"{'agrees ' if agree else 'DIFFERS'} {case['name']}: {line}", flush=True)
    print(f"{agreed} of {len(cases)} cases agree")
    return 0 if cases and agreed == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
