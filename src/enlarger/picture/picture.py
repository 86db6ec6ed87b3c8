"""What a picture is once it has been read: float pixels and everything else its file said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels, corrected so that it may be written beside larger ones.

    The orientation is 1 (the pixels have been turned), thumbnails and maker notes are gone.
    """

    exif: bytes | None = None
    """EXIF as a TIFF structure, without the `Exif\\0\\0` of JPEG."""
    xmp: bytes | None = None
    """An XMP packet in UTF-8, well-formed."""
    iptc: bytes | None = None
    """IPTC-IIM records, without the Photoshop wrapper of JPEG."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch (horizontal, vertical); with `dpi_is_ratio` only their ratio has a meaning."""
    dpi_is_ratio: bool = False
    text: tuple[tuple[str, str], ...] = ()
    """Keyword and text of PNG's text chunks, in the order of the file."""

    def __bool__(self) -> bool:
        return bool(self.exif or self.xmp or self.iptc or self.dpi or self.text)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in the one form that the rest of Enlarger sees; see `read` for the ways to get one."""

    pixels: Floats
    """(H, W, C) float32, sRGB-encoded, 0..1; C is 1 (grey) or 3."""
    alpha: Floats | None = None
    """(H, W) float32, 0 transparent .. 1 opaque; the pixels are not premultiplied."""
    depth: int = 8
    """Bits of a sample in the file: 8, 16, or 32 for floating point."""
    format: str | None = None
    """"PNG", "JPEG", "WEBP", "TIFF", ...; None for arrays."""
    profile: bytes | None = None
    """The ICC profile the result should carry; None means sRGB, unlabelled as the input was."""
    metadata: Metadata = field(default_factory=Metadata)
    warnings: tuple[str, ...] = ()
    """What reading had to tell, one line each."""
    kind: str = "file"
    """What the user gave: "file", "bytes", "pil", "numpy" or "torch"."""
    excess: Floats | None = None
    """(H, W, C) float32: what clipping the colours to sRGB took away (wide-gamut profiles), to be enlarged and
    added before the colours go back into `profile`; None when nothing was clipped."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return int(self.pixels.shape[1])

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.height * self.width / 1e6

    @property
    def grey(self) -> bool:
        """Whether the file had one colour channel."""
        return int(self.pixels.shape[2]) == 1

    def rgb(self) -> Floats:
        """Gives the pixels as (H, W, 3), 0..1; grey is repeated (a read-only view, not a copy)."""
        import numpy as np

        return np.broadcast_to(self.pixels, (self.height, self.width, 3)) if self.grey else self.pixels

    def __repr__(self) -> str:
        what: list[Any] = [f"{self.width}x{self.height}", "grey" if self.grey else "RGB", f"{self.depth} bit"]
        what += ["alpha"] * (self.alpha is not None) + ["profile"] * (self.profile is not None)
        return f"Picture({', '.join(what)}, {self.format or self.kind})"
