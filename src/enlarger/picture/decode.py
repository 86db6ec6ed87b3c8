"""What Pillow decodes well: JPEG, WebP, BMP, GIF, PPM, AVIF, QOI, TGA, HEIC by its extra, and Pillow's own images.

Readers are called by name, never found by trial: no other of Pillow's 45 readers (and no Ghostscript) is ever reached.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import MpoImagePlugin as MpoImagePlugin  # registers the second half of a JPEG's reader

from enlarger.errors import PictureError, SettingsError
from enlarger.picture import profile as profiles
from enlarger.picture.colour import lab_to_srgb
from enlarger.picture.raw import Raw, check_pixels
from enlarger.picture.sniff import unsupported
from enlarger.picture.suspicion import bmp_runs_are_broken, jpeg_scan_is_broken

# Pillow warns of what it finds odd in a file; what matters of that is told in `Picture.warnings`. A filter for each
# call would not do: `catch_warnings` is not safe while other threads read or compute.
# Appended, so that a filter of the user's own goes before.
warnings.filterwarnings("ignore", module=r"PIL\.\w+ImagePlugin$", append=True)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

_OPENERS: dict[str, Any] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "QOI": QoiImagePlugin.QoiImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# What is shorter than this has not even the fields that give its size.
_HEADER_BYTES = {"JPEG": 4, "WEBP": 30, "BMP": 26, "GIF": 13, "PPM": 7, "AVIF": 32, "QOI": 14, "TGA": 18, "TIFF": 8}
FROM_LAB = "Lab became sRGB: colours beyond it are cut"
FROM_CMYK_BY_PROFILE = "CMYK became sRGB by its colour profile, which the result does not carry"
FROM_CMYK = "CMYK without a colour profile became sRGB by the plain formula: colours are stronger than in print"
FROM_CMYK_DAMAGED = "CMYK became sRGB by the plain formula: its colour profile is damaged or not for CMYK"

_MAX_SCANS = 500  # a progressive JPEG has about 10; each costs a pass over all pixels (libjpeg-turbo's own fuzz limit)
_CUT = ("truncated", "not enough", "unexpected end", "end of file", "no more data", "could not create decoder", "eof")


def calmly(decoder: Callable[[], Raw]) -> Raw:
    """Runs a decoder; where the caller's filters make errors of Pillow's warnings, once more without them."""
    try:
        return decoder()
    except Warning:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoder()


def read_pillow(data: bytes, format: str, name: str, max_pixels: int, page: int = 1) -> Raw:
    """Decodes one page of a file by Pillow's reader for `format`; every failure becomes a PictureError."""
    if len(data) < _HEADER_BYTES[format]:
        raise PictureError(f"{name} is cut off: only {len(data)} bytes; copy or download it again", "truncated")
    if format == "AVIF":
        _require_boxes(data, name)
    if format == "GIF":  # Pillow allocates before it says the size
        width, height = struct.unpack_from("<HH", data, 6)
        check_pixels(name, width, height, max_pixels)
    try:
        image = _OPENERS[format](io.BytesIO(data), None)
    except Warning:
        raise
    except Exception as error:  # a reader may raise anything on damaged bytes
        raise failure(data, format, name, error) from error
    with image:
        check_pixels(name, image.width, image.height, max_pixels)
        try:
            frames = _frames(image)
            turn_to_page(image, page, frames, name)
            # Every block of 8 x 8 takes at least one bit; libjpeg would fill gigapixels of nothing with grey.
            if format == "JPEG" and 8 * len(data) < image.width * image.height // 64:
                raise EOFError
            if format == "JPEG" and _jpeg_scans(data) > _MAX_SCANS:
                raise PictureError(
                    f"{name} is damaged: it has more than {_MAX_SCANS} scans; export it again", "corrupt"
                )
            check_pixels(name, image.width, image.height, max_pixels)
            image.load()
            raw = from_image(image, name)
        except (PictureError, SettingsError, MemoryError, Warning):
            raise
        except Exception as error:
            raise failure(data, format, name, error) from error
    raw.format, raw.frames = format, frames
    if (format == "JPEG" and jpeg_scan_is_broken(data)) or (format == "BMP" and bmp_runs_are_broken(data)):
        raw.warnings.append("its pixel data are damaged; parts of the picture may be wrong")
    return raw


