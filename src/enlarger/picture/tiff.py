"""TIFF and BigTIFF: the directory is read and judged here, then Pillow or tifffile decodes.

Pillow knows the compressions (LZW, JPEG, fax) but has no 16-bit colour; tifffile knows every sample type but, alone,
only plain and deflated data. 16-bit colour that only Pillow can unpack is read by it twice, once for the high and once
for the low bytes. Writing is done here, strip by strip, so that EXIF, XMP, IPTC and the profile go in and nothing of
the picture's size is copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import struct
import sys
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from enlarger.errors import PictureError
from enlarger.picture import decode, deflate
from enlarger.picture.colour import lab_to_srgb
from enlarger.picture.exif import Entry, Exif, parse
from enlarger.picture.picture import Metadata
from enlarger.picture.profile import ProfileError, by_tables
from enlarger.picture.raw import Raw, check_pixels
from enlarger.picture.sniff import unsupported

_TYPES = {
    1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q",
    18: "Q",
}  # fmt: skip
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PLAIN = {1, 8, 32946, 32773}  # what tifffile unpacks alone: none, deflate (two numbers), PackBits
_KNOWN = _PLAIN | {2, 3, 4, 5, 6, 7, 32809, 34925, 50000, 50001}  # fax, LZW, JPEG, Thunderscan, LZMA, Zstandard, WebP
_MAX_ENTRIES = 100_000  # in all directories together; a page has about 20


def _silence() -> None:
    """Keeps both libraries from writing to standard error: libtiff prints what is wrong with a file, tifffile logs it.

    Pillow has no switch for libtiff's handler, so it is set in Pillow's own copy, where that is a shared library.
    """
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with (
        contextlib.suppress(OSError, AttributeError),
        open("/proc/self/maps", encoding="utf-8", errors="replace") as maps,
    ):
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libtiff" in line and "pillow" in line.lower()}
        for path in paths:
            ctypes.CDLL(path).TIFFSetErrorHandler(None)


_silence()


@dataclass
class _Page:
    """One directory. Values are read when they are asked for: a thousand entries may all claim the same megabytes."""

    data: bytes
    order: str
    tags: dict[int, tuple[int, int, int]]
    """Tag -> type, count, place."""
    cut: bool = False
    """Whether a part of it lies past the end of the file."""

    def number(self, tag: int, default: int = 0) -> int:
        """Gives the first value."""
        values = self.numbers(tag, 1)
        return int(values[0]) if values else default

    def numbers(self, tag: int, most: int = 1 << 24) -> tuple[Any, ...]:
        """Gives the values; fractions as numerator and denominator in turn, nothing for text and undefined."""
        kind, count, place = self.tags.get(tag, (2, 0, 0))
        form = _TYPES.get(kind)
        if form is None:
            return ()
        return struct.unpack_from(f"{self.order}{min(count, most) * len(form)}{form[0]}", self.data, place)

    def blob(self, tag: int) -> bytes | None:
        """Gives the value as bytes; IPTC is often stored as 32-bit numbers."""
        kind, count, place = self.tags.get(tag, (0, 0, 0))
        if kind not in (1, 2, 4, 7):
            return None
        found = self.data[place : place + count * _SIZES[kind]]
        if kind == 4 and self.order == ">":
            found = struct.pack(f"<{count}I", *self.numbers(tag))
        return found or None


def read_tiff(data: bytes, name: str, max_pixels: int, page: int = 1) -> Raw:
    """Decodes one page of a TIFF."""
    pages = _pages(data, name)
    full = [index for index, found in enumerate(pages) if not found.number(254) & 1] or list(range(len(pages)))
    if page > len(full):
        raise decode.no_page(name, page, len(full))
    index = full[page - 1]
    found = pages[index]
    _judge(found, data, name, max_pixels)
    try:
        raw = _decode(found, data, index, name, max_pixels)
    except PictureError as error:
        if error.kind == "corrupt" and found.cut:  # what the decoder missed was in the part that is gone
            raise _cut(name) from error
        raise
    raw.format, raw.frames = "TIFF", len(full)
    raw.orientation = found.number(274, 1)
    raw.icc = None if raw.converted else found.blob(34675)
    raw.xmp, raw.iptc, raw.exif = found.blob(700), found.blob(33723), None
    if index == 0 and data[2:4] in (b"*\0", b"\0*"):
        raw.exif = data  # its first directory is what EXIF's first directory is
    raw.dpi, raw.dpi_is_ratio = _density(found)
    return raw


def _decode(page: _Page, data: bytes, index: int, name: str, max_pixels: int) -> Raw:
    if max(page.numbers(258) or (1,)) > 8 or page.number(339, 1) == 3:
        return _deep(page, data, index, name)
    raw = decode.read_pillow(data, "TIFF", name, max_pixels, index + 1)
    raw.turned = True  # Pillow turns a TIFF when it loads it
    return raw


def _density(page: _Page) -> tuple[tuple[float, float] | None, bool]:
    x, y = page.numbers(282, 1), page.numbers(283, 1)
    if len(x) < 2 or len(y) < 2 or not (x[0] and x[1] and y[0] and y[1]):
        return None, False
    unit = page.number(296, 2)
    scale = 2.54 if unit == 3 else 1.0
    dpi = (x[0] / x[1] * scale, y[0] / y[1] * scale)
    if unit == 1:
        return (None, False) if dpi[0] == dpi[1] else (dpi, True)
    return (dpi, False) if min(dpi) > 1 else (None, False)


def _damaged(name: str, what: str) -> PictureError:
    return PictureError(f"{name} is damaged: {what}; copy or export it again", "corrupt")


def _cut(name: str) -> PictureError:
    return PictureError(f"{name} is cut off: its directory is not whole; copy or download it again", "truncated")


def _pages(data: bytes, name: str) -> list[_Page]:
    if len(data) < 16:
        raise PictureError(f"{name} is cut off: only {len(data)} bytes; copy or download it again", "truncated")
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    pages: list[_Page] = []
    seen: set[int] = set()
    entries = 0
    while offset and offset not in seen and entries < _MAX_ENTRIES:
        seen.add(offset)
        entries += 20
        if offset + (8 if big else 2) > len(data):
            if pages:
                break  # a later page is lost; the first can still be read
            raise _cut(name)
        page, offset = _directory(data, offset, order, big)
        entries += len(page.tags)
        if page.tags:
            pages.append(page)
        elif page.cut and not pages:
            raise _cut(name)
    if not pages:
        raise _damaged(name, "no directory can be read")
    return pages


def _directory(data: bytes, offset: int, order: str, big: bool) -> tuple[_Page, int]:
    count_form, entry, inline, pointer = ("Q", 20, 8, "Q") if big else ("H", 12, 4, "I")
    (count,) = struct.unpack_from(order + count_form, data, offset)
    position = offset + (8 if big else 2)
    tags: dict[int, tuple[int, int, int]] = {}
    cut = False
    for _ in range(min(count, 4096)):
        if position + entry > len(data):
            cut = True
            break
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, position)
        length = _SIZES.get(kind, 0) * number
        start = position + entry - inline
        if length > inline:
            (start,) = struct.unpack_from(order + pointer, data, start)
        cut = cut or (kind in _SIZES and start + length > len(data))
        if kind in _SIZES and start + length <= len(data):
            tags[tag] = (kind, number, start)
        position += entry
    end = position + (8 if big else 4)
    following = struct.unpack_from(order + pointer, data, position)[0] if end <= len(data) else 0
    return _Page(data, order, tags, cut), following


def _judge(page: _Page, data: bytes, name: str, max_pixels: int) -> None:
    """Refuses from the directory alone what is too large, cut off, a raw file or compressed in an unknown way."""
    width, height = page.number(256), page.number(257)
    if 0xC612 in page.tags or (page.number(254) & 1 and 330 in page.tags):
        raise unsupported(name, "a camera's raw file (DNG or similar)")
    channels = page.number(277, 1)
    if not 1 <= channels <= 64:
        raise _damaged(name, f"{channels} channels")
    offsets, lengths = page.numbers(324) or page.numbers(273), page.numbers(325) or page.numbers(279)
    if page.cut and (width <= 0 or height <= 0 or not offsets or not lengths):
        raise _cut(name)
    if width <= 0 or height <= 0:
        raise _damaged(name, f"impossible size {width}x{height}")
    check_pixels(name, width, height, max_pixels)
    compression = page.number(259, 1)
    if compression not in _KNOWN:
        raise unsupported(name, f"a TIFF with compression {compression}")
    if channels > 5:
        raise unsupported(name, f"a TIFF with {channels} channels")
    bits = page.numbers(258) or (1,)
    if max(bits) > 64 or min(bits) < 1:
        raise _damaged(name, f"samples of {max(bits)} bits")
    if not offsets:
        raise _damaged(name, "it says nowhere where its pixels are")
    if 322 in page.tags:
        tile = page.number(322) * page.number(323)
        # A tile may stick out of the picture, but not be many times its size: the decoder allocates it whole.
        if tile <= 0 or tile > max(4 * width * height, 1 << 20):
            raise _damaged(name, f"tiles of {page.number(322)}x{page.number(323)}")
    for start, length in zip(offsets, lengths, strict=False):
        if start + length > len(data) or start >= len(data):
            raise PictureError(
                f"{name} is cut off: some of its pixels lie past the end; copy or download it again", "truncated"
            )


def _deep(page: _Page, data: bytes, index: int, name: str) -> Raw:
    """Decodes 16-bit and float samples."""
    samples, turned = _unpack(page, data, index, name)
    warnings: list[str] = []
    if samples.dtype == np.uint32:
        samples = (samples >> 16).astype(np.uint16)
        warnings.append("reduced from 32-bit integers to 16 bit")
    if samples.dtype not in (np.uint8, np.uint16) and samples.dtype.kind != "f":
        raise unsupported(name, f"a TIFF with {samples.dtype} samples")
    depth = 16
    if samples.dtype.kind == "f":
        samples, depth = samples.astype(np.float32), 32
    photometric, extra = page.number(262, 1), page.numbers(338)
    if photometric == 0 and depth == 16:
        samples = np.iinfo(samples.dtype).max - samples
    colours = {0: 1, 1: 1, 2: 3, 5: 4, 8: 3}.get(photometric)
    if colours is None or samples.shape[2] < colours:
        raise unsupported(name, f"a TIFF of photometric kind {photometric} at {page.number(258)} bits")
    alpha = None
    if samples.shape[2] > colours:
        # 0 is "unspecified"; Photoshop and OpenCV write it for alpha as well, but so do scanners for infrared.
        if extra[:1] in ((1,), (2,)):
            alpha = samples[..., colours]
        else:
            warnings.append("dropped an extra channel that is not marked as alpha")
    colour = samples[..., :colours]
    if alpha is not None and extra[:1] == (1,):
        colour = _unmultiply(colour, alpha)
    raw = Raw(colour, alpha, depth=depth, turned=turned, warnings=warnings)
    if photometric in (5, 8) and depth == 32:
        raise unsupported(name, f"a TIFF with {'CMYK' if photometric == 5 else 'Lab'} in floating point")
    if photometric == 8:
        raw.converted, raw.samples = True, _lab16(colour)
        warnings.append(decode.FROM_LAB)
    elif photometric == 5:
        raw.converted, raw.samples = True, _from_cmyk(colour, page.blob(34675), warnings)
    return raw


def _from_cmyk(ink: NDArray[Any], icc: bytes | None, warnings: list[str]) -> NDArray[np.uint16]:
    """Gives (H, W, 3) sRGB of 16-bit inks: by their profile, which LittleCMS applies at 8 bits, or plainly without."""
    if icc is None:
        warnings.append(decode.FROM_CMYK)
        return _cmyk16(ink)
    try:
        eight = (ink.astype(np.float32) / 257 + 0.5).astype(np.uint8)
        made = by_tables(np.ascontiguousarray(eight), icc, "CMYK").astype(np.uint16) * 257
    except ProfileError:
        warnings.append(decode.FROM_CMYK_DAMAGED)
        return _cmyk16(ink)
    warnings.append(f"{decode.FROM_CMYK_BY_PROFILE}; its table works at 8 bit precision")
    return made


def _cmyk16(ink: NDArray[Any]) -> NDArray[np.uint16]:
    light = 1 - ink.astype(np.float32) / 65535
    return (light[..., :3] * light[..., 3:] * 65535 + 0.5).astype(np.uint16)


def _lab16(values: NDArray[Any]) -> NDArray[np.uint16]:
    lab = np.empty(values.shape, np.float32)
    lab[..., 0] = values[..., 0] / np.float32(655.35)
    lab[..., 1:] = values[..., 1:].astype(np.int16) / np.float32(256)
    return (np.clip(lab_to_srgb(lab), 0, 1) * 65535 + 0.5).astype(np.uint16)


def _unmultiply(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    top = 1.0 if colour.dtype.kind == "f" else float(np.iinfo(colour.dtype).max)
    share = np.where(alpha > 0, alpha, top).astype(np.float32)[..., None] / top
    straight = np.minimum(colour.astype(np.float32) / share, top)
    return straight.astype(colour.dtype) if colour.dtype.kind == "f" else (straight + 0.5).astype(colour.dtype)


def _unpack(page: _Page, data: bytes, index: int, name: str) -> tuple[NDArray[Any], bool]:
    """Gives (H, W, C) samples by tifffile where it can, else by Pillow, and whether they have been turned upright."""
    import tifffile

    height, width, channels = page.number(257), page.number(256), page.number(277, 1)
    plain = page.number(259, 1) in _PLAIN and page.number(317, 1) in (1, 2)
    try:
        if plain:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                samples = file.pages[index].asarray()
            if page.number(284, 1) == 2 and channels > 1:
                samples = np.moveaxis(samples, 0, -1)
            return samples.reshape(height, width, channels), False
        return _unpack_by_pillow(data, index, name, page), True
    except (PictureError, MemoryError, Warning):
        raise
    except Exception as error:  # both libraries may raise anything on damaged bytes
        raise decode.failure(data, "TIFF", name, error) from error


def _unpack_by_pillow(data: bytes, index: int, name: str, page: _Page) -> NDArray[Any]:
    def load(swap: bool) -> NDArray[Any]:
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
            if index:
                image.seek(index)
            if image.mode in ("RGB", "RGBA", "CMYK"):
                tile = image.tile[0]
                arguments: tuple[Any, ...] = tile.args if isinstance(tile.args, tuple) else (tile.args,)
                raw_mode = str(arguments[0])
                if tile.codec_name != "libtiff" or not raw_mode.endswith(";16N"):
                    raise unsupported(name, f"a TIFF with compression {page.number(259)} at {page.number(258)} bits")
                # libtiff gives native order; reading it as the other order gives the low bytes.
                order = "L" if (sys.byteorder == "little") != swap else "B"
                args = (raw_mode[:-1] + order, *arguments[1:])
                image.tile = [tile._replace(args=args)]
            image.load()
            return np.asarray(image)

    first = load(False)
    if first.ndim == 2:
        return first[..., None]
    joined: NDArray[Any] = first.astype(np.uint16) << 8 | load(True)
    return joined


def write_tiff(
    stream: BinaryIO,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None,
    *,
    profile: bytes | None = None,
    metadata: Metadata | None = None,
    level: int = deflate.LEVEL,
) -> None:
    """Writes a deflated TIFF strip by strip; BigTIFF when the plain samples pass 4 GiB.

    Args:
        stream: Takes the bytes; must be seekable back to where it stands.
        pixels: (H, W, 1 or 3) uint8, uint16 or float32.
        alpha: (H, W) of the same type, or None; stored unassociated.
        profile: ICC profile.
        metadata: EXIF, XMP, IPTC, density; texts have no place.
        level: zlib's, 0..9.
    """
    metadata = metadata or Metadata()
    height, width, channels = pixels.shape
    samples = channels + (alpha is not None)
    bits = pixels.dtype.itemsize * 8
    is_float = pixels.dtype.kind == "f"
    big = height * width * samples * pixels.dtype.itemsize >= (1 << 32) - (1 << 24)
    start = stream.tell()
    stream.write(bytes(16 if big else 8))
    rows = max(1, (1 << 18) // (width * samples * pixels.dtype.itemsize))
    offsets: list[int] = []
    lengths: list[int] = []
    strips = (_strip(pixels, alpha, slice(first, first + rows)) for first in range(0, height, rows))
    for packed in deflate.in_order(lambda strip: zlib.compress(strip, level), strips):
        offsets.append(stream.tell() - start)
        lengths.append(len(packed))
        stream.write(packed)
        if len(packed) % 2:
            stream.write(b"\0")  # a directory must start at an even place
    # The directory is little-endian, so EXIF that came big-endian is turned first.
    exif = parse(metadata.exif).little_endian() if metadata.exif else Exif()
    first_tags: dict[int, tuple[int, int, bytes]] = dict(exif.first)
    pointer = "Q" if big else "I"
    sizes = (16, 8) if big else (4, 4)
    first_tags |= {
        256: _long(width),
        257: _long(height),
        258: _shorts(*[bits] * samples),
        259: _shorts(8),
        262: _shorts(1 if channels == 1 else 2),
        273: (sizes[0], len(offsets), struct.pack(f"<{len(offsets)}{pointer}", *offsets)),
        274: _shorts(1),
        277: _shorts(samples),
        278: _long(rows),
        279: (sizes[0], len(lengths), struct.pack(f"<{len(lengths)}{pointer}", *lengths)),
        284: _shorts(1),
        317: _shorts(1 if is_float else 2),
        339: _shorts(*[3 if is_float else 1] * samples),
    }
    if alpha is not None:
        first_tags[338] = _shorts(2)
    if metadata.dpi:
        for tag, value in zip((282, 283), metadata.dpi, strict=True):
            first_tags[tag] = (5, 1, struct.pack("<II", min(round(value * 10000), 0xFFFFFFFF), 10000))
        first_tags[296] = _shorts(1 if metadata.dpi_is_ratio else 2)
    for tag, blob, kind in ((700, metadata.xmp, 1), (33723, metadata.iptc, 7), (34675, profile, 7)):
        if blob:
            first_tags[tag] = (kind, len(blob), blob)
    place = stream.tell() - start
    stream.write(exif.directories(place, first_tags, big=big))
    stream.seek(start)
    stream.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, place) if big else struct.pack("<2sHI", b"II", 42, place))
    stream.seek(0, io.SEEK_END)


def _shorts(*values: int) -> Entry:
    return 3, len(values), struct.pack(f"<{len(values)}H", *values)


def _long(value: int) -> Entry:
    return 4, 1, struct.pack("<I", value)


def _strip(pixels: NDArray[Any], alpha: NDArray[Any] | None, rows: slice) -> bytes:
    """Gives rows as stored: little-endian, alpha last, integers as differences to the left (predictor 2)."""
    band = pixels[rows]
    if alpha is not None:
        band = np.concatenate([band, alpha[rows, :, None]], axis=2)
    if band.dtype.kind == "f":
        return np.ascontiguousarray(band, "<f4").tobytes()
    differences = band.copy()
    differences[:, 1:] -= band[:, :-1]
    return differences.astype(band.dtype.newbyteorder("<")).tobytes()
