"""PNG: every bit kept, every fault told, against a writer and a reader of these tests' own."""

from __future__ import annotations

import io
import itertools
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture.picture import Metadata
from enlarger.picture.png import read_png, write_png
from tests.picture.support import noise, waves

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def predict(kind: int, left: int, above: int, corner: int) -> int:
    """The PNG specification's filters, one byte at a time."""
    if kind == 4:
        p = left + above - corner
        distances = (abs(p - left), abs(p - above), abs(p - corner))
        return (left, above, corner)[distances.index(min(distances))]
    return (0, left, above, (left + above) // 2)[kind]


def filtered(rows: list[bytes], step: int, kinds: itertools.cycle) -> bytes:
    """Filters rows of one (sub)picture, taking the filters in turn: the slow, plain way."""
    out = bytearray()
    above = bytes(len(rows[0]))
    for row in rows:
        kind = next(kinds)
        out.append(kind)
        for i, value in enumerate(row):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            out.append((value - predict(kind, left, above[i], corner)) & 255)
        above = row
    return bytes(out)


def packed(samples: np.ndarray, bits: int) -> list[bytes]:
    """Rows of (H, W, C) samples as PNG stores them."""
    flat = samples.reshape(samples.shape[0], -1)
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in flat]
    if bits == 8:
        return [row.astype("u1").tobytes() for row in flat]
    rows = []
    for row in flat:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def make(
    samples: np.ndarray, bits: int, colour: int, *, interlaced: bool = False, extra: bytes = b"", parts: int = 1
) -> bytes:
    """A PNG of (H, W, C) samples with all five filters in turn."""
    height, width = samples.shape[:2]
    step = max(1, bits * CHANNELS[colour] // 8)
    kinds = itertools.cycle((0, 1, 2, 3, 4))
    if interlaced:
        passes = [samples[y::step_y, x::step_x] for x, y, step_x, step_y in ADAM7]
        data = b"".join(filtered(packed(part, bits), step, kinds) for part in passes if part.size)
    else:
        data = filtered(packed(samples, bits), step, kinds)
    stream = zlib.compress(data)
    size = -(-len(stream) // parts)
    idat = b"".join(chunk(b"IDAT", stream[i : i + size]) for i in range(0, len(stream), size))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))
    return SIGNATURE + head + extra + idat + chunk(b"IEND", b"")


def draw(height: int, width: int, channels: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width, channels))