def read_heic(data: bytes, name: str, max_pixels: int, page: int = 1) -> Raw:
    """Decodes HEIC when pillow-heif is installed; it turns the picture itself."""
    try:
        heif: Any = importlib.import_module("pillow_heif")
    except ImportError as error:
        message = f'{name} is HEIC; install its reader with: pip install "enlarger[heif]", or convert it to PNG first'
        raise PictureError(message, "needs_extra") from error
    try:
        container = heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
        frames = len(container)
        if page > frames:
            raise no_page(name, page, frames)
        item = container[page - 1]
        check_pixels(name, item.size[0], item.size[1], max_pixels)
        image = item.to_pillow()
        raw = from_image(image, name)
    except (PictureError, SettingsError, MemoryError, Warning):
        raise
    except Exception as error:
        raise failure(data, "HEIC", name, error) from error
    raw.format, raw.frames, raw.turned = "HEIC", frames, True
    return raw


def no_page(name: str, page: int, frames: int) -> SettingsError:
    """Gives the error for a page that is not there."""
    there = "only page 1" if frames == 1 else f"pages 1 to {frames}"
    return SettingsError(f"{name} has no page {page}; it has {there}, choose one with --page")


def turn_to_page(image: Image.Image, page: int, frames: int, name: str) -> None:
    """Seeks to page 1, 2, ... of an opened image."""
    if page > frames:
        raise no_page(name, page, frames)
    if page > 1:
        image.seek(page - 1)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Warning:
        raise
    except Exception:  # a damaged later frame does not make the first unreadable
        return max(1, image.tell() + 1)


def from_image(image: Image.Image, name: str) -> Raw:
    """Takes a loaded Pillow image of any mode apart."""
    info = image.info
    icc = info.get("icc_profile")
    icc = icc if isinstance(icc, bytes) and len(icc) >= 128 else None  # shorter is not even a profile's header
    exif, xmp = info.get("exif"), info.get("xmp")
    raw = Raw(
        samples=np.zeros((0, 0, 1), np.uint8),
        icc=icc,
        exif=exif if isinstance(exif, bytes) and exif else None,
        xmp=xmp if isinstance(xmp, bytes) else xmp.encode() if isinstance(xmp, str) else None,
        dpi=_density(info.get("dpi")),
    )
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # Pillow says 72 where a file says nothing; EXIF's word is read apart.
        scale = {1: 1.0, 2: 2.54}.get(info.get("jfif_unit", 0))
        raw.dpi = _density([scale * value for value in info["jfif_density"]]) if scale else None
    photoshop = info.get("photoshop")
    if isinstance(photoshop, dict) and isinstance(photoshop.get(0x0404), bytes):
        raw.iptc = photoshop[0x0404]
    if any(marker == "APP11" and b"jumb" in body[:64] for marker, body in getattr(image, "applist", ())):
        raw.warnings.append("dropped the content credentials (C2PA): they are signed for the unchanged file")
    _take_samples(image, raw, name)
    return raw


