"""ICC profiles: the colours of a file to sRGB and back, in floats.

Profiles made of curves and a matrix (sRGB, Display P3, Adobe RGB, ProPhoto, grey) are computed here, exactly and both
ways. Colours outside sRGB are clipped for the networks, but what was clipped is kept (`Picture.excess`), so that the
way back restores them. Profiles made of tables (printers, scanners, CMYK) go through LittleCMS at 8 bits, one way;
their result is labelled sRGB.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from enlarger.picture.colour import D50, SRGB_TO_XYZ, Floats, to_encoded, to_linear

_STEPS = 4096  # samples of a curve; straight lines between them err by less than a 16-bit step but near black
_SAME = 1 / 510  # profiles that differ from sRGB by less than half an 8-bit step are sRGB
_BAND = 1 << 20  # pixels that are converted at a time: float64 temporaries stay small


class ProfileError(ValueError):
    """A profile that is damaged or of a kind that cannot be used."""


@dataclass(frozen=True)
class Curve:
    """A tone curve: encoded value 0..1 -> light 0..1, rising."""

    light: NDArray[np.float64]
    """Light at `_STEPS` + 1 encoded values spaced as squares (denser near black)."""

    @functools.cached_property
    def _forward(self) -> Floats:
        """Light of every 16-bit value: exact for the samples of files, and floats lose half a 16-bit step."""
        return np.interp(np.arange(65536) / 65535, _grid(), self.light).astype(np.float32)

    @functools.cached_property
    def _back(self) -> Floats:
        """Encoded values of what sRGB encodes as 0..65535: nearly straight, so lines between them are exact enough."""
        light = to_linear(np.arange(65537, dtype=np.float32) / np.float32(65535))
        return np.interp(light, self.light, _grid()).astype(np.float32)

    def to_light(self, encoded: Floats) -> Floats:
        """Gives light of encoded values 0..1."""
        result: Floats = self._forward.take((encoded * np.float32(65535) + np.float32(0.5)).astype(np.uint16))
        return result

    def from_light(self, light: Floats) -> Floats:
        """Gives encoded values of light; clips to 0..1."""
        place = np.clip(to_encoded(light), 0, 1) * np.float32(65535)
        below = place.astype(np.int32)
        start: Floats = self._back.take(below)
        return start + (place - below).astype(np.float32) * (self._back.take(below + 1) - start)


@dataclass(frozen=True)
class Profile:
    """A profile of curves and, for colour, a matrix."""

    curves: tuple[Curve, ...]
    """One for grey, three for RGB."""
    matrix: NDArray[np.float64] | None
    """Linear RGB -> XYZ under D50; None for grey."""
    is_srgb: bool = False
    """Whether it says the same as sRGB, so that nothing need be computed."""

    def to_srgb(self, pixels: Floats) -> tuple[Floats, Floats | None]:
        """Converts to sRGB.

        Args:
            pixels: (H, W, C) 0..1 in this profile's space.

        Returns:
            (H, W, C) 0..1 sRGB-encoded, and what clipping took away, or None.
        """
        if self.is_srgb:
            return pixels, None
        result = np.empty_like(pixels)
        excess: Floats | None = None
        for rows in _bands(pixels):
            free = self._free(pixels[rows])
            np.clip(free, 0, 1, out=result[rows])
            beyond = free - result[rows]
            # Rounding alone leaves about 1e-7; a tenth of a 16-bit step cannot be seen in any file.
            if np.abs(beyond).max() > 1.5e-6:
                if excess is None:
                    excess = np.zeros_like(pixels)
                excess[rows] = beyond
        return result, excess

    def from_srgb(self, pixels: Floats) -> Floats:
        """Converts back: (H, W, C) sRGB-encoded (may lie outside 0..1) -> 0..1 in this profile's space."""
        if self.is_srgb:
            return np.clip(pixels, 0, 1)
        result = np.empty_like(pixels)
        for rows in _bands(pixels):
            light = to_linear(pixels[rows])
            if self.matrix is not None and light.shape[2] == 3:
                light = light @ (np.linalg.inv(self.matrix) @ SRGB_TO_XYZ).T.astype(np.float32)
            for channel in range(light.shape[2]):
                result[rows][..., channel] = self._curve(channel).from_light(light[..., channel])
        return result

    def _curve(self, channel: int) -> Curve:
        return self.curves[min(channel, len(self.curves) - 1)]

    def _free(self, pixels: Floats) -> Floats:
        light = np.stack([self._curve(c).to_light(pixels[..., c]) for c in range(pixels.shape[2])], axis=2)
        if self.matrix is not None and pixels.shape[2] == 3:
            light = light @ (np.linalg.inv(SRGB_TO_XYZ) @ self.matrix).T.astype(np.float32)
        return to_encoded(light)