# --- reading


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)]
)
def test_every_kind_and_filter_is_read_to_the_bit(colour: int, bits: int, interlaced: bool) -> None:
    samples = draw(11, 13, CHANNELS[colour], bits)
    raw = read_png(make(samples, bits, colour, interlaced=interlaced, parts=3), "x", 10**6)
    want = samples * (255 // ((1 << bits) - 1)) if bits < 8 else samples
    colours = 1 if colour in (0, 4) else 3
    np.testing.assert_array_equal(raw.samples, want[..., :colours])
    assert raw.depth == (16 if bits == 16 else 8)
    if colour in (4, 6):
        np.testing.assert_array_equal(raw.alpha, want[..., colours])
    else:
        assert raw.alpha is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_of_every_depth(bits: int, transparent: bool) -> None:
    count = 1 << bits
    palette = draw(1, count, 3, 8, 1)[0].astype(np.uint8)
    opacity = draw(1, count, 1, 8, 2)[0, :, 0].astype(np.uint8)
    extra = chunk(b"PLTE", palette.tobytes()) + (
        chunk(b"tRNS", opacity[: count // 2].tobytes()) if transparent else b""
    )
    indices = draw(9, 10, 1, bits)
    raw = read_png(make(indices, bits, 3, extra=extra), "x", 10**6)
    np.testing.assert_array_equal(raw.samples, palette[indices[..., 0]])
    if transparent:
        whole = np.concatenate([opacity[: count // 2], np.full(count - count // 2, 255)])
        np.testing.assert_array_equal(raw.alpha, whole[indices[..., 0]])
    else:
        assert raw.alpha is None


@pytest.mark.parametrize(("colour", "bits"), [(0, 2), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_colour_keys_make_exactly_their_colour_transparent(colour: int, bits: int) -> None:
    channels = CHANNELS[colour]
    samples = draw(8, 8, channels, bits)
    key = samples[3, 4]
    samples[5, 5] = key
    raw = read_png(make(samples, bits, colour, extra=chunk(b"tRNS", struct.pack(f">{channels}H", *key))), "x", 10**6)
    assert raw.alpha is not None
    np.testing.assert_array_equal(raw.alpha == 0, (samples == key).all(axis=2))
    assert raw.alpha.max() == (65535 if bits == 16 else 255)


def test_sixteen_bits_agree_with_another_library() -> None:
    """Pillow gives 16-bit grey whole, and of 16-bit colour the high bytes."""
    grey, colour = draw(20, 30, 1, 16), draw(20, 30, 3, 16)
    np.testing.assert_array_equal(read_png(make(grey, 16, 0), "x", 10**6).samples[..., 0], grey[..., 0])
    with Image.open(io.BytesIO(make(colour, 16, 2))) as image:
        np.testing.assert_array_equal(read_png(make(colour, 16, 2), "x", 10**6).samples >> 8, np.asarray(image))


def test_a_picture_of_four_megapixels_at_16_bit_is_read_in_seconds() -> None:
    stream = io.BytesIO()
    write_png(stream, np.repeat(np.repeat(noise(250, 250), 8, axis=0), 8, axis=1), None, level=1)
    started = time.perf_counter()
    read_png(stream.getvalue(), "x", 10**7)
    assert time.perf_counter() - started < 5  # 1 on an idle machine; this one may be busy


# --- faults


def broken(what: str) -> bytes:
    good = make(draw(12, 12, 3, 8), 8, 2)
    at = good.index(b"IDAT") - 4
    stream = good[at + 8 : at + 8 + struct.unpack_from(">I", good, at)[0]]
    head, data = good[8 : 8 + 25], zlib.decompress(stream)

    def with_data(body: bytes, end: bytes = chunk(b"IEND", b"")) -> bytes:
        return SIGNATURE + head + chunk(b"IDAT", body) + end

    return {
        "pixels": good[: at + 20] + bytes([good[at + 20] ^ 1]) + good[at + 21 :],
        "header checksum": good[:29] + b"\0\0\0\0" + good[33:],
        "fewer rows": with_data(zlib.compress(data[: 5 * 37])),
        "break": with_data(stream[: len(stream) // 2]),
        "cut": good[: at + 60],
        "cut between chunks": SIGNATURE + head,
        "no zlib": with_data(b"\x00" * 50),
        "filter": with_data(zlib.compress(bytes([9]) + data[1:])),
        "unknown critical": SIGNATURE + head + chunk(b"ABCD", b"x") + good[33:],
        "no header": SIGNATURE + good[33:],
        "text mode": good.replace(b"\r\n", b"\n"),
        "signature only": SIGNATURE,
    }[what]


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("pixels", "corrupt", "checksum of its IDAT"),
        ("header checksum", "corrupt", "checksum of its IHDR"),
        ("fewer rows", "truncated", "after 5 of 12 rows"),
        ("break", "corrupt", "break off"),
        ("cut", "truncated", "of 12 rows"),
        ("cut between chunks", "truncated", "no pixel data"),
        ("no zlib", "corrupt", "unpacked"),
        ("filter", "corrupt", "filter"),
        ("unknown critical", "corrupt", "ABCD"),
        ("no header", "corrupt", "IHDR"),
        ("text mode", "corrupt", "text-mode"),
        ("signature only", "truncated", "nothing follows"),
    ],
)
def test_each_fault_is_named(what: str, kind: str, says: str) -> None:
    with pytest.raises(PictureError, match=says) as caught:
        read_png(broken(what), "x.png", 10**6)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 5, 8, 2, 0, 0, 0), "corrupt"),
        ((5, 0, 8, 2, 0, 0, 0), "corrupt"),
        ((0x80000000, 1, 8, 2, 0, 0, 0), "corrupt"),
        ((5, 5, 8, 5, 0, 0, 0), "corrupt"),
        ((5, 5, 3, 0, 0, 0, 0), "corrupt"),
        ((5, 5, 16, 3, 0, 0, 0), "corrupt"),
        ((5, 5, 8, 2, 1, 0, 0), "corrupt"),
        ((5, 5, 8, 2, 0, 0, 2), "corrupt"),
        ((0x7FFFFFFF, 0x7FFFFFFF, 8, 2, 0, 0, 0), "too_large"),
    ],
)
def test_impossible_headers_are_refused_before_the_data(values: tuple[int, ...], kind: str) -> None:
    data = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *values)) + chunk(b"IDAT", b"")
    with pytest.raises(PictureError) as caught:
        read_png(data, "x", 10**8)
    assert caught.value.kind == kind


def test_palettes_that_are_missing_or_too_short() -> None:
    indices = np.array([[[0], [1], [7]]])
    with pytest.raises(PictureError, match="palette"):
        read_png(make(indices, 8, 3), "x", 100)
    raw = read_png(make(indices, 8, 3, extra=chunk(b"PLTE", bytes(range(6)))), "x", 100)
    assert "past the palette" in raw.warnings[0]
    np.testing.assert_array_equal(raw.samples[0], [[0, 1, 2], [3, 4, 5], [0, 0, 0]])


def test_damage_beside_the_pixels_costs_only_itself() -> None:
    samples = draw(4, 4, 3, 8)
    bad_text = bytearray(chunk(b"tEXt", b"Author\0me"))
    bad_text[-1] ^= 1
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20 << 20), 9))
    extra = (
        bytes(bad_text) + bomb + chunk(b"iCCP", b"x\0\0notzlib") + chunk(b"pHYs", b"xx") + chunk(b"tEXt", b"Title\0yes")
    )
    raw = read_png(make(samples, 8, 2, extra=extra), "x", 100)
    np.testing.assert_array_equal(raw.samples, samples)
    assert raw.text == (("Title", "yes"),)
    assert [w.split(" chunk")[0].split()[-1] for w in raw.warnings] == ["tEXt", "zTXt", "iCCP", "pHYs"]


