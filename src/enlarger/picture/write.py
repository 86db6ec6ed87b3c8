"""Writing: what can be known before the work is checked by `check_output`; `write` then leaves a whole file or none.

    plan = check_output("out.png", size=(4000, 6000), depth=picture.depth, inputs=["in.png"], picture=picture)
    write(plan, pixels, alpha, picture, record={...})

`pixels` are sRGB, floats or integers; `write` brings them into the plan's profile and depth. Who has them band by band
can call `plan.finish` for each and say `finished=True`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from enlarger.errors import EnlargerError, Interrupted, OutputError, SettingsError
from enlarger.picture import exif, formats, netpbm, png, profile, recipe, tiff, xmp
from enlarger.picture.colour import Floats, quantise, to_float
from enlarger.picture.picture import Metadata, Picture
from enlarger.picture.read import MAX_PIXELS, load, shown
from enlarger.picture.resize import resize_rows, rows_needed
from enlarger.picture.sniff import EXTENSIONS, sniff

Strip = Literal["none", "private", "all"]
_counter = itertools.count()
_BAND = 1 << 20  # pixels finished at a time
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        convert = _profile_back(self.profile)
        if convert is None and pixels.dtype == _TYPES[self.depth] and pixels.dtype.kind == "u":
            return pixels
        result: NDArray[Any] = np.empty(pixels.shape, _TYPES[self.depth])
        for rows in _bands(pixels.shape):
            band = to_float(pixels[rows])
            if convert is not None:
                band = convert.from_srgb(band if excess is None else band + excess[rows])
            result[rows] = quantise(band, self.depth)
        return result


_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.float32)}


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _BAND // shape[1])
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def _profile_back(icc: bytes | None) -> profile.Profile | None:
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

    Raises:
        SettingsError: the name has no known ending, or contradicts the format.
        OutputError: it cannot be written there or in this format.
    """
    target = None if path is None else Path(path)
    chosen = _format(target, format)
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
        icc = _carried_profile(picture, chosen, warnings)
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
        raise OutputError(f"{name} cannot be written: {_reason(error)}; choose another place") from error


