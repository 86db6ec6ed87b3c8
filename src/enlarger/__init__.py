"""Enlarger makes pictures bigger with diffusion models.

import enlarger

result = enlarger.upscale("photo.jpg", scale=4)
result.save("photo_4x.png")

upscaler = enlarger.Upscaler("pocket")                 # loads once
result = upscaler("photo.jpg", scale=2.5, seed=7)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enlarger.errors import (
    EnlargerError,
    Interrupted,
    ModelError,
    OutputError,
    PartialError,
    PictureError,
    ResourceError,
    SettingsError,
)
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.generator import Generator, generate
    from enlarger.picture.picture import Picture
    from enlarger.planning import Plan
    from enlarger.result import Result
    from enlarger.upscaler import Progress, Upscaler, upscale

__version__ = "0.1.0"

# Loaded on first use, so that `import enlarger` needs neither torch nor numpy.
_LAZY = {
    "Generator": "enlarger.generator",
    "Picture": "enlarger.picture.picture",
    "Plan": "enlarger.planning",
    "Progress": "enlarger.upscaler",
    "Result": "enlarger.result",
    "Upscaler": "enlarger.upscaler",
    "generate": "enlarger.generator",
    "upscale": "enlarger.upscaler",
}

__all__ = [
    "EnlargerError",
    "Generator",
    "Interrupted",
    "ModelError",
    "OutputError",
    "PartialError",
    "Picture",
    "PictureError",
    "Plan",
    "Progress",
    "ResourceError",
    "Result",
    "SettingsError",
    "Size",
    "Upscaler",
    "__version__",
    "generate",
    "upscale",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'enlarger' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
