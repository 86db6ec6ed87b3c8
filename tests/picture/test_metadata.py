"""EXIF, XMP and the recipe: kept where they are right, corrected where the picture changed, dropped where damaged."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture import exif as exifs
from enlarger.picture import recipe, xmp
from enlarger.picture.read import read
from enlarger.picture.write import Strip, check_output, encode, read_record
from tests.picture.support import noise

RECORD = {
    "version": "0.1.0",
    "engine": "x4",
    "model": "sd-x4",
    "digest": "sha256:abcdef0123456789",
    "settings": {
        "steps": 20,
        "seed": 7,
        "prompt": "a cat, ünï 日本",
        "guidance_scale": 7.5,
        "scale": 4.0,
        "scheduler": "ddim",
    },
}
HOLDING = ("png", "jpg", "webp", "tiff", "avif")


def camera_exif(order: str = "<") -> bytes:
    """What a camera writes: maker, orientation, exposure, size, serial number, maker note, position, a thumbnail."""
    found = exifs.Exif(order)
    found.first |= {
        0x010F: (2, 5, b"Acme\0"),
        0x0112: (3, 1, struct.pack(order + "H", 6)),
        0x013B: (2, 4, b"Ann\0"),
        0x8298: (2, 4, b"(c)\0"),
    }
    found.camera |= {
        0x829A: (5, 1, struct.pack(order + "II", 1, 250)),
        0xA002: (4, 1, struct.pack(order + "I", 40)),
        0xA003: (4, 1, struct.pack(order + "I", 30)),
        0xA431: (2, 4, b"S/N\0"),
        0x927C: (7, 300, bytes(300)),
    }
    found.position |= {1: (2, 2, b"N\0"), 2: (5, 3, struct.pack(order + "6I", 48, 1, 7, 1, 30, 1))}
    return found.to_bytes()


XMP = xmp.pack(
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="6" '
    'exif:PixelXDimension="40" exif:GPSLatitude="48,7.5N" dc:source="a &amp; b">'
    "<exif:PixelYDimension>30</exif:PixelYDimension>"
    "<xmp:Thumbnails><rdf:Alt><rdf:li>AAAA</rdf:li></rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def photo(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(30, 40, 3, np.uint8)).save(stream, "JPEG", **options)
    return stream.getvalue()


def result(source: bytes, format: str, record: dict[str, Any] | None = None, strip: Strip = "none") -> bytes:
    """The source enlarged by two, as a file."""
    picture = read(source)
    larger = picture.pixels.repeat(2, axis=0).repeat(2, axis=1)
    plan = check_output(None, format=format, size=larger.shape[:2], depth=8, picture=picture, strip=strip)
    return encode(plan, larger, None, picture, record=record, strip=strip)


def exif_of(data: bytes) -> Image.Exif:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        found = image.getexif()
        found.get_ifd(0x8769)
        found.get_ifd(0x8825)
        return found


# --- EXIF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", HOLDING)
def test_exif_is_carried_over_and_corrected(order: str, format: str) -> None:
    """As Pillow reads it: everything kept but what was true of the old file only."""
    data = result(photo(exif=b"Exif\0\0" + camera_exif(order)), format)
    found = exif_of(data)
    camera, position = found.get_ifd(0x8769), found.get_ifd(0x8825)
    assert found[0x010F] == "Acme"
    assert found[0x8298] == "(c)"
    assert found.get(0x0112, 1) == 1
    assert camera[0x829A] == pytest.approx(1 / 250)
    assert (camera[0xA002], camera[0xA003]) == (60, 80)  # turned and enlarged
    assert 0x927C not in camera
    assert position[1] == "N"
    assert [float(v) for v in position[2]] == [48, 7, 30]
    again = read(data)
    assert (again.width, again.height) == (60, 80)
    assert not again.warnings


@pytest.mark.parametrize("format", HOLDING)
def test_private_data_can_be_left_out(format: str) -> None:
    data = result(photo(exif=b"Exif\0\0" + camera_exif(), xmp=XMP), format, strip="private")
    found = exif_of(data)
    assert not found.get_ifd(0x8825)
    assert 0xA431 not in found.get_ifd(0x8769)
    assert 0x013B not in found
    assert found[0x8298] == "(c)"
    body = read(data).metadata.xmp
    assert body is not None
    assert b"GPSLatitude" not in body
    assert b"a &amp; b" in body


@pytest.mark.parametrize("format", HOLDING)
def test_all_metadata_can_be_left_out_with_the_recipe(format: str) -> None:
    data = result(photo(exif=b"Exif\0\0" + camera_exif(), xmp=XMP, dpi=(300, 300)), format, RECORD, strip="all")
    picture = read(data)
    assert not picture.metadata
    assert read_record(data) is None
    assert b"Acme" not in data
    assert b"enlarger" not in data.lower()


@given(st.binary(max_size=200))
def test_any_bytes_are_exif_or_a_value_error(data: bytes) -> None:
    for start in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        try:
            found = exifs.parse(start + data)
        except ValueError:
            continue
        again = exifs.parse(found.to_bytes()) if not found.empty() else found
        assert (again.first, again.camera, again.position) == (found.first, found.camera, found.position)


def test_a_directory_that_points_at_itself_ends() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    found = exifs.parse(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4))
    assert 0x8769 in found.camera or not found.camera


def test_damaged_entries_cost_only_themselves(good: Path) -> None:
    picture = read(good / "exif_bad.jpg")
    assert "EXIF" in picture.warnings[0]
    table = struct.pack("<HHII", 0x010F, 2, 5, 9999) + struct.pack("<HHI4s", 0x8298, 2, 4, b"(c)\0")
    data = photo(exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + table + bytes(4))
    picture = read(data)
    assert "damaged entries" in picture.warnings[0]
    assert exif_of(result(data, "png"))[0x8298] == "(c)"


def test_thumbnails_are_dropped() -> None:
    base = exifs.parse(camera_exif())
    main = base.to_bytes()
    (count,) = struct.unpack_from("<H", main, 8)
    second = struct.pack("<H", 1) + struct.pack("<HHII", 0x0201, 4, 1, 5000) + bytes(4)
    linked = bytearray(main) + second + b"THUMBNAIL" * 500
    struct.pack_into("<I", linked, 8 + 2 + 12 * count, len(main))
    data = photo(exif=b"Exif\0\0" + bytes(linked))
    assert b"THUMBNAIL" in data
    assert b"THUMBNAIL" not in result(data, "jpg")


# --- XMP


@pytest.mark.parametrize("format", HOLDING)
def test_xmp_is_carried_over_and_corrected(format: str) -> None:
    data = result(photo(xmp=XMP), format)
    body = xmp.normalise(read(data).metadata.xmp or b"")
    assert xmp.orientation(body) == 1
    assert 'exif:PixelXDimension="60"' in body
    assert "<exif:PixelYDimension>80</exif:PixelYDimension>" in body
    assert "Thumbnails" not in body
    assert 'dc:source="a &amp; b"' in body


def test_xmp_turns_the_picture_only_where_exif_is_silent() -> None:
    assert read(photo(xmp=XMP)).width == 30
    upright = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 1, 0, 0)
    assert read(photo(xmp=XMP, exif=upright)).width == 40


@pytest.mark.parametrize(
    "packet",
    [
        b"<x>",
        b"not xml",
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + XMP[XMP.index(b"<x:xmpmeta") : XMP.rindex(b"<?xpacket")],
        b"\xff\xfe\x00",
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>",
        XMP[:-200],
    ],
)
def test_damaged_xmp_is_dropped_aloud(packet: bytes) -> None:
    picture = read(photo(xmp=packet))
    assert picture.metadata.xmp is None
    assert "XMP" in picture.warnings[0]


@given(st.text(max_size=80))
def test_any_record_comes_back_from_xmp(text: str) -> None:
    record = {"settings": {"prompt": text}}
    body = xmp.with_record(None, recipe.to_json(record))
    packet = xmp.pack(xmp.with_record(body, recipe.to_json(record)))
    again = xmp.record(xmp.normalise(packet))
    assert again is not None
    assert recipe.from_json(again) == record
    assert packet.count(b"enlarger:record=") == 1


def test_a_source_type_is_never_weakened(good: Path) -> None:
    strong = xmp.normalise(read(good / "xmp_ai.jpg").metadata.xmp or b"")
    assert xmp.source_type(strong) == "trainedAlgorithmicMedia"
    for kind in ("algorithmicallyEnhanced", "compositeWithTrainedAlgorithmicMedia"):
        assert xmp.source_type(xmp.with_source_type(strong, kind)) == "trainedAlgorithmicMedia"
    weak = xmp.with_source_type(None, "algorithmicallyEnhanced")
    mixed = xmp.with_source_type(weak, "compositeWithTrainedAlgorithmicMedia")
    assert xmp.source_type(mixed) == "compositeWithTrainedAlgorithmicMedia"
    assert mixed.count("DigitalSourceType=") == 1
    xmp.normalise(xmp.pack(mixed))


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"engine": "interpolate"}, "algorithmicallyEnhanced"),
        ({"engine": "pocket"}, "compositeWithTrainedAlgorithmicMedia"),
        ({"engine": "generate"}, "trainedAlgorithmicMedia"),
        ({"engine": "pocket", "source_type": "algorithmicallyEnhanced"}, "algorithmicallyEnhanced"),
    ],
)
@pytest.mark.parametrize("format", HOLDING)
def test_results_say_how_they_were_made(record: dict[str, Any], kind: str, format: str) -> None:
    packet = read(result(photo(), format, record)).metadata.xmp
    assert packet is not None
    assert xmp.source_type(xmp.normalise(packet)) == kind
    assert (xmp.SOURCE_TYPES + kind).encode() in packet


# --- the recipe


@pytest.mark.parametrize("format", HOLDING)
def test_the_record_comes_back_from_every_format_that_holds_it(format: str, tmp_path: Path) -> None:
    data = result(photo(), format, RECORD)
    assert read_record(data) == RECORD
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    assert read_record(path) == RECORD
    # an enlargement of the enlargement carries its own record only
    second = result(data, format, {"engine": "interpolate"})
    assert read_record(second) == {"engine": "interpolate"}
    assert read_record(result(data, "png" if format != "png" else "jpg", {"engine": "gan"})) == {"engine": "gan"}


@pytest.mark.parametrize("format", HOLDING)
def test_viewers_find_the_parameters_line(format: str) -> None:
    """Where A1111 puts it: PNG's text, or EXIF's user comment in UNICODE, big-endian."""
    data = result(photo(), format, RECORD)
    if format == "png":
        with Image.open(io.BytesIO(data)) as image:
            line = image.info["parameters"]
            assert json.loads(image.info["enlarger"]) == RECORD
    else:
        comment = exif_of(data).get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        line = comment[8:].decode("utf-16-be")
    prompt, last = line.split("\n")
    assert prompt == "a cat, ünï 日本"
    assert last == (
        "Steps: 20, Sampler: ddim, CFG scale: 7.5, Seed: 7, Size: 80x60, Model hash: abcdef0123, Model: sd-x4, "
        "Postprocess upscale by: 4, Postprocess upscaler: x4, Version: Enlarger 0.1.0"
    )


def test_the_prompt_of_the_source_is_kept_when_there_is_none(good: Path) -> None:
    """As A1111's extras do: what made the small picture stays readable, what made it larger is added, once."""
    record = {"engine": "pocket", "settings": {"scale": 4}}
    with Image.open(good / "a1111_parameters.png") as image:
        image.load()
        before = image.info["parameters"]
    data = result((good / "a1111_parameters.png").read_bytes(), "png", record)
    for _ in range(2):
        line = dict(read(data).metadata.text)["parameters"]
        assert line == before + ", Postprocess upscale by: 4, Postprocess upscaler: pocket"
        data = result(data, "png", record)
    jpeg = result(data, "jpg", record)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert before in image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_a_prompt_in_any_script_is_kept_from_exif(order: str) -> None:
    text = "日本の猫\nSteps: 20, Seed: 1"
    found = exifs.Exif()
    found.camera[0x9286] = (7, 0, b"UNICODE\0" + text.encode(order))
    found.camera[0x9286] = (7, len(found.camera[0x9286][2]), found.camera[0x9286][2])
    data = result(photo(exif=b"Exif\0\0" + found.to_bytes()), "png", {"engine": "pocket"})
    assert dict(read(data).metadata.text)["parameters"] == text + ", Postprocess upscaler: pocket"


