"""x4 at full size with random weights: loading, steps beside diffusers' own pipeline, and on a GPU whole pictures.

    python benchmarks/x4.py [--latents 64 128] [--rounds 2]                    # loading, then milliseconds a step
    python benchmarks/x4.py --device cuda --dtype float16 --pictures 128 512 1024 [--check-dtypes]

A checkpoint with the published sizes and random weights is made in a temporary folder (3.5 GB in float32, half of it
otherwise). It is loaded in a process of its own, whose peak of resident memory is told over that of importing alone.
Then our loop and `StableDiffusionUpscalePipeline` take turns on the very same modules; a step is the difference between
a long and a short run, and the quickest round counts. Pictures are enlarged whole by both, decoding included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PARTS = ("unet", "vae", "text_encoder")

MEASURE = """
import json, sys, time
import torch, diffusers, transformers
from diffusers import UNet2DConditionModel, AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer
from enlarger.checkpoints.open import open_checkpoint

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

before = status("VmHWM:")
started = time.monotonic()
checkpoint = open_checkpoint(sys.argv[1], families=("x4",), engine="x4")
dtype = getattr(torch, sys.argv[2])
modules = [checkpoint.module(part, dtype=dtype, device="cpu") for part in ("unet", "vae", "text_encoder")]
size = sum(value.numel() * value.element_size() for module in modules for value in module.state_dict().values())
print(json.dumps([time.monotonic() - started, status("VmHWM:") - before, size]))
"""


def make(folder: Path, dtype: torch.dtype) -> None:
    """Write a full-size x4 in diffusers' layout; weights are small random numbers, norms are ones."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from enlarger.checkpoints import configs

    published = configs.published("x4")
    kinds: dict[str, Callable[[Any], torch.nn.Module]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    }
    for part in PARTS:
        config = published.find(part)
        assert config is not None
        with torch.device("meta"):
            shapes = kinds[part](dict(config)).state_dict()
        generator = torch.Generator().manual_seed(0)
        state = {}
        for name, value in shapes.items():
            if "norm" in name and name.endswith("weight"):
                state[name] = torch.ones(value.shape, dtype=dtype)
            elif value.ndim < 2:
                state[name] = torch.zeros(value.shape, dtype=dtype)
            else:
                spread = (value.numel() / value.shape[0]) ** -0.5
                state[name] = (torch.randn(value.shape, generator=generator) * spread).to(dtype)
        (folder / part).mkdir(parents=True)
        file = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
        save_file(state, folder / part / file)
        (folder / part / "config.json").write_text(json.dumps(dict(config)))
    for part in ("scheduler", "low_res_scheduler"):
        (folder / part).mkdir()
        (folder / part / "scheduler_config.json").write_text(json.dumps(dict(published.find(part) or {})))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionUpscalePipeline"}))


