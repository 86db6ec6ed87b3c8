"""img2img and ControlNet at full size with random weights, beside diffusers' own pipelines.

    python benchmarks/prompted.py speed [--size 512] [--rounds 1] [--threads N]   # a step, taking turns, same modules
    python benchmarks/prompted.py memory [--size 512]               # peak memory above the weights, a process each
    python benchmarks/prompted.py loading [--rounds 1]              # SDXL, half precision: 14 GB of temporary files

Stable Diffusion 1.5's UNet (860 million parameters), its ControlNet (361 million) and its autoencoder in the sizes that
were published, float32, with guidance on (both halves in one batch, as diffusers has it). A step is the difference
between a long and a short run, by the clock and by what the processor did, which other work on the machine disturbs
less. The last rows are ControlNets that do not act in any step: they are not computed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

LONG, SHORT = 3, 1
"""Steps of the two runs whose difference is measured."""

ROWS = ("img2img", "img2img, diffusers", "controlnet", "controlnet, diffusers", "controlnet that never acts")


def parts() -> dict[str, Any]:
    """The components of a ControlNet pipeline, full size; weights are small random numbers, norms are ones."""
    import diffusers
    import transformers

    from enlarger.checkpoints import configs
    from enlarger.checkpoints.modules import load_tokenizer

    published = configs.published("sd15")

    def filled(make: Callable[[], Any]) -> Any:
        with torch.device("meta"):
            module = make()
        module.to_empty(device="cpu")
        for name, value in module.named_parameters():
            if value.ndim < 2:
                torch.nn.init.constant_(value, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                torch.nn.init.uniform_(value, -0.02, 0.02)
        return module.eval()

    def config(part: str, of: Any = published) -> dict[str, Any]:
        return dict(of.find(part) or {})

    # Small here: the text is encoded once, before any step.
    text = transformers.CLIPTextConfig(**{**config("text_encoder"), "num_hidden_layers": 1})
    return {
        "unet": filled(lambda: diffusers.UNet2DConditionModel.from_config(config("unet"))),
        "vae": filled(lambda: diffusers.AutoencoderKL.from_config(config("vae"))),
        "controlnet": filled(
            lambda: diffusers.ControlNetModel.from_config(config("controlnet", configs.published("controlnet-sd15")))
        ),
        "text_encoder": transformers.CLIPTextModel(text).eval(),
        "tokenizer": load_tokenizer(configs.VOCABULARY, "<|endoftext|>"),
        "scheduler": diffusers.DDIMScheduler.from_config(config("scheduler")),
    }


def runner(row: str, components: dict[str, Any], size: int) -> Callable[[int], None]:
    """What runs a row for a number of steps."""
    import diffusers

    import enlarger

    picture = np.random.default_rng(0).random((size, size, 3), np.float32)
    without = {name: part for name, part in components.items() if name != "controlnet"}
    held = row.startswith("controlnet")
    if row.endswith("diffusers"):
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        kind = "StableDiffusionControlNetImg2ImgPipeline" if held else "StableDiffusionImg2ImgPipeline"
        pipe = getattr(diffusers, kind)(**(components if held else without), **more)
        pipe.set_progress_bar_config(disable=True)
        seen = {"control_image": picture[None]} if held else {}
        return lambda steps: pipe(
            prompt="a cat", image=picture[None], num_inference_steps=steps, strength=1.0, output_type="np",
            generator=torch.Generator().manual_seed(0), **seen,
        )  # fmt: skip
    up = enlarger.Upscaler("controlnet" if held else "img2img", components=components if held else without)
    scale = {"control_scale": 0.0} if "never" in row else {}
    return lambda steps: up(picture, scale=1, prompt="a cat", steps=steps, strength=1.0, tile=8192, **scale)


def speed(size: int, rounds: int, threads: int) -> None:
    """Seconds of a step, from the quickest long and the quickest short run of all rounds; rows take turns."""
    torch.set_num_threads(threads)
    components = parts()
    runs = {row: runner(row, components, size) for row in ROWS}
    clocks = (time.monotonic, time.process_time)
    best = {row: {steps: [float("inf")] * len(clocks) for steps in (SHORT, LONG)} for row in ROWS}
    for run in runs.values():
        run(SHORT)  # the first run of each touches its memory for the first time
    for _ in range(rounds):
        for row, run in runs.items():
            for steps, quickest in best[row].items():
                started = [clock() for clock in clocks]
                run(steps)
                taken = [clock() - start for clock, start in zip(clocks, started, strict=True)]
                best[row][steps] = [min(pair) for pair in zip(quickest, taken, strict=True)]
    print(f"{size}x{size} pixels, {threads} threads, a step with guidance, quickest of {rounds} rounds:")
    for row, taken_by in best.items():
        wall, worked = (
            (long - short) / (LONG - SHORT) for short, long in zip(taken_by[SHORT], taken_by[LONG], strict=True)
        )
        print(f"  {row:<28} {wall:6.2f} s, {worked:6.2f} s of processor")


def memory(size: int) -> None:
    """Peak memory above what the loaded parts take, each row in a process of its own."""
    print(f"{size}x{size} pixels, float32, peak above the loaded weights, one step with guidance, decoding included:")
    for row in ROWS:
        command = [sys.executable, __file__, "one", "--row", row, "--size", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        weights, peak = json.loads(done.stdout.splitlines()[-1])
        print(f"  {row:<28} {peak / 1e9:6.2f} GB (weights {weights / 1e9:.2f} GB)", flush=True)


def one(row: str, size: int) -> None:
    """A row of `memory`."""

    def status(name: str) -> int:
        return 1024 * int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    components = parts()
    if not row.startswith("controlnet"):
        components.pop("controlnet")
    run = runner(row, components, size)
    weights = sum(
        value.numel() * value.element_size()
        for part in components.values()
        if isinstance(part, torch.nn.Module)
        for value in part.parameters()
    )
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is not the run's
    run(SHORT)
    print(json.dumps([weights, status("VmHWM") - before]))


XL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")

XL_ROWS = {
    "folder, Enlarger": "enlarger.Upscaler('img2img', place / 'xl', device='cpu', dtype='float16')",
    "folder, diffusers": "diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(place / 'xl', **half)",
    "file, Enlarger": "enlarger.Upscaler('img2img', str(place / 'xl.safetensors'), device='cpu', dtype='float16')",
    "file, diffusers": "diffusers.StableDiffusionXLImg2ImgPipeline.from_single_file("
    "str(place / 'xl.safetensors'), config=str(place / 'xl'), **half)",
}
"""What is measured -> how it loads."""

PROBE = """
import json, re, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch, transformers, diffusers, enlarger, enlarger.upscaler, enlarger.engines.img2img
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection
import accelerate
place, half = Path(sys.argv[1]), {"torch_dtype": torch.float16, "local_files_only": True}
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
started = time.perf_counter()
loaded = LOAD
seconds = time.perf_counter() - started
peak = status("VmHWM") - before
parts = loaded.engine.parts if hasattr(loaded, "engine") else loaded
modules = [parts.unet, parts.vae]
modules += [each._model for each in parts.text._encoders] if hasattr(parts, "text") else [
    parts.text_encoder, parts.text_encoder_2]
