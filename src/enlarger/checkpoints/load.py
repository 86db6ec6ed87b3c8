"""Put weights into a module: the whole inventory is compared first and everything wrong is told at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from enlarger.checkpoints.tensors import LazyTensor

SHIPPED = Path(__file__).parent / "shipped"
"""Models that are part of the package."""

SHOWN = 2
"""Names listed for each kind of fault; the rest is counted."""

RESIZED = 4
"""One tensor in so many with another shape than expected: then it is another size of network, and no damage."""


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
    _refuse(faults, f"{name} does not fit {type(module).__name__}", "fetch it again")
    module.load_state_dict({key: value.to(wanted[key].dtype) for key, value in weights.items()})


def assign(
    module: nn.Module,
    tensors: Mapping[str, LazyTensor],
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    remedy: str = "fetch it again",
) -> None:
    """Make lazily read tensors the parameters of a module that was built without memory.

    Args:
        module: On the meta device. Names that start with `text_model.` there are found without it too.
        tensors: Exactly the module's inventory.
        name: The model's name, for errors.
        dtype: Kind of number of its parameters; buffers of whole numbers keep theirs.
        device: Where they go.
        remedy: What to do when the inventory is another.

    Raises:
        ModelError: Missing, unexpected or wrongly shaped tensors, before anything is read; then those with
            numbers that are not finite. All are named together.
    """
    import torch

    wanted = {key.removeprefix("text_model."): key for key in module.state_dict()}
    places = module.state_dict()
    misshapen = [
        f"{key} ({_sides(tensors[key].shape)}, not {_sides(places[place].shape)})"
        for key, place in wanted.items()
        if key in tensors and tensors[key].shape != tuple(places[place].shape)
    ]
    if RESIZED * len(misshapen) > len(wanted):
        told = (
            f"{len(misshapen)} of its {len(tensors)} tensors have other shapes, such as {' and '.join(misshapen[:2])}"
        )
        raise ModelError(f"{name} is of another size than its configuration: {told}; {remedy}")
    faults = {
        "missing": [key for key in wanted if key not in tensors],
        "unexpected": [key for key in tensors if key not in wanted],
        "of the wrong shape": misshapen,
    }
    _refuse(faults, f"{name} does not fit {type(module).__name__}", remedy)
    read: dict[str, Tensor] = {}
    broken: list[str] = []
    outside: list[str] = []
    zeros: list[str] = []
    for key, place in wanted.items():
        lazy = tensors[key]
        value = lazy.load(dtype if lazy.dtype.is_floating_point else None)
        low, high = _range(value)
        if not (math.isfinite(low) and math.isfinite(high)):
            inside = all(map(math.isfinite, _range(lazy.read())))
            (outside if inside else broken).append(key)
        if low == high == 0 and value.ndim > 1:
            zeros.append(key)
        read[place] = value.to(device)
    _refuse({"not finite": broken}, f"{name} is damaged", "fetch it again")
    kind = str(dtype).removeprefix("torch.")
    _refuse({f"too large for {kind}": outside}, f"{name} cannot be {kind}", "use --dtype float32 or bfloat16")
    if len(zeros) > sum(value.ndim > 1 for value in read.values()) / 2:
        _refuse({"nothing but zeros": zeros}, f"{name} is incomplete", "fetch it again")
    module.load_state_dict(read, strict=True, assign=True)
    for key, buffer in module.named_buffers():
        if buffer.is_meta:  # what no file holds: the numbers of the positions, 0, 1, 2, ...
            assert key.endswith("position_ids"), key
            owner = module.get_submodule(key.rpartition(".")[0])
            owner.register_buffer(
                "position_ids", torch.arange(buffer.shape[-1], device=device).expand(1, -1), persistent=False
            )


def _refuse(faults: Mapping[str, list[str]], what: str, remedy: str) -> None:
    found = {kind: names for kind, names in faults.items() if names}
    if found:
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in found.items())
        raise ModelError(f"{what}: {listed}; {remedy}")


def _sides(shape: Sequence[int]) -> str:
    """A shape as people write it: 320x4x3x3; of a single number: 1."""
    return "x".join(map(str, shape)) or "1"


def _range(value: Tensor) -> tuple[float, float]:
    """The least and the largest number, not finite where any is not; no mask of the tensor's size is made."""
    if not value.is_floating_point() or not value.numel():
        return 0.0, 1.0
    low, high = value.aminmax() if value.itemsize > 1 else value.float().aminmax()
    return float(low), float(high)


def _finite(value: Tensor) -> bool:
    return all(map(math.isfinite, _range(value)))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
