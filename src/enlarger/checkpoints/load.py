"""Put weights into a module: the whole inventory is compared first and everything wrong is told at once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from enlarger.checkpoints.tensors import LazyTensor

SHIPPED = Path(__file__).parent / "shipped"
"""Models that are part of the package."""

SHOWN = 5
"""Names listed for each kind of fault; the rest is counted."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped.

    Raises:
        ModelError: No such file, or not a complete safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"no model file {path.name} in {path.parent}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path.name} is not a complete safetensors file: {error}") from error


def digest(path: Path) -> str:
    """First 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fill(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy weights into a module, in the module's own dtype.

    Args:
        module: Where they go.
        weights: Name -> tensor; must be exactly the module's inventory.
        name: The model's name, for errors.

    Raises:
        ModelError: Missing, unexpected, wrongly shaped or non-finite tensors, all named together.
    """
    wanted = module.state_dict()
    faults = {
        "missing": [key for key in wanted if key not in weights],
        "unexpected": [key for key in weights if key not in wanted],
        "of the wrong shape": [
            f"{key} ({tuple(weights[key].shape)}, not {tuple(wanted[key].shape)})"
            for key in wanted
            if key in weights and weights[key].shape != wanted[key].shape
        ],
        "not finite": [key for key, value in weights.items() if not _finite(value)],
    }
    _refuse(faults, name, module)
    module.load_state_dict({key: value.to(wanted[key].dtype) for key, value in weights.items()})


def assign(
    module: nn.Module, tensors: Mapping[str, LazyTensor], name: str, *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Make lazily read tensors the parameters of a module that was built without memory.

    Args:
        module: On the meta device. Names that start with `text_model.` there are found without it too.
        tensors: Exactly the module's inventory.
        name: The model's name, for errors.
        dtype: Kind of number of its parameters; buffers of whole numbers keep theirs.
        device: Where they go.

    Raises:
        ModelError: Missing, unexpected or wrongly shaped tensors, before anything is read; then those with
            numbers that are not finite. All are named together.
    """
    import torch

    wanted = {key.removeprefix("text_model."): key for key in module.state_dict()}
    places = module.state_dict()
    faults = {
        "missing": [key for key in wanted if key not in tensors],
        "unexpected": [key for key in tensors if key not in wanted],
        "of the wrong shape": [
            f"{key} ({tensors[key].shape}, not {tuple(places[place].shape)})"
            for key, place in wanted.items()
            if key in tensors and tensors[key].shape != tuple(places[place].shape)
        ],
    }
    _refuse(faults, name, module)
    read: dict[str, Tensor] = {}
    faults = {"not finite": [], f"too large for {str(dtype).removeprefix('torch.')}": []}
    for key, place in wanted.items():
        lazy = tensors[key]
        value = lazy.load(dtype if lazy.dtype.is_floating_point else None)
        if not _finite(value):
            before = _finite(lazy.read())
            faults[list(faults)[1 if before else 0]].append(key)
        read[place] = value.to(device)
    _refuse(faults, name, module)
    module.load_state_dict(read, strict=True, assign=True)
    for key, buffer in module.named_buffers():
        if buffer.is_meta:  # what no file holds: the numbers of the positions, 0, 1, 2, ...
            assert key.endswith("position_ids"), key
            owner = module.get_submodule(key.rpartition(".")[0])
            owner.register_buffer(
                "position_ids", torch.arange(buffer.shape[-1], device=device).expand(1, -1), persistent=False
            )


def _refuse(faults: Mapping[str, list[str]], name: str, module: nn.Module) -> None:
    found = {kind: names for kind, names in faults.items() if names}
    if found:
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in found.items())
        raise ModelError(f"{name} does not fit {type(module).__name__}: {listed}")


def _finite(value: Tensor) -> bool:
    """Whether all numbers are finite; two numbers are made of each tensor, not a mask of its size."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = value.aminmax() if value.itemsize > 1 else value.float().aminmax()
    return bool(low.isfinite() and high.isfinite())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