weights = [p.detach().flatten() for module in modules for p in module.parameters()]
for each in weights:
    each[::1024].float().sum()  # a page of memory and more: what was only promised is read now
read = time.perf_counter() - started
size = sum(p.numel() * p.itemsize for p in weights)
print(json.dumps([seconds, read, size, peak, status("VmHWM") - before]))
"""


def write_xl(place: Path) -> None:
    """A full-size SDXL with random numbers, half precision, as a folder and as the single file of its publishers."""
    import shutil

    from loading import inventory, write_safetensors  # beside this file

    from enlarger.checkpoints import configs
    from enlarger.checkpoints.modules import _empty

    shutil.copytree(configs.PUBLISHED / "sdxl", place / "xl")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(configs.VOCABULARY, place / "xl" / name)
    for part in XL_PARTS:
        config = configs.published("sdxl").find(part)
        assert config is not None
        with torch.device("meta"):
            state = _empty(config, "sdxl", part).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if part.startswith("text"):  # as published, whatever this transformers calls them
            shapes = {_published(name): shape for name, shape in shapes.items()}
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write_safetensors(place / "xl" / part / f"{stem}.safetensors", shapes, "float16")
    write_safetensors(place / "xl.safetensors", inventory("sdxl", XL_PARTS), "float16")


def _published(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def loading(rounds: int) -> None:
    """Seconds and peak memory of loading, each in a process of its own, taking turns."""
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_xl(Path(folder))
        print(
            "SDXL in half precision; Enlarger's autoencoder is float32, and the digest is part of its first loading.\n"
            "Seconds and peak memory above the imports, until it is loaded, and until every weight was read once:"
        )
        for _ in range(rounds):
            for row, call in XL_ROWS.items():
                for time_of in ("first", "again") if row.endswith("Enlarger") else ("",):
                    command = [sys.executable, "-c", PROBE.replace("LOAD", call), folder]
                    # Digests are kept here, not in the user's cache.
                    environment = {**os.environ, "XDG_CACHE_HOME": folder, "HF_HUB_OFFLINE": "1"}
                    done = subprocess.run(command, capture_output=True, text=True, env=environment)
                    if done.returncode:
                        print(f"  {row:<18} {time_of:<6} failed: {done.stderr.strip().splitlines()[-1][:160]}")
                        continue
                    seconds, read, weights, early, peak = json.loads(done.stdout.splitlines()[-1])
                    print(
                        f"  {row:<18} {time_of:<6} {weights / 1e9:.2f} GB, "
                        f"loaded {seconds:5.1f} s, {early / 1e9:.2f} GB, "
                        f"read {read:5.1f} s, {peak / 1e9:.2f} GB ({peak / weights:.3f} of the weights)",
                        flush=True,
                    )


def main() -> None:
    """Run what the command line asks for."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "loading", "one"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for speed")
    parser.add_argument("--row", choices=ROWS, default=ROWS[0])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if given.what == "speed":
        speed(given.size, given.rounds, given.threads)
    elif given.what == "memory":
        memory(given.size)
    elif given.what == "loading":
        loading(given.rounds)
    else:
        one(given.row, given.size)


if __name__ == "__main__":
    main()
