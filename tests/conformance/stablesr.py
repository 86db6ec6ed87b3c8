"""Numbers of the original StableSR, made again by Enlarger, array for array.

    python tests/conformance/stablesr.py FOLDER

FOLDER holds tiny networks under the published names, `config.json` with their sizes, arrays of every stage and
`manifest.json`, which names the arrays to agree with; its README gives the limits. Everything is read from the folder.
Networks, processes and colour fix are the product's own. What is sampled or cut into tiles goes through `Upscaler` and
its loop, with settings that a user could give; only what was recorded (latents, prompts, noise) takes the place of what
would be made anew. One line for each array with its largest difference; exit 0 only if all agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python looks for modules beside a script first, and this one must not hide others of its name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from enlarger import Upscaler, upscaler
from enlarger.canvas.blend import Plane, Weights, gaussian
from enlarger.canvas.exact import exactly
from enlarger.canvas.geometry import Canvas, place, target_size
from enlarger.canvas.rows import WholeRows
from enlarger.checkpoints.tensors import open_tensors
from enlarger.engines.engine import Conditioning, Decoded, Engine, Facts, Prediction
from enlarger.engines.stablesr import (
    Contexts,
    StableSR,
    StableSRConditioning,
    original_canvas,
    original_scale,
    toward,
)
from enlarger.picture import colour
from enlarger.picture.degrade import (
    Noise,
    Plan,
    Round,
    blur_kernel,
    carried_out,
    filtered,
    jpeg,
    jpeg_factor,
    poisson_rate,
    resized,
    sharpened,
    sinc_kernel,
    widened,
    with_gaussian_noise,
    with_poisson_noise,
)
from enlarger.sampling.respaced import (
    Chain,
    RespacedDDIM,
    ddim_sigmas,
    respaced,
    respaced_timesteps,
    uniform_timesteps,
)
from enlarger.sampling.steps import Moment
from enlarger.size import Size
from enlarger.training.stablesr import denoising_loss
from enlarger.upscaler import pad

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Made = Iterator[tuple[str, Any]]
Group = Callable[["Folder"], Made]


class Folder:
    """The recorded arrays and the engine that must agree with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.cases: list[str] = [case["name"] for case in json.loads((path / "manifest.json").read_text())["cases"]]
        self._arrays: dict[str, Arrays] = {}

    def arrays(self, file: str) -> Arrays:
        """The arrays of FILE.npz."""
        if file not in self._arrays:
            with np.load(self.path / f"{file}.npz", allow_pickle=False) as stored:
                self._arrays[file] = {name: stored[name] for name in stored.files}
        return self._arrays[file]

    def wanted(self, file: str, pattern: str) -> list[re.Match[str]]:
        """Matches of the names in the manifest, of one file."""
        names = [case.removeprefix(f"{file}/") for case in self.cases if case.startswith(f"{file}/")]
        return [found for name in names if (found := re.fullmatch(pattern, name))]

    @cached_property
    def upscaler(self) -> Upscaler:
        """Loaded as a user would."""
        model, cfw = self.path / "model.safetensors", self.path / "cfw.safetensors"
        return Upscaler("stablesr", str(model), cfw=str(cfw), device="cpu", dtype="float32")

    @property
    def engine(self) -> StableSR:
        """The engine of `upscaler`."""
        engine = self.upscaler.engine
        assert isinstance(engine, StableSR)
        return engine

    @property
    def sampled_steps(self) -> int:
        """Steps of the sampling cases."""
        return int(self.config["schedule"]["sampling_steps_in_fixtures"])

    @property
    def tiles(self) -> dict[str, int]:
        """Tile and overlap of the sampling cases, in cells."""
        return {"tile": self.config["canvas"]["tile_size"], "overlap": self.config["canvas"]["tile_overlap"]}


