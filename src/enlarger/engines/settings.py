"""What the engines may be told: one record for each, and what several of them share. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from enlarger.checkpoints.prompt import parse
from enlarger.errors import SettingsError
from enlarger.sampling import names
from enlarger.settings import Machine, SeededSettings, TiledSettings, consistency, setting
from enlarger.size import Size


@dataclass(frozen=True)
class InterpolateSettings(TiledSettings):
    """What `interpolate` may be told."""

    filter: str = setting(
        "bicubic", "How pixels between pixels are found.", choices=("nearest", "bilinear", "bicubic", "lanczos")
    )
    linear_light: bool = setting(False, "Interpolate light instead of sRGB code values.")


@dataclass(frozen=True)
class PocketSettings(SeededSettings):
    """What `pocket` may be told."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faithful": {"steps": 1, "fidelity": 1.0, "consistency": 1.0},
        "balanced": {"steps": 2, "fidelity": 0.3, "consistency": 1.0},
        "vivid": {"steps": 4, "fidelity": 0.1, "consistency": 1.0},
    }

    preset: str | None = setting(
        None, "Steps, fidelity and consistency at once; single options win over it.", kind="text",
        choices=tuple(presets),
    )  # fmt: skip
    steps: int = setting(2, "Denoising steps: more give more texture and take longer.", choices=(1, 2, 4))
    fidelity: float = setting(
        0.3, "1 keeps to what the picture shows, 0 invents texture most freely.", low=0, high=1, metavar="F"
    )
    consistency: float = consistency(1.0)


@dataclass(frozen=True)
class GanSettings(TiledSettings):
    """What `gan` may be told."""


@dataclass(frozen=True)
class FoundMachine(Machine):
    """How a model is loaded whose parts are found by name, with an autoencoder of its own or another."""

    vae: str | None = setting(
        None, "Another autoencoder: a file, a folder, or a name found in the models folder.", kind="text",
        metavar="MODEL", group="Model",
    )  # fmt: skip
    models_dir: str | None = setting(
        None, "Where models are found by name: a folder as A1111 or ComfyUI lay it out (also ENLARGER_MODELS).",
        kind="text", metavar="FOLDER", group="Model",
    )  # fmt: skip


@dataclass(frozen=True)
class ModelMachine(FoundMachine):
    """How a Stable Diffusion model is loaded."""

    lora: tuple[str, ...] = setting(
        (), "A LoRA: a file or a name in the models folder, and how much it counts (default 1); may be given several "
        "times.", kind="text", many=True, metavar="FILE[:SCALE]", group="Model",
    )  # fmt: skip
    embedding: tuple[str, ...] = setting(
        (), "An embedding (textual inversion) and the word that prompts call it by; may be given several times.",
        kind="text", many=True, metavar="FILE[:WORD]", group="Model",
    )  # fmt: skip

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        for given in self.lora:
            with_scale(given)


MOST_SCALE = 10.0
"""Largest scale of a LoRA, either way."""


def with_scale(given: str) -> tuple[str, float]:
    """FILE or FILE:SCALE as file and scale, 1 by default.

    Raises:
        SettingsError: A scale out of range, or something else behind a file that is there.
    """
    name, colon, number = given.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        if name and os.path.exists(name) and not os.path.exists(given):
            raise SettingsError(f"{number!r} in --lora {given} is no scale: a number, usually 0.4 to 1") from None
        return given, 1.0
    if not colon or not name:
        return given, 1.0
    if not -MOST_SCALE <= scale <= MOST_SCALE:
        raise SettingsError(f"the scale of --lora {given} is not {-MOST_SCALE:g} to {MOST_SCALE:g}; usual are 0.4 to 1")
    return name, scale


def with_word(given: str) -> tuple[str, str | None]:
    """FILE or FILE:WORD as file and word; a colon before a slash is part of the file's name."""
    name, colon, word = given.rpartition(":")
    if not colon or not name or "/" in word or "\\" in word:
        return given, None
    return name, word


