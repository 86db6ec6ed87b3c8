"""An enlarged picture, as the Python interface gives it and as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from enlarger.picture.colour import quantise
from enlarger.size import Size

if TYPE_CHECKING:
    from PIL.Image import Image

    from enlarger.picture.picture import Picture


@dataclass(frozen=True, eq=False)
class Result:
    """An enlarged picture and how it was made.

    Attributes:
        pixels: (H, W, C), C = 1 (grey) or 3; uint8, uint16 or float32 as the input's depth was.
        alpha: (H, W) in the same type, or None.
        source: What was read; its metadata goes into the written file.
        origin: The file it was read from, which is never written over; None for arrays and bytes.
        engine: Name of the engine.
        model: Name of the model; "" for none.
        digest: First digits of the model's SHA-256; "" for none.
        settings: All settings, as `to_json` gives them.
        seed: The seed, None for engines without noise.
        seconds: From reading to the finished pixels.
        warnings: What reading and enlarging had to tell.
        remarks: What the record must admit of how it was made, such as an approximation.
    """

    pixels: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any] | None
    source: Picture
    origin: str | Path | None
    engine: str
    model: str
    digest: str
    settings: Mapping[str, Any]
    seed: int | None
    seconds: float
    warnings: tuple[str, ...] = field(default=())
    remarks: tuple[str, ...] = field(default=())

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return Size(*self.pixels.shape[:2])

    @property
    def image(self) -> Image:
        """The result as a PIL picture, 8 bits a channel (Pillow has no 16-bit colour)."""
        from PIL import Image as pil

        def eight(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return samples if samples.dtype == np.uint8 else quantise((samples / _full(samples)).astype(np.float32), 8)

        planes = [eight(self.pixels)] + ([eight(self.alpha)[..., None]] if self.alpha is not None else [])
        joined = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
        return pil.fromarray(joined[..., 0] if joined.shape[2] == 1 else joined)

    def record(self) -> dict[str, Any]:
        """The recipe that is written into the picture: no paths, no names of people."""
        from enlarger import __version__

        return {
            "version": __version__,
            "engine": self.engine,
            "model": self.model,
            "digest": self.digest,
            # How many tiles went through the network at once is no part of the recipe: it changes nothing.
            "settings": {name: value for name, value in self.settings.items() if name != "batch"},
            **({"remarks": list(self.remarks)} if self.remarks else {}),
        }

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        format: str | None = None,
        quality: int | None = None,
        strip: Literal["none", "private", "all"] = "none",
    ) -> Path:
        """Write the picture with its profile, metadata and recipe; the file appears whole or not at all.

        Args:
            path: Where to; the extension says the format unless `format` does.
            overwrite: Whether an existing file may be replaced.
            format: png, jpeg, webp, tiff and others.
            quality: 1..100 for the formats that lose.
            strip: Leave out nothing, what is private (position, serial numbers, owners), or all metadata
                and the recipe.

        Returns:
            Where it was written.

        Raises:
            OutputError: It cannot be written there, or not in that format.
        """
        from enlarger.picture.write import check_output, write

        plan = check_output(
            path,
            format=format,
            size=self.size,
            depth=self.source.depth,
            alpha=self.alpha is not None,
            overwrite=overwrite,
            inputs=() if self.origin is None else (self.origin,),
            picture=self.source,
            strip=strip,
            quality=quality,
        )
        return write(plan, self.pixels, self.alpha, self.source, record=self.record(), quality=quality, strip=strip)


def _full(samples: np.ndarray[Any, Any]) -> float:
    """The value that stands for 1."""
    return float(np.iinfo(samples.dtype).max) if samples.dtype.kind == "u" else 1.0