@dataclass
class Recorded:
    """Noise that was drawn elsewhere, in the order in which it is asked for (`canvas.noise.NoiseSource`)."""

    fields: list[Array]

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next field."""
        drawn = torch.from_numpy(self.fields.pop(0))
        assert tuple(drawn.shape) == tuple(shape), (drawn.shape, shape)
        return drawn


# --- limits, as the folder's README has them -------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """How far an array may be off: absolute, relative to each number, to the array's largest number (at least 1), or
    a share of whole numbers that may be one off."""

    absolute: float = 0.0
    relative: float = 0.0
    largest: float = 0.0
    off_by_one: float = 0.0


LIMITS: tuple[tuple[str, Limit], ...] = (
    (r"schedules/.*_posterior_log_variance_clipped", Limit(absolute=1e-4)),
    (r"schedules/.*", Limit(absolute=1e-6, relative=1e-4)),
    (r"(text|encoder)/.*", Limit(largest=1e-5)),
    (r"(unet|vae|cfw|loss)/.*", Limit(largest=2e-5)),
    (r"sample/.*_x_T", Limit(largest=1e-6)),
    (r"canvas/tile_weights|split/merge_weight", Limit(relative=1e-6)),
    (r"ddim/(table_.*|eta_sigmas)", Limit(absolute=1e-6, relative=1e-4)),
    (r"(sample|canvas|ddim|face)/.*", Limit(largest=1e-4)),
    (r"color/u8_.*", Limit(off_by_one=0.005)),
    (r"(color|bytes)/.*", Limit(largest=1e-6)),
    (r"split/merge_.*", Limit(absolute=1e-5)),
    (r"pipeline/sampled", Limit(largest=1e-4)),
    (r"pipeline/out_u8", Limit(off_by_one=0.005)),
    (r"pipeline/.*", Limit(absolute=1e-4)),
    (r"degradation_ops/(kernel|sinc).*", Limit(absolute=1e-6)),
    (r"degradation_.*", Limit(absolute=1e-5)),
    (r".*", Limit()),
)


def compare(case: str, made: Any, expected: Array) -> tuple[bool, str]:
    """Whether an array agrees, and its largest difference in words."""
    made = made.detach().cpu().numpy() if isinstance(made, Tensor) else np.asarray(made)
    if made.shape != expected.shape:
        return False, f"shape {made.shape}, not {expected.shape}"
    limit = next(limit for pattern, limit in LIMITS if re.fullmatch(pattern, case))
    if expected.dtype.kind == "U":
        return str(made) == str(expected), f"{made} {expected}"
    if not expected.size:
        return True, "empty"
    difference = np.abs(made.astype(np.float64) - expected.astype(np.float64))
    worst = float(difference.max())
    if not np.isfinite(worst):
        return False, "not finite"
    if limit.off_by_one:
        share = float((difference > 0).mean())
        return worst <= 1 and share <= limit.off_by_one, f"{worst:g} on {share:.3%}, limit 1 on {limit.off_by_one:.1%}"
    if expected.dtype.kind in "iu":
        return worst == 0, f"{worst:g}, limit 0"
    size = np.abs(expected.astype(np.float64))
    allowed = limit.absolute + limit.relative * size + limit.largest * max(1.0, float(size.max()))
    return bool((difference <= allowed).all()), f"{worst:.3g}, limit {float(np.max(allowed)):.3g}"


# --- groups, one for each file ----------------------------------------------------------------------------------------


def schedules(folder: Folder) -> Made:
    """Tables of the training's chain, of respaced ones, and of uniform DDIM."""
    chain = folder.engine.chain

    def tables(name: str, of: Chain) -> Made:
        shares, before = of.alphas_cumprod, of.alphas_cumprod_prev
        yield f"{name}_timesteps", np.array(of.timesteps)
        yield f"{name}_betas", of.betas
        yield f"{name}_alphas_cumprod", shares
        yield f"{name}_alphas_cumprod_prev", before
        yield f"{name}_sqrt_alphas_cumprod", np.sqrt(shares)
        yield f"{name}_sqrt_one_minus_alphas_cumprod", np.sqrt(1 - shares)
        yield f"{name}_log_one_minus_alphas_cumprod", np.log(1 - shares)
        yield f"{name}_sqrt_recip_alphas_cumprod", np.sqrt(1 / shares)
        yield f"{name}_sqrt_recipm1_alphas_cumprod", np.sqrt(1 / shares - 1)
        yield f"{name}_posterior_variance", of.posterior_variance
        yield f"{name}_posterior_log_variance_clipped", of.posterior_log_variance_clipped
        yield f"{name}_posterior_mean_coef1", of.posterior_mean_coef1
        yield f"{name}_posterior_mean_coef2", of.posterior_mean_coef2

    yield from tables("base", chain)
    for found in folder.wanted("schedules", r"s(\d+)_betas"):
        yield from tables(f"s{found[1]}", respaced(chain, respaced_timesteps(int(found[1]), len(chain))))
    for found in folder.wanted("schedules", r"ddim(\d+)_timesteps"):
        name, kept = f"ddim{found[1]}", uniform_timesteps(int(found[1]), len(chain))
        shares = chain.alphas_cumprod[list(kept)]
        before = np.append(shares[0], shares[:-1])
        yield f"{name}_timesteps", np.array(kept)
        yield f"{name}_alphas", shares
        yield f"{name}_alphas_prev", before
        yield f"{name}_sqrt_one_minus_alphas", np.sqrt(1 - shares)
        yield f"{name}_eta0_sigmas", ddim_sigmas(shares, before, 0.0)
        yield f"{name}_eta1_sigmas", ddim_sigmas(shares, before, 1.0)


def text(folder: Folder) -> Made:
    """The text tower."""
    yield "context", folder.engine.encode_ids(tensor(folder.arrays("text")["ids"]))


def encoder(folder: Folder) -> Made:
    """The time-aware encoder's maps."""
    for case in cases_of(folder, "encoder", r"(.+?)_map_w\d+(?:_ch0_\d+)?"):
        told = maps_of(folder, case)
        for found in folder.wanted("encoder", rf"{case}_map_w(\d+)(?:_ch0_(\d+))?"):
            made = next(one for one in told if one.shape[-1] == int(found[1]))
            yield found[0], made[:, : int(found[2]) + 1] if found[2] else made


def unet(folder: Folder) -> Made:
    """The UNet with its modulation, from inside too."""
    arrays = folder.arrays("unet")
    for case in cases_of(folder, "unet", r"(.+)_out"):
        seen: dict[str, Tensor] = {}
        inside = [found[1] for found in folder.wanted("unet", rf"{case}_(time_emb|spade_.+?|h_.+?)(?:_ch0_\d+)?")]
        handles = [
            module_of(folder, name.removesuffix("_in")).register_forward_hook(
                keep(seen, name, entering=name.endswith("_in"))
            )
            for name in inside
        ]
        latent, timestep = (tensor(folder.arrays("encoder")[f"{case}_{name}"]) for name in ("latent", "t"))
        noisy, context = tensor(arrays[f"{case}_x"]), tensor(arrays[f"{case}_context"])
        yield f"{case}_out", folder.engine.network(noisy, latent, timestep, context)
        for handle in handles:
            handle.remove()
        for found in folder.wanted("unet", rf"{case}_(.+?)(?:_ch0_(\d+))?"):
            if found[1] == "time_emb":
                yield found[0], seen["time_emb"]
            elif found[1] in seen:
                yield found[0], seen[found[1]][:1, : int(found[2]) + 1 if found[2] else None]


def module_of(folder: Folder, name: str) -> Any:
    """The module that an array is the output of: time_emb, spade_PLACE or h_PLACE; PLACE is in1, mid, out0, last."""
    network = folder.engine.unet
    if name == "time_emb":
        return network.time_embedding
    kind, place = name.split("_")
    if place == "mid":
        return network.mid_block.resnets[0].spade if kind == "spade" else network.mid_block
    if place == "last":
        return network.up_blocks[-1].resnets[-1].spade
    way, number = re.fullmatch(r"(in|out)(\d+)", place).groups()  # type: ignore[union-attr]
    # The first block on the way in is a convolution; the last of a level shrinks, and on the way out also enlarges.
    blocks = folder.engine.description.unet.blocks + 1
    level, inner = divmod(int(number) - (way == "in"), blocks)
    stage = network.down_blocks[level] if way == "in" else network.up_blocks[level]
    if kind == "spade":
        return stage.resnets[inner].spade
    if way == "in" and inner == blocks - 1:
        return stage.downsamplers[0]
    if way == "out" and inner == blocks - 1 and stage.upsamplers is not None:
        return stage.upsamplers[0]
    attentions = getattr(stage, "attentions", None)
    return stage.resnets[inner] if attentions is None else attentions[inner]


