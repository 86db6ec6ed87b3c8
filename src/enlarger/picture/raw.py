"""What a format's reader hands on: the samples as the file holds them, before colour, orientation and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from enlarger.errors import PictureError


@dataclass
class Raw:
    """Decoded samples and what stood beside them."""

    samples: NDArray[Any]
    """(H, W, 1 or 3) uint8, uint16 or float32."""
    alpha: NDArray[Any] | None = None
    """(H, W) of the same type, not premultiplied."""
    format: str | None = None
    depth: int = 8
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    dpi_is_ratio: bool = False
    text: tuple[tuple[str, str], ...] = ()
    orientation: int | None = None
    """1..8 where the format itself says it (TIFF); None leaves it to EXIF and XMP."""
    turned: bool = False
    """Whether the decoder has applied the orientation already (AVIF, HEIC): what EXIF says is then history."""
    frames: int = 1
    gamma: float | None = None
    """PNG's gAMA: encoded value = light ** gamma."""
    primaries: tuple[float, ...] | None = None
    """PNG's cHRM: x and y of white, red, green, blue."""
    cicp: tuple[int, ...] | None = None
    converted: bool = False
    """Whether the samples were brought to sRGB by the reader (CMYK, Lab): the result is labelled sRGB."""
    warnings: list[str] = field(default_factory=list)


def check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    """Refuses a picture that its header declares larger than the limit."""
    if width * height > max_pixels:
        raise PictureError(
            f"{name} declares {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; raise it with --max-pixels if you trust the file",
            "too_large",
        )
