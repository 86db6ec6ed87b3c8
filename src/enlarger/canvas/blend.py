"""Planes and their crops; blending overlapping tiles."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from enlarger.canvas.tiles import Tile

Record = TypeVar("Record")


@dataclass(frozen=True)
class Plane:
    """A tensor that lies on the picture.

    Attributes:
        tensor: (B, C, H, W).
        ratio: Its cells per cell of the state that tiles are planned on: 8 for a hint in pixels beside an
            f=8 latent, 1 for x4's low-res picture beside its latent.
    """

    tensor: Tensor
    ratio: int = 1


def crop(record: Record, tiles: Sequence[Tile]) -> Record:
    """A conditioning record for a batch of tiles of one size.

    Args:
        record: A frozen dataclass; its `Plane` fields are cut, all others pass unchanged.
        tiles: In cells of the state; all of one size.

    Returns:
        The same type; planes hold one item for each tile, (len(tiles), C, height * ratio, width * ratio).
    """
    import torch

    changes: dict[str, Any] = {}
    for item in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, item.name)
        if isinstance(value, Plane):
            cut = [tile.times(value.ratio) for tile in tiles]
            parts = [value.tensor[:, :, tile.top : tile.bottom, tile.left : tile.right] for tile in cut]
            changes[item.name] = Plane(torch.cat(parts), value.ratio)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]
