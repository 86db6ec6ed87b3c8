"""What the engines on a text-to-image model share (SD 1.x, 2.x and XL): encoding, size numbers, regions, prediction.

`img2img`, `controlnet` and `generate` differ in where they start and in what acts beside the prompt; all else is here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Canvas, Pass
from enlarger.canvas.noise import NoiseSource
from enlarger.engines import diffusion
from enlarger.engines.diffusion import DiffusionEngine, Parts, Prompts
from enlarger.engines.engine import Conditioning, Facts, Prediction
from enlarger.engines.settings import ImagineSettings, ModelMachine, Region, read_region
from enlarger.errors import ModelError, SettingsError
from enlarger.sampling.steps import Moment
from enlarger.size import Size

FAMILIES = ("sd15", "sd2", "sdxl")
"""What these engines can work with, as `checkpoints` names them."""

CELL = 8
"""Pixels per cell of the latent, along each side."""

SOFT = 8
"""Cells over which a region fades out beyond its border."""

CONTEXT = 1.5
"""Default side of a tile in sides that the model was trained on: it bears half as much again without repeating."""


@dataclass(frozen=True)
class Script:
    """What is to be drawn where, the same for every picture.

    Attributes:
        prompts: Of the whole picture.
        regions: Rectangles in output pixels, each with what the network reads there.
    """

    prompts: Prompts
    regions: tuple[tuple[Region, Prompts], ...] = ()


@dataclass(frozen=True)
class PromptedConditioning(Conditioning):
    """What a prediction looks at.

    Attributes:
        start: The picture's latent, (1, 4, h, w), not noised; None where everything starts from noise.
        prompts: The whole picture's prompts and, after them, each region's.
        shares: How much each of them counts in a cell, (1, n, h, w), summing to 1; None for one alone.
        places: Row and column of each cell in pixels, (1, 2, h, w): where a tile lies.
        sizes: What an SDXL model is told: original height and width, top and left, and target height and width, the
            last two 0 for the tile's own; None for other models.
        guidance: What a model that was trained with the guidance scale as an input is told; None for others.
    """

    start: Tensor | None = None
    prompts: tuple[Prompts, ...] = ()
    shares: Plane | None = None
    places: Plane | None = None
    sizes: tuple[int, ...] | None = None
    guidance: float | None = None


class PromptedEngine(DiffusionEngine):
    """See `engines.engine.Engine`; subclasses say where the process starts."""

    def __init__(self, facts: Facts, parts: Parts, *, held: bool = False) -> None:
        """Take a loaded model.

        Args:
            facts: The engine's.
            parts: The model.
            held: Whether ControlNets act beside it.

        Raises:
            ModelError: Its UNet is not one of text to image.
        """
        self.loaded = parts.loaded
        self.device, self.dtype = parts.device, parts.dtype
        config: Any = parts.unet.config
        _check_unet(config, parts, facts.name)
        self.is_xl = config.addition_embed_type == "text_time"
        self.parts = parts if self.is_xl or held else _mended(parts)
        self.guidance_width = int(config.time_cond_proj_dim or 0)
        tile = max(facts.tile, math.ceil(max(self.trained) * CONTEXT / CELL) * CELL)
        self.facts = dataclasses.replace(facts, tile=tile, overlap=tile // 6 // CELL * CELL)

    @property
    def trained(self) -> Size:
        """The size that the model was trained on, in pixels."""
        config: Any = self.parts.unet.config
        sides = config.sample_size or 64
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return Size(int(height) * CELL, int(width) * CELL)

    @classmethod
    def parts_of(cls, facts: Facts, model: str | None, machine: Any, components: Mapping[str, Any] | None) -> Parts:
        """Open a text-to-image model (see `diffusion.load_parts`)."""
        assert isinstance(machine, ModelMachine)
        return diffusion.load_parts(facts.name, FAMILIES, model, machine, components)

    def placed(self, canvas: Canvas, settings: ImagineSettings) -> Canvas:
        """See `Engine.placed`: the same, if every region lies in it."""
        settings.fits(canvas.target)
        return canvas

    def prepare(self, settings: ImagineSettings) -> Script:
        """See `Engine.prepare`: the encoded prompts."""
        if not self.is_xl:
            given = [
                name for name in ("original_size", "target_size", "crop_left", "crop_top") if getattr(settings, name)
            ]
            if given:
                raise SettingsError(f"{given[0]} is what SDXL models are told, and this is none: leave it out")
        regions = [read_region(text) for text in settings.region]
        texts = [settings.whole_prompt, *(region.prompt for region in regions)]
        guided = settings.guided and not self.guidance_width
        encoded = diffusion.encode(self.parts, texts, settings.negative_prompt if guided else None, guided, settings)
        return Script(encoded[0], tuple(zip(regions, encoded[1:], strict=True)))

    def shared(
        self,
        source: Tensor,
        passage: Pass,
        script: Script,
        settings: ImagineSettings,
        start: Tensor | None = None,
        remarks: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The fields of a `PromptedConditioning`, by name."""
        height, width = source.shape[2] // CELL, source.shape[3] // CELL
        rows = torch.arange(height, device=self.device)[:, None].expand(height, width)
        columns = torch.arange(width, device=self.device)[None].expand(height, width)
        shares = region_shares([region for region, _ in script.regions], passage, Size(height, width))
        original = settings.original_size or passage.padded
        sizes = (*original, settings.crop_top, settings.crop_left, *(settings.target_size or (0, 0)))
        return {
            "source": Plane(source, CELL),
            "start": start,
            "prompts": (script.prompts, *(prompts for _, prompts in script.regions)),
            "shares": None if shares is None else Plane(shares.to(self.device)),
            "places": Plane(torch.stack([rows, columns])[None] * CELL),
            "sizes": sizes if self.is_xl else None,
            "guidance": settings.guidance_scale if self.guidance_width else None,
            "remarks": (*remarks, *diffusion.lengths(script.prompts)),
        }

    def encode(self, source: Tensor, noise: NoiseSource) -> tuple[Tensor, tuple[str, ...]]:
        """A picture's latent (1, 4, h, w), one sample of what it may be, one draw; and what must be admitted of it."""
        return diffusion.encode_picture(self.parts, source.to(self.device), noise)

    def latent(self, conditioning: Conditioning) -> Tensor | None:
        """See `Engine.latent`."""
        assert isinstance(conditioning, PromptedConditioning)
        return conditioning.start

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        """See `Engine.predict`; with regions, one pass for each that is seen, blended cell by cell."""
        assert isinstance(conditioning, PromptedConditioning)
        seen = noisy.to(self.dtype)
        if conditioning.shares is None:
            return self.forward(seen, moment, conditioning, conditioning.prompts[0])
        shares = conditioning.shares.tensor
        conditional: Tensor | None = None
        unconditional: Tensor | None = None
        for number, prompts in enumerate(conditioning.prompts):
            share = shares[:, number : number + 1]
            if not bool(share.any()):
                continue
            # The negative prompt is the same everywhere, so it runs once.
            if unconditional is not None:
                prompts = Prompts(prompts.conditional)
            part = self.forward(seen, moment, conditioning, prompts)
            weighted = part.conditional.float() * share
            conditional = weighted if conditional is None else conditional + weighted
            unconditional = part.unconditional if unconditional is None else unconditional
        assert conditional is not None
        return Prediction(conditional, unconditional)

    def forward(self, seen: Tensor, moment: Moment, conditioning: PromptedConditioning, prompts: Prompts) -> Prediction:
        """One forward pass with one pair of prompts."""
        return diffusion.guided(self.parts.unet, seen, moment, prompts, **self.extras(seen, conditioning))

    def extras(self, seen: Tensor, conditioning: PromptedConditioning) -> dict[str, Any]:
        """What the networks get beside the text: SDXL's size numbers, a guidance scale that is an input."""
        extras: dict[str, Any] = {}
        if conditioning.sizes is not None:
            assert conditioning.places is not None
            height, width, top, left, tall, wide = conditioning.sizes
            corner = conditioning.places.tensor[:, :, 0, 0].expand(seen.shape[0], 2)
            count, tile = seen.shape[0], (seen.shape[2] * CELL, seen.shape[3] * CELL)
            numbers = torch.tensor([height, width, top, left, tall or tile[0], wide or tile[1]], device=self.device)
            ids = numbers.expand(count, 6).clone()
            ids[:, 2:4] += corner
            extras["time_ids"] = ids.float()  # half precision rounds sizes above 2048
        if conditioning.guidance is not None:
            embedding = guidance_embedding(conditioning.guidance, self.guidance_width)
            extras["timestep_cond"] = embedding.to(seen).expand(seen.shape[0], -1)
        return extras


