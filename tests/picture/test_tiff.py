"""TIFF: every depth and layout to the bit, written here and read by others, and the other way round."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture.picture import Metadata
from enlarger.picture.read import read
from enlarger.picture.tiff import write_tiff
from tests.picture.support import noise, waves


def made(samples: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, **options)
    return stream.getvalue()


def samples_of(data: bytes, depth: int) -> np.ndarray:
    picture = read(data)
    assert picture.depth == depth
    planes = [picture.pixels] + ([picture.alpha[..., None]] if picture.alpha is not None else [])
    top = {8: 255, 16: 65535, 32: 1}[depth]
    joined = np.concatenate(planes, axis=2) * top
    return joined if depth == 32 else np.round(joined)


@pytest.mark.parametrize(("compression", "predictor"), [(None, False), ("zlib", False), ("zlib", True)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bit_colour_of_every_plain_layout(compression: str | None, predictor: bool, byteorder: str) -> None:
    samples = noise(13, 17, 3)
    for options in ({}, {"tile": (16, 16)}, {"rowsperstrip": 5}, {"bigtiff": True}):
        data = made(
            samples, photometric="rgb", compression=compression, predictor=predictor, byteorder=byteorder, **options
        )
        np.testing.assert_array_equal(samples_of(data, 16), samples)
    planes = made(samples.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression=compression)
    np.testing.assert_array_equal(samples_of(planes, 16), samples)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_alpha_is_straightened(alpha: str) -> None:
    straight = np.full((4, 5, 3), 40000, np.uint16)
    opacity = np.array([0, 20000, 30000, 50000, 65535], np.uint16)
    opacity = np.broadcast_to(opacity, (4, 5)).copy()
    stored = straight if alpha == "unassalpha" else np.round(straight * (opacity[..., None] / 65535)).astype(np.uint16)
    data = made(np.concatenate([stored, opacity[..., None]], axis=2), photometric="rgb", extrasamples=[alpha])
    picture = read(data)
    np.testing.assert_array_equal(np.round(picture.alpha * 65535), opacity)
    np.testing.assert_allclose(picture.pixels[:, 1:], 40000 / 65535, atol=3e-5)


def test_an_extra_channel_that_is_no_alpha_is_dropped_aloud() -> None:
    picture = read(made(noise(4, 5, 4), photometric="rgb", extrasamples=["unspecified"]))
    assert picture.alpha is None
    assert "extra channel" in picture.warnings[0]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_grey_of_16_bit_by_every_compression(compression: str) -> None:
    samples = noise(13, 17, 1)[..., 0]
    stream = io.BytesIO()
    Image.fromarray(samples).save(stream, "TIFF", compression=compression)
    np.testing.assert_array_equal(samples_of(stream.getvalue(), 16)[..., 0], samples)


def lzw(data: bytes) -> bytes:
    """TIFF's LZW in its simplest form: nine-bit literals, the table cleared before it grows (TIFF 6.0, section 13)."""
    bits = ""
    for start in range(0, len(data), 200):
        bits += f"{256:09b}" + "".join(f"{byte:09b}" for byte in data[start : start + 200])
    bits += f"{257:09b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def photoshop_like(samples: np.ndarray, order: str, orientation: int = 1) -> bytes:
    """16-bit RGB by LZW, which neither library reads alone."""
    height, width, channels = samples.shape
    strip = lzw(samples.astype(order + "u2").tobytes())
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 0), (259, 3, 1, 5), (262, 3, 1, 2), (273, 4, 1, 0),
        (274, 3, 1, orientation), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(strip)),
    ]  # fmt: skip
    if channels == 4:
        tags.append((338, 3, 1, 2))
    start = 8 + 2 + 12 * len(tags) + 4
    table = struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        if tag == 258:
            field = struct.pack(order + "I", start)
        elif tag == 273:
            field = struct.pack(order + "I", start + 2 * channels)
        else:
            field = struct.pack(order + ("H" if kind == 3 else "I"), value).ljust(4, b"\0")
        table += struct.pack(order + "HHI", tag, kind, count) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + table + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + strip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_by_lzw_keeps_its_low_bytes(order: str, channels: int) -> None:
    samples = noise(7, 9, channels)
    np.testing.assert_array_equal(samples_of(photoshop_like(samples, order), 16), samples)


