"""ICC profiles: into sRGB and back, against LittleCMS, with nothing lost of wide colours."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from enlarger.picture import profile
from enlarger.picture.colour import SRGB_TO_XYZ, quantise
from enlarger.picture.read import read
from enlarger.picture.write import check_output, encode
from tests.picture.support import noise, waves

P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def wide(primaries: tuple[float, ...] = P3, gamma: float = 2.2) -> bytes:
    found = profile.from_png(1 / gamma, primaries)
    assert found is not None
    return found


def png(samples: np.ndarray, icc: bytes | None) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(samples).save(stream, "PNG", icc_profile=icc)
    return stream.getvalue()


def by_littlecms(samples: np.ndarray, icc: bytes) -> np.ndarray:
    image = Image.fromarray(samples)
    done = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=1,
        outputMode="RGB",
    )
    assert done is not None
    return np.asarray(done)


@pytest.mark.parametrize("primaries", [P3, ADOBE])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_colours_agree_with_littlecms(primaries: tuple[float, ...], gamma: float) -> None:
    samples = noise(40, 40, 3, np.uint8)
    icc = wide(primaries, gamma)
    got = quantise(read(png(samples, icc)).pixels, 8).astype(int)
    off = np.abs(got - by_littlecms(samples, icc))
    assert off.max() <= 2
    assert off.mean() < 0.3


def test_the_corpus_profiles_agree_with_littlecms(good: Path) -> None:
    for name in ("icc_wide.png", "icc_grey.png", "xmp_orient.png"):
        with Image.open(good / name) as image:
            colours = image.convert("RGB") if image.mode == "RGBA" else image.copy()
            icc = image.info["icc_profile"]
        want = by_littlecms(np.asarray(colours), icc).astype(int)
        got = quantise(read(good / name).rgb(), 8)
        got = got[::-1, ::-1] if name == "xmp_orient.png" else got
        assert np.abs(got - want).max() <= 3, name


@pytest.mark.parametrize("primaries", [P3, ADOBE])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_way_in_and_out_gives_every_sample_back(primaries: tuple[float, ...], dtype: type) -> None:
    """Also colours far outside sRGB: what clipping takes is kept apart and added again."""
    from enlarger.picture.png import write_png

    samples = noise(30, 30, 3, dtype)
    samples[0, :3] = np.eye(3) * np.iinfo(dtype).max
    stream = io.BytesIO()
    write_png(stream, samples, None, profile=wide(primaries))
    picture = read(stream.getvalue())
    assert picture.excess is not None
    plan = check_output(None, format="png", size=(30, 30), depth=picture.depth, picture=picture)
    again = read(encode(plan, picture.pixels, None, picture))
    assert again.profile == picture.profile
    plain = profile.parse(wide(primaries))
    assert plain is not None
    back = quantise(plain.from_srgb(again.pixels + again.excess), picture.depth)
    # One step of 8 bits; in 16 bits the curve near black is steep and the sum of floats rounds.
    assert np.abs(back.astype(int) - samples).max() <= (0 if dtype == np.uint8 else 24)


def test_without_what_was_clipped_wide_colours_would_be_lost() -> None:
    samples = np.zeros((1, 1, 3), np.uint8)
    samples[..., 1] = 255
    picture = read(png(samples, wide()))
    plain = profile.parse(wide())
    assert plain is not None
    lost = quantise(plain.from_srgb(picture.pixels), 8)
    assert np.abs(lost.astype(int) - samples).max() > 20
    assert picture.pixels.min() == 0
    assert picture.pixels.max() == 1


def test_clipped_colours_are_enlarged_with_the_picture() -> None:
    samples = np.zeros((6, 6, 3), np.uint8)
    samples[..., 1] = 255
    picture = read(png(samples, wide()))
    plan = check_output(None, format="png", size=(24, 24), depth=8, picture=picture)
    from enlarger.picture.resize import resize

    data = encode(plan, resize(picture.pixels, (24, 24)), None, picture)
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(np.asarray(image).astype(int) - [0, 255, 0]).max() <= 1
        assert image.info["icc_profile"] == wide()


def test_profiles_that_say_srgb_leave_the_numbers_alone() -> None:
    samples = noise(9, 9, 3, np.uint8)
    for icc in (profile.srgb_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        picture = read(png(samples, icc))
        np.testing.assert_array_equal(picture.pixels, samples / np.float32(255))
        assert picture.profile == icc
        assert picture.excess is None


def test_grey_profiles_go_both_ways() -> None:
    icc = profile.build("grey", None, profile.gamma_curve(1.8))
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = read(png(samples, icc))
    light = (samples / 255.0) ** 1.8
    want = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(picture.pixels[..., 0], want, atol=1e-4)
    plan = check_output(None, format="png", size=(16, 16), depth=8, picture=picture)
    with Image.open(io.BytesIO(encode(plan, picture.pixels, None, picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), samples)
        assert image.info["icc_profile"] == icc


def test_grey_pixels_under_an_rgb_profile_follow_its_curve() -> None:
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    icc = wide(P3, 1.8)
    grey, colour = read(png(samples, icc)), read(png(np.repeat(samples[..., None], 3, axis=2), icc))
    np.testing.assert_allclose(grey.pixels[..., 0], colour.pixels[..., 1], atol=2e-3)


def test_grey_pixels_under_an_rgb_profile_go_back_too() -> None:
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = read(png(samples, wide(P3, 1.8)))
    plan = check_output(None, format="png", size=(16, 16), depth=8, picture=picture)
    with Image.open(io.BytesIO(encode(plan, picture.pixels, None, picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), samples)


def test_a_grey_picture_that_became_coloured_is_labelled_srgb() -> None:
    icc = profile.build("grey", None, profile.gamma_curve(1.8))
    picture = read(png(noise(5, 5, 1, np.uint8)[..., 0], icc))
    plan = check_output(None, format="png", size=(5, 5), depth=8, picture=picture)
    again = read(encode(plan, waves(5, 5), None, picture))
    np.testing.assert_allclose(again.pixels, waves(5, 5), atol=1 / 500)
    assert again.profile == profile.srgb_profile()


@pytest.mark.parametrize(
    "damage",
    [
        lambda icc: bytes(200),
        lambda icc: icc[: len(icc) // 2],
        lambda icc: icc[:36] + b"nope" + icc[40:],
        lambda icc: icc.replace(b"rTRC", b"xTRC").replace(b"para", b"what"),
        lambda icc: icc[:132] + b"\xff" * 60 + icc[192:],
    ],
)
def test_damaged_profiles_are_told_and_not_carried_on(damage: object) -> None:
    samples = noise(4, 4, 3, np.uint8)
    picture = read(png(samples, damage(wide())))  # type: ignore[operator]
    assert "colour profile" in picture.warnings[0]
    assert picture.profile is None
    np.testing.assert_array_equal(picture.pixels, samples / np.float32(255))


def test_profiles_that_work_by_tables_are_converted_and_labelled_srgb() -> None:
    """A table tag is put beside the curves without being a table: the curves must not be used in its place."""
    icc = wide()
    (count,) = struct.unpack_from(">I", icc, 128)
    entry = icc[132 : 132 + 12 * count]
    # rename a text tag to A2B0: the profile then claims tables, which are not there
    claimed = icc[:132] + entry.replace(b"cprt", b"A2B0") + icc[132 + 12 * count :]
    picture = read(png(noise(4, 4, 3, np.uint8), claimed))
    assert picture.warnings
    assert picture.profile in (None, profile.srgb_profile())


@pytest.mark.parametrize("kind", range(5))
def test_parametric_curves_of_every_kind(kind: int) -> None:
    """Against LittleCMS: all five types of ICC.1:2022, 10.18."""
    values = {
        0: (2.0,),
        1: (2.2, 0.9, 0.1),
        2: (2.2, 0.8, 0.1, 0.05),
        3: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
        4: (2.4, 0.9, 0.05, 1 / 14, 0.05, 0.02, 0.0),
    }[kind]
    numbers = struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))
    curve = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + numbers
    icc = profile.build("test", SRGB_TO_XYZ, curve)
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    got = quantise(read(png(ramp, icc)).pixels, 8).astype(int)
    assert np.abs(got - by_littlecms(ramp, icc)).max() <= 2


def test_tabled_curves() -> None:
    table = np.round(np.linspace(0, 1, 256) ** 1.5 * 65535).astype(">u2")
    curve = b"curv" + bytes(4) + struct.pack(">I", 256) + table.tobytes()
    icc = profile.build("test", SRGB_TO_XYZ, curve)
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert np.abs(quantise(read(png(ramp, icc)).pixels, 8).astype(int) - by_littlecms(ramp, icc)).max() <= 2


def test_gamma_without_a_profile_is_obeyed(good: Path) -> None:
    """PNG's gAMA of 1.0 means light: middle grey comes out brighter, and the result carries a profile that says so."""
    picture = read(good / "gamma_only.png")
    with Image.open(good / "gamma_only.png") as image:
        light = np.asarray(image) / 255.0
    want = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(picture.pixels, want, atol=2e-3)
    assert picture.profile is not None
    assert read(good / "hopper.png").profile is None  # gAMA 0.45455 and sRGB's cHRM say nothing


