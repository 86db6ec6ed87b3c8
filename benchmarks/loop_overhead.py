"""What our loop costs beside diffusers' own, with the network replaced by a stub: milliseconds per step.

    python benchmarks/loop_overhead.py [--rounds 15] [--threads 1]

The peer is `StableDiffusionUpscalePipeline` itself, with its own guidance, scheduler and progress bar (silenced), not a
copy of its loop. Both call the same stub as often and with the same shapes; that is checked. A step's time is the
difference between a long and a short run, so that what comes before and after the loop counts for neither; the runs
of both take turns, and the quickest of all rounds counts, since other work on a machine only ever adds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from enlarger.canvas.blend import WHOLE, Plane, Tiling
from enlarger.canvas.noise import SequentialNoise
from enlarger.engines.engine import Prediction
from enlarger.sampling import names
from enlarger.sampling.loop import denoise
from enlarger.sampling.scheduler import DiffusersSteps
from enlarger.sampling.steps import Moment
from enlarger.size import Size

CONFIG = {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""Scheduler of stabilityai/stable-diffusion-x4-upscaler."""

SHORT, LONG = 5, 45
"""Steps of the two runs."""


class Stub(torch.nn.Module):
    """A network that does nothing, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=7)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        """The state's channels, untouched."""
        self.shapes.append(tuple(sample.shape))
        return (sample[:, :4],)


class Idle(torch.nn.Module):
    """A part of a pipeline that is asked for its configuration only."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.dtype, self.device = torch.float32, torch.device("cpu")


@dataclass(frozen=True)
class Conditioning:
    """The low-resolution picture and the prompts."""

    source: Plane
    text: Tensor


class Engine:
    """What an engine for the x4 model does with its network: one forward pass for both halves of guidance."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, stub: Stub, guided: bool) -> None:
        self.stub = stub
        self.guided = guided

    def latent(self, conditioning: Conditioning) -> Tensor | None:
        return None

    def state_channels(self) -> int:
        return 4

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        sample = torch.cat([noisy, conditioning.source.tensor], 1)
        if self.guided:
            sample = torch.cat([sample, sample])
        timestep = torch.tensor(moment.timestep)
        made = self.stub(sample, timestep, encoder_hidden_states=conditioning.text)[0]
        if not self.guided:
            return Prediction(made)
        unconditional, conditional = made.chunk(2)
        return Prediction(conditional, unconditional)


def ours(name: str, size: Size, guided: bool, stub: Stub, tiling: Tiling = WHOLE) -> Callable[[int], None]:
    """A run of our loop with a number of steps."""
    engine = Engine(stub, guided)
    conditioning = Conditioning(Plane(torch.zeros(1, 3, *size)), torch.zeros(2, 77, 1024))

    def run(steps: int) -> None:
        process = DiffusersSteps(CONFIG, steps, name=name)
        for _ in denoise(
            engine, conditioning, process, SequentialNoise(0), size=size, tiling=tiling, guidance_scale=9.0
        ):
            pass

    return run


def theirs(name: str, size: Size, guided: bool, stub: Stub) -> Callable[[int], None]:
    """A run of diffusers' pipeline with a number of steps."""
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    scheduler = names.find(name)
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        vae=Idle(scaling_factor=0.08333, block_out_channels=[1, 1, 1], latent_channels=4),
        text_encoder=Idle(),
        tokenizer=None,
        unet=stub,
        low_res_scheduler=diffusers.DDPMScheduler.from_config(CONFIG, prediction_type="epsilon"),
        scheduler=getattr(diffusers, scheduler.kind).from_config(CONFIG, **scheduler.changes),
    )
    pipeline.set_progress_bar_config(disable=True)
    text, picture = torch.zeros(1, 77, 1024), torch.zeros(1, 3, *size)

    def run(steps: int) -> None:
        pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=text if guided else None,
            image=picture,
            num_inference_steps=steps,
            guidance_scale=9.0 if guided else 1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )

    return run


def seconds(run: Callable[[int], None], steps: int) -> float:
    """Processor time of a run: unlike the clock, it leaves out what other programs take."""
    started = time.process_time()
    run(steps)
    return time.process_time() - started


def per_step(quickest: dict[int, float]) -> float:
    """Milliseconds per step, from the quickest short and long run."""
    return 1000 * (quickest[LONG] - quickest[SHORT]) / (LONG - SHORT)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    print(f"torch {torch.__version__}, {options.threads} thread(s), quickest of {options.rounds} rounds")
    print(f"{'scheduler':16}{'cells':>9}{'guidance':>10}{'ours, ms':>11}{'diffusers, ms':>15}{'ratio':>8}")
    ratios = []
    for name in ("ddim", "euler", "euler-a", "dpm++2m", "unipc", "ddpm"):
        for size in (Size(64, 64), Size(128, 128)):
            for guided in (True, False):
                stubs = Stub(), Stub()
                runs = ours(name, size, guided, stubs[0]), theirs(name, size, guided, stubs[1])
                quickest: list[dict[int, float]] = [{}, {}]
                for _ in range(options.rounds):
                    for steps in (SHORT, LONG):
                        for run, best in zip(runs, quickest, strict=True):
                            best[steps] = min(best.get(steps, 1e9), seconds(run, steps))
                assert stubs[0].shapes == stubs[1].shapes, "the network was not called alike"
                one, other = map(per_step, quickest)
                ratios.append(one / other)
                row = f"{name:16}{size!s:>9}{'9' if guided else 'off':>10}{one:11.3f}{other:15.3f}{one / other:8.2f}"
                print(row, flush=True)
    print(f"largest ratio {max(ratios):.2f}, mean {sum(ratios) / len(ratios):.2f} (aim: at most 1.10)")


if __name__ == "__main__":
    main()
