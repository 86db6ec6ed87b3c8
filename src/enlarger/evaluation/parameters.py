"""Parameters of the learned metrics: those that ship with Enlarger, and the VGG16 that a user names.

Nothing is ever downloaded. What is missing is said with the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from enlarger.errors import ModelError

Tensors = dict[str, Tensor]

VGG_CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
VGG_CONVOLUTIONS |= {14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512)}
VGG_CONVOLUTIONS |= {24: (512, 512), 26: (512, 512), 28: (512, 512)}
"""The 13 convolutions of VGG16 (3x3) by their index in torchvision's `features`: channels in and out."""

VGG_REMEDY = (
    "name a file of torchvision's ImageNet VGG16 (.safetensors or .pth with keys features.0.weight ... "
    "features.28.bias; several files may share them) with --vgg FILE"
)


def shipped(name: str) -> Tensors:
    """The tensors of one of Enlarger's own parameter files, in the type they are stored in."""
    with as_file(files("enlarger.evaluation") / "data" / f"{name}.safetensors") as path:
        return load_file(path)


def _opened(path: Path) -> Tensors:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {VGG_REMEDY}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(f"{path}: holds more than tensors, or is no checkpoint; {VGG_REMEDY}") from error
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}); {VGG_REMEDY}") from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{path}: holds no named tensors; {VGG_REMEDY}")
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}


def open_vgg(paths: Sequence[Path]) -> Tensors:
    """All 13 convolutions of VGG16, float32, keys `features.N.weight` and `features.N.bias`.

    Args:
        paths: one file or several that together hold them; further tensors (the classifier) are ignored.

    Raises:
        ModelError: a file that cannot be read, or anything missing or of another shape (all of it is named).
    """
    found: Tensors = {}
    for path in paths:
        found |= _opened(path)
    wrong = []
    wanted: Tensors = {}
    for index, (inputs, outputs) in VGG_CONVOLUTIONS.items():
        for kind, shape in (("weight", (outputs, inputs, 3, 3)), ("bias", (outputs,))):
            key = f"features.{index}.{kind}"
            tensor = found.get(key)
            if tensor is None:
                wrong.append(f"{key} is missing")
            elif tuple(tensor.shape) != shape:
                wrong.append(f"{key} is {tuple(tensor.shape)}, not {shape}")
            else:
                wanted[key] = tensor.float()
    if wrong:
        names = ", ".join(str(path) for path in paths)
        shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise ModelError(f"{names}: not the whole of VGG16: {shown}; {VGG_REMEDY}")
    return wanted