def test_display_p3_may_be_said_by_number() -> None:
    """PNG's cICP 12, 13 is Display P3 under sRGB's curve: the same colours as by its profile, which the result gets."""
    from tests.picture.test_png import chunk

    samples = noise(6, 6, 3, np.uint8)
    icc = profile.from_png(1 / 2.2, P3)
    plain = png(samples, None)
    picture = read(plain[:33] + chunk(b"cICP", bytes([12, 13, 0, 1])) + plain[33:])
    np.testing.assert_array_equal(picture.pixels, read(png(samples, icc)).pixels)
    assert picture.profile == icc
    assert not picture.warnings
    assert np.abs(quantise(picture.pixels, 8).astype(int) - samples).max() > 5


def test_cmyk_and_lab_come_out_labelled_srgb(good: Path) -> None:
    for name in ("cmyk_plain.jpg", "cmyk_photoshop.jpg", "lzw_cmyk.tif", "lab.tif"):
        assert read(good / name).profile == profile.srgb_profile(), name


def test_cmyk_is_the_right_way_round() -> None:
    """Pillow writes CMYK JPEG with Adobe's inversion; white paper must come out white, full black ink black."""
    for ink, want in (((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0), ((255, 255, 255, 0), 0.0)):
        stream = io.BytesIO()
        Image.new("CMYK", (16, 16), ink).save(stream, "JPEG", quality=100)
        np.testing.assert_allclose(read(stream.getvalue()).pixels, want, atol=0.02)
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "TIFF")
    np.testing.assert_allclose(read(stream.getvalue()).pixels[0, 0], [1, 0, 0], atol=0.01)
