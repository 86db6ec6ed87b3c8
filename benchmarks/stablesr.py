"""StableSR at full size with random weights: loading a training's envelope, and a step beside diffusers' plain UNet.

    python benchmarks/stablesr.py [--latents 64] [--rounds 1] [--folder FOLDER]
    python benchmarks/stablesr.py --device cuda --dtype float16 --pictures 4 200     # seconds a 512x512 picture, too
    python benchmarks/stablesr.py --device cuda --against float16 bfloat16           # and how far half precision is off

A checkpoint with the published names and sizes is written as PyTorch Lightning writes it, some 5.6 GB, into a temporary
folder. A process of its own loads it through `Upscaler`; its peak of resident memory is told over that of importing
alone, and as a ratio to the float32 weights that inference needs. Then, in the same process, StableSR's prediction
(encoder, modulation, UNet) and the same UNet without StableSR take turns; the quickest round of each counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PAPER = "the paper says 15.16 s for a 512x512 picture at 200 steps on a V100"


def status(key: str) -> int:
    """Bytes of memory of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def make(path: Path) -> None:
    """Write the checkpoint; weights are small random numbers, norms are ones."""
    from enlarger.engines.stablesr_files import Shelf
    from enlarger.engines.stablesr_parts import Description

    shelf = Shelf(Description())
    generator = torch.Generator().manual_seed(0)
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    for part in (shelf.unet, shelf.encoder, shelf.vae, shelf.text):
        for key, (shape, _) in part.slots().items():
            if key.endswith("weight") and len(shape) == 1:
                weights[key] = torch.ones(shape)
            elif len(shape) == 1:
                weights[key] = torch.zeros(shape)
            else:
                inputs = max(1, int(torch.Size(shape[1:]).numel()))
                weights[key] = torch.randn(shape, generator=generator) * inputs**-0.5
    # A class that a reader need not have, as a key: what makes such files hard to open.
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    modules = {name: ModuleType(name) for name in names}
    vars(modules[names[-1]])["ModelCheckpoint"] = kind
    sys.modules.update(modules)
    envelope = {"epoch": 1, "global_step": 1, "pytorch-lightning_version": "1.4.2", "state_dict": weights}
    torch.save({**envelope, "callbacks": {kind: {"best_model_score": None}}, "optimizer_states": []}, path)
    for name in names:
        del sys.modules[name]


def load(path: Path, options: argparse.Namespace, dtype: str) -> Any:
    """The upscaler, loaded as a user would."""
    from enlarger import Upscaler

    return Upscaler("stablesr", str(path), device=options.device, dtype=dtype, prediction="epsilon")


def plain_unet(engine: Any) -> torch.nn.Module:
    """The same UNet without StableSR, on the very same weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network: torch.nn.Module = UNet2DConditionModel.from_config(engine.unet.config)
    weights = {key: value for key, value in engine.unet.state_dict().items() if ".spade." not in key}
    network.load_state_dict(weights, assign=True)
    return network.eval()


@torch.inference_mode()
def steps(engine: Any, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one prediction of each, the quickest of all rounds."""
    side, device, dtype = options.latents, engine.device, engine.dtype
    noisy, latent = torch.randn(2, 1, 4, side, side, device=device).unbind(0)
    when, context = torch.full((1,), 500, device=device), engine.context("")
    plain = plain_unet(engine)
    work = {
        "stablesr": lambda: engine.network(noisy, latent, when, context),
        "plain": lambda: plain(noisy.to(dtype), when, encoder_hidden_states=context, return_dict=False),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(options.rounds + (device.type == "cuda")):  # a GPU's first round chooses its kernels
        for name, once in work.items():
            started = time.monotonic()
            once()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.monotonic() - started)
    return best


@torch.inference_mode()
def predicted(engine: Any, side: int) -> torch.Tensor:
    """A prediction for one noise, whatever the kind of number."""
    noisy, latent = torch.randn(2, 1, 4, side, side, generator=torch.Generator().manual_seed(1)).unbind(0)
    made: torch.Tensor = engine.network(noisy, latent, torch.full((1,), 500), engine.context("")).float().cpu()
    return made


def measure(path: Path, options: argparse.Namespace) -> None:
    """Load and run, and print what it took; in a process of its own."""
    import diffusers.models.unets.unet_2d_condition  # noqa: F401
    import transformers.models.clip.modeling_clip  # noqa: F401

    import enlarger.engines.stablesr  # noqa: F401

    before, started = status("VmHWM:"), time.monotonic()
    up = load(path, options, options.dtype)
    seconds, engine = time.monotonic() - started, up.engine
    networks = (engine.unet, engine.encoder, engine.text)
    count = sum(value.numel() for network in networks for value in network.state_dict().values())
    full = 4 * (count + sum(value.numel() for value in engine.autoencoder._vae.state_dict().values()))
    peak = status("VmHWM:") - before
    print(
        f"loading: {seconds:.1f} s with its digest, peak {peak / 1e9:.2f} GB over importing, float32 weights "
        f"{full / 1e9:.2f} GB, ratio {peak / full:.2f}",
        flush=True,
    )
    best = steps(engine, options)
    print(
        f"one prediction at {options.latents}x{options.latents}, {engine.dtype}: StableSR {best['stablesr']:.2f} s, "
        f"diffusers' plain UNet {best['plain']:.2f} s, ratio {best['stablesr'] / best['plain']:.2f}",
        flush=True,
    )
    for asked in options.pictures:
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        picture = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(2))
        started = time.monotonic()
        up(picture, scale=4, steps=asked)
        memory = f", peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if options.device == "cuda" else ""
        print(f"512x512, {asked} steps: {time.monotonic() - started:.2f} s{memory} ({PAPER})", flush=True)
    if options.against:
        if options.dtype != "float32":
            del up, engine
            gc.collect()
            engine = load(path, options, "float32").engine
        truth = predicted(engine, options.latents)
        for name in options.against:
            made = predicted(load(path, options, name).engine, options.latents)
            off = float((made - truth).abs().max() / truth.abs().max())
            print(
                f"{name}: finite {bool(made.isfinite().all())}, {off:.2e} of the largest value off float32", flush=True
            )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--latents", type=int, default=64, help="side of the latent")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pictures", type=int, nargs="*", default=[], metavar="STEPS", help="enlarge to 512x512, too")
    parser.add_argument("--against", nargs="*", default=[], metavar="DTYPE", help="compare with float32")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made; default: a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "stablesr_random.ckpt"
        # In processes of their own: what making the file takes must not count.
        make_it = (
            f"import runpy; runpy.run_path({str(Path(__file__))!r})['make'](__import__('pathlib').Path({str(path)!r}))"
        )
        subprocess.run([sys.executable, "-c", make_it], check=True)
        print(f"checkpoint: {path.stat().st_size / 1e9:.2f} GB, {json.dumps(torch.__version__)}", flush=True)
        return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", str(path)]).returncode


if __name__ == "__main__":
    sys.exit(main())