def test_content_credentials_are_dropped_aloud() -> None:
    raw = read_png(make(draw(2, 2, 3, 8), 8, 2, extra=chunk(b"caBX", b"jumb")), "x", 100)
    assert "C2PA" in raw.warnings[0]


def test_profiles_hidden_in_text_are_found() -> None:
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    text = b"\nexif\n      %d\n" % (6 + len(exif)) + (b"Exif\0\0" + exif).hex().encode()
    extra = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    assert read_png(make(draw(2, 2, 1, 8), 8, 0, extra=extra), "x", 100).exif == exif


# --- writing


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([np.uint8, np.uint16]),
    st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_what_is_written_is_read(
    height: int, width: int, channels: int, dtype: type, with_alpha: bool, seed: int
) -> None:
    pixels = noise(height, width, channels, dtype, seed)
    alpha = noise(height, width, 1, dtype, seed + 1)[..., 0] if with_alpha else None
    stream = io.BytesIO()
    write_png(stream, pixels, alpha)
    raw = read_png(stream.getvalue(), "x", 10**6)
    np.testing.assert_array_equal(raw.samples, pixels)
    assert raw.samples.dtype == dtype
    assert (raw.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(raw.alpha, alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_others_read_what_is_written(dtype: type) -> None:
    """Pillow decodes it alike, over the borders of bands (a megabyte of rows) too."""
    pixels = noise(900, 700, 1, dtype)
    stream = io.BytesIO()
    write_png(stream, pixels, None)
    with Image.open(stream) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[..., 0])
    colour = noise(600, 700, 3, np.uint8)
    stream = io.BytesIO()
    write_png(stream, colour, colour[..., 0])
    with Image.open(stream) as image:
        np.testing.assert_array_equal(np.asarray(image), np.concatenate([colour, colour[..., :1]], axis=2))


def test_smooth_pictures_are_filtered_well() -> None:
    """The filters do their work: no larger than 1.1 times what Pillow's adaptive choice gives."""
    pixels = (waves(300, 400) * 255).astype(np.uint8)
    own, other = io.BytesIO(), io.BytesIO()
    write_png(own, pixels, None)
    Image.fromarray(pixels).save(other, "PNG")
    assert len(own.getvalue()) < 1.1 * len(other.getvalue())


def test_texts_come_back_whatever_they_hold() -> None:
    texts = (("Title", "plain"), ("parameters", "ünï\ncödé: 1, b"), ("Comment", "日本 ☃"), ("Empty", ""))
    stream = io.BytesIO()
    write_png(stream, noise(2, 2, 1, np.uint8), None, metadata=Metadata(text=texts, dpi=(300, 150)))
    raw = read_png(stream.getvalue(), "x", 100)
    assert raw.text == texts
    assert raw.dpi == pytest.approx((300, 150), rel=1e-3)
    with Image.open(stream) as image:
        image.load()
        assert image.info["parameters"] == texts[1][1]
        assert image.info["Comment"] == texts[2][1]
