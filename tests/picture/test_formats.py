"""The table of what formats hold, walked whole: every field of every format is kept, or told, or refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import OutputError
from enlarger.picture import exif as exifs
from enlarger.picture import profile, xmp
from enlarger.picture.formats import CAPACITIES, FIELDS, depth_for, fate, format_of, named
from enlarger.picture.picture import Metadata, Picture
from enlarger.picture.read import read
from enlarger.picture.write import check_output, encode, read_record
from tests.picture.support import waves

SIZE = (24, 32)
RECORD = {"engine": "pocket", "seed": 1}
WIDE = profile.from_png(1 / 2.2, (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))


def calm(channels: int) -> np.ndarray:
    """Few colours, slowly changing: what lossy formats and palettes keep well."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].astype(np.float32)
    return np.stack([0.4 + 0.006 * (x + (c + 1) * y) for c in range(channels)], axis=2).astype(np.float32)


def with_field(field: str) -> Picture:
    """A picture that has just this field."""
    found = exifs.Exif()
    found.first[0x8298] = (2, 4, b"(c)\0")
    body = xmp.with_record(None, "{}").replace("enlarger:record", "enlarger:note")
    metadata = {
        "exif": Metadata(exif=found.to_bytes()),
        "xmp": Metadata(xmp=xmp.pack(body)),
        "iptc": Metadata(iptc=b"\x1c\x02\x05\x00\x01t"),
        "dpi": Metadata(dpi=(300, 300)),
        "text": Metadata(text=(("Title", "t"),)),
    }.get(field, Metadata())
    return Picture(
        pixels=calm(1 if field == "grey" else 3),
        alpha=calm(1)[..., 0] if field == "alpha" else None,
        depth={"16 bit": 16, "float": 32}.get(field, 8),
        profile=WIDE if field == "profile" else None,
        metadata=metadata,
    )


def came_back(field: str, source: Picture, again: Picture, data: bytes) -> bool:
    match field:
        case "8 bit" | "16 bit" | "float":
            return again.depth == source.depth
        case "grey":
            return again.grey
        case "alpha":
            return again.alpha is not None and bool(np.abs(again.alpha - source.alpha).max() < 0.05)
        case "profile":
            return again.profile == WIDE
        case "dpi":
            return again.metadata.dpi == pytest.approx((300, 300), rel=1e-3)
        case "text":
            return ("Title", "t") in again.metadata.text
        case "recipe":
            return read_record(data) == RECORD
        case "colours":
            return bool(np.abs(again.rgb() - source.rgb()).max() < 0.06)
        case _:
            kept = getattr(again.metadata, field)
            given = getattr(source.metadata, field)
            return kept is not None and (
                field != "exif" or exifs.parse(given).first.items() <= exifs.parse(kept).first.items()
            )


WORDS = {
    "16 bit": "reduced from 16 bit", "float": "reduced from floating point", "grey": "grey", "alpha": "transparency",
    "profile": "colour profile", "exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "dpi": "resolution", "text": "texts",
    "recipe": "recipe", "colours": "colours",
}  # fmt: skip


@pytest.mark.parametrize("format", CAPACITIES)
@pytest.mark.parametrize("field", [field for field in FIELDS if field != "size"])
def test_what_the_table_says_is_what_happens(format: str, field: str) -> None:
    picture = with_field(field)
    plan = check_output(
        None,
        format=format,
        size=SIZE,
        depth=picture.depth,
        alpha=picture.alpha is not None,
        picture=picture,
        recorded=field == "recipe",
    )
    record = RECORD if field == "recipe" else None
    data = encode(plan, picture.pixels, picture.alpha, picture, record=record, quality=None)
    again = read(data)
    told = [warning for warning in plan.warnings if WORDS.get(field, "none") in warning]
    if fate(format, field) == "keep":
        assert came_back(field, picture, again, data)
        assert not told
    else:
        assert fate(format, field) == "convert"
        assert len(told) == 1, plan.warnings
        assert not came_back(field, picture, again, data) or field == "colours"
    # nothing else is told: a warning names only what the picture has
    others = [warning for warning in plan.warnings if warning not in told]
    assert all("256 colours" in warning for warning in others), others
    # whatever happened, it is the same picture
    if field != "alpha":
        np.testing.assert_allclose(again.rgb(), picture.rgb(), atol=0.12)