@dataclass(frozen=True)
class DenoisingSettings(SeededSettings):
    """What every engine with a Stable Diffusion schedule may be told."""

    steps: int = setting(20, "Denoising steps: more are finer and take longer.", low=1, high=1000)
    scheduler: str | None = setting(
        None, f"One of {', '.join(names.SCHEDULERS)}, or its name in A1111; default: the model's own.", kind="text",
        convert=lambda name: names.find(name).name,
    )  # fmt: skip
    spacing: str | None = setting(
        None, "Which of the training's timesteps are used; default: the model's own.", kind="text",
        choices=names.SPACINGS,
    )  # fmt: skip
    eta: float = setting(0.0, "Share of fresh noise in each step; scheduler ddim only.", low=0, high=1, metavar="F")
    overlap: int | None = setting(
        None, "Output pixels that neighbouring tiles share; at most half a tile.", kind="int", low=0, high=8192,
        metavar="N", group="Tiles",
    )  # fmt: skip
    color_fix: str = setting(
        "none", "Bring the colours back to the input's: their statistics (adain), or all but the detail (wavelet).",
        choices=("none", "adain", "wavelet"),
    )  # fmt: skip

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        if self.scheduler is not None:
            scheduler = names.find(self.scheduler)
            names.check_eta(self.eta, scheduler)
            if self.spacing is not None:
                names.check_spacing(self.spacing, scheduler)


def _guidance(default: float) -> Any:
    """The field `guidance_scale` with an engine's own default."""
    return setting(
        default, "How much the prompt counts; 1 or below is no guidance and half the work.", low=0, high=100,
        metavar="F", group="Prompt",
    )  # fmt: skip


@dataclass(frozen=True)
class PromptedSettings(DenoisingSettings):
    """What every engine that reads a prompt may be told."""

    prompt: str = setting(
        "", "What the picture shows, in words; (word:1.3) weighs more.", flags=("-p",), metavar="TEXT", group="Prompt"
    )
    negative_prompt: str | None = setting(
        None, "What it must not show; used while the guidance scale is above 1.", kind="text", metavar="TEXT",
        group="Prompt",
    )  # fmt: skip
    guidance_scale: float = _guidance(7.5)
    guidance_rescale: float = setting(
        0.0, "Take back the overexposure of strong guidance, 0 to 1.", low=0, high=1, metavar="F", group="Prompt"
    )
    clip_skip: int = setting(
        0, "Last layers of the text encoder that are left out; A1111 counts one more.", low=0, high=30, metavar="N",
        group="Prompt",
    )  # fmt: skip

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        parse(self.prompt)
        parse(self.negative_prompt or "")

    @property
    def guided(self) -> bool:
        """Whether the network runs without the prompt, too."""
        return self.guidance_scale > 1


