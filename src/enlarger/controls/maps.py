"""The models of a user that make control maps, each told by what its folder says that it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enlarger.controls.depth import DepthModel
from enlarger.controls.folder import Folder, look_at
from enlarger.controls.people import PeopleFinder, PoseModel
from enlarger.controls.pose import Person
from enlarger.errors import ModelError

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MapModels:
    """What can be made of a picture (H, W, 3), 0..1, with the models that were named.

    Attributes:
        depth: How near it is, (H, W), 0..1; None without a model.
        pose: The people in it; None without a model.
        names: Name and digest of each model, for records.
    """

    depth: Callable[[Floats], Floats] | None = None
    pose: Callable[[Floats], list[Person]] | None = None
    names: tuple[tuple[str, str], ...] = ()


def open_models(folders: Sequence[str], device: torch.device) -> MapModels:
    """Open the models of some folders.

    Raises:
        ModelError: No such folder, no such model, two for the same, or a detector for nothing.
    """
    found: dict[str, Folder] = {}
    for name in folders:
        folder = look_at(name)
        if folder.kind in found:
            raise ModelError(
                f"{found[folder.kind].name} and {folder.name} are both for {folder.kind}: name one with --map-model"
            )
        found[folder.kind] = folder
    if "people" in found and "pose" not in found:
        raise ModelError(
            f"{found['people'].name} finds people for a pose model, and none is named: name its folder with "
            "--map-model, too"
        )
    finder = PeopleFinder(found["people"], device) if "people" in found else None
    return MapModels(
        DepthModel(found["depth"], device) if "depth" in found else None,
        PoseModel(found["pose"], device, finder) if "pose" in found else None,
        tuple((folder.name, folder.digest) for folder in found.values()),
    )