def loading(folder: Path, dtype: str) -> None:
    """Seconds and peak memory of opening it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype], capture_output=True, text=True, check=True
    )
    seconds, peak, size = json.loads(done.stdout.splitlines()[-1])
    print(f"loading: {seconds:.1f} s, {size / 1e9:.2f} GB of weights in {dtype}, peak {peak / size:.3f} times that")


def quickest(rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Seconds of each run, the quickest of all rounds; they take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            started = time.monotonic()
            run()
            best[number] = min(best[number], time.monotonic() - started)
    return best


def steps(upscaler: Any, pipe: Any, latent: int, rounds: int) -> None:
    """Seconds of one guided step of both on a latent of latent x latent cells."""
    from enlarger.canvas.noise import SequentialNoise
    from enlarger.sampling.loop import denoise
    from enlarger.size import Size

    engine = upscaler.engine
    size = Size(latent, latent)
    source = torch.rand(1, 3, latent, latent, generator=torch.Generator().manual_seed(1))
    seen: dict[str, list[tuple[int, ...]]] = {"ours": [], "theirs": []}
    who = "ours"
    hook = engine.parts.unet.register_forward_pre_hook(
        lambda _, inputs, given: seen[who].append(tuple((inputs[0] if inputs else given["sample"]).shape)),
        with_kwargs=True,
    )

    def ours(count: int) -> None:
        nonlocal who
        who = "ours"
        settings = upscaler.settings(prompt="a cat", steps=count)
        noise = SequentialNoise(0)
        passage = upscaler.plan(size, settings).canvas.passes[0]
        with torch.inference_mode():
            conditioning = engine.condition(source, passage, upscaler.prepared(settings), settings, noise)
        for _ in denoise(engine, conditioning, engine.steps(settings), noise, size=size, guidance_scale=9.0):
            pass
        _wait(engine.device)

    def theirs(count: int) -> None:
        nonlocal who
        who = "theirs"
        generator = torch.Generator().manual_seed(0)
        pipe(prompt="a cat", image=source, num_inference_steps=count, generator=generator, output_type="latent")
        _wait(engine.device)

    short, long = 1, 3
    times = quickest(rounds, *(lambda run=run, n=n: run(n) for n in (short, long) for run in (ours, theirs)))
    hook.remove()
    assert sorted(seen["ours"]) == sorted(seen["theirs"]), "the networks were called differently"
    mine, other = (times[2] - times[0]) / (long - short), (times[3] - times[1]) / (long - short)
    print(f"latent {latent}x{latent}: {mine:.3f} s a step, diffusers {other:.3f} s, ratio {mine / other:.3f}")


def pictures(upscaler: Any, pipe: Any, side: int, count: int) -> None:
    """Seconds and peak memory of a whole picture, decoding included, ours and diffusers'."""
    source = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    cuda = upscaler.engine.device.type == "cuda"

    def told(name: str, run: Callable[[], str]) -> None:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
        started = time.monotonic()
        try:
            note = run()
            _wait(upscaler.engine.device)
        except (RuntimeError, MemoryError) as error:
            note = f"failed: {str(error).splitlines()[0][:80]}"
        seconds = time.monotonic() - started
        memory = f", peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if cuda else ""
        print(f"{side} -> {4 * side}, {count} steps, {name}: {seconds:.1f} s{memory}{note and ' (' + note + ')'}")

    def ours() -> str:
        result = upscaler(source[0], prompt="a cat", steps=count, consistency=0.0)
        return "; ".join((*result.remarks, *result.warnings))

    def theirs() -> str:
        generator = torch.Generator().manual_seed(0)
        pipe(prompt="a cat", image=source, num_inference_steps=count, generator=generator, output_type="np")
        return ""

    told("enlarger", ours)
    told("diffusers", theirs)


def dtypes(folder: Path, device: str) -> None:
    """How far half precision is from float32, on 0..1 pixels."""
    from enlarger import Upscaler

    source = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))
    made = {}
    for dtype in ("float32", "bfloat16", "float16"):
        upscaler = Upscaler("x4", str(folder), device=device, dtype=dtype)
        made[dtype] = upscaler(source, prompt="a cat", steps=5, consistency=0.0).pixels
        if dtype != "float32":
            away = abs(made[dtype] - made["float32"])
            print(f"{dtype}: mean {away.mean():.2e}, largest {away.max():.2e} from float32")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="*", default=[64, 128], help="sides of latents for single steps")
    parser.add_argument("--pictures", type=int, nargs="*", default=[], help="sides of pictures to enlarge whole")
    parser.add_argument("--steps", type=int, default=20, help="steps for --pictures")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--check-dtypes", action="store_true", help="half precision beside float32")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    from enlarger import Upscaler
    from enlarger.checkpoints.open import open_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, getattr(torch, given.dtype))
        loading(folder, given.dtype)
        checkpoint = open_checkpoint(str(folder), families=("x4",), engine="x4")
        device, dtype = torch.device(given.device), getattr(torch, given.dtype)
        components = checkpoint.components(["unet", "text_encoder", "tokenizer"], dtype=dtype, device=device)
        components["vae"] = checkpoint.module("vae", dtype=torch.float32, device=device)
        components["scheduler"] = diffusers.DDIMScheduler.from_config(dict(checkpoint.config("scheduler")))
        components["low_res_scheduler"] = diffusers.DDPMScheduler.from_config(
            dict(checkpoint.config("low_res_scheduler"))
        )
        pipe = diffusers.StableDiffusionUpscalePipeline(**components, watermarker=None)
        pipe.set_progress_bar_config(disable=True)
        upscaler = Upscaler("x4", components=components)
        for latent in given.latents:
            steps(upscaler, pipe, latent, given.rounds)
        for side in given.pictures:
            pictures(upscaler, pipe, side, given.steps)
        if given.check_dtypes:
            del upscaler, pipe, components
            dtypes(folder, given.device)


if __name__ == "__main__":
    main()