@dataclass(frozen=True)
class X4Settings(PromptedSettings):
    """What `x4` may be told."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faithful": {"noise_level": 0, "guidance_scale": 5.0, "consistency": 1.0},
        "balanced": {"noise_level": 20, "guidance_scale": 9.0, "consistency": 1.0},
        "vivid": {"noise_level": 60, "guidance_scale": 9.0, "consistency": 0.5},
    }

    preset: str | None = setting(
        None, "Noise level, guidance scale and consistency at once; single options win over it.", kind="text",
        choices=tuple(presets),
    )  # fmt: skip
    guidance_scale: float = _guidance(9.0)
    noise_level: int = setting(
        20, "Noise added to the input, 0 to 350: the more, the more is invented.", low=0, high=350, metavar="N"
    )
    consistency: float = consistency(1.0)


@dataclass(frozen=True)
class StableSRMachine(FoundMachine):
    """How StableSR is loaded."""

    cfw: str | None = setting(
        None, "CFW file (vqgan_cfw_00011.ckpt): a decoder that sees the input again.", kind="text", metavar="FILE",
        group="Model",
    )  # fmt: skip
    base: str | None = setting(
        None, "Stable Diffusion 2.x file or folder, for a model that holds StableSR's own modules only.", kind="text",
        metavar="MODEL", group="Model",
    )  # fmt: skip
    prediction: str | None = setting(
        None, "What the network predicts; default: as a file beside the model, its digest or its name says.",
        kind="text", choices=("epsilon", "v_prediction"), group="Model",
    )  # fmt: skip


@dataclass(frozen=True)
class StableSRSettings(SeededSettings):
    """What `stablesr` may be told."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faithful": {"steps": 200, "cfw_weight": 1.0, "start": "lr"},
        "balanced": {"steps": 50, "start": "lr"},
        "vivid": {"steps": 200, "cfw_weight": 0.0, "start": "noise"},
        "turbo": {"steps": 4, "start": "lr"},
        "768v": {"steps": 200, "cfw_weight": 0.0, "start": "lr", "tile": 768},
    }

    preset: str | None = setting(
        None, "Steps, CFW weight and start at once (768v: the tile too); single options win over it.", kind="text",
        choices=tuple(presets),
    )  # fmt: skip
    steps: int = setting(50, "Denoising steps: 200 as published, 4 with the turbo model.", low=1, high=1000)
    scheduler: str = setting("ddpm", "ddpm as published, or ddim.", choices=("ddpm", "ddim"))
    eta: float = setting(0.0, "Share of fresh noise in each step; scheduler ddim only.", low=0, high=1, metavar="F")
    start: str = setting(
        "lr", "From the input's latent, noised (steadier colours), or from pure noise (more detail).",
        choices=("lr", "noise"),
    )  # fmt: skip
    strength: float | None = setting(
        None, "Share of the steps that is run, the last ones; the less, the nearer to the input.", kind="float",
        above=0, high=1, metavar="F",
    )  # fmt: skip
    cfw_weight: float | None = setting(
        None, "How much the decoder sees of the input, 0 (creative) to 1 (faithful); default 0.5 with a CFW file.",
        kind="float", low=0, high=1, metavar="F",
    )  # fmt: skip
    color_fix: str = setting(
        "wavelet", "Bring the colours back to the input's: their statistics (adain), or all but the detail (wavelet).",
        choices=("none", "adain", "wavelet"),
    )  # fmt: skip
    prompt: str = setting(
        "", "What the picture shows, in words; every character counts as text.", flags=("-p",), metavar="TEXT",
        group="Prompt",
    )  # fmt: skip
    negative_prompt: str = setting(
        "", "What it must not show; used while the guidance scale is above 1.", metavar="TEXT", group="Prompt"
    )
    guidance_scale: float = setting(
        1.0, "How much the prompts count; 1 or below is no guidance and half the work.", low=0, high=100, metavar="F",
        group="Prompt",
    )  # fmt: skip
    guidance_rescale: float = setting(
        0.0, "Take back the overexposure of strong guidance, 0 to 1.", low=0, high=1, metavar="F", group="Prompt"
    )
    overlap: int | None = setting(
        None, "Output pixels that neighbouring tiles share; at most half a tile, which is the default.", kind="int",
        low=0, high=8192, metavar="N", group="Tiles",
    )  # fmt: skip
    reference: str | None = setting(
        None, "A picture of the same scene that the result is pulled to, such as a restored face.", kind="file",
        metavar="PICTURE",
    )  # fmt: skip
    reference_strength: float = setting(1.0, "How far, 0 to 1.", low=0, high=1, metavar="F")
    reference_until: int = setting(
        45, "Down to this of the training's 1000 timesteps; below it the model is free.", low=0, high=999, metavar="N"
    )
    compatibility: str = setting(
        "none", "original: with the original scripts' rounding, padding, weights and DDIM table, to compare with them.",
        choices=("none", "original"),
    )  # fmt: skip

    @property
    def guided(self) -> bool:
        """Whether the network runs with the negative prompt, too."""
        return self.guidance_scale > 1

    @property
    def original(self) -> bool:
        """Whether the original scripts' ways are wanted."""
        return self.compatibility == "original"

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        if self.eta and self.scheduler != "ddim":
            raise SettingsError(f"eta {self.eta:g} is for scheduler ddim; ddpm has noise of its own")
        if self.start == "noise" and self.strength is not None and self.strength < 1:
            raise SettingsError(f"strength {self.strength:g} starts from the input: it cannot go with start noise")


@dataclass(frozen=True)
class Region:
    """A rectangle of the result with a prompt of its own, in output pixels."""

    left: int
    top: int
    width: int
    height: int
    prompt: str


REGION = "X,Y,W,H:PROMPT in pixels of the result, such as 0,0,512,300:a cloudy sky"
"""How a region is written, for errors."""


