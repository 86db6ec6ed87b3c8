"""Photographs in memory, and pairs of a sharp crop and its small version cut from them.

Everything random comes from the generator that is passed in, so a pair is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import PictureError
from enlarger.picture.degrade import degrade
from enlarger.picture.read import read_rgb

Pixels = npt.NDArray[np.uint8]

FACTOR = 4
MARGIN = 8
"""Sharp pixels around a crop that its small version's border needs (the kernel reaches 6 beyond)."""

SUFFIXES = {".webp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def read_picture(path: Path) -> Pixels:
    """Decode a picture to (H, W, 3) bytes.

    Raises:
        PictureError: It cannot be decoded.
    """
    try:
        return read_rgb(path)
    except PictureError as error:
        raise PictureError(f"{error}; remove it or name it in --hold-out", error.kind) from error


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


class Photos:
    """All photographs of a folder, decoded, with a smaller copy of the large ones for denser texture."""

    SMALLER = 0.6
    """Scale of the copy."""
    LARGE = 700_000
    """Pixels above which a picture gets a copy."""
    FLAT = 10.0
    """Standard deviation of green, of 255, below which a crop is mostly drawn again: skies teach little."""

    def __init__(self, folder: Path, hold_out: Collection[str] = (), smallest: int = 0) -> None:
        """Decode the photographs of `folder`.

        Args:
            folder: where they lie.
            hold_out: file names that training must not see.
            smallest: pictures with a side below this many pixels are left out.

        Raises:
            PictureError: One cannot be decoded, or none is left.
        """
        self.pictures: list[Pixels] = []
        self.names: list[str] = []
        weights: list[float] = []
        for path in pictures_in(folder):
            if path.name in hold_out:
                continue
            pixels = read_picture(path)
            height, width = pixels.shape[:2]
            if min(height, width) < smallest:
                continue
            self._add(path.name, pixels, 1.0, weights)
            sides = (int(width * self.SMALLER), int(height * self.SMALLER))
            if height * width > self.LARGE and min(sides) >= smallest:
                copy = Image.fromarray(pixels).resize(sides, Image.Resampling.LANCZOS)
                self._add(path.name, np.asarray(copy), 0.7, weights)
        if not self.pictures:
            raise PictureError(
                f"no picture of at least {smallest} pixels a side in {folder}; --photos needs larger ones", "missing"
            )
        self.chances: npt.NDArray[Any] = np.cumsum(weights) / np.sum(weights)

    def _add(self, name: str, pixels: Pixels, share: float, weights: list[float]) -> None:
        self.pictures.append(pixels)
        self.names.append(name)
        # By the square root of the area: large pictures hold more, but each picture is one subject.
        weights.append(share * float(np.sqrt(pixels.shape[0] * pixels.shape[1])))

    def crop(self, generator: np.random.Generator, side: int) -> Pixels:
        """Cut one square of `side` pixels at any place, in any of eight orientations, (side, side, 3)."""
        square = self.pictures[0]
        for _ in range(5):
            chosen = min(int(np.searchsorted(self.chances, generator.random())), len(self.pictures) - 1)
            picture = self.pictures[chosen]
            top = int(generator.integers(picture.shape[0] - side + 1))
            left = int(generator.integers(picture.shape[1] - side + 1))
            square = picture[top : top + side, left : left + side]
            if square[::3, ::3, 1].std() > self.FLAT or generator.random() < 0.08:
                break
        orientation = int(generator.integers(8))
        if orientation & 4:
            square = square.transpose(1, 0, 2)
        return square[:: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]

    def pairs(self, generator: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """Cut `count` pairs.

        Returns:
            The sharp crops (count, 3, side, side) and their small versions (count, 3, side / 4, side / 4) by MATLAB's
            bicubic, rounded to bytes; both in -1..1.
        """
        squares: Sequence[Pixels] = [self.crop(generator, side + 2 * MARGIN) for _ in range(count)]
        values = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float()
        cells = MARGIN // FACTOR
        # No border rule enters: the margin is real, and what it became is cut away.
        small = degrade(values / 255, "bicubic", [0] * count)[..., cells:-cells, cells:-cells]
        sharp = values[..., MARGIN:-MARGIN, MARGIN:-MARGIN].contiguous()
        return sharp / 127.5 - 1, small.contiguous() * 2 - 1