def region_shares(regions: Sequence[Region], passage: Pass, cells: Size) -> Tensor | None:
    """How much the whole picture's prompt and each region's count in each cell.

    A region counts fully within its rectangle and fades out over `SOFT` cells beyond; where several lie, they share
    what there is, and the whole picture's prompt has what they leave.

    Args:
        regions: In output pixels.
        passage: Of which the canvas is.
        cells: Of the canvas.

    Returns:
        (1, 1 + number of regions, h, w), summing to 1; None without regions.
    """
    if not regions:
        return None
    result = passage.target or passage.native
    # An earlier round is smaller than the result that regions are measured in.
    tall, wide = passage.source.height / result.height, passage.source.width / result.width
    weights = []
    for region in regions:
        down = _fading(region.top * tall, region.height * tall, cells.height)
        across = _fading(region.left * wide, region.width * wide, cells.width)
        weights.append(down[:, None] * across)
    shares = torch.stack(weights)
    total = shares.sum(0)
    shares = shares / total.clamp(min=1)
    return torch.cat([(1 - total).clamp(min=0)[None], shares])[None]


def _fading(start: float, length: float, cells: int) -> Tensor:
    """A region's weight along one axis of cells: 1 within, a raised cosine beyond."""
    middles = (torch.arange(cells, dtype=torch.float32) + 0.5) * CELL
    outside = torch.maximum(start - middles, middles - (start + length)).clamp(min=0) / (SOFT * CELL)
    return 0.5 + 0.5 * torch.cos(math.pi * outside.clamp(max=1))