def read_region(text: str) -> Region:
    """A region as it is written: X,Y,W,H:PROMPT.

    Raises:
        SettingsError: Not written so, an empty rectangle, or no prompt.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*:(.*)", text, re.DOTALL)
    if found is None:
        raise SettingsError(f"region {text[:40]!r} is not {REGION}")
    left, top, width, height = map(int, found.groups()[:4])
    if not width or not height:
        raise SettingsError(f"region {text[:40]!r} is empty: its width and height must be above 0 ({REGION})")
    prompt = found.group(5).strip()
    if not prompt:
        raise SettingsError(f"region {text[:40]!r} has no prompt: say what is there, {REGION}")
    parse(prompt)
    return Region(left, top, width, height, prompt)


def _region(text: str) -> str:
    read_region(text)
    return text


QUALITY = "best quality, highly detailed, sharp focus"
"""Words that tutorials put before a prompt."""

FLAWS = "blur, lowres, worst quality, low quality, jpeg artifacts"
"""Words that tutorials put into a negative prompt."""


@dataclass(frozen=True)
class ImagineSettings(PromptedSettings):
    """What every engine on a text-to-image model may be told."""

    quality_words: str = setting(
        "", "Words put before the prompt; some presets set them.", metavar="TEXT", group="Prompt"
    )
    region: tuple[str, ...] = setting(
        (), "Another prompt for a rectangle of the result in pixels, with soft edges; may be given several times.",
        kind="text", many=True, convert=_region, metavar="X,Y,W,H:PROMPT", group="Prompt",
    )  # fmt: skip
    original_size: Size | None = setting(  # noqa: RUF009
        None, "Size that an SDXL model is told the picture had; default: the result's.", kind="size", metavar="WxH",
        group="Prompt",
    )  # fmt: skip
    target_size: Size | None = setting(  # noqa: RUF009
        None, "Size that an SDXL model is told to fill; default: the result's, or a tile's.", kind="size",
        metavar="WxH", group="Prompt",
    )  # fmt: skip
    crop_left: int = setting(
        0, "Pixels that an SDXL model is told were cut off at the left.", low=0, high=8192, metavar="N", group="Prompt"
    )
    crop_top: int = setting(
        0, "Pixels that an SDXL model is told were cut off at the top.", low=0, high=8192, metavar="N", group="Prompt"
    )

    def fits(self, target: Size) -> None:
        """See `SizeSettings.fits`."""
        for text in self.region:
            region = read_region(text)
            if region.left >= target.width or region.top >= target.height:
                raise SettingsError(
                    f"region {text[:40]!r} lies outside the result, which has {target} pixels: X is below "
                    f"{target.width} and Y below {target.height} in {REGION}"
                )

    @property
    def whole_prompt(self) -> str:
        """The prompt with its quality words before it."""
        return ", ".join(part for part in (self.quality_words, self.prompt) if part)


def _strength(default: float) -> Any:
    """The field `strength` with an engine's own default."""
    return setting(
        default, "Share of the steps that is run, the last ones; the less, the nearer to the input.", low=0, high=1,
        metavar="F",
    )  # fmt: skip