def test_sixteen_bit_colour_by_lzw_is_turned_once() -> None:
    samples = noise(7, 9, 3)
    np.testing.assert_array_equal(samples_of(photoshop_like(samples, "<", 6), 16), np.rot90(samples, -1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_stay_floats(dtype: str, channels: int) -> None:
    samples = waves(6, 7, channels).astype(dtype)
    data = made(samples[..., 0] if channels == 1 else samples, photometric="minisblack" if channels == 1 else "rgb")
    picture = read(data)
    assert picture.depth == 32
    np.testing.assert_array_equal(picture.pixels, samples.astype(np.float32))


def test_floats_out_of_range_are_refused_with_the_range() -> None:
    with pytest.raises(PictureError, match=r"0\.\.3") as caught:
        read(made(np.array([[0, 3]], np.float32)))
    assert caught.value.kind == "bad_values"
    with pytest.raises(PictureError, match="NaN"):
        read(made(np.array([[0, np.nan]], np.float32)))


def test_white_may_be_zero() -> None:
    samples = noise(5, 6, 1)[..., 0]
    data = made(samples, photometric="miniswhite")
    np.testing.assert_array_equal(samples_of(data, 16)[..., 0], 65535 - samples)


def test_deep_cmyk_is_kept_deep() -> None:
    ink = np.zeros((1, 3, 4), np.uint16)
    ink[0, 1, 3] = 65535
    ink[0, 2, 0] = 13107
    picture = read(made(ink, photometric="separated"))
    assert picture.depth == 16
    np.testing.assert_allclose(picture.pixels[0], [[1, 1, 1], [0, 0, 0], [0.8, 1, 1]], atol=1e-4)


@pytest.mark.parametrize("count", [1, 6])
def test_channels_nobody_knows_are_refused(count: int) -> None:
    data = made(noise(4, 5, 3 + count)[..., : 1 + count], photometric="minisblack", planarconfig="contig")
    if count == 1:
        assert "extra channel" in read(data).warnings[0]
    else:
        with pytest.raises(PictureError, match="7 channels"):
            read(data)


def test_a_loop_of_directories_ends() -> None:
    data = bytearray(made(noise(4, 4, 3), photometric="rgb", byteorder="<"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    picture = read(bytes(data))
    assert picture.width == 4
    assert not picture.warnings  # one page, not ten thousand


def test_a_raw_file_is_not_read_as_its_thumbnail() -> None:
    plain = made(
        noise(4, 4, 3, np.uint8), photometric="rgb", subfiletype=1, extratags=[(65000, 4, 1, 8, True)], byteorder="<"
    )
    for tag in (0xC612, 330):  # DNG's version; directories below a thumbnail, as Nikon and Sony have them
        data = plain.replace(struct.pack("<HHI", 65000, 4, 1), struct.pack("<HHI", tag, 4, 1))
        assert data != plain
        with pytest.raises(PictureError, match="raw file") as caught:
            read(data)
        assert caught.value.kind == "unsupported_format"


def test_pages_that_are_reduced_copies_do_not_count() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(noise(8, 8, 3, np.uint8), photometric="rgb")
        file.write(noise(4, 4, 3, np.uint8), photometric="rgb", subfiletype=1)
        file.write(noise(6, 6, 3, np.uint8), photometric="rgb")
    assert "2 pages" in read(stream.getvalue()).warnings[0]
    assert read(stream.getvalue(), page=2).width == 6


def test_strips_past_the_end_are_seen_before_anything_is_decoded(corpora: Path) -> None:
    for path in (corpora / "bad" / "strip_past_end.tif", made(noise(9, 9, 3), photometric="rgb")[:-50]):
        with pytest.raises(PictureError, match="lie past the end") as caught:
            read(path)
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize(("name", "share"), [("jpeg_in.tif", 0.9), ("g4.tif", 0.95), ("multipage.tiff", 0.3)])
def test_what_a_decoder_misses_in_a_cut_file_was_cut_off(name: str, share: float, good: Path) -> None:
    data = (good / name).read_bytes()
    with pytest.raises(PictureError) as caught:
        read(data[: int(len(data) * share)])
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("format", ["classic", "big"])
def test_a_file_cut_in_its_directory_is_cut_off(format: str) -> None:
    """Written here the directory stands at the end: any cut hits it."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, noise(6, 6, 3), photometric="rgb", bigtiff=format == "big", rowsperstrip=1)
    own = io.BytesIO()
    write_tiff(own, noise(6, 6, 3), None)
    data = own.getvalue() if format == "classic" else stream.getvalue()
    for length in range(16, len(data) - 60, 7):
        with pytest.raises(PictureError) as caught:
            read(data[:length])
        assert caught.value.kind == "truncated", length


# --- writing


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from(["uint8", "uint16", "float32"]),
    st.booleans(),
)  # fmt: skip
def test_what_is_written_is_read_here_and_by_tifffile(
    height: int, width: int, channels: int, dtype: str, with_alpha: bool
) -> None:
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    pixels = (waves(height, width, channels) * top).astype(dtype)
    alpha = (waves(height, width, 1)[..., 0] * top).astype(dtype) if with_alpha else None
    stream = io.BytesIO()
    write_tiff(stream, pixels, alpha)
    joined = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        np.testing.assert_array_equal(file.asarray().reshape(joined.shape), joined)
    depth = {"uint8": 8, "uint16": 16, "float32": 32}[dtype]
    np.testing.assert_array_equal(samples_of(stream.getvalue(), depth), joined)


def test_pillow_reads_what_is_written_with_all_its_metadata() -> None:
    from enlarger.picture import exif as exifs
    from enlarger.picture.profile import srgb_profile

    found = exifs.Exif(">")
    found.first[0x010F] = (2, 6, b"Maker\0")
    found.camera[0x829A] = (5, 1, struct.pack(">II", 1, 250))
    found.position[1] = (2, 2, b"N\0")
    metadata = Metadata(exif=found.to_bytes(), xmp=b"<x/>", iptc=b"\x1c\x02\x05\x00\x01t", dpi=(300, 240))
    stream = io.BytesIO()
    write_tiff(stream, noise(300, 200, 3, np.uint8), None, profile=srgb_profile(), metadata=metadata)
    with Image.open(stream) as image:
        assert image.info["dpi"] == (300, 240)
        assert image.info["icc_profile"] == srgb_profile()
        exif = image.getexif()
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769)[0x829A] == pytest.approx(1 / 250)
        assert exif.get_ifd(0x8825)[1] == "N"
        assert bytes(image.tag_v2[700]) == b"<x/>"
        assert bytes(image.tag_v2[33723]) == metadata.iptc


def test_beyond_four_gigabytes_it_is_a_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view repeats one row, so nothing of that size exists; the strips are replaced by nothing to keep it fast."""
    from enlarger.picture import tiff

    monkeypatch.setattr(tiff, "_strip", lambda pixels, alpha, rows: b"")
    row = np.zeros((1, 40000, 3), np.uint16)
    huge = np.broadcast_to(row, (20000, 40000, 3))
    stream = io.BytesIO()
    write_tiff(stream, huge, None)
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        assert file.is_bigtiff
        assert file.pages[0].shape == (20000, 40000, 3)


def test_bigtiff_is_written_with_its_directories() -> None:
    """The same pixels and metadata, by BigTIFF's layout."""
    from enlarger.picture import exif as exifs

    found = exifs.Exif()
    found.camera[0x829A] = (5, 1, struct.pack("<II", 1, 250))
    data = found.directories(16, {256: (4, 1, struct.pack("<I", 5))}, big=True)
    (count,) = struct.unpack_from("<Q", data)
    assert count == 2
    tag, kind, number, pointer = struct.unpack_from("<HHQQ", data, 8 + 20)
    assert (tag, kind, number) == (0x8769, 18, 1)
    (inner,) = struct.unpack_from("<Q", data, pointer - 16)
    assert inner == 1