def guidance_embedding(scale: float, width: int) -> Tensor:
    """A guidance scale as a model distilled with it gets it (Meng et al. 2023, arXiv 2210.03142), (1, width).

    Sines and cosines of 1000 * (scale - 1), as time steps are embedded.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
    angles = (scale - 1) * 1000 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedding, (0, width - 2 * half))[None]


def _mended(parts: Parts) -> Parts:
    """A model of SD 1.x or 2.x with its scheduler's configuration brought up to date, as diffusers' pipelines do it.

    Those of early models lack two words whose defaults are wrong for a latent: the first timestep would be 0, and
    clean estimates would be clipped to -1..1. Diffusers' pipelines with ControlNets and those of SDXL leave it.
    """
    mended = {**parts.scheduler, "steps_offset": 1, "clip_sample": False}
    return parts if mended == parts.scheduler else dataclasses.replace(parts, scheduler=mended)


def _check_unet(config: Any, parts: Parts, engine: str) -> None:
    """Refuse networks that look like text to image and are something else.

    Raises:
        ModelError: Says what it is.
    """
    channels = int(config.in_channels)
    if channels != parts.latent_channels:
        kinds = {9: "an inpainting model", 8: "a pix2pix model", 7: "an upscaler (engine x4)", 5: "a depth model"}
        kind = kinds.get(channels, "another kind of model")
        raise ModelError(
            f"this UNet takes {channels} channels and the autoencoder gives {parts.latent_channels}: it is {kind}; "
            f"engine {engine} needs one of text to image"
        )
    shape: Any = parts.vae.config
    factor = 2 ** (len(shape.block_out_channels) - 1)
    if factor != CELL:
        raise ModelError(f"this autoencoder has a factor of {factor}; engine {engine} needs one of {CELL}")
    if config.addition_embed_type not in (None, "text_time"):
        raise ModelError(
            f"this UNet wants {config.addition_embed_type} beside the text; engine {engine} has no such thing"
        )
    if config.addition_embed_type == "text_time":
        if not parts.text.pools:
            raise ModelError("this is an SDXL UNet, and the model has no second text encoder: take a complete model")
        pooled = int(config.projection_class_embeddings_input_dim) - 6 * int(config.addition_time_embed_dim)
        if pooled != parts.text.pooled_width:
            raise ModelError(
                f"this UNet is no SDXL base model but a refiner or a variant, which engine {engine} cannot run"
            )
