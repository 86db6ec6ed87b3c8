"""Networks of other architectures (SwinIR, HAT, DAT, OmniSR, SPAN and more), built by the library spandrel.

spandrel is an extra. It is installed without what it declares, because that drags in torchvision, which breaks every
torch but its own; two of its forty architectures ask for three names of it, and these two are refused here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.errors import ModelError
from enlarger.networks.rrdb import unwrapped

REMEDY = 'pip install "enlarger[spandrel]" && pip install --no-deps spandrel'
"""How the extra is installed: pip cannot be told to leave out one dependency of another package."""

WITHOUT = ("LaMa", "RestoreFormer")
"""Architectures that would need torchvision."""

_VISION = "torchvision"
_BORROWED = {
    _VISION: (),
    f"{_VISION}.transforms": (),
    f"{_VISION}.transforms.functional": ("InterpolationMode", "rotate", "normalize"),
}
"""Modules and names that spandrel asks for while it is imported."""

_importing = threading.Lock()


class ForeignNet(nn.Module):
    """A network of any architecture, seen as what enlarges RGB in 0..1.

    Attributes:
        architecture: Its name.
        factor: Output pixels per input pixel.
        stride: Input pixels that the sides must be a multiple of.
        smallest: Input pixels that the sides must have at least.
        works_in_half: Whether it works in float16.
        dtypes: What it works in.
        whole: Whether it must be given the picture whole.
    """

    def __init__(self, descriptor: Any) -> None:
        """Take over what spandrel built."""
        super().__init__()
        self.network: nn.Module = descriptor.model.eval().requires_grad_(False)
        self._call = descriptor._call_fn  # public only in a form that clamps and asks for batches of one
        needs = descriptor.size_requirements
        self.architecture: str = descriptor.architecture.name
        self.factor: int = descriptor.scale
        self.stride: int = needs.multiple_of
        self.smallest: int = needs.minimum
        self.works_in_half: bool = descriptor.supports_half
        allowed = {torch.float16: self.works_in_half, torch.bfloat16: descriptor.supports_bfloat16}
        self.dtypes = {torch.float32, *(dtype for dtype, works in allowed.items() if works)}
        self.whole: bool = descriptor.tiling.name == "INTERNAL"

    def forward(self, source: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H * factor, W * factor), nominally 0..1; sides of any size."""
        height, width = source.shape[-2:]
        padded = _padded(source, self.stride, self.smallest)
        made: Tensor = self._call(self.network, padded)
        return made[..., : height * self.factor, : width * self.factor]


def build_foreign(checkpoint: Mapping[str, object], name: str) -> ForeignNet:
    """The network that a checkpoint holds, with its weights, float32, ready to evaluate.

    Args:
        checkpoint: tensors under their published names, wrapped or not.
        name: what errors call the model.

    Raises:
        ModelError: spandrel is missing or broken, the architecture is not known or of no use here, or its tensors
            do not fit.
    """
    tensors = unwrapped(checkpoint)
    spandrel = _spandrel(name)
    supports = spandrel.MAIN_REGISTRY.architectures("detection")
    with _quietly():
        found = next((one.architecture for one in supports if one.detect(tensors)), None)
        if found is None:
            keys = ", ".join(list(tensors)[:3]) or "none"
            raise ModelError(f"{name} is of no architecture that spandrel knows: its tensors are {keys}, ...")
        if str(found.id) in WITHOUT:
            raise ModelError(f"{name} is a {found.name} network, which cannot run without torchvision: choose another")
        try:
            descriptor = found.load(tensors)
        except Exception as error:  # whatever forty architectures raise for tensors that do not fit
            text = " ".join(str(error).split())[:160]
            raise ModelError(f"{name} looks like {found.name}, but does not fit it: {text}") from error
    purpose, inputs, outputs = descriptor.purpose, descriptor.input_channels, descriptor.output_channels
    if purpose not in ("SR", "Restoration") or descriptor.size_requirements.square:
        raise ModelError(f"{name} is a {found.name} network for {purpose}: it does not enlarge whole pictures")
    if (inputs, outputs) != (3, 3):
        raise ModelError(f"{name} takes {inputs} channels and gives {outputs}: engine gan needs networks for RGB")
    return ForeignNet(descriptor)


def _padded(source: Tensor, stride: int, smallest: int) -> Tensor:
    """Mirrored at the bottom and right, as often as needed, until the sides suit the network."""
    for axis in (-2, -1):
        length = source.shape[axis]
        wanted = -(-max(length, smallest) // stride) * stride
        if wanted > length:
            cells = torch.arange(wanted, device=source.device) % (2 * length)
            source = source.index_select(axis, torch.minimum(cells, 2 * length - 1 - cells))
    return source


def _spandrel(name: str) -> Any:
    """The library, imported without torchvision.

    Raises:
        ModelError: It is not installed, or cannot be imported.
    """
    if "spandrel" not in sys.modules and importlib.util.find_spec("spandrel") is None:
        raise ModelError(
            f"{name} is no network of the ESRGAN family; others need an extra that is not installed: {REMEDY}"
        )
    with _importing, _lent(), _quietly():
        try:
            return importlib.import_module("spandrel")
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            raise ModelError(f"spandrel cannot be imported ({type(error).__name__}: {text}): {REMEDY}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # architectures' remarks on torch's newer ways
        yield


@contextmanager
def _lent() -> Iterator[None]:
    """Stand-ins for the modules that spandrel asks for, where they are truly absent and only while it is imported."""
    if "spandrel" in sys.modules or _VISION in sys.modules or importlib.util.find_spec(_VISION) is not None:
        yield
        return
    try:
        for name, words in _BORROWED.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)  # whoever looks for it meanwhile finds a module like any other
            for word in words:
                setattr(module, word, None)
            sys.modules[name] = module
        yield
    finally:
        for name in _BORROWED:
            sys.modules.pop(name, None)
