"""PGM and PPM above 8 bits and PFM: Pillow scales 16-bit colour down to 8 without a word."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import PictureError
from enlarger.picture.raw import Raw, check_pixels

_TOKEN = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*([^\s#]+)")


def deep_header(data: bytes) -> tuple[int, int, float, int] | None:
    """Gives width, height, largest value and where the samples start, for binary files above 8 bits; else None."""
    if data[:2] not in (b"P5", b"P6", b"Pf", b"PF"):
        return None
    numbers: list[float] = []
    position = 2
    for _ in range(3):
        match = _TOKEN.match(data, position, position + 4096)
        if match is None:
            return None
        try:
            numbers.append(float(match.group(1)))
        except ValueError:
            return None
        position = match.end()
    width, height, top = numbers
    if width != int(width) or height != int(height) or width < 1 or height < 1:
        return None
    deep = (data[1:2] in (b"f", b"F") and abs(top) > 0) or (data[1:2] in (b"5", b"6") and 255 < top <= 65535)
    return (int(width), int(height), top, position + 1) if deep else None


def read_deep(data: bytes, name: str, max_pixels: int) -> Raw | None:
    """Decodes a 16-bit PGM or PPM or a PFM; None for the others."""
    found = deep_header(data)
    if found is None:
        return None
    width, height, top, start = found
    check_pixels(name, width, height, max_pixels)
    channels = 3 if data[1:2] in (b"6", b"F") else 1
    is_float = data[1:2] in (b"f", b"F")
    count = width * height * channels
    if len(data) - start < count * (4 if is_float else 2):
        rows = max(0, len(data) - start) // (width * channels * (4 if is_float else 2))
        message = f"{name} is cut off: its data end after {rows} of {height} rows; copy or download it again"
        raise PictureError(message, "truncated")
    if is_float:  # a negative scale means little-endian; rows go upwards
        samples = np.frombuffer(data, "<f4" if top < 0 else ">f4", count, start).reshape(height, width, channels)[::-1]
        return Raw(samples.astype(np.float32), format="PPM", depth=32)
    values = np.frombuffer(data, ">u2", count, start).reshape(height, width, channels)
    if top != 65535:
        values = ((values.astype(np.uint32) * 65535 + int(top) // 2) // int(top)).clip(0, 65535)
    return Raw(values.astype(np.uint16), format="PPM", depth=16)


def write_ppm(stream: BinaryIO, pixels: NDArray[Any]) -> None:
    """Writes binary PGM or PPM: (H, W, 1 or 3) uint8 or uint16, or PFM of float32."""
    height, width, channels = pixels.shape
    if pixels.dtype.kind == "f":
        stream.write(f"{'Pf' if channels == 1 else 'PF'}\n{width} {height}\n-1.0\n".encode())
        rows = range(height - 1, -1, -1)
        for row in rows:
            stream.write(np.ascontiguousarray(pixels[row], "<f4").tobytes())
        return
    wide = pixels.dtype.itemsize == 2
    stream.write(f"{'P5' if channels == 1 else 'P6'}\n{width} {height}\n{65535 if wide else 255}\n".encode())
    for first in range(0, height, 64):
        stream.write(np.ascontiguousarray(pixels[first : first + 64], ">u2" if wide else "u1").tobytes())
