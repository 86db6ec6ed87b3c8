"""Writing: what can be known before the work is checked by `check_output`; `write` then leaves a whole file or none.

    plan = check_output("out.png", size=(4000, 6000), depth=picture.depth, inputs=["in.png"], picture=picture)
    write(plan, pixels, alpha, picture, record={...})

`pixels` are sRGB, floats or integers; `write` brings them into the plan's profile and depth. Who has them band by band
can call `plan.finish` for each and say `finished=True`.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from enlarger.errors import SettingsError
from enlarger.picture import exif, formats, netpbm, png, profile, recipe, tiff, xmp
from enlarger.picture.atomic import appearing, stale_parts
from enlarger.picture.colour import Floats, quantise, to_float
from enlarger.picture.picture import Metadata, Picture
from enlarger.picture.plan import TYPES, OutputPlan, Strip, bands, carried_profile, check_output, profile_back
from enlarger.picture.read import MAX_PIXELS, load, shown
from enlarger.picture.resize import resize_rows, rows_needed
from enlarger.picture.sniff import sniff

__all__ = ["OutputPlan", "Strip", "check_output", "encode", "read_record", "stale_parts", "write"]


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
    with appearing(plan.path, plan.overwrite, stopped, sealed) as stream:
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
        plan = replace(plan, profile=carried_profile(picture, plan.format, []))
    held = formats.CAPACITIES[plan.format]
    if pixels.shape[2] == 3 and plan.profile and profile.colour_space(plan.profile) == "GRAY":
        plan = replace(plan, profile=profile.srgb_profile())  # a grey input that became coloured
    if not finished:
        pixels = _finish(plan, pixels, picture)
    if alpha is not None:
        alpha = quantise(to_float(alpha), plan.depth) if alpha.dtype != TYPES[plan.depth] else alpha
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
    excess = picture.excess if picture is not None and profile_back(plan.profile) is not None else None
    if excess is None or excess.shape[2] != pixels.shape[2]:
        return plan.finish(pixels)
    result: NDArray[Any] = np.empty(pixels.shape, TYPES[plan.depth])
    height = excess.shape[0]
    for rows in bands(pixels.shape):
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
    for rows in bands(pixels.shape):
        share = to_float(alpha[rows])[..., None]
        result[rows] = quantise(to_float(pixels[rows]) * share + ground * (1 - share), plan.depth)
    return result


def _as_samples(plan: OutputPlan, colour: Floats) -> Floats:
    """Gives an sRGB colour in the plan's profile, 0..1."""
    convert = profile_back(plan.profile)
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