@dataclass(frozen=True)
class RedrawSettings(ImagineSettings):
    """What every engine may be told that noises the picture part of the way and draws it anew."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faithful": {"strength": 0.2, "guidance_scale": 5.0},
        "balanced": {"strength": 0.3, "guidance_scale": 7.5},
        "vivid": {"strength": 0.45, "guidance_scale": 8.0, "quality_words": QUALITY, "negative_prompt": FLAWS},
        "turbo": {"steps": 4, "strength": 0.5, "guidance_scale": 1.0},
    }

    preset: str | None = setting(
        None, "Strength, guidance and words at once (turbo: for few-step models); single options win over it.",
        kind="text", choices=tuple(presets),
    )  # fmt: skip
    steps: int = setting(50, "Denoising steps: more are finer and take longer.", low=1, high=1000)
    strength: float = _strength(0.3)
    rounds: int = setting(1, "Growing step by step to the target, each size made anew.", low=1, high=8, metavar="N")


@dataclass(frozen=True)
class Img2ImgSettings(RedrawSettings):
    """What `img2img` may be told."""


MAPS = ("picture", "canny", "soft", "pose", "depth")
"""What a control picture can be made of."""

NO_MAPS = ("line", "lines", "lineart", "mlsd", "hed", "pidinet", "scribble", "sketch", "normal", "segment", "seg")
"""Maps that ControlNets are trained on, too, and that nothing here can make."""


def _map(word: str) -> str:
    if word.lower() in NO_MAPS:
        raise SettingsError(
            f"control_map {word!r}: neither Enlarger nor a model of transformers makes such a map; give a ready-made "
            "one with --control-image FILE --control-map picture, or take canny or soft for the lines of a picture"
        )
    return word


CONTROL_TYPES = ("pose", "depth", "soft", "canny", "normal", "segment", "tile", "repaint")
"""What a union ControlNet can be told of a control picture, in the order of its inputs."""


@dataclass(frozen=True)
class ControlMachine(ModelMachine):
    """How a model with ControlNets is loaded."""

    control: tuple[str, ...] = setting(
        (), "A ControlNet: a file, a folder, or a name in the models folder; may be given several times.", kind="file",
        many=True, metavar="NET[:SUBFOLDER]", group="Model",
    )  # fmt: skip
    map_model: tuple[str, ...] = setting(
        (), "Folder of a transformers model that makes control maps: for depth, for poses, or a detector that finds "
        "the people for these; may be given several times.", kind="file", many=True, metavar="FOLDER", group="Model",
    )  # fmt: skip


@dataclass(frozen=True)
class ControlledSettings(ImagineSettings):
    """What every engine with ControlNets may be told; lists have one value for each net, or one for all."""

    control_image: tuple[str, ...] = setting(
        (), "Picture that a ControlNet follows, or OpenPose's JSON; default: the input.", kind="file", many=True,
        metavar="FILE", group="Control",
    )  # fmt: skip
    control_map: tuple[str, ...] = setting(
        (), "What is made of it; default: pose for JSON, else the picture as it is.", kind="text", many=True,
        choices=MAPS, convert=_map, metavar="MAP", group="Control",
    )  # fmt: skip
    control_scale: tuple[float, ...] = setting(
        (), "How much a ControlNet counts, 0 to 2; default 1.", kind="float", low=0, high=2, many=True, metavar="F",
        group="Control",
    )  # fmt: skip
    control_start: tuple[float, ...] = setting(
        (), "Share of the steps after which it sets in; default 0.", kind="float", low=0, high=1, many=True,
        metavar="F", group="Control",
    )  # fmt: skip
    control_end: tuple[float, ...] = setting(
        (), "Share of the steps after which it stops; default 1.", kind="float", low=0, high=1, many=True,
        metavar="F", group="Control",
    )  # fmt: skip
    control_type: tuple[str, ...] = setting(
        (), "What a union net is told that it sees; default: by the map.", kind="text", many=True,
        choices=CONTROL_TYPES, metavar="TYPE", group="Control",
    )  # fmt: skip
    control_size: Size | None = setting(  # noqa: RUF009
        None, "Size of the picture that a JSON file's key points were found in, where it does not say.", kind="size",
        metavar="WxH", group="Control",
    )  # fmt: skip
    guess_mode: bool = setting(
        False, "ControlNets act on the prompt's half of the guidance alone, weaker in fine features.", group="Control"
    )
    canny_low: float = setting(
        100.0, "Gradient that every point of a canny edge has at least.", low=0, high=2040, metavar="F", group="Control"
    )
    canny_high: float = setting(
        200.0, "Gradient that one point of a canny edge has at least.", low=0, high=2040, metavar="F", group="Control"
    )

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        if self.canny_low > self.canny_high:
            raise SettingsError(f"canny_low {self.canny_low:g} is above canny_high {self.canny_high:g}")
        if (self.canny_low, self.canny_high) != (100.0, 200.0) and "canny" not in self.control_map:
            raise SettingsError("canny_low and canny_high are for edges: ask for them with --control-map canny")
        if self.control_size is not None and not any(name.lower().endswith(".json") for name in self.control_image):
            raise SettingsError("control_size is for key points: name their JSON file with --control-image")
        for start, end in zip(self.control_start, self.control_end, strict=False):
            if start >= end:
                raise SettingsError(
                    f"control_start {start:g} is not below control_end {end:g}: the net would never act"
                )


@dataclass(frozen=True)
class ControlNetSettings(ControlledSettings, RedrawSettings):
    """What `controlnet` may be told; what holds the form lets more be drawn anew."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faithful": {"strength": 0.4, "guidance_scale": 5.0},
        "balanced": {"strength": 0.8, "guidance_scale": 7.0},
        "vivid": {"strength": 1.0, "guidance_scale": 7.5, "quality_words": QUALITY, "negative_prompt": FLAWS},
        "turbo": {"steps": 4, "strength": 0.75, "guidance_scale": 1.0},
    }

    strength: float = _strength(0.8)
    guidance_scale: float = _guidance(7.0)


@dataclass(frozen=True)
class GenerateSettings(ControlledSettings):
    """What `enlarger generate` may be told; what concerns an input has no meaning and is no setting here."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vivid": {"quality_words": QUALITY, "negative_prompt": FLAWS},
        "turbo": {"steps": 4, "guidance_scale": 1.0},
    }

    scale: float | None = 1.0
    size: Size | None = None
    longest: int | None = None
    megapixels: float | None = None
    page: int = 1
    max_pixels: int = 100_000_000
    consistency: float = 0.0
    color_fix: str = "none"
    preset: str | None = setting(
        None, "Words around the prompt, or what few-step models want (turbo); single options win over it.",
        kind="text", choices=tuple(presets),
    )  # fmt: skip
    width: int | None = setting(
        None, "Pixels across; default: what the model was trained on.", kind="int", low=16, high=8192, metavar="N",
        group="Size",
    )  # fmt: skip
    height: int | None = setting(
        None, "Pixels down; default: what the model was trained on.", kind="int", low=16, high=8192, metavar="N",
        group="Size",
    )  # fmt: skip
    depth: int = setting(8, "Bits of a colour in the result.", choices=(8, 16, 32), group="Output")
    steps: int = setting(50, "Denoising steps: more are finer and take longer.", low=1, high=1000)