def colour_space(icc: bytes) -> str:
    """Gives what a profile's colours are: "RGB", "GRAY", "CMYK", "Lab", ...; raises ProfileError when it is none."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ProfileError("no ICC header")
    if struct.unpack_from(">I", icc)[0] > len(icc):
        raise ProfileError("cut off")
    return icc[16:20].decode("latin-1").strip()


@functools.lru_cache(maxsize=16)
def parse(icc: bytes) -> Profile | None:
    """Reads a grey or RGB profile; None when it works by tables and LittleCMS must do it.

    Raises ProfileError when it is damaged.
    """
    space = colour_space(icc)
    try:
        tags = _tags(icc)
        if space == "GRAY" and "kTRC" in tags:
            curve = _curve(tags["kTRC"])
            # Grey is compared by its curve alone, so grey pixels under an RGB profile come to the same.
            return Profile((curve,), None, _near((curve,), None))
        if space == "RGB" and "A2B0" not in tags and {"rXYZ", "gXYZ", "bXYZ", "rTRC", "gTRC", "bTRC"} <= set(tags):
            curves = tuple(_curve(tags[name]) for name in ("rTRC", "gTRC", "bTRC"))
            matrix = np.stack([_xyz(tags[name]) for name in ("rXYZ", "gXYZ", "bXYZ")], axis=1)
            if abs(np.linalg.det(matrix)) < 1e-6:
                raise ProfileError("its primaries lie on a line")
            return Profile(curves, matrix, _near(curves, matrix))
    except (struct.error, IndexError, OverflowError) as error:
        raise ProfileError("damaged") from error
    if space in ("RGB", "GRAY"):
        return None
    raise ProfileError(f"of the colour space {space}")


def by_tables(pixels: NDArray[np.uint8], icc: bytes, mode: str) -> NDArray[np.uint8]:
    """Converts 8-bit pixels to sRGB by LittleCMS.

    Args:
        pixels: (H, W, C) uint8.
        icc: The profile they are in.
        mode: Pillow's name of their form: "RGB", "L", "CMYK".

    Returns:
        (H, W, 3) uint8.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        target = ImageCms.createProfile("sRGB")
        image = Image.fromarray(pixels if mode != "L" else pixels[..., 0], mode)
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ProfileError("unusable") from error
    assert converted is not None
    return np.asarray(converted)


def srgb_profile() -> bytes:
    """Gives a small sRGB profile, always the same bytes."""
    return build("sRGB", SRGB_TO_XYZ, _para(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))


def from_png(gamma: float | None, primaries: tuple[float, ...] | None) -> bytes | None:
    """Gives the profile that PNG's gAMA and cHRM chunks stand for; None when they say sRGB or nothing usable."""
    if gamma is None or not 0.1 <= gamma <= 5:
        return None
    matrix = SRGB_TO_XYZ
    if primaries is not None:
        try:
            matrix = _from_primaries(primaries)
        except (ZeroDivisionError, np.linalg.LinAlgError):
            matrix = SRGB_TO_XYZ
    # libpng's threshold: within 5 % of 1/2.2 a gamma means sRGB.
    same_gamma = abs(gamma * 2.2 - 1) < 0.05
    if same_gamma and np.abs(matrix - SRGB_TO_XYZ).max() < 0.01:
        return None
    curve = _para(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045) if same_gamma else _para(1 / gamma)
    return build("PNG gAMA and cHRM", matrix, curve)


def build(name: str, matrix: NDArray[np.float64] | None, curve: bytes) -> bytes:
    """Makes a version 4 profile of one curve for all channels; grey when there is no matrix."""
    text = f"{name}".encode("utf-16-be")
    described = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(text), 28) + text
    free = "CC0".encode("utf-16-be")
    rights = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(free), 28) + free
    tags = [(b"desc", described), (b"cprt", rights), (b"wtpt", _xyz_tag(D50))]
    if matrix is None:
        tags.append((b"kTRC", curve))
    else:
        tags += [(name_, _xyz_tag(matrix[:, i])) for i, name_ in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
        tags += [(name_, curve) for name_ in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, placed = struct.pack(">I", len(tags)), b"", {}
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags:
        if content not in placed:
            placed[content] = start + len(body)
            body += content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", placed[content], len(content))
    head = struct.pack(">I", 128 + len(table) + len(body)) + bytes(4) + b"\x04\x30\0\0mntr"
    head += (b"GRAY" if matrix is None else b"RGB ") + b"XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", *(round(value * 65536) for value in D50))
    return head.ljust(128, b"\0") + table + body


def _para(gamma: float, *rest: float) -> bytes:
    """A parametric curve: gamma alone, or gamma, a, b, c, d of type 3."""
    values = (gamma, *rest)
    return (
        b"para"
        + bytes(4)
        + struct.pack(">HH", 3 if rest else 0, 0)
        + struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))
    )


