"""PNG read strictly and written by bands of rows, at every depth.

Pillow cuts 16-bit colour to 8 without a word and does not notice a wrong checksum, missing rows or a missing palette.
So the chunks are walked here; only the unfiltering is left to Pillow's decoder, which is fast and gives the high and
the low bytes of 16-bit samples in two passes. Writing filters each band with numpy and streams it through zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture import deflate
from enlarger.picture.picture import Metadata
from enlarger.picture.raw import Raw, check_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Adam7: first column, first row, column step, row step of each pass (PNG specification, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

TEXT_LIMIT = 1 << 20
"""Bytes that one compressed text may inflate to; more is dropped with a warning (a zTXt bomb is 1000:1)."""
PROFILE_LIMIT = 16 << 20
"""Bytes that the ICC profile may inflate to; the largest printer profiles have about 3 MB."""
_INCH = 0.0254  # metres
_MAX_CHUNKS = 250_000  # less than a second; 100 megapixels in the usual chunks of 8 kB are some 40,000


@dataclass
class _Header:
    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool

    @property
    def inflated(self) -> int:
        """Bytes of all rows with their filter bytes."""
        depth = self.bits * _CHANNELS[self.colour]
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for x, y, step_x, step_y in passes:
            columns, rows = -(-(self.width - x) // step_x), -(-(self.height - y) // step_y)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * depth + 7) // 8)
        return total


@dataclass
class _Walk:
    """What the chunks said."""

    header: _Header
    palette: bytes | None = None
    key: bytes | None = None
    data: list[memoryview] = field(default_factory=list)
    text: list[tuple[str, str]] = field(default_factory=list)
    xmp: bytes | None = None
    exif: bytes | None = None
    icc: bytes | None = None
    srgb: bool = False
    gamma: float | None = None
    primaries: tuple[float, ...] | None = None
    cicp: tuple[int, ...] | None = None
    density: tuple[int, int, int] | None = None
    frames: int = 1
    ended: bool = False
    warnings: list[str] = field(default_factory=list)


def read_png(data: bytes, name: str, max_pixels: int) -> Raw:
    """Decodes a PNG, refusing whatever is damaged in its pixels and dropping what is damaged beside them.

    Args:
        data: The whole file.
        name: How to call it in errors.
        max_pixels: Limit on width x height, judged by the header.
    """
    walk = _walk(data, name, max_pixels)
    samples, alpha = _decode(walk, name)
    dpi, ratio = None, False
    if walk.density and min(walk.density[:2]) > 0:
        ratio = walk.density[2] != 1
        dpi = (walk.density[0] * _INCH, walk.density[1] * _INCH)
    return Raw(
        samples=samples,
        alpha=alpha,
        format="PNG",
        depth=16 if walk.header.bits == 16 else 8,
        icc=walk.icc,
        exif=walk.exif,
        xmp=walk.xmp,
        dpi=dpi,
        dpi_is_ratio=ratio,
        text=tuple(walk.text),
        frames=walk.frames,
        gamma=None if walk.srgb or walk.cicp else walk.gamma,
        primaries=None if walk.srgb or walk.cicp else walk.primaries,
        cicp=walk.cicp,
        warnings=walk.warnings,
    )


def read_texts(data: bytes, name: str) -> list[tuple[str, str]]:
    """Gives the text chunks of a PNG without decoding its pixels."""
    walk = _walk(data, name, 1 << 62)
    return [*walk.text, ("XML:com.adobe.xmp", walk.xmp.decode("utf-8", "replace"))] if walk.xmp else walk.text


def _corrupt(name: str, what: str) -> PictureError:
    return PictureError(f"{name} is damaged: {what}; copy or export it again", "corrupt")


def _truncated(name: str, what: str) -> PictureError:
    return PictureError(f"{name} is cut off: {what}; copy or download it again", "truncated")


def _walk(data: bytes, name: str, max_pixels: int) -> _Walk:
    if data[:8] != SIGNATURE:
        if len(data) < 8:
            raise _truncated(name, f"only {len(data)} bytes")
        raise _corrupt(name, "its PNG signature was changed, as a text-mode transfer does")
    walk: _Walk | None = None
    view = memoryview(data)
    position, seen_end, chunks = 8, False, 0
    while position < len(data) and not seen_end:
        chunks += 1
        if chunks > _MAX_CHUNKS:
            raise _corrupt(name, f"it is split into more than {_MAX_CHUNKS:,} chunks")
        if position + 8 > len(data):
            if walk and walk.data:
                break  # a few bytes of a lost IEND: the pixels decide whether anything is missing
            raise _truncated(name, "it ends inside a chunk's header")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if not kind.isalpha() or length > 0x7FFFFFFF:
            if walk and walk.data and _is_complete(walk):
                break
            raise _corrupt(name, "what should be a chunk is not one")
        body = view[position + 8 : position + 8 + length]
        if len(body) < length or position + 12 + length > len(data):
            if walk is None or kind in _CRITICAL:
                if walk and kind == b"IDAT":
                    walk.data.append(body)  # count the rows for the message
                    raise _truncated(name, f"its data end after {_rows_present(walk)} of {walk.header.height} rows")
                if not (walk and walk.data):
                    raise _truncated(name, f"it ends inside its {kind.decode('ascii')} chunk")
            break
        intact = zlib.crc32(body, zlib.crc32(kind)) == struct.unpack_from(">I", data, position + 8 + length)[0]
        position += 12 + length
        if not intact:
            if kind[:1].isupper() and kind != b"IEND":
                raise _corrupt(name, f"wrong checksum of its {kind.decode('ascii')} chunk")
            if walk and kind != b"IEND":
                walk.warnings.append(f"dropped the damaged {kind.decode('ascii')} chunk")
            continue
        if walk is None:
            if kind != b"IHDR":
                raise _corrupt(name, f"it starts with {kind.decode('ascii')} instead of IHDR")
            walk = _Walk(_header(bytes(body), name, max_pixels))
        elif kind == b"IEND":
            seen_end = walk.ended = True
        elif kind == b"IDAT":
            walk.data.append(body)
        elif kind == b"PLTE":
            walk.palette = bytes(body)
        elif kind[:1].isupper():
            raise _corrupt(name, f"it needs the unknown chunk {kind.decode('ascii')} to be understood")
        else:
            _ancillary(walk, kind, bytes(body) if len(body) <= PROFILE_LIMIT else b"")
    if walk is None:
        raise _truncated(name, "nothing follows the signature")
    if not walk.data:
        raise _truncated(name, "it holds no pixel data")
    return walk


def _header(body: bytes, name: str, max_pixels: int) -> _Header:
    if len(body) != 13:
        raise _corrupt(name, f"a header of {len(body)} bytes instead of 13")
    width, height, bits, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if not 0 < width <= 0x7FFFFFFF or not 0 < height <= 0x7FFFFFFF:
        raise _corrupt(name, f"impossible size {width}x{height}")
    if colour not in _CHANNELS:
        raise _corrupt(name, f"unknown colour type {colour}")
    if bits not in _DEPTHS[colour]:
        raise _corrupt(name, f"colour type {colour} with {bits} bits")
    if compression or filtering or interlace > 1:
        raise _corrupt(name, "unknown compression, filter or interlace method")
    check_pixels(name, width, height, max_pixels)
    return _Header(width, height, bits, colour, bool(interlace))


def _ancillary(walk: _Walk, kind: bytes, body: bytes) -> None:
    """Takes what a chunk beside the pixels says; what cannot be read is dropped with a warning."""
    try:
        if kind == b"tRNS":
            walk.key = body
        elif kind == b"iCCP":
            walk.icc = _inflate(body[body.index(b"\0") + 2 :], PROFILE_LIMIT)
        elif kind == b"sRGB":
            walk.srgb = True
        elif kind == b"gAMA":
            walk.gamma = struct.unpack(">I", body)[0] / 100000
        elif kind == b"cHRM":
            walk.primaries = tuple(value / 100000 for value in struct.unpack(">8I", body))
        elif kind == b"cICP":
            walk.cicp = tuple(body[:4])
        elif kind == b"pHYs":
            walk.density = struct.unpack(">IIB", body)
        elif kind == b"eXIf":
            walk.exif = body
        elif kind == b"acTL":
            walk.frames = max(1, struct.unpack_from(">I", body)[0])
        elif kind == b"caBX":
            walk.warnings.append("dropped the content credentials (C2PA): they are signed for the unchanged file")
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _text(walk, kind, body)
    except (ValueError, struct.error, zlib.error, IndexError):
        walk.warnings.append(f"dropped the damaged {kind.decode('ascii')} chunk")
    except OverflowError:
        walk.warnings.append(f"dropped a {kind.decode('ascii')} chunk that unpacks to more than its limit")


def _text(walk: _Walk, kind: bytes, body: bytes) -> None:
    keyword, rest = body[: body.index(b"\0")], body[body.index(b"\0") + 1 :]
    if kind == b"tEXt":
        content, encoding = rest, "latin-1"
    elif kind == b"zTXt":
        content, encoding = _inflate(rest[1:], TEXT_LIMIT), "latin-1"
    else:
        compressed, rest = rest[0], rest[2:]
        _, _, content = rest.split(b"\0", 2)
        content = _inflate(content, TEXT_LIMIT) if compressed else content
        encoding = "utf-8"
    name = keyword.decode("latin-1")
    if sum(len(text) for _, text in walk.text) + len(content) > 8 * TEXT_LIMIT:
        raise OverflowError
    if name == "XML:com.adobe.xmp":
        walk.xmp = content
    elif name.lower().startswith("raw profile type "):
        _raw_profile(walk, name.lower().removeprefix("raw profile type "), content)
    else:
        walk.text.append((name, content.decode(encoding, "replace")))


def _raw_profile(walk: _Walk, what: str, content: bytes) -> None:
    """Takes a profile as ImageMagick hides it in text: name, length, then hexadecimal lines."""
    profile = bytes.fromhex("".join(content.decode("ascii", "ignore").split()[2:]))
    if what in ("exif", "app1") and profile.startswith(b"Exif\0\0"):
        walk.exif = walk.exif or profile[6:]
    elif what == "xmp":
        walk.xmp = walk.xmp or profile
    elif what in ("icc", "icm"):
        walk.icc = walk.icc or profile


def _inflate(packed: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(packed, limit)
    if inflater.unconsumed_tail:
        raise OverflowError
    return content


def _count(walk: _Walk) -> tuple[int, bool]:
    """Gives how many bytes the pixel data inflate to, counting no more than needed, and whether they ended."""
    needed, count = walk.header.inflated, 0
    inflater = zlib.decompressobj()
    for part in walk.data:
        for start in range(0, len(part), 1 << 16):
            piece: bytes | memoryview = part[start : start + (1 << 16)]
            while piece and count < needed:
                count += len(inflater.decompress(piece, 1 << 20))
                piece = inflater.unconsumed_tail
            if count >= needed or inflater.eof:
                return count, True
    return count + len(inflater.flush()), inflater.eof


def _is_complete(walk: _Walk) -> bool:
    try:
        return _count(walk)[0] >= walk.header.inflated
    except zlib.error:
        return False


def _rows_present(walk: _Walk) -> int:
    try:
        return min(walk.header.height, _count(walk)[0] * walk.header.height // walk.header.inflated)
    except zlib.error:
        return 0


def _decode(walk: _Walk, name: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    header = walk.header
    try:
        count, done = _count(walk)
    except zlib.error as error:
        raise _corrupt(name, "its compressed pixel data cannot be unpacked") from error
    if count < header.inflated:
        if walk.ended and not done:  # all chunks are there and whole, so what they hold is not what was packed
            raise _corrupt(name, "its compressed pixel data break off")
        raise _truncated(name, f"its data end after {count * header.height // header.inflated} of {header.height} rows")
    packed = b"".join(walk.data)

    def unfilter(mode: str, raw_mode: str) -> NDArray[Any]:
        size = (header.width, header.height)
        try:
            return np.asarray(Image.frombytes(mode, size, packed, "zip", raw_mode, int(header.interlaced)))
        except (ValueError, OSError, SystemError) as error:
            raise _corrupt(name, "a row has an unknown filter or the data do not fit the size") from error

    def wide(mode: str) -> NDArray[np.uint16]:
        result = unfilter(mode, f"{mode};16B").astype(np.uint16)
        result <<= 8
        result |= unfilter(mode, f"{mode};16L").astype(np.uint16)
        return result

    if header.colour == 3:
        if walk.palette is None or len(walk.palette) % 3 or not 3 <= len(walk.palette) <= 768:
            raise _corrupt(name, "a palette picture without a usable palette")
        return _expand(walk, unfilter("P", "P" if header.bits == 8 else f"P;{header.bits}"))
    if header.colour == 0:
        if header.bits == 16:
            grey: NDArray[Any] = unfilter("I;16", "I;16B").astype(np.uint16)
        elif header.bits == 1:
            grey = unfilter("1", "1").astype(np.uint8) * np.uint8(255)
        else:
            grey = unfilter("L", "L" if header.bits == 8 else f"L;{header.bits}")
        return _keyed(walk, grey[..., None])
    if header.colour == 2:
        return _keyed(walk, wide("RGB") if header.bits == 16 else unfilter("RGB", "RGB"))
    if header.colour == 4:
        if header.bits == 16:
            # Four bytes a pixel are four bytes a pixel: unfiltered as 8-bit RGBA, then joined in pairs.
            pairs = unfilter("RGBA", "RGBA").astype(np.uint16)
            both: NDArray[Any] = pairs[..., 0::2] << 8 | pairs[..., 1::2]
        else:
            both = unfilter("LA", "LA")
        return both[..., :1], both[..., 1]
    four = wide("RGBA") if header.bits == 16 else unfilter("RGBA", "RGBA")
    return four[..., :3], four[..., 3]


def _expand(walk: _Walk, indices: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Turns palette indices into colours, and into alpha when the palette has transparent entries."""
    assert walk.palette is not None
    colours = np.zeros((256, 3), np.uint8)
    given = np.frombuffer(walk.palette, np.uint8).reshape(-1, 3)
    colours[: len(given)] = given
    if int(indices.max()) >= len(given):
        walk.warnings.append("some pixels point past the palette; they are black")
    if walk.key is None:
        return colours[indices], None
    opacity = np.full(256, 255, np.uint8)
    opacity[: min(len(walk.key), 256)] = np.frombuffer(walk.key[:256], np.uint8)
    return colours[indices], opacity[indices]