def vae(folder: Folder) -> Made:
    """The autoencoder."""
    arrays, engine = folder.arrays("vae"), folder.engine
    pixels = tensor(arrays["image"])
    with engine.autoencoder.encode(pixels) as encoded:
        yield "moments", torch.cat([encoded.mean, encoded.logvar], 1)
        yield "mean", encoded.mean
        yield "std", (0.5 * encoded.logvar).exp()
    yield "latent_scaled", engine.encode(pixels, Recorded([arrays["noise"]]))[0]
    latent = tensor(arrays["decode_latent_scaled"]) / engine.description.latent_scale
    yield "decoded", engine.decoded(latent, {}, 0.0).pixels


def cfw(folder: Folder) -> Made:
    """The decoder with the encoder's features."""
    arrays, engine = folder.arrays("cfw"), folder.engine
    pixels, latent = tensor(arrays["lq"]), tensor(arrays["latent"])
    with engine.autoencoder.encode(pixels) as encoded:
        yield "moments", torch.cat([encoded.mean, encoded.logvar], 1)
    with engine.wrapped(pixels) as features:
        for found in folder.wanted("cfw", r"fea_level(\d+)(?:_ch0_(\d+))?"):
            stored = features[int(found[1])]
            cells = torch.empty(*stored.shape.size, stored.shape.channels)
            stored.read(whole(stored.shape.size), cells)
            yield found[0], cells.permute(2, 0, 1)[None, : int(found[2]) + 1 if found[2] else None]
        for found in folder.wanted("cfw", r"decoded_w(\d+)"):
            yield found[0], engine.decoded(latent, features, int(found[1]) / 100).pixels


# --- sampling: everything goes through `Upscaler` ---------------------------------------------------------------------


@dataclass(frozen=True)
class Placed(StableSRConditioning):
    """With the cells' own places, so that a tile knows where it lies."""

    where: Plane = field(kw_only=True)


def window(place: Tensor) -> tuple[int, ...]:
    """(y0, y1, x0, x1) of a tile that shows the places (2, h, w) of its cells."""
    top, left = (int(value) for value in place[:, 0, 0])
    return top, top + place.shape[1], left, left + place.shape[2]