@pytest.mark.parametrize("format", CAPACITIES)
def test_sizes_beyond_the_format_are_refused_before_the_work(format: str) -> None:
    side = CAPACITIES[format].side
    if side < 2**31 - 1:
        assert fate(format, "size") == "refuse"
        check_output(None, format=format, size=(1, side))
        for size in ((1, side + 1), (side + 1, 1)):
            with pytest.raises(OutputError, match="PNG or TIFF"):
                check_output(None, format=format, size=size)
    else:
        check_output(None, format=format, size=(70_000, 3))


def test_a_bmp_beyond_four_gigabytes_is_refused() -> None:
    with pytest.raises(OutputError, match="PNG or TIFF"):
        check_output(None, format="bmp", size=(40_000, 40_000))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_the_longest_sides_are_really_written(format: str) -> None:
    """The limits are the encoders' own: what they say is written, one more is not."""
    side = CAPACITIES[format].side
    data = encode(check_output(None, format=format, size=(1, side)), np.zeros((1, side, 3), np.uint8))
    assert read(data).width == side
    with pytest.raises((OSError, ValueError, OverflowError)):
        Image.new("RGB", (side + 1, 1)).save(io.BytesIO(), format)


@pytest.mark.parametrize(
    ("field", "bytes_", "word"), [("exif", 70_000, "EXIF"), ("xmp", 70_000, "XMP"), ("iptc", 66_000, "IPTC")]
)
def test_what_is_too_long_for_jpeg_is_told(field: str, bytes_: int, word: str) -> None:
    found = exifs.Exif()
    found.first[0x010E] = (2, bytes_, b"x" * bytes_)
    body = xmp.with_record(None, "{}").replace("/>", f' enlarger:note="{"x" * bytes_}"/>', 1)
    metadata = {
        "exif": Metadata(exif=found.to_bytes()),
        "xmp": Metadata(xmp=xmp.pack(body)),
        "iptc": Metadata(iptc=b"x" * bytes_),
    }[field]
    picture = Picture(pixels=waves(*SIZE), metadata=metadata)
    plan = check_output(None, format="jpg", size=SIZE, picture=picture)
    assert [warning for warning in plan.warnings if word in warning and "more than JPEG holds" in warning]
    again = read(encode(plan, picture.pixels, None, picture))
    assert getattr(again.metadata, field) is None
    plan = check_output(None, format="tiff", size=SIZE, picture=picture)
    assert not plan.warnings
    assert getattr(read(encode(plan, picture.pixels, None, picture)).metadata, field) is not None


@pytest.mark.parametrize("format", CAPACITIES)
def test_nothing_is_told_when_all_metadata_are_left_out(format: str) -> None:
    for field in ("exif", "xmp", "iptc", "dpi", "text", "recipe"):
        plan = check_output(None, format=format, size=SIZE, picture=with_field(field), strip="all")
        assert not [w for w in plan.warnings if "colours" not in w]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.png", "PNG"),
        ("a.JPG", "JPEG"),
        ("x/a.tif", "TIFF"),
        ("a.b/c", None),
        ("a", None),
        ("a.doc", None),
        (".png", "PNG"),
    ],
)
def test_names_say_formats(name: str, format: str | None) -> None:
    assert format_of(name) == format


def test_words_say_formats() -> None:
    assert [named(word) for word in ("jpg", "JPEG", ".png", " webp ", "tif", "x")] == [
        "JPEG", "JPEG", "PNG", "WEBP", "TIFF", None,
    ]  # fmt: skip


def test_depths_never_grow() -> None:
    for format in CAPACITIES:
        for depth in (8, 16, 32):
            assert depth_for(format, depth) <= depth
            assert depth_for(format, 8) == 8


def test_transparency_survives_in_gif_as_colour_on_a_background() -> None:
    picture = with_field("alpha")
    plan = check_output(None, format="gif", size=SIZE, alpha=True, picture=picture)
    with Image.open(io.BytesIO(encode(plan, picture.pixels, picture.alpha, picture))) as image:
        assert "transparency" not in image.info