def _density(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 < x < 1e6 and 1 < y < 1e6 else None


def _take_samples(image: Image.Image, raw: Raw, name: str) -> None:
    mode = image.mode
    if mode == "CMYK":
        _from_cmyk(image, raw)
        return
    if mode == "LAB":
        lab = np.asarray(image).astype(np.float32)
        lab[..., 0] *= 100 / 255
        lab[..., 1:] -= 128
        encoded = np.clip(lab_to_srgb(lab), 0, 1)
        raw.samples = (encoded * 255 + 0.5).astype(np.uint8)
        raw.icc, raw.converted = None, True
        raw.warnings.append(FROM_LAB)
        return
    if mode.startswith("I;16"):
        raw.samples, raw.depth = np.asarray(image).astype(np.uint16)[..., None], 16
        return
    if mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            found = f"{values.min()}..{values.max()}"
            raise PictureError(f"{name} holds integers {found}; scale them to 0..65535 first", "bad_values")
        raw.samples, raw.depth = values.astype(np.uint16)[..., None], 16
        return
    if mode == "F":
        raw.samples, raw.depth = np.asarray(image).astype(np.float32)[..., None], 32
        return
    transparent = "transparency" in image.info or image.has_transparency_data
    if mode in ("1", "L") and not transparent:
        raw.samples = np.asarray(image.convert("L"))[..., None]
    elif mode in ("La", "LA") or (mode in ("1", "L") and transparent):
        both = np.asarray(image.convert("LA"))
        raw.samples, raw.alpha = both[..., :1], both[..., 1]
    elif transparent or mode in ("RGBA", "RGBa", "PA"):
        four = np.asarray(image.convert("RGBA"))
        raw.samples, raw.alpha = four[..., :3], four[..., 3]
    else:
        raw.samples = np.asarray(image.convert("RGB"))  # P, RGBX, YCbCr, HSV


def _from_cmyk(image: Image.Image, raw: Raw) -> None:
    ink = np.asarray(image)
    raw.converted = True
    icc, raw.icc = raw.icc, None
    if icc is not None:
        try:
            raw.samples = profiles.by_tables(ink, icc, "CMYK")
            raw.warnings.append(FROM_CMYK_BY_PROFILE)
            return
        except profiles.ProfileError:
            raw.warnings.append(FROM_CMYK_DAMAGED)
    else:
        raw.warnings.append(FROM_CMYK)
    light = 255 - ink.astype(np.uint16)
    raw.samples = ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def failure(data: bytes, format: str, name: str, error: Exception) -> PictureError:
    """Gives the error for a decoder's failure: cut off when the file is shorter than it says itself, else damaged."""
    shown = {"WEBP": "WebP"}.get(format, format)
    if isinstance(error, Image.DecompressionBombError):
        return PictureError(f"{name} is damaged: a part of it declares more pixels than any picture has", "too_large")
    text = str(error).lower()
    cut = isinstance(error, EOFError) or any(word in text for word in _CUT)
    if format == "JPEG":
        kind = _jpeg_kind(data)
        if kind:
            return unsupported(name, kind)
        cut = _jpeg_is_cut(data)
    elif format == "WEBP":
        cut = len(data) + 1 < 8 + struct.unpack_from("<I", data, 4)[0]
    elif format == "GIF":
        cut = cut or not data.rstrip(b"\0").endswith(b";")
    elif format == "BMP":
        cut = cut or len(data) < struct.unpack_from("<I", data, 2)[0]
    if cut:
        return PictureError(
            f"{name} is cut off: its {shown} data end too early; copy or download it again", "truncated"
        )
    return PictureError(f"{name} is damaged: its {shown} data cannot be decoded; copy or export it again", "corrupt")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Gives marker and position of the segments up to the first scan, that one included, as far as they go."""
    position = 2
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        yield marker, position
        if marker in (0xD9, 0xDA) or position + 4 > len(data):
            return
        position += 2 + max(2, struct.unpack_from(">H", data, position + 2)[0])
    if position >= len(data):
        yield -1, len(data)


def _jpeg_scans(data: bytes) -> int:
    """Gives the number of scans; inside their data these markers cannot stand."""
    start = next((position for marker, position in _jpeg_segments(data) if marker == 0xDA), len(data))
    end = data.find(b"\xff\xd9", start)
    return data.count(b"\xff\xda", start, end if end >= 0 else len(data))


def _jpeg_is_cut(data: bytes) -> bool:
    """Cut when the data end inside a segment, or in the scan before the end marker."""
    marker, position = -1, len(data)
    for marker, position in _jpeg_segments(data):  # noqa: B007  (the last ones count)
        pass
    if marker == 0xDA:
        return b"\xff\xd9" not in data[position:]
    return marker == -1 or (marker != 0xD9 and position + 4 > len(data))


def _jpeg_kind(data: bytes) -> str | None:
    """Names a JPEG of a kind that libjpeg is not built to decode: not 8 bits a sample, lossless or hierarchical."""
    for marker, position in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and position + 5 <= len(data):
            if data[position + 4] != 8:
                return f"a JPEG of {data[position + 4]} bits a sample"
            if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                return "a lossless or hierarchical JPEG"
    return None


def _require_boxes(data: bytes, name: str) -> None:
    """Refuses an AVIF whose outermost boxes reach past its end."""
    position = 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if length == 1 and position + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, position + 8)
        if length == 0:
            return
        if length < 8:
            return
        position += length
    if position > len(data):
        raise PictureError(f"{name} is cut off: its AVIF data end too early; copy or download it again", "truncated")


def orient(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turns (H, W, ...) as EXIF's orientation 1..8 asks; a view."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