def places(height: int, width: int) -> Tensor:
    """Row and column of every cell, (1, 2, height, width)."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))[None].float()


@dataclass(frozen=True)
class Run:
    """What came out of a run.

    Attributes:
        states: After each moment, (steps, B, C, h, w).
        cleans: The clean estimate of each moment.
        windows: Of each forward pass.
    """

    states: Tensor
    cleans: Tensor
    windows: list[list[tuple[int, ...]]]

    @property
    def out(self) -> Tensor:
        """The final latent."""
        return self.states[-1]


ORIGINAL = {"compatibility": "original", "color_fix": "none", "scale": 1}
"""Settings of every recorded latent: it is as large as the picture, and pixels are not looked at."""


def process_of(folder: Folder, **settings: Any) -> Any:
    """The process that the engine has for some settings."""
    return folder.engine.steps(folder.upscaler.settings(**ORIGINAL, **settings))


def run(
    folder: Folder,
    latent: Array,
    contexts: Contexts,
    noises: Sequence[Array],
    *,
    tile: int | None = None,
    overlap: int = 0,
    process: Any = None,
    adjust: Any = None,
    reference: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """A picture through `Upscaler`, of which only what was recorded is not made anew.

    Args:
        folder: The folder.
        latent: What the picture is encoded as, (1, C, h, w).
        contexts: What the prompts are encoded as.
        noises: What is drawn, in its order.
        tile: Side of a tile in cells; the whole canvas if None.
        overlap: Cells that tiles share.
        process: A process that no settings give.
        adjust: A pull of the clean estimates that no settings give.
        reference: A pull as the engine's record has it.
        **settings: As a user gives them.
    """
    engine, height, width = folder.engine, *latent.shape[-2:]
    grid, denoise = engine.facts.grid, upscaler.denoise
    record = Placed(
        Plane(torch.zeros(1, 3, grid * height, grid * width), grid),
        Plane(tensor(latent)),
        contexts,
        start=settings.get("start", "lr") == "lr",
        where=Plane(places(height, width)),
        **(reference or {}),
    )
    states, cleans, windows = [], [], []

    def placed(ours: Canvas, values: Any) -> Canvas:
        # The original enlarges and pads as it likes; the recorded latents have the size that they have.
        theirs = type(engine).placed(engine, ours, values)
        return theirs if theirs.passes[0].padded == ours.passes[0].padded else ours

    def predict(noisy: Tensor, moment: Any, conditioning: Any) -> Prediction:
        windows.append([window(place) for place in conditioning.where.tensor.long()])
        return type(engine).predict(engine, noisy, moment, conditioning)

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        for step in denoise(*arguments, **{**options, "preview": True}):
            if step.state is not None and step.clean is not None:
                states.append(step.state)
                cleans.append(step.clean)
            yield step

    instead: dict[str, Any] = {
        "placed": placed,
        "condition": lambda *_: record,
        "predict": predict,
        "decode_canvas": lambda *_: Decoded(record.source.tensor),
    }
    if process is not None:
        instead["steps"] = lambda _: process
    if adjust is not None:
        instead["adjust"] = lambda _: adjust
    with (
        mock.patch.object(upscaler, "SequentialNoise", return_value=Recorded(list(noises))),
        mock.patch.object(upscaler, "denoise", watched),
        mock.patch.multiple(engine, **instead),
    ):
        folder.upscaler(
            np.zeros((grid * height, grid * width, 3), np.float32),
            tile=grid * (tile or max(height, width)),
            overlap=grid * overlap,
            **ORIGINAL,
            **settings,
        )
    return Run(torch.stack(states), torch.stack(cleans), windows)


def begun_at(folder: Folder, count: int, timestep: int) -> float:
    """The strength with which a run of some steps begins at a timestep, or at the first step below it."""
    kept = [step for step in respaced_timesteps(count, len(folder.engine.chain)) if step <= timestep]
    return min(1.0, (len(kept) + 0.5) / count)


def noised(folder: Folder, latent: Array, noise: Array, timestep: int) -> Tensor:
    """A latent as noisy as the training has it at a timestep."""
    share = float(folder.engine.chain.alphas_cumprod[timestep])
    return share**0.5 * tensor(latent) + (1 - share) ** 0.5 * tensor(noise)


def sample(folder: Folder) -> Made:
    """Whole pictures."""
    arrays, count = folder.arrays("sample"), folder.sampled_steps
    context, positive, negative = (tensor(arrays[f"context{name}"]) for name in ("", "_pos", "_neg"))
    empty = Contexts(context)
    latent = arrays["latent"]
    process = process_of(folder, steps=count)
    yield "timesteps", np.array(process.chain.timesteps)
    yield "context", folder.engine.context("")

    noises = [arrays["noised_noise"], *arrays["noised_step_noise"]]
    yield "noised_x_T", process.start(Recorded(noises[:1]), latent.shape, tensor(latent))
    made = run(folder, latent, empty, noises, steps=count)
    yield "noised_steps", made.states
    yield "noised_out", made.out

    noises = [arrays["pure_x_T"], *arrays["pure_step_noise"]]
    yield "pure_out", run(folder, latent, empty, noises, steps=count, start="noise").out

    strength = begun_at(folder, count, int(arrays["start_t"]))
    process = process_of(folder, steps=count, strength=strength)
    state, first = noised(folder, latent, arrays["start_noise"], int(arrays["start_t"])), arrays["start_noise"]
    if process.moments[0].timestep != int(arrays["start_t"]):
        # Noised as at a timestep that is left out: the noise that makes the same state at the first that is kept.
        share = float(folder.engine.chain.alphas_cumprod[int(process.moments[0].timestep)])
        first = ((state - share**0.5 * tensor(latent)) / (1 - share) ** 0.5).numpy()
    noises = [first, *arrays["start_step_noise"]]
    yield "start_x_T", process.start(Recorded(noises[:1]), latent.shape, tensor(latent))
    made = run(folder, latent, empty, noises, steps=count, strength=strength)
    yield "start_steps", made.states
    yield "start_out", made.out

    noises, both = [arrays["guided_x_T"], *arrays["guided_step_noise"]], Contexts(positive, negative)
    scale = float(arrays["guided_scale"])
    yield "guided_out", run(folder, latent, both, noises, steps=count, start="noise", guidance_scale=scale).out

    items = []
    for item, words in enumerate((context, positive)):
        noises = [arrays["batch_x_T"][item : item + 1], *arrays["batch_step_noise"][:, item : item + 1]]
        one = arrays["batch_latent"][item : item + 1]
        items.append(run(folder, one, Contexts(words), noises, steps=count, start="noise").out)
    yield "batch_out", torch.cat(items)

    noises, long = [arrays["long_x_T"], *arrays["long_step_noise"]], len(arrays["long_step_noise"])
    yield "long_out", run(folder, arrays["long_latent"], empty, noises, steps=long, start="noise").out


def tile_weight(side: int) -> Tensor:
    """The original's weight of a tile, (side, side): two bells, of which one stands half a cell lower."""
    return torch.outer(gaussian(side, side / 2), gaussian(side)) / (2 * np.pi * 0.01)


