"""Put weights into a module: the whole inventory is compared first and everything wrong is told at once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

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
    found = {kind: names for kind, names in faults.items() if names}
    if found:
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in found.items())
        raise ModelError(f"{name} does not fit {type(module).__name__}: {listed}")
    module.load_state_dict({key: value.to(wanted[key].dtype) for key, value in weights.items()})


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