def _same(target: Path, source: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(target, source)
    except (OSError, ValueError, TypeError):
        return False


def _carried_profile(picture: Picture, format: str, warnings: list[str]) -> bytes | None:
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


def write(
    plan: OutputPlan,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None = None,
    picture: Picture | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    quality: int | None = None,
    strip: Strip = "none",
    finished: bool = False,
    stopped: Callable[[], bool] | None = None,
    sealed: Callable[[Path], None] | None = None,
) -> Path:
    """Writes the result: a whole file appears under its name, or none and no trace.

    Args:
        plan: From `check_output`.
        pixels: (H, W, 1 or 3) sRGB-encoded: float 0..1, uint8 or uint16; brought into the plan's profile and depth.
        alpha: (H, W) float 0..1, uint8 or uint16, or None.
        picture: The input, for what is carried over: metadata, profile, and the colours beyond sRGB.
        record: The recipe to store, or None.
        quality: 1..100 for JPEG, WebP (100 is lossless) and AVIF; None takes 95, 90 and 90.
        strip: Leave out nothing, what is private (position, serial numbers, names of owners), or all metadata and the
            recipe. The colour profile stays: without it the colours would be wrong.
        finished: The pixels come from `plan.finish` and are written as they are.
        stopped: Asked before every piece that goes to the disk; once it says True the file is given up.
        sealed: Told the temporary file's path once it is whole, just before it takes its name.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
        Interrupted: `stopped` said True.
    """
    if plan.path is None:
        raise ValueError("a plan without a path can only be encoded")
    with _appearing(plan.path, plan.overwrite, stopped, sealed) as stream:
        _encode(stream, plan, pixels, alpha, picture, record, quality, strip, finished)
    return plan.path


def encode(
    plan: OutputPlan,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None = None,
    picture: Picture | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    quality: int | None = None,
    strip: Strip = "none",
    finished: bool = False,
) -> bytes:
    """Gives the bytes that `write` would put into the file."""
    stream = io.BytesIO()
    _encode(stream, plan, pixels, alpha, picture, record, quality, strip, finished)
    return stream.getvalue()


def _encode(
    stream: BinaryIO,
    plan: OutputPlan,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None,
    picture: Picture | None,
    record: Mapping[str, Any] | None,
    quality: int | None,
    strip: Strip,
    finished: bool,
) -> None:
    if pixels.shape[:2] != plan.size or (alpha is not None and alpha.shape != plan.size):
        raise ValueError(f"the plan is for {plan.size}, the pixels are {pixels.shape[:2]}")
    if quality is not None and not 1 <= quality <= 100:
        raise SettingsError(f"quality {quality} is outside 1..100")
    if picture is not None and not plan.knows_picture:
        plan = replace(plan, profile=_carried_profile(picture, plan.format, []))
    held = formats.CAPACITIES[plan.format]
    if pixels.shape[2] == 3 and plan.profile and profile.colour_space(plan.profile) == "GRAY":
        plan = replace(plan, profile=profile.srgb_profile())  # a grey input that became coloured
    if not finished:
        pixels = _finish(plan, pixels, picture)
    if alpha is not None:
        alpha = quantise(to_float(alpha), plan.depth) if alpha.dtype != _TYPES[plan.depth] else alpha
        if not plan.alpha:
            pixels, alpha = _flatten(plan, pixels, alpha), None
    if pixels.shape[2] == 1 and not held.grey:
        pixels = np.repeat(pixels, 3, axis=2)
    metadata = _outgoing(plan, picture, record, strip)
    if plan.format == "PNG":
        png.write_png(stream, pixels, alpha, profile=plan.profile, metadata=metadata)
    elif plan.format == "TIFF":
        tiff.write_tiff(stream, pixels, alpha, profile=plan.profile, metadata=metadata)
    elif plan.format == "PPM":
        netpbm.write_ppm(stream, pixels)
    else:
        _encode_by_pillow(stream, plan, pixels, alpha, metadata, quality)


def _finish(plan: OutputPlan, pixels: NDArray[Any], picture: Picture | None) -> NDArray[Any]:
    """Finishes the whole, enlarging the colours beyond sRGB band by band where the input had any."""
    excess = picture.excess if picture is not None and _profile_back(plan.profile) is not None else None
    if excess is None or excess.shape[2] != pixels.shape[2]:
        return plan.finish(pixels)
    result: NDArray[Any] = np.empty(pixels.shape, _TYPES[plan.depth])
    height = excess.shape[0]
    for rows in _bands(pixels.shape):
        wanted = range(rows.start, rows.stop)
        needed = rows_needed(wanted, height, plan.size[0])
        window = excess[needed.start : needed.stop]
        result[rows] = plan.finish(pixels[rows], resize_rows(window, needed.start, wanted, height, plan.size))
    return result


def _flatten(plan: OutputPlan, pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Lays samples on the plan's background, band by band."""
    ground = np.array(plan.background, np.float32)
    if pixels.shape[2] == 1:
        ground = ground @ np.array(
            [0.299, 0.587, 0.114], np.float32
        )  # BT.601: a coloured ground under grey is its luma
    ground = _as_samples(plan, ground.reshape(-1))
    result = np.empty_like(pixels)
    for rows in _bands(pixels.shape):
        share = to_float(alpha[rows])[..., None]
        result[rows] = quantise(to_float(pixels[rows]) * share + ground * (1 - share), plan.depth)
    return result


def _as_samples(plan: OutputPlan, colour: Floats) -> Floats:
    """Gives an sRGB colour in the plan's profile, 0..1."""
    convert = _profile_back(plan.profile)
    return colour if convert is None else convert.from_srgb(colour.reshape(1, 1, -1)).reshape(-1)


def _outgoing(plan: OutputPlan, picture: Picture | None, record: Mapping[str, Any] | None, strip: Strip) -> Metadata:
    """Gives the metadata as they go into the file: sizes corrected, the recipe added, what has no place left out."""
    if strip == "all":
        return Metadata()
    held = formats.CAPACITIES[plan.format]
    before = picture.metadata if picture is not None else Metadata()
    height, width = plan.size
    found = exif.parse(before.exif) if before.exif else exif.Exif()
    body = xmp.normalise(before.xmp) if before.xmp else None
    text = [pair for pair in before.text if pair[0] != recipe.KEYWORD]
    if strip == "private":
        found = found.without_private()
        body = xmp.without_private(body) if body else None
        text = [pair for pair in text if pair[0].lower() not in ("author", "comment", "source")]
    found.set_size(width, height)
    body = xmp.resized(xmp.without_record(body), width, height) if body else None
    if record is not None:
        earlier = dict(text).get("parameters") or found.comment()
        line = recipe.parameters(record, plan.size, earlier if earlier and "Steps: " in earlier else None)
        body = xmp.with_source_type(body, recipe.source_type(record))
        if held.text:
            text = [pair for pair in text if pair[0] != "parameters"]
            text += [("parameters", line), (recipe.KEYWORD, recipe.to_json(record))]
        else:
            found.set_comment(line)
            body = xmp.with_record(body, recipe.to_json(record))
    if before.dpi and not before.dpi_is_ratio and plan.format in ("WEBP", "AVIF"):
        found.set_density(before.dpi)
    packed = None if found.empty() else found.to_bytes()
    packet = xmp.pack(body) if body else None
    if packet and record is not None and len(packet) > held.xmp_bytes:
        # Too long for the format with what the input had: the record goes before, and `check_output` has warned.
        own = xmp.with_source_type(None, recipe.source_type(record))
        packet = xmp.pack(own if held.text else xmp.with_record(own, recipe.to_json(record)))
    iptc = before.iptc if strip == "none" else None
    if packet is not None:
        # Edited as text: an odd packet (a ">" inside an attribute) may have broken, and then only ours is sure.
        try:
            xmp.normalise(packet)
        except ValueError:
            packet = None
    return Metadata(
        exif=packed if packed and held.exif and len(packed) <= held.exif_bytes else None,
        xmp=packet if packet and held.xmp and len(packet) <= held.xmp_bytes else None,
        iptc=iptc if iptc and held.iptc and len(iptc) <= held.iptc_bytes else None,
        dpi=before.dpi if held.dpi else None,
        dpi_is_ratio=before.dpi_is_ratio,
        text=tuple(text) if held.text else (),
    )


def _encode_by_pillow(
    stream: BinaryIO,
    plan: OutputPlan,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None,
    metadata: Metadata,
    quality: int | None,
) -> None:
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    pixels = np.ascontiguousarray(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, Any] = {}
    if plan.profile:
        options["icc_profile"] = plan.profile
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + metadata.exif
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.dpi and plan.format in ("JPEG", "BMP"):
        options["dpi"] = tuple(min(65535, max(1, round(value))) for value in metadata.dpi)
    elif plan.format == "BMP":
        options["dpi"] = (0, 0)  # nothing said; Pillow would say 96
    if plan.format == "JPEG":
        chosen = 95 if quality is None else quality
        # Not optimised or progressive: for these Pillow guesses a buffer for the whole file and fails where noise needs
        # more.
        options |= {"quality": chosen, "subsampling": 0 if chosen >= 90 else 2}
        if metadata.iptc:
            options["extra"] = _photoshop_segment(metadata.iptc)
    elif plan.format == "WEBP":
        chosen = 90 if quality is None else quality
        options |= {"quality": chosen, "lossless": chosen == 100, "exact": True, "use_sharp_yuv": chosen >= 90}
    elif plan.format == "AVIF":
        chosen = 90 if quality is None else quality
        options |= {"quality": chosen, "subsampling": "4:4:4" if chosen >= 90 else "4:2:0"}
    elif plan.format == "GIF" and image.mode == "RGB":
        image = image.quantize(256)
    elif plan.format == "TGA":
        options["compression"] = "tga_rle"
    image.save(cast(BinaryIO, _Written(stream)), plan.format, **options)


class _Written:
    """A stream without a file number: given one, Pillow writes in C and says "encoder error -2" of a full disk."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.seek, self.tell, self.flush = stream.write, stream.seek, stream.tell, stream.flush


def _photoshop_segment(iptc: bytes) -> bytes:
    """Gives the JPEG segment APP13 with one Photoshop resource, number 0x0404."""
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


class _Stoppable(io.FileIO):
    """A file that is given up when its writer is told to stop."""

    def __init__(self, descriptor: int, stopped: Callable[[], bool] | None) -> None:
        super().__init__(descriptor, "wb")
        self._stopped = stopped

    def write(self, data: Any, /) -> int:
        if self._stopped is not None and self._stopped():
            raise Interrupted("interrupted; nothing partial was left behind")
        return super().write(data)


@contextlib.contextmanager
def _appearing(
    path: Path,
    overwrite: bool,
    stopped: Callable[[], bool] | None = None,
    sealed: Callable[[Path], None] | None = None,
) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its name at the end, or goes on any error or interrupt."""
    part = path.with_name(f".{path.name[:40]}.enlarger-{os.getpid()}-{next(_counter)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written: {_reason(error)}; choose another place") from error
    try:
        with io.BufferedWriter(_Stoppable(descriptor, stopped)) as stream:
            yield stream
        if sealed is not None:
            sealed(part)
        _settle(part, path, overwrite)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, (EnlargerError, KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise _failure(path, error) from error


def _failure(path: Path, error: BaseException) -> BaseException:
    """Gives the error for what went wrong while writing; what is no fault of the disk is a bug and stays as it is."""
    if isinstance(error, OSError):
        if error.errno in _FULL:
            what = "the disk is full or a limit is reached; make room or choose another place"
            return OutputError(f"{shown(path)} cannot be written: {what}")
        return OutputError(f"{shown(path)} cannot be written: {_reason(error)}; choose another place")
    return error


def _reason(error: OSError) -> str:
    return (error.strerror or "the encoder failed").lower()


def _settle(part: Path, path: Path, overwrite: bool) -> None:
    """Gives the finished file its name; without `overwrite` never over a file that appeared meanwhile."""
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise OutputError(
            f"{shown(path)} has appeared meanwhile; choose another name or allow it with --overwrite"
        ) from error
    except OSError:  # a file system without hard links
        if path.exists():
            raise OutputError(
                f"{shown(path)} has appeared meanwhile; choose another name or allow it with --overwrite"
            ) from None
        os.replace(part, path)
        return
    part.unlink()


def stale_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Gives the temporary files in a folder whose process is gone (a kill -9), for the next run to remove."""
    stale = []
    for part in Path(folder).glob(".*.enlarger-*.part"):
        number = part.name.rsplit(".enlarger-", 1)[-1].split("-", 1)[0]
        if number.isdigit() and not _alive(int(number)):
            stale.append(part)
    return sorted(stale)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def read_record(source: str | os.PathLike[str] | bytes) -> dict[str, Any] | None:
    """Gives the recipe stored in an earlier result, or None when there is none.

    Raises:
        PictureError: the file is not a picture or is damaged.
    """
    name = "the picture" if isinstance(source, bytes) else shown(source)
    data = source if isinstance(source, bytes) else load(source, name, MAX_PIXELS * 16)
    format = sniff(data[:1024], len(data), name, data[-32:])
    if format == "PNG":
        text = dict(png.read_texts(data, name)).get(recipe.KEYWORD)
        return None if text is None else recipe.from_json(text)
    # Every other format that holds a record holds its XMP in one piece and unpacked, so no pixel need be decoded.
    start = data.find(b"<?xpacket begin")
    end = data.find(b"<?xpacket end", start)
    if start < 0 or end < 0:
        return None
    try:
        stored = xmp.record(xmp.normalise(data[start:end]))
    except ValueError:
        return None
    return recipe.from_json(stored) if stored else None