def test_values_with_commas_are_quoted() -> None:
    line = recipe.parameters({"engine": "x, y: z", "settings": {"negative_prompt": "bad"}}, (2, 3))
    assert line == 'Negative prompt: bad\nSize: 3x2, Postprocess upscaler: "x, y: z"'


def test_equal_records_give_equal_bytes() -> None:
    shuffled = {key: RECORD[key] for key in reversed(RECORD)}
    for format in HOLDING:
        assert result(photo(), format, RECORD) == result(photo(), format, shuffled)


def test_records_of_others_do_no_harm(tmp_path: Path) -> None:
    assert recipe.from_json("[" * 100_000) is None
    assert recipe.from_json('{"a":' * 100_000) is None
    assert recipe.from_json("[1]") is None
    assert recipe.from_json(" " * (2 << 20)) is None
    assert read_record(photo()) is None
    (tmp_path / "a.png").write_text("text, not a picture")
    with pytest.raises(PictureError):
        read_record(tmp_path / "a.png")


# --- density, IPTC, texts


@pytest.mark.parametrize("format", [*HOLDING, "bmp"])
def test_resolution_is_kept(format: str) -> None:
    picture = read(result(photo(dpi=(300, 200)), format))
    assert picture.metadata.dpi == pytest.approx((300, 200), rel=1e-3)


