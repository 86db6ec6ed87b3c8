"""What the engines may be told: one record for each, and what several of them share. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from enlarger.sampling import names
from enlarger.settings import Machine, SeededSettings, consistency, setting


@dataclass(frozen=True)
class ModelMachine(Machine):
    """How a Stable Diffusion model is loaded."""

    vae: str | None = setting(
        None, "Another autoencoder: a file, a folder, or a name found in the models folder.", kind="text",
        metavar="MODEL", group="Model",
    )  # fmt: skip
    models_dir: str | None = setting(
        None, "Where models are found by name: a folder as A1111 or ComfyUI lay it out (also ENLARGER_MODELS).",
        kind="text", metavar="FOLDER", group="Model",
    )  # fmt: skip


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
    guidance_scale: float = setting(
        7.5, "How much the prompt counts; 1 or below is no guidance and half the work.", low=0, high=100, metavar="F",
        group="Prompt",
    )  # fmt: skip
    guidance_rescale: float = setting(
        0.0, "Take back the overexposure of strong guidance, 0 to 1.", low=0, high=1, metavar="F", group="Prompt"
    )
    clip_skip: int = setting(
        0, "Last layers of the text encoder that are left out; A1111 counts one more.", low=0, high=30, metavar="N",
        group="Prompt",
    )  # fmt: skip

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
    guidance_scale: float = setting(
        9.0, "How much the prompt counts; 1 or below is no guidance and half the work.", low=0, high=100, metavar="F",
        group="Prompt",
    )  # fmt: skip
    noise_level: int = setting(
        20, "Noise added to the input, 0 to 350: the more, the more is invented.", low=0, high=350, metavar="N"
    )
    consistency: float = consistency(1.0)
