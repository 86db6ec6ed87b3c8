"""CMYK and Lab come out as sRGB: by the profile that the file has, said once, and labelled as what they became."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from enlarger.picture import profile
from enlarger.picture.read import read


def swapped() -> bytes:
    """A printer's profile in which the inks have odd colours: cyan prints red, magenta green, yellow nothing."""

    def lab(*values: float) -> bytes:
        lightness, a, b = values
        return bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])

    black, red, green, white = lab(0, 0, 0), lab(54.3, 80.8, 69.9), lab(87.8, -79.3, 81.0), lab(100, 0, 0)
    nodes = b""
    for node in range(16):  # the first ink counts slowest
        nodes += black if node & 1 else red if node & 8 else green if node & 4 else white
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    straight = bytes(range(256))
    table += 4 * straight + nodes + 3 * straight
    text = b"odd inks\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(8 + 2 + 1 + 67)
    tags = [(b"desc", described), (b"cprt", b"text" + bytes(4) + b"CC0\0"), (b"A2B0", table),
            (b"wtpt", b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061))]  # fmt: skip
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags:
        directory += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I", 128 + len(directory) + len(body)) + bytes(4) + b"\x02\x40\0\0prtrCMYKLab "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + body


CYAN = (255, 0, 0, 0)
RED, PLAIN = (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)


def in_cyan(kind: str, icc: bytes | None) -> bytes:
    """A small picture of cyan ink alone."""
    stream = io.BytesIO()
    if kind == "TIFF of 16 bits":
        extra = [] if icc is None else [(34675, 7, len(icc), icc, True)]
        ink = np.zeros((8, 8, 4), np.uint16)
        ink[..., 0] = 65535
        tifffile.imwrite(stream, ink, photometric="separated", extratags=extra)
    else:
        options = {} if icc is None else {"icc_profile": icc}
        Image.new("CMYK", (8, 8), CYAN).save(stream, kind, **options)
    return stream.getvalue()


def test_the_odd_profile_is_one() -> None:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(swapped()))
    assert opened.profile.xcolor_space.strip() == "CMYK"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "TIFF of 16 bits"])
def test_cmyk_becomes_srgb_by_the_profile_of_the_file(kind: str) -> None:
    picture = read(in_cyan(kind, swapped()))
    np.testing.assert_allclose(picture.pixels, np.broadcast_to(RED, (8, 8, 3)), atol=0.06)
    assert picture.profile == profile.srgb_profile()
    (told,) = picture.warnings
    assert told.startswith("CMYK became sRGB by its colour profile")
    assert ("8 bit precision" in told) == (kind == "TIFF of 16 bits")
    assert picture.depth == (16 if kind == "TIFF of 16 bits" else 8)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "TIFF of 16 bits"])
@pytest.mark.parametrize("icc", [None, profile.srgb_profile(), b"\0" * 200], ids=["none", "another", "damaged"])
def test_cmyk_without_a_profile_that_fits_becomes_srgb_by_the_plain_formula(kind: str, icc: bytes | None) -> None:
    picture = read(in_cyan(kind, icc))
    np.testing.assert_allclose(picture.pixels, np.broadcast_to(PLAIN, (8, 8, 3)), atol=0.03)
    assert picture.profile == profile.srgb_profile()
    (told,) = picture.warnings
    assert "by the plain formula" in told
    assert ("damaged or not for CMYK" in told) == (icc is not None)


@pytest.mark.parametrize("bits", [8, 16])
def test_lab_is_said(bits: int) -> None:
    stream = io.BytesIO()
    if bits == 8:
        Image.new("LAB", (4, 4), (128, 128, 128)).save(stream, "TIFF")
    else:
        tifffile.imwrite(stream, np.full((4, 4, 3), 30000, np.uint16), photometric="cielab")
    picture = read(stream.getvalue())
    assert picture.profile == profile.srgb_profile()
    assert len(picture.warnings) == 1
    assert picture.warnings[0].startswith("Lab became sRGB")


def test_an_image_in_memory_is_told_of_too() -> None:
    assert read(Image.new("CMYK", (4, 4), CYAN)).warnings[0].startswith("CMYK without a colour profile became sRGB")
    assert read(Image.new("RGB", (4, 4))).warnings == ()