@pytest.mark.parametrize("format", [*HOLDING, "bmp", "gif", "ppm", "tga", "qoi"])
def test_no_resolution_is_invented(format: str) -> None:
    plain = read(result(noise_png(), "jpg", RECORD))
    assert plain.metadata.dpi is None
    assert read(result(result(noise_png(), format), "png")).metadata.dpi is None


def noise_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(6, 8, 3, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_resolution_in_centimetres_is_told_in_inches() -> None:
    data = bytearray(photo(dpi=(100, 100)))
    at = data.index(b"JFIF\0") + 7
    assert data[at] == 1
    data[at] = 2
    assert read(bytes(data)).metadata.dpi == pytest.approx((254, 254))


def test_resolution_is_turned_with_the_picture() -> None:
    turn = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    assert read(photo(dpi=(300, 200), exif=turn)).metadata.dpi == (200, 300)


def test_the_shape_of_pixels_is_kept(good: Path) -> None:
    picture = read(good / "phys_nonsquare.png")
    again = read(result((good / "phys_nonsquare.png").read_bytes(), "png"))
    assert again.metadata.dpi == picture.metadata.dpi
    assert picture.metadata.dpi is not None
    assert picture.metadata.dpi[0] == pytest.approx(2 * picture.metadata.dpi[1])


@pytest.mark.parametrize("format", ["jpg", "tiff"])
def test_iptc_is_kept(format: str) -> None:
    from enlarger.picture.write import _photoshop_segment

    iptc = b"\x1c\x02\x05\x00\x05title\x1c\x02\x74\x00\x03(c)"
    data = result(photo(extra=_photoshop_segment(iptc)), format)
    assert read(data).metadata.iptc == iptc
    with Image.open(io.BytesIO(data)) as image:
        from PIL import IptcImagePlugin

        assert IptcImagePlugin.getiptcinfo(image) == {(2, 5): b"title", (2, 116): b"(c)"}
    assert read(result(data, format, strip="private")).metadata.iptc is None


def test_a_recipe_that_fits_goes_before_xmp_that_does_not() -> None:
    """JPEG holds 64 kB of XMP: a packet that grows over it by the record gives way."""
    long = XMP.replace(b"a &amp; b", b"x" * 64_500)
    data = result(photo(xmp=long), "jpg", RECORD)
    assert read_record(data) == RECORD
    assert not read(data).warnings
