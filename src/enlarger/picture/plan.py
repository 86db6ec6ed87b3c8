"""What will be written, decided before the work: the place, the format, and what becomes of every field."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import OutputError, SettingsError
from enlarger.picture import formats, profile
from enlarger.picture.atomic import reason
from enlarger.picture.colour import Floats, quantise, to_float
from enlarger.picture.picture import Metadata, Picture
from enlarger.picture.read import shown
from enlarger.picture.sniff import EXTENSIONS

Strip = Literal["none", "private", "all"]
_BAND = 1 << 20  # pixels finished at a time


@dataclass(frozen=True)
class OutputPlan:
    """What will be written, decided before the work."""

    path: Path | None
    """None: only `encode`, for standard output."""
    format: str
    size: tuple[int, int]
    """(height, width) in pixels."""
    depth: int
    """Bits a sample of the file: 8, 16, or 32 for float."""
    alpha: bool
    """Whether the file holds alpha; without, `write` lays the picture on `background`."""
    profile: bytes | None = None
    """The ICC profile that is embedded and that the colours are converted into; None: sRGB, unlabelled."""
    overwrite: bool = False
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """sRGB-encoded, 0..1."""
    knows_picture: bool = False
    """Whether the input was given to `check_output`; if not, `write` still carries its profile over."""
    warnings: tuple[str, ...] = ()

    def finish(self, pixels: NDArray[Any], excess: Floats | None = None) -> NDArray[Any]:
        """Turns sRGB pixels into the file's samples; bands of rows may be finished one by one.

        Args:
            pixels: (h, W, 1 or 3) sRGB-encoded: float 0..1, or uint8 or uint16.
            excess: (h, W, C) `Picture.excess` of the same rows, enlarged, or None; it matters only under a profile.

        Returns:
            (h, W, C) uint8, uint16 or float32, in the plan's profile. Pixels that are so already come back as they are.
        """
        convert = profile_back(self.profile)
        if convert is None and pixels.dtype == TYPES[self.depth] and pixels.dtype.kind == "u":
            return pixels
        result: NDArray[Any] = np.empty(pixels.shape, TYPES[self.depth])
        for rows in bands(pixels.shape):
            band = to_float(pixels[rows])
            if convert is not None:
                band = convert.from_srgb(band if excess is None else band + excess[rows])
            result[rows] = quantise(band, self.depth)
        return result


TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.float32)}


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Gives the rows of a picture a million pixels at a time."""
    step = max(1, _BAND // shape[1])
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def profile_back(icc: bytes | None) -> profile.Profile | None:
    """Gives the profile to convert sRGB into, or None when there is nothing to convert."""
    if icc is None:
        return None
    parsed = profile.parse(icc)
    return None if parsed is None or parsed.is_srgb else parsed


def check_output(
    path: str | os.PathLike[str] | None,
    *,
    format: str | None = None,
    size: tuple[int, int],
    depth: int = 8,
    alpha: bool = False,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    picture: Picture | None = None,
    recorded: bool = True,
    strip: Strip = "none",
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    quality: int | None = None,
) -> OutputPlan:
    """Decides, before the work, whether and how a result can be written.

    Args:
        path: Where to; None for standard output, which needs `format`.
        format: "png", "jpg", ...; None takes it from the path's ending.
        size: (height, width) of the result in pixels.
        depth: Bits wanted: 8, 16 or 32.
        alpha: Whether the result has alpha.
        overwrite: Whether an existing file may be replaced.
        inputs: Files that must not be replaced even so.
        picture: The input, for what it carries: profile and metadata.
        recorded: Whether a recipe will be stored.
        strip: Which metadata will be left out; see `write`.
        background: What shows through where the format has no alpha.
        quality: Asked for, where the format must have one.

    Raises:
        SettingsError: the name has no known ending, or contradicts the format, or the format has no quality.
        OutputError: it cannot be written there or in this format.
    """
    target = None if path is None else Path(path)
    chosen = _format(target, format)
    if quality is not None:
        formats.check_quality([chosen])
    if target is not None:
        _check_place(target, overwrite, list(inputs))
    held = formats.CAPACITIES[chosen]
    height, width = size
    if max(size) > held.side:
        raise OutputError(
            f"{chosen} holds at most {held.side:,} pixels a side, not {width}x{height}; choose PNG or TIFF"
        )
    if held.total_bytes is not None and height * width * 4 > held.total_bytes:
        raise OutputError(f"{width}x{height} is more than {chosen} can hold; choose PNG or TIFF")
    warnings: list[str] = []
    final = formats.depth_for(chosen, depth)
    if final < depth:
        was = "floating point" if depth == 32 else f"{depth} bit"
        deep = "TIFF" if depth == 32 else "PNG or TIFF"
        warnings.append(f"reduced from {was} to {final} bit: {chosen} has no more; {deep} keeps it")
    if alpha and not held.alpha:
        warnings.append(f"transparency laid on a background: {chosen} has no alpha; PNG, WebP and TIFF keep it")
    grey = picture is not None and picture.grey
    if grey and not held.grey:
        warnings.append(f"grey written as RGB: {chosen} has no grey")
    if held.colours is not None:
        warnings.append(f"reduced to {held.colours} colours: {chosen} has no more; PNG keeps them all")
    icc = None
    if picture is not None:
        icc = carried_profile(picture, chosen, warnings)
        _warn_of_metadata(picture.metadata, chosen, strip, warnings)
    if recorded and strip != "all" and not held.recipe:
        warnings.append(f"the recipe is not stored: {chosen} has no place for it")
    if target is not None:
        _check_space(target, size, final, alpha and held.alpha, chosen, warnings)
    return OutputPlan(
        path=target,
        format=chosen,
        size=size,
        depth=final,
        alpha=alpha and held.alpha,
        profile=icc,
        overwrite=overwrite,
        background=background,
        knows_picture=picture is not None,
        warnings=tuple(warnings),
    )


def _format(target: Path | None, format: str | None) -> str:
    writable = ", ".join(sorted({EXTENSIONS[name][0] for name in formats.CAPACITIES}))
    wanted = None
    if format is not None:
        wanted = formats.named(format)
        if wanted not in formats.CAPACITIES:
            raise SettingsError(f"cannot write the format {format!r}; choose one of {writable}")
    if target is None:
        if wanted is None:
            raise SettingsError(f"standard output needs a format; choose one with --format: {writable}")
        return wanted
    by_name = formats.format_of(target.name)
    if by_name is None and wanted is None:
        ending = target.suffix
        what = f"the ending {ending}" if ending else "no ending"
        raise SettingsError(f"{shown(target)} has {what}, which names no format; use one of {writable}, or --format")
    if wanted is not None and by_name is not None and wanted != by_name:
        raise SettingsError(f"{shown(target)} ends as {by_name} but the format asked for is {wanted}; make them agree")
    chosen = wanted or by_name
    if chosen not in formats.CAPACITIES:
        raise SettingsError(f"{chosen} is read but not written; choose one of {writable}")
    return chosen


def _check_place(target: Path, overwrite: bool, inputs: list[str | os.PathLike[str]]) -> None:
    name = shown(target)
    if "\0" in str(target):
        raise OutputError(f"{name} is not a valid name; leave out the NUL")
    try:
        if len(os.fsencode(target.name)) > 255:
            raise OutputError(f"the name {shown(target.name[:40])}... is longer than 255 bytes; shorten it")
        folder = target.parent
        if not folder.exists():
            raise OutputError(f"the folder {shown(folder)} does not exist; create it first")
        if not folder.is_dir():
            raise OutputError(f"{shown(folder)} is not a folder; choose another place")
        if target.is_dir():
            raise OutputError(f"{name} is a folder; give a file name in it")
        for source in inputs:
            if _same(target, source):
                raise OutputError(f"{name} is the input itself; choose another name")
        if target.exists() or target.is_symlink():
            if not overwrite:
                raise OutputError(f"{name} exists; choose another name or allow it with --overwrite")
            if not target.is_file() and not target.is_symlink():
                raise OutputError(f"{name} is not a regular file; choose another name")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {shown(folder)} cannot be written to; choose another with -o")
    except OSError as error:
        raise OutputError(f"{name} cannot be written: {reason(error)}; choose another place") from error


def _same(target: Path, source: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(target, source)
    except (OSError, ValueError, TypeError):
        return False


def carried_profile(picture: Picture, format: str, warnings: list[str]) -> bytes | None:
    """Gives the profile that a result in `format` carries, and warns where it is another than the input's."""
    if picture.profile is None:
        return None
    if not formats.CAPACITIES[format].profile:
        warnings.append(f"colours converted to sRGB: {format} has no place for the input's colour profile")
        return None
    grey_profile = profile.colour_space(picture.profile) == "GRAY"
    if grey_profile and not formats.CAPACITIES[format].grey:
        warnings.append("colours converted to sRGB: the input's profile is for grey only")
        return profile.srgb_profile()
    return picture.profile


def _warn_of_metadata(metadata: Metadata, format: str, strip: Strip, warnings: list[str]) -> None:
    if strip == "all":
        return
    held = formats.CAPACITIES[format]
    fields: tuple[tuple[str, Any, bool, int], ...] = (
        ("EXIF", metadata.exif, held.exif, held.exif_bytes),
        ("XMP", metadata.xmp, held.xmp, held.xmp_bytes),
        ("IPTC", metadata.iptc, held.iptc, held.iptc_bytes),
        ("resolution", metadata.dpi, held.dpi, 0),
        ("texts", metadata.text, held.text, 0),
    )
    for name, value, kept, limit in fields:
        if value and not kept:
            warnings.append(f"{name} dropped: {format} has no place for it")
        elif isinstance(value, bytes) and len(value) > limit:
            warnings.append(f"{name} dropped: its {len(value):,} bytes are more than {format} holds")


def _check_space(
    target: Path, size: tuple[int, int], depth: int, alpha: bool, format: str, warnings: list[str]
) -> None:
    """Refuses when the disk is certainly too full, warns when it may be."""
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return
    plain = size[0] * size[1] * (4 if alpha else 3) * depth // 8
    # A flat picture packs 1000:1, so only what is not packed at all has a sure size.
    sure = size[0] * size[1] if format in ("BMP", "PPM") else plain // 2000
    if free <= sure:
        raise OutputError(
            f"{shown(target.parent)} has {free / 1e6:,.1f} MB free, too little for the result; make room first"
        )
    if free < plain // 2:
        warnings.append(f"{shown(target.parent)} has only {free / 1e6:,.1f} MB free for up to {plain / 1e6:,.1f} MB")