def _keyed(walk: _Walk, samples: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Makes alpha of a colour key: exactly that colour is transparent."""
    if walk.key is None:
        return samples, None
    channels = samples.shape[2]
    if len(walk.key) != 2 * channels:
        walk.warnings.append("dropped the damaged tRNS chunk")
        return samples, None
    bits = walk.header.bits
    key = np.array(struct.unpack(f">{channels}H", walk.key))
    if bits < 8:
        key = key * (255 // ((1 << bits) - 1))  # samples of 1, 2 and 4 bits were spread over 0..255
    top = 65535 if bits == 16 else 255
    clear = (samples == key).all(axis=2)
    return samples, np.where(clear, 0, top).astype(samples.dtype)


def write_png(
    stream: BinaryIO,
    pixels: NDArray[Any],
    alpha: NDArray[Any] | None,
    *,
    profile: bytes | None = None,
    metadata: Metadata | None = None,
    level: int = deflate.LEVEL,
) -> None:
    """Writes a PNG band by band, so that nothing the size of the picture is made beside it.

    Args:
        stream: Takes the bytes in order.
        pixels: (H, W, 1 or 3) uint8 or uint16.
        alpha: (H, W) of the same type, or None.
        profile: ICC profile.
        metadata: EXIF, XMP, density and texts; IPTC has no place in PNG.
        level: zlib's, 0..9.
    """
    metadata = metadata or Metadata()
    height, width, channels = pixels.shape
    colour = (0 if channels == 1 else 2) + (4 if alpha is not None else 0)
    stream.write(SIGNATURE)
    size = struct.pack(">IIBBBBB", width, height, pixels.dtype.itemsize * 8, colour, 0, 0, 0)
    _chunk(stream, b"IHDR", size)
    if profile:
        _chunk(stream, b"iCCP", b"ICC profile\0\0" + zlib.compress(profile, 9))
    if metadata.dpi:
        density = [max(1, min(0x7FFFFFFF, round(value / _INCH))) for value in metadata.dpi]
        _chunk(stream, b"pHYs", struct.pack(">IIB", *density, 0 if metadata.dpi_is_ratio else 1))
    if metadata.exif:
        _chunk(stream, b"eXIf", metadata.exif)
    # Texts stand before the pixels, so that programs which read only the start find them.
    if metadata.xmp:
        _chunk(stream, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    for keyword, text in metadata.text:
        _write_text(stream, keyword, text)
    waiting = bytearray()
    for part in deflate.stream(_filtered_bands(pixels, alpha), level):
        waiting += part
        if len(waiting) >= 1 << 20:
            _chunk(stream, b"IDAT", waiting)
            waiting = bytearray()
    if waiting:
        _chunk(stream, b"IDAT", waiting)
    _chunk(stream, b"IEND", b"")


def _chunk(stream: BinaryIO, kind: bytes, body: bytes | bytearray) -> None:
    stream.write(struct.pack(">I", len(body)) + kind)
    stream.write(body)
    stream.write(struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))))


def _write_text(stream: BinaryIO, keyword: str, text: str) -> None:
    name = keyword.encode("latin-1", "replace")[:79] or b"Comment"
    try:
        content = text.encode("latin-1")
    except UnicodeEncodeError:
        _chunk(stream, b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))
        return
    if b"\0" in content or b"\r" in content:  # not allowed in tEXt
        _chunk(stream, b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8"))
    else:
        _chunk(stream, b"tEXt", name + b"\0" + content)


def _filtered_bands(pixels: NDArray[Any], alpha: NDArray[Any] | None) -> Iterator[bytes]:
    """Gives the rows, each with its filter byte, a band at a time.

    Each row takes the filter (Sub, Up or Paeth) whose result has the smallest sum of absolute values, the rule that the
    PNG specification recommends (12.8).
    """
    height, width, channels = pixels.shape
    step = pixels.dtype.itemsize * (channels + (alpha is not None))
    rows_per_band = max(1, (1 << 18) // (width * step))
    above = np.zeros((1, width * step), np.uint8)
    for first in range(0, height, rows_per_band):
        band = pixels[first : first + rows_per_band]
        if alpha is not None:
            band = np.concatenate([band, alpha[first : first + rows_per_band, :, None]], axis=2)
        if band.dtype.itemsize == 2:
            band = band.astype(">u2")
        current = np.ascontiguousarray(band).view(np.uint8).reshape(band.shape[0], width * step)
        previous = np.concatenate([above, current[:-1]])
        above = current[-1:].copy()
        left = np.zeros_like(current)
        left[:, step:] = current[:, :-step]
        corner = np.zeros_like(current)
        corner[:, step:] = previous[:, :-step]
        candidates = ((1, current - left), (2, current - previous), (4, current - _paeth(left, previous, corner)))
        costs = [
            np.abs(filtered.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64) for _, filtered in candidates
        ]
        best = np.argmin(costs, axis=0)
        rows = np.empty((current.shape[0], 1 + current.shape[1]), np.uint8)
        for index, (number, filtered) in enumerate(candidates):
            chosen = best == index
            rows[chosen, 0] = number
            rows[chosen, 1:] = filtered[chosen]
        yield rows.tobytes()


def _paeth(left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gives the neighbour nearest to left + above - corner; ties go in that order (PNG specification, 9.4)."""
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    from_left, from_above = np.abs(b - c), np.abs(a - c)
    from_corner = np.abs(a + b - 2 * c)
    nearest = np.where(from_above <= from_corner, above, corner)
    return np.where((from_left <= from_above) & (from_left <= from_corner), left, nearest)