def gamma_curve(gamma: float) -> bytes:
    """Gives the curve light = value ** gamma, to `build` a profile with."""
    return _para(gamma)


def _xyz_tag(value: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in value))


def _from_primaries(values: tuple[float, ...]) -> NDArray[np.float64]:
    """Gives RGB -> XYZ under D50 from x, y of white, red, green, blue (Bradford adaptation)."""
    xyz = [np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(values[0::2], values[1::2], strict=True)]
    white, columns = xyz[0], np.stack(xyz[1:], axis=1)
    matrix = columns * np.linalg.solve(columns, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((bradford @ D50) / (bradford @ white))
    adapted: NDArray[np.float64] = np.linalg.inv(bradford) @ scale @ bradford @ matrix
    return adapted


def _grid() -> NDArray[np.float64]:
    return np.linspace(0, 1, _STEPS + 1) ** 2


def _bands(pixels: Floats) -> list[slice]:
    step = max(1, _BAND // pixels.shape[1])
    return [slice(start, start + step) for start in range(0, pixels.shape[0], step)]


def _near(curves: tuple[Curve, ...], matrix: NDArray[np.float64] | None) -> bool:
    """Whether a coarse grid of colours comes out of the profile as it went in."""
    profile = Profile(curves, matrix)
    channels = 1 if matrix is None else 3
    values = np.linspace(0, 1, 18, dtype=np.float32)
    colours = np.stack(np.meshgrid(*[values] * channels), axis=-1).reshape(1, -1, channels)
    return bool(np.abs(profile._free(colours) - colours).max() < _SAME)


def _tags(icc: bytes) -> dict[str, bytes]:
    (count,) = struct.unpack_from(">I", icc, 128)
    tags = {}
    for index in range(min(count, 200)):
        name, offset, length = struct.unpack_from(">4sII", icc, 132 + 12 * index)
        if offset + length > len(icc):
            raise ProfileError("a tag lies outside")
        tags[name.decode("latin-1")] = icc[offset : offset + length]
    return tags


def _xyz(tag: bytes) -> NDArray[np.float64]:
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> Curve:
    x = _grid()
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            light = x
        elif count == 1:
            light = x ** (struct.unpack_from(">H", tag, 12)[0] / 256)
        else:
            table = np.array(struct.unpack_from(f">{min(count, 1 << 16)}H", tag, 12)) / 65535
            light = np.interp(x, np.linspace(0, 1, len(table)), table)
    elif tag[:4] == b"para":
        light = _parametric(tag, x)
    else:
        raise ProfileError("a curve of an unknown type")
    # Going back needs a curve that rises; a flat or falling piece is a fault of the profile, or its black.
    light = np.maximum.accumulate(np.clip(light, 0, 1))
    if not light[-1] > light[0]:
        raise ProfileError("a curve that is flat")
    return Curve(light)


def _parametric(tag: bytes, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Types 0..4 of ICC.1:2022, 10.18."""
    (kind,) = struct.unpack_from(">H", tag, 8)
    counts = (1, 3, 4, 5, 7)
    if kind >= len(counts):
        raise ProfileError("a curve of an unknown type")
    values = [value / 65536 for value in struct.unpack_from(f">{counts[kind]}i", tag, 12)]
    g, a, b, c, d, e, f = {
        0: (*values, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0),
        1: (*values, 0.0, -values[2] / values[1], 0.0, 0.0) if kind == 1 and values[1] else (1.0,) * 7,
        2: (*values[:3], 0.0, -values[2] / values[1], values[3], values[3]) if kind == 2 and values[1] else (1.0,) * 7,
        3: (*values, 0.0, 0.0),
        4: tuple(values),
    }[kind]
    base = np.maximum(a * x + b, 0)
    light: NDArray[np.float64] = np.where(x >= d, base**g + e, c * x + f)
    if not np.isfinite(light).all():
        raise ProfileError("a curve without finite values")
    return light
