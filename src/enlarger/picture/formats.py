"""What each output format can hold: the one table that decides, before the work, what is kept, converted or refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from enlarger.errors import SettingsError
from enlarger.picture.sniff import EXTENSIONS

Fate = Literal["keep", "convert", "refuse"]


@dataclass(frozen=True)
class Capacity:
    """What one format holds. What is not held is dropped or converted with a warning; only size is refused."""

    depths: tuple[int, ...] = (8,)
    """Bits a sample; 32 means float."""
    grey: bool = True
    alpha: bool = False
    profile: bool = False
    exif: bool = False
    xmp: bool = False
    iptc: bool = False
    dpi: bool = False
    """Held by the format itself or, in WebP and AVIF, inside EXIF."""
    text: bool = False
    side: int = 2**31 - 1
    """Longest side in pixels."""
    exif_bytes: int = 2**31 - 1
    xmp_bytes: int = 2**31 - 1
    iptc_bytes: int = 2**31 - 1
    colours: int | None = None
    """Most different colours, None for all."""
    total_bytes: int | None = None
    """Most bytes of samples that its own fields can count."""

    @property
    def recipe(self) -> bool:
        """Whether settings can be stored in it."""
        return self.text or self.exif or self.xmp


# JPEG: 65,533 bytes a segment less its signature (Exif, XMP, Photoshop and resource header); libjpeg's 65,500 pixels.
CAPACITIES: dict[str, Capacity] = {
    "PNG": Capacity((8, 16), alpha=True, profile=True, exif=True, xmp=True, dpi=True, text=True),
    "JPEG": Capacity(
        profile=True,
        exif=True,
        xmp=True,
        iptc=True,
        dpi=True,
        side=65_500,
        exif_bytes=65_527,
        xmp_bytes=65_504,
        iptc_bytes=65_000,
    ),
    "WEBP": Capacity(grey=False, alpha=True, profile=True, exif=True, xmp=True, dpi=True, side=16_383),
    "TIFF": Capacity((8, 16, 32), alpha=True, profile=True, exif=True, xmp=True, iptc=True, dpi=True),
    "AVIF": Capacity(grey=False, alpha=True, profile=True, exif=True, xmp=True, dpi=True, side=65_535),
    "BMP": Capacity(dpi=True, total_bytes=2**32 - 1024),
    "GIF": Capacity(grey=False, side=65_535, colours=256),
    "PPM": Capacity((8, 16, 32)),
    "QOI": Capacity(grey=False, alpha=True),
    "TGA": Capacity(alpha=True, side=65_535),
}
"""Every format that can be written. GIF's transparency is on or off, which loses the soft edge: counted as not held."""

HAS_QUALITY = frozenset({"JPEG", "WEBP", "AVIF"})
"""Formats that lose, and can be told how much."""

FIELDS = (
    "8 bit",
    "16 bit",
    "float",
    "grey",
    "alpha",
    "profile",
    "exif",
    "xmp",
    "iptc",
    "dpi",
    "text",
    "recipe",
    "size",
    "colours",
)


def fate(format: str, field: str) -> Fate:
    """Gives what happens to a field of a picture written as `format`; "size" is about sides beyond the limit."""
    held = CAPACITIES[format]
    if field == "size":
        return "keep" if held.side >= 2**31 - 1 and held.total_bytes is None else "refuse"
    depths = {"8 bit": 8, "16 bit": 16, "float": 32}
    if field in depths:
        return "keep" if depths[field] in held.depths or (field == "8 bit") else "convert"
    if field == "colours":
        return "keep" if held.colours is None else "convert"
    return "keep" if getattr(held, field) else "convert"


def depth_for(format: str, depth: int) -> int:
    """Gives the depth that a picture of `depth` bits gets: the same, else the most that the format has below it."""
    depths = CAPACITIES[format].depths
    return depth if depth in depths else max(d for d in depths if d <= max(depth, 8))


def format_of(name: str) -> str | None:
    """Gives the format that a file name's ending means, or None."""
    ending = name.rsplit(".", 1)[-1].lower() if "." in name.rsplit("/", 1)[-1] else ""
    return next((format for format, endings in EXTENSIONS.items() if ending in endings), None)


def named(word: str) -> str | None:
    """Gives the format that a user's word ("jpg", "PNG", ".tif") means, or None."""
    ending = word.strip().lower().removeprefix(".")
    return next(
        (format for format, endings in EXTENSIONS.items() if ending in endings or ending == format.lower()), None
    )


def check_quality(formats: Iterable[str | None]) -> None:
    """Refuse a quality that none of the results can have.

    Args:
        formats: Of the results; None for one that is not known yet.

    Raises:
        SettingsError: All results are in formats that lose nothing.
    """
    found = set(formats)
    if found and not found & (HAS_QUALITY | {None}):
        raise SettingsError(
            f"--quality is for {', '.join(sorted(HAS_QUALITY))}: {', '.join(sorted(map(str, found)))} loses nothing; "
            "leave it out or choose another --format"
        )