def canvas(folder: Folder) -> Made:
    """Tiles."""
    arrays, count = folder.arrays("canvas"), folder.sampled_steps
    context, positive, negative = (tensor(arrays[f"context{name}"]) for name in ("", "_pos", "_neg"))
    process, empty = process_of(folder, steps=count), Contexts(context)
    yield "timesteps", np.array(process.chain.timesteps)
    yield "tile_weights", tile_weight(folder.tiles["tile"])
    for case in cases_of(folder, "canvas", r"(.+)_windows"):
        latent = arrays[f"{case}_latent"]
        noises = [arrays[f"{case}_noise"], *arrays[f"{case}_step_noise"]]
        yield f"{case}_x_T", process.start(Recorded(noises[:1]), latent.shape, tensor(latent))
        made = run(folder, latent, empty, noises, steps=count, **folder.tiles)
        windows = [one for group in made.windows for one in group]
        yield f"{case}_windows", np.array(windows[: len(windows) // count])
        yield f"{case}_first_x0", made.cleans[0]
        # Without noise, the first step ends at the posterior's mean.
        quiet = [noises[0], *(np.zeros_like(each) for each in noises[1:])]
        yield f"{case}_first_mean", run(folder, latent, empty, quiet, steps=count, **folder.tiles).states[0]
        yield f"{case}_steps", made.states
        yield f"{case}_out", made.out
        for found in folder.wanted("canvas", rf"{case}_windows_per_forward_bs(\d+)"):
            several = run(folder, latent, empty, noises, steps=count, batch=int(found[1]), **folder.tiles)
            sizes = [len(group) for group in several.windows]
            yield found[0], np.array(sizes[: len(sizes) // count])
            yield f"{case}_out_bs{found[1]}", several.out
        if f"canvas/{case}_guided_out" in folder.cases:
            both, scale = Contexts(positive, negative), float(arrays["guided_scale"])
            guided = run(folder, latent, both, noises, steps=count, guidance_scale=scale, **folder.tiles)
            yield f"{case}_guided_out", guided.out
        if f"canvas/{case}_untiled_out" in folder.cases:
            yield f"{case}_untiled_out", run(folder, latent, empty, noises, steps=count).out


def ddim(folder: Folder) -> Made:
    """DDIM as the original scripts run it, and as their library does."""
    arrays, engine, count = folder.arrays("ddim"), folder.engine, folder.sampled_steps
    context, positive, negative = (tensor(arrays[f"context{name}"]) for name in ("", "_pos", "_neg"))
    latent, settings = arrays["latent"], {"steps": count, "scheduler": "ddim"}
    eta = float(arrays["eta_value"])
    table = process_of(folder, **settings, eta=eta)
    yield "net_timesteps", np.array([int(moment.timestep) for moment in reversed(table.moments)])
    # Where the steps do not divide the training's, the list is longer than what is used of it.
    uniform = uniform_timesteps(count, len(engine.chain))[: len(arrays["table_timesteps"])]
    unused = engine.chain.alphas_cumprod[list(uniform[count:])]
    shares = np.append(table.shares, unused)
    before = np.append(table.shares_prev, shares[count - 1 : -1] if len(unused) else [])
    yield "table_timesteps", np.array(uniform)
    yield "table_alphas", shares
    yield "table_alphas_prev", before
    yield "eta_sigmas", np.append(table.sigmas, ddim_sigmas(shares, before, eta)[count:])
    yield "x_T", table.start(Recorded([arrays["noise"]]), latent.shape, tensor(latent))

    noises, against, scale = [arrays["noise"]], Contexts(context, negative), float(arrays["guided_scale"])
    made = run(folder, latent, Contexts(context), noises, **settings)
    yield "plain_out", made.out
    yield "plain_pred_x0", made.cleans
    made = run(folder, latent, against, noises, guidance_scale=scale, **settings)
    yield "guided_out", made.out
    yield "guided_pred_x0", made.cleans
    yield "scale1_pos_out", run(folder, latent, Contexts(positive), noises, **settings).out
    process = RespacedDDIM(
        count, prediction=engine.prediction, published=True, timesteps=uniform[:count], chain=engine.chain
    )
    of_library = {**settings, "start": "noise", "guidance_scale": float(arrays["uniform_scale"])}
    made = run(folder, latent, against, [arrays["x_T"]], process=process, **of_library)
    yield "uniform_guided_out", made.out
    yield "uniform_guided_pred_x0", made.cleans
    noises = [arrays["noise"], *arrays["eta_step_noise"]]
    with_eta = {**settings, "eta": eta, "guidance_scale": float(arrays["eta_scale"])}
    yield "eta_out", run(folder, latent, against, noises, **with_eta).out

    latent, noises = arrays["canvas_latent"], [arrays["canvas_x_T"]]
    for name, words, strong in (("plain", Contexts(context), 1.0), ("guided", against, scale)):
        tiled = {**settings, **folder.tiles, "start": "noise", "guidance_scale": strong}
        yield f"canvas_{name}_out", run(folder, latent, words, noises, **tiled).out


def face(folder: Folder) -> Made:
    """Guidance by a reference."""
    arrays, count = folder.arrays("face"), folder.sampled_steps
    kept = process_of(folder, steps=count).chain.timesteps
    yield "timesteps", np.array(kept)
    for case in cases_of(folder, "face", r"(.+)_out"):
        batch = len(arrays[f"{case}_latent"])
        rate, iterations = float(arrays[f"{case}_lr"]), int(arrays[f"{case}_iters"])
        first, last = (int(index) for index in arrays[f"{case}_range"])
        strength = 1 - (1 - 2 * rate / batch) ** iterations
        until = kept[first] if first < count else np.inf
        items = []
        for item in range(batch):
            one = slice(item, item + 1)
            there = tensor(arrays[f"{case}_ref"][one])
            pull = {"reference": there, "reference_strength": strength, "reference_until": until}
            # No setting says until when the first steps are free.
            late = toward(there, strength, until=until, since=kept[last]) if last < count - 1 else None
            noises = [arrays[f"{case}_x_T"][one], *arrays[f"{case}_step_noise"][:, one]]
            words = Contexts(tensor(arrays["context"]))
            latent = arrays[f"{case}_latent"][one]
            made = run(folder, latent, words, noises, steps=count, start="noise", reference=pull, adjust=late)
            items.append(made.out)
        yield f"{case}_out", torch.cat(items)


def loss(folder: Folder) -> Made:
    """The training's loss."""
    arrays, engine = folder.arrays("loss"), folder.engine
    made = denoising_loss(
        engine.network,
        engine.chain,
        engine.prediction,
        clean=tensor(arrays["latent_gt"]),
        degraded=tensor(arrays["latent_lq"]),
        timestep=tensor(arrays["t"]),
        noise=tensor(arrays["noise"]),
        context=tensor(arrays["context"]),
    )
    yield "x_noisy", made.noisy
    yield "target", made.target
    yield "prediction", made.prediction
    yield "loss", made.value


# --- pictures ---------------------------------------------------------------------------------------------------------


def color(folder: Folder) -> Made:
    """The colour fixes; the product's pictures are 0..1 and (H, W, C), the recorded ones -1..1."""
    arrays = folder.arrays("color")
    content, style = (hwc(arrays[name]) / 2 + np.float32(0.5) for name in ("content", "style"))
    yield "adain", nchw(colour.adain(content, style) * 2 - 1)
    yield "wavelet", nchw(colour.wavelet(content, style) * 2 - 1)
    mean, spread = colour.statistics(content)
    yield "content_mean", (mean * 2 - 1).reshape(1, 3, 1, 1)
    yield "content_std", (spread * 2).reshape(1, 3, 1, 1)
    there = hwc(arrays["content"])
    low = colour.wavelet(np.zeros_like(there), there)
    yield "content_low", nchw(low)
    yield "content_high", nchw(there - low)
    for found in folder.wanted("color", r"content_blur_r(\d+)"):
        yield found[0], nchw(colour.blurred(there, int(found[1])))
    content, style = (colour.to_float(arrays[name]) for name in ("u8_content", "u8_style"))
    yield "u8_adain", cut(colour.adain(content, style, 1e-5))  # the original's helper for pictures of 0..1
    yield "u8_wavelet", cut(colour.wavelet(content, style))


def cut(pixels: Array) -> Array:
    """0..1 as the original's bytes."""
    return colour.quantise(pixels, 8, cut=True)


def bytes_(folder: Folder) -> Made:
    """From numbers to bytes and back, and what is done to a picture before it is encoded."""
    arrays, engine = folder.arrays("bytes"), folder.engine
    pixels = arrays["x"].transpose(0, 2, 3, 1) / 2 + np.float32(0.5)
    yield "bytes", cut(pixels)
    levels = np.arange(256, dtype=np.uint8)
    ramp = colour.to_float(levels) * 2 - 1
    yield "ramp", ramp
    yield "ramp_bytes", cut(ramp / 2 + np.float32(0.5))
    small = colour.to_float(arrays["lr_u8"])
    yield "lr_float", nchw(small * 2 - 1)
    source, scale = Size(*small.shape[:2]), float(arrays["prep_upscale"])
    least = int(arrays["prep_input_size"])
    yield "prep_scale", np.array(original_scale(source, scale, least))
    settings = folder.upscaler.settings(compatibility="original", scale=scale, tile=least)
    ours = place(source, target_size(source, scale=scale), factor=1, stride=engine.facts.stride, at_target=True)
    passage = engine.placed(ours, settings).passes[0]
    facts = engine.facts_for(settings)
    yield "prep_resized_hw", np.array(passage.source)
    yield "prep_pad_hw", np.array(passage.padded) - np.array(passage.source)
    rows = exactly(
        WholeRows(tensor(small.transpose(2, 0, 1))), passage.source, facts.enlargement, linear_light=False, stretch=64
    )
    large = rows.read(0, passage.source.height)[None].clamp(0, 1)
    yield "prep_padded", pad(large, passage.padded, facts.padding) * 2 - 1


bytes_.__name__ = "bytes"


@dataclass(frozen=True)
class Where(Conditioning):
    """The cells' own places."""

    where: Plane = field(kw_only=True)


class Once:
    """A process of one step that takes what the network says."""

    moments = (Moment(0, 1, 0.0, 1.0),)

    def start(self, noise: Any, shape: Sequence[int], latent: Any = None) -> Tensor:
        """Nothing."""
        return torch.zeros(tuple(shape))

    def scale(self, noisy: Tensor, moment: Any) -> Tensor:
        """As it is."""
        return noisy

    def step(self, prediction: Tensor, *_: Any) -> Tensor:
        """What was said."""
        return prediction


class Splitter(Engine):
    """Says what was recorded for each tile, and notes where the tiles lie; what cuts and blends is the house.

    Attributes:
        windows: (y0, y1, x0, x1) of each tile, in their order.
        blended: What became of the answers, (1, 3, h, w).
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, facts: Facts, answers: Sequence[Array] = ()) -> None:
        """Answer with these, one for each tile; with nothing where there are none."""
        self.facts = facts
        self.answers = list(answers)
        self.windows: list[tuple[int, ...]] = []
        self.blended = torch.empty(0)

    @classmethod
    def load(cls, model: str | None, machine: Any, components: Any = None) -> Splitter:
        """There is nothing to load: it is handed to `Upscaler` as it is."""
        raise AssertionError("nobody loads it")

    def steps(self, settings: Any) -> Any:
        """See `Engine.steps`."""
        return Once()

    def condition(self, source: Tensor, *_: Any) -> Where:
        """See `Engine.condition`."""
        height, width = (side // self.facts.grid for side in source.shape[2:])
        return Where(Plane(source, self.facts.grid), where=Plane(places(height, width)))

    def predict(self, noisy: Tensor, moment: Any, conditioning: Any) -> Prediction:
        """See `Engine.predict`."""
        self.windows += [window(place) for place in conditioning.where.tensor.long()]
        return Prediction(tensor(self.answers.pop(0))[None] if self.answers else noisy)

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Engine.decode`."""
        self.blended = latent
        return conditioning.source.tensor


def split_up(
    folder: Folder, size: Size, side: int, stride: int, answers: Sequence[Array] = (), weights: Weights | None = None
) -> Splitter:
    """A picture of `size` cells through `Upscaler`, cut as the engine's compatibility option has it."""
    facts = folder.engine.facts_for(folder.upscaler.settings(**ORIGINAL))
    grid = max(1, -(-16 // side))  # no tile that is asked for has less than 16 pixels
    weights = facts.weights if weights is None else weights
    # The picture splitter's windows keep their size where the picture is smaller.
    facts = replace(facts, grid=grid, stride=grid, fill=True, weights=weights, bytes_per_pixel=16)
    splitter = Splitter(facts, answers)
    picture = np.zeros((grid * size.height, grid * size.width, 3), np.float32)
    Upscaler(splitter)(picture, tile=grid * side, overlap=grid * (side - stride), **ORIGINAL)
    return splitter


def split(folder: Folder) -> Made:
    """The picture splitter: windows, and their results put together."""
    arrays = folder.arrays("split")
    for found in folder.wanted("split", r"pos(\d+)"):
        height, width, side, stride = (int(value) for value in arrays["cases"][int(found[1])])
        yield found[0], np.array(split_up(folder, Size(height, width), side, stride).windows)
    side, stride = (int(value) for value in arrays["merge_size_stride"])
    size = Size(*arrays["merge_image"].shape[-2:])
    yield "merge_pos", np.array(split_up(folder, size, side, stride).windows)
    yield "merge_weight", tile_weight(side)
    patches = list(arrays["merge_patches"])
    yield "merge_gaussian", split_up(folder, size, side, stride, patches).blended
    yield "merge_plain", split_up(folder, size, side, stride, patches, "flat").blended
    for found in folder.wanted("split", r"(sf\d+)_pos"):
        side, stride, factor = (int(value) for value in arrays[f"{found[1]}_size_stride_sf"])
        # The picture's size stands nowhere but in where the last window ends.
        size = Size(*(int(arrays[found[0]][:, end].max()) // factor for end in (1, 3)))
        yield found[0], np.array(split_up(folder, size, side, stride).windows) * factor


def pipeline(folder: Folder) -> Made:
    """A picture through `Upscaler`, with recorded noise in place of its own."""
    arrays, engine, up = folder.arrays("pipeline"), folder.engine, folder.upscaler
    noise = Recorded([arrays["posterior_noise"], arrays["x_T_noise"], *arrays["step_noise"]])
    seen: dict[str, Any] = {}

    def condition(*arguments: Any) -> Any:
        seen["record"] = type(engine).condition(engine, *arguments)
        return seen["record"]

    def decode_canvas(latent: Tensor, *arguments: Any) -> Any:
        seen["sampled"] = latent
        seen["decoded"] = type(engine).decode_canvas(engine, latent, *arguments)
        return seen["decoded"]

    tile, least = engine.facts.grid * folder.tiles["tile"], int(arrays["input_size"])

    def placed(canvas: Canvas, values: Any) -> Canvas:
        # A tile's side is the least side of the picture, too, unless it was recorded otherwise.
        return original_canvas(canvas, values.scale, least)

    with (
        mock.patch.object(upscaler, "SequentialNoise", return_value=noise),
        mock.patch.object(engine, "condition", condition),
        mock.patch.object(engine, "decode_canvas", decode_canvas),
        mock.patch.object(engine, "placed", engine.placed if tile == least else placed),
    ):
        result = up(
            arrays["lr_u8"],
            scale=float(arrays["upscale"]),
            steps=folder.sampled_steps,
            tile=tile,
            overlap=engine.facts.grid * folder.tiles["overlap"],
            cfw_weight=float(arrays["dec_w"]),
            color_fix=str(arrays["colorfix"]),
            compatibility="original",
        )
    yield "latent", seen["record"].latent.tensor
    yield "sampled", seen["sampled"]
    rows, columns = arrays["decoded_crop"].shape[-2:]
    yield "decoded_crop", seen["decoded"].pixels[..., :rows, :columns] * 2 - 1
    yield "out_u8", result.pixels


# --- degradation ------------------------------------------------------------------------------------------------------


class Fields:
    """Fields that were drawn elsewhere (`picture.degrade.Draws`)."""

    def __init__(self, *fields: Array) -> None:
        self.fields = [torch.from_numpy(each) for each in fields]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next field."""
        drawn = self.fields.pop(0)
        assert tuple(drawn.shape) == tuple(shape)
        return drawn

    def poisson(self, rate: Tensor) -> Tensor:
        """The next counts."""
        return self.normal(rate.shape)


def degradation_ops(folder: Folder) -> Made:
    """Single operations."""
    arrays = folder.arrays("degradation_ops")
    meta = {case["array"]: case for case in json.loads(str(arrays["meta_json"]))}
    for name, case in meta.items():
        if name.startswith("kernel"):
            shape = case["type"].split("_")[0] if "_" in case["type"] else "gaussian"
            yield (
                name,
                blur_kernel(
                    case["size"], case["sigma_x"], case["sigma_y"], case["theta"], shape=shape, beta=case["beta"]
                ),
            )
        elif name.startswith("sinc"):
            made = sinc_kernel(case["cutoff"], case["size"])
            yield name, widened(made, case["pad_to"]) if case["pad_to"] else made
    image = tensor(arrays["image"])
    single = tensor(arrays[meta["filter_single"]["kernel"]])
    yield "filter_single", filtered(image, single.expand(len(image), *single.shape))
    yield "filter_pair", filtered(image, torch.stack([tensor(arrays[name]) for name in meta["filter_pair"]["kernels"]]))
    usm = meta["usm_out"]
    yield "usm_out", sharpened(tensor(arrays["usm_image"]), usm["weight"], usm["radius"], usm["threshold"])
    picture = tensor(arrays["jpeg_image"])
    yield "jpeg_factor", np.array([jpeg_factor(float(quality)) for quality in arrays["jpeg_quality"]])
    yield "jpeg_out", jpeg(picture, arrays["jpeg_quality"].tolist())
    for found in folder.wanted("degradation_ops", r"jpeg_out_q\d+"):
        yield found[0], jpeg(picture[:1], [meta[found[0]]["quality"]])
    for found in folder.wanted("degradation_ops", r"resize_(\w+?)_(\d+)(?:x(\d+))?"):
        if found[3]:
            yield found[0], resized(image[:1], found[1], size=(int(found[2]), int(found[3])))  # type: ignore[arg-type]
        else:
            yield found[0], resized(image[:1], found[1], factor=meta[found[0]]["scale_factor"])  # type: ignore[arg-type]
    yield from noises_of(arrays)


def noises_of(arrays: Arrays) -> Made:
    """Gaussian and Poisson noise with recorded fields, picture by picture."""
    image = tensor(arrays["noise_image"])
    made: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        made.setdefault(name, []).append(value)

    for item in range(len(image)):
        one, colour_field = image[item : item + 1], arrays["gauss_z_color"][item : item + 1]
        sigma, grey = float(arrays["gauss_sigma"][item]), bool(arrays["gauss_gray"][item])
        fields = [arrays["gauss_z_gray"]] * grey + [colour_field]
        add("gauss_out", with_gaussian_noise(one, sigma, grey, Fields(*fields)))
        add("gauss_out_nogray", with_gaussian_noise(one, sigma, False, Fields(colour_field)))
        scale, grey = float(arrays["poisson_scale"][item]), bool(arrays["poisson_gray"][item])
        luma = (one * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        add("poisson_rate_gray", poisson_rate(luma)[0])
        add("poisson_rate_color", poisson_rate(one)[0])
        counts = [arrays["poisson_counts_gray"][item : item + 1]] * grey
        counts.append(arrays["poisson_counts_color"][item : item + 1])
        add("poisson_out", with_poisson_noise(one, scale, grey, Fields(*counts)))
    for name, items in made.items():
        yield name, torch.cat(items)


def degradation_full(folder: Folder) -> Made:
    """The whole second-order degradation, every recorded draw in place of ours."""
    arrays = folder.arrays("degradation_full")
    ranges = json.loads(str(arrays["settings_json"]))
    for case in cases_of(folder, "degradation_full", r"(.+)_gt_out"):
        trace = iter(json.loads(str(arrays[f"{case}_trace_json"])))
        choices, fields, top, left = traced(case, arrays, trace, ranges)
        clean = tensor(arrays[f"{case}_gt"])
        if ranges["use_usm"]:
            clean = sharpened(clean)
        factor, side = int(ranges["sf"]), int(ranges["gt_size"])
        size = (clean.shape[2] / factor, clean.shape[3] / factor)
        small = carried_out(choices, clean, size, Fields(*fields))[
            ..., top : top + side // factor, left : left + side // factor
        ]
        large = clean[..., factor * top : factor * top + side, factor * left : factor * left + side]
        if ranges["resize_lq"]:
            small = resized(small, "bicubic", size=(side, side))
        if next(trace)[1] < ranges["no_degradation_prob"]:
            small = large
        yield f"{case}_gt_out", large * 2 - 1
        yield f"{case}_lq_out", (small * 2 - 1).clamp(-1, 1)


def traced(
    case: str, arrays: Arrays, trace: Iterator[Any], ranges: Mapping[str, Any]
) -> tuple[Plan, list[Array], int, int]:
    """The choices that a trace of draws stands for, the noise fields, and the crop's top and left."""
    fields: list[Array] = []

    def value() -> Any:
        return next(trace)[1]

    def drawn() -> Array:
        return arrays[value()]

    def kernel(name: str) -> Tensor:
        return tensor(arrays[f"{case}_{name}"][0])

    def one_round(blur: Tensor | None, ending: str) -> Round:
        factor = 1.0 if value() == "keep" else value()
        mode = value()
        normal = value() < ranges[f"gaussian_noise_prob{ending}"]
        low, high = ranges[f"noise_range{ending}" if normal else f"poisson_scale_range{ending}"]
        level = float(drawn()[0]) * (high - low) + low
        grey = bool(drawn()[0] < ranges[f"gray_noise_prob{ending}"])
        fields.extend(drawn() for _ in range(1 + grey))
        return Round(blur, factor, mode, Noise(normal, level, grey), 0.0)

    first = one_round(kernel("kernel1"), "")
    first = replace(first, quality=float(drawn()[0]))
    blurred = value() < ranges["second_blur_prob"]
    second = one_round(kernel("kernel2") if blurred else None, "2")
    resize_first = value() < 0.5
    if resize_first:
        mode, quality = value(), float(drawn()[0])
    else:
        quality, mode = float(drawn()[0]), value()
    second = replace(second, quality=quality)
    return Plan(first, second, mode, kernel("sinc"), resize_first), fields, value(), value()


def envelope_expect(folder: Folder) -> Made:
    """The tensors of a training checkpoint's envelope."""
    found = open_tensors(folder.path / "envelope.ckpt")
    for name in folder.arrays("envelope_expect"):
        if name in found:
            yield name, found[name].load()


# --- small things -----------------------------------------------------------------------------------------------------


def tensor(array: Array) -> Tensor:
    """An array as a tensor."""
    return torch.from_numpy(np.array(array))


def hwc(array: Array) -> Array:
    """(1, C, H, W) as (H, W, C)."""
    return np.ascontiguousarray(array[0].transpose(1, 2, 0))


def nchw(array: Array) -> Array:
    """(H, W, C) as (1, C, H, W)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))[None]


def whole(size: Size) -> Any:
    """The tile that is a whole map."""
    from enlarger.canvas.tiles import Tile

    return Tile(0, 0, *size)


def cases_of(folder: Folder, file: str, pattern: str) -> list[str]:
    """What the first group of a pattern stands for in the manifest, each once."""
    return list(dict.fromkeys(found[1] for found in folder.wanted(file, pattern)))


def maps_of(folder: Folder, case: str) -> tuple[Tensor, ...]:
    """The encoder's maps of a recorded case."""
    arrays = folder.arrays("encoder")
    return folder.engine.encoder(tensor(arrays[f"{case}_latent"]), tensor(arrays[f"{case}_t"]))


def keep(seen: dict[str, Tensor], name: str, *, entering: bool = False) -> Any:
    """A hook that keeps what a module gives, or what goes in."""

    def hook(_: Any, arguments: Any, output: Any) -> None:
        output = arguments[0] if entering else getattr(output, "sample", output)
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


GROUPS: tuple[Group, ...] = (
    schedules,
    text,
    encoder,
    unet,
    vae,
    cfw,
    sample,
    canvas,
    ddim,
    face,
    loss,
    color,
    bytes_,
    split,
    pipeline,
    degradation_ops,
    degradation_full,
    envelope_expect,
)
"""One for each file of arrays, named like it."""


def check(folder: Folder, groups: Sequence[Group] = GROUPS, say: Callable[[str], None] = print) -> tuple[int, int]:
    """Compare all arrays of the manifest; how many agree, and how many there are."""
    agreed, wanted = 0, set(folder.cases)
    done: set[str] = set()
    with torch.inference_mode():
        for group in groups:
            file = group.__name__
            if not any(case.startswith(f"{file}/") for case in wanted):
                continue
            try:
                for name, made in group(folder):
                    case = f"{file}/{name}"
                    if case not in wanted or case in done:
                        continue
                    agree, line = compare(case, made, folder.arrays(file)[name])
                    say(f"{'agrees ' if agree else 'DIFFERS'} {case}: {line}")
                    done.add(case)
                    agreed += agree
            except Exception as error:  # a case that fails is a case that does not agree; the others are still told
                say(f"FAILS   {file}: {type(error).__name__}: {error}")
    for case in folder.cases:
        if case not in done:
            say(f"MISSING {case}")
    return agreed, len(folder.cases)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="FILE,...", help="groups to run; all others count as missing")
    options = parser.parse_args(arguments)
    chosen = [name for name in options.only.split(",") if name]
    groups = [group for group in GROUPS if not chosen or group.__name__ in chosen]
    agreed, count = check(Folder(options.folder), groups, lambda line: print(line, flush=True))
    print(f"{agreed} of {count} cases agree")
    return 0 if agreed == count else 1


if __name__ == "__main__":
    sys.exit(main())
