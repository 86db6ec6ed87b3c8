"""Settings of a training run, declared once: the command's options, its help and its checks come from here.

Nothing here imports torch, so that the command's help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run; the metadata is what the command's help says and the range it accepts."""

    photos: Path = field(metadata={"help": "folder of photographs to learn from"})
    out: Path = field(metadata={"help": "folder for the checkpoint, the weights and the log"})
    vgg: Path | None = field(
        default=None,
        metadata={"help": "VGG16 weights (safetensors, torchvision's keys); without them no perceptual term"},
    )
    heads: Path | None = field(
        default=None, metadata={"help": "LPIPS v0.1 heads (safetensors), to weigh VGG's channels"}
    )
    init: Path | None = field(default=None, metadata={"help": "weights of pocket to start from instead of random ones"})
    hold_out: Path | None = field(
        default=None, metadata={"help": "text file of photo names, one a line, never trained on"}
    )
    resume: bool = field(default=False, metadata={"help": "go on from the checkpoint in the output folder"})
    updates: int = field(default=20000, metadata={"help": "length of the run", "range": (1, None)})
    crop: int = field(default=96, metadata={"help": "side of a sharp crop, a multiple of 8", "range": (16, 512)})
    crops: int = field(default=4, metadata={"help": "crops of a sampling micro-batch", "range": (1, 256)})
    regression_crops: int = field(default=12, metadata={"help": "crops of a regression micro-batch", "range": (1, 256)})
    micro_batches: int = field(
        default=4, metadata={"help": "micro-batches of an update; the first is the regression one", "range": (2, 64)}
    )
    workers: int = field(default=2, metadata={"help": "threads that compute micro-batches", "range": (1, 64)})
    rate: float = field(default=3e-4, metadata={"help": "learning rate", "range": (0, 1)})
    warm_up: int = field(default=100, metadata={"help": "updates over which the rate rises", "range": (0, None)})
    fall: float = field(default=0.3, metadata={"help": "share of the run over which the rate falls", "range": (0, 1)})
    average: float = field(
        default=0.0,
        metadata={
            "help": "time constant of the averaged weights in updates; 0: a tenth of the run",
            "range": (0, None),
        },
    )
    clip: float = field(default=1.0, metadata={"help": "largest norm of a gradient", "range": (0, None)})
    patch_weight: float = field(
        default=4.0, metadata={"help": "weight of the score of pixel patches", "range": (0, None)}
    )
    detail_weight: float = field(
        default=4.0, metadata={"help": "weight of the score of fine detail", "range": (0, None)}
    )
    hue_weight: float = field(
        default=4.0, metadata={"help": "weight of the score of patches' colour without brightness", "range": (0, None)}
    )
    grid_weight: float = field(
        default=0.3, metadata={"help": "weight of steps that depend on the network's 4-pixel grid", "range": (0, None)}
    )
    colour_weight: float = field(default=4.0, metadata={"help": "weight of the 8x8 mean colours", "range": (0, None)})
    feature_weight: float = field(
        default=1.0, metadata={"help": "weight of the score of VGG features", "range": (0, None)}
    )
    patch_spread: float = field(
        default=0.7, metadata={"help": "spread asked of pixel patches at strength 1; 1 is calibrated", "range": (0, 1)}
    )
    feature_spread: float = field(
        default=1.0, metadata={"help": "spread asked of detail and features at strength 1", "range": (0, 1)}
    )
    seed: int = field(default=0, metadata={"help": "where all randomness of the run comes from", "range": (0, None)})
    save_every: int = field(default=100, metadata={"help": "updates between checkpoints", "range": (1, None)})
    log_every: int = field(default=20, metadata={"help": "updates between log lines", "range": (1, None)})
