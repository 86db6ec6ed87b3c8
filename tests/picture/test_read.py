"""What reading promises: every source gives the same picture, and every wrong one a line that helps."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import PictureError, SettingsError
from enlarger.picture.read import read
from tests.picture.support import noise, waves


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


# --- sources


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    samples = noise(7, 5, dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(samples).save(path)
    data = path.read_bytes()
    with path.open("rb") as file:
        pictures = [read(path), read(str(path)), read(data), read(bytearray(data)), read(io.BytesIO(data)), read(file)]
    pictures += [read(Image.fromarray(samples)), read(samples)]
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, samples / np.float32(255))
        assert picture.depth == 8
    assert [p.kind for p in pictures] == ["file", "file", "bytes", "bytes", "bytes", "bytes", "pil", "numpy"]
    assert pictures[0].format == "PNG"
    assert pictures[-1].format is None


@pytest.mark.parametrize(("dtype", "depth", "top"), [("uint8", 8, 255), ("uint16", 16, 65535), ("float32", 32, 1)])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_keep_their_numbers(dtype: str, depth: int, top: int, channels: int) -> None:
    array = (waves(6, 4, channels or 1) * top).astype(dtype)
    array = array[..., 0] if channels == 0 else array
    picture = read(array)
    assert picture.depth == depth
    flat = array.reshape(6, 4, -1)
    np.testing.assert_allclose(picture.pixels, flat[..., :3] / np.float32(top), atol=1e-7)
    assert (picture.alpha is not None) == (channels == 4)
    if picture.alpha is not None:
        np.testing.assert_allclose(picture.alpha, flat[..., 3] / np.float32(top), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">u2", ">f4"])
def test_arrays_of_other_layouts_are_read_and_never_changed(dtype: str) -> None:
    scale = 1 if "f" in dtype else 65535
    array = (waves(9, 8, 3) * scale).astype(dtype)[::-2, ::2]
    array.flags.writeable = False
    before = array.tobytes()
    picture = read(array)
    np.testing.assert_allclose(
        picture.pixels, array.astype(np.float64) / scale, atol=1e-3 if dtype == "float16" else 1e-6
    )
    assert picture.pixels.flags.c_contiguous
    assert array.tobytes() == before
    assert not np.shares_memory(picture.pixels, array)


def test_plain_float_arrays_are_not_shared() -> None:
    array = waves(4, 5, 4)
    picture = read(array)
    assert not np.shares_memory(picture.pixels, array)
    assert not np.shares_memory(picture.alpha, array)


def test_tensors_are_channels_first() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    array = waves(6, 4, 3)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy()).requires_grad_()
    for given in (tensor, tensor[None], tensor.double()):
        picture = read(given)
        np.testing.assert_allclose(picture.pixels, array, atol=1e-6)
        assert picture.kind == "torch"
    eight = (tensor.detach() * 255).to(torch.uint8)
    assert read(eight).depth == 8
    np.testing.assert_allclose(read(tensor.bfloat16()).pixels, array, atol=4e-3)


def test_pillow_images_of_every_mode_are_read() -> None:
    base = Image.fromarray(noise(8, 6, dtype=np.uint8))
    with_alpha = Image.fromarray(noise(8, 6, 4, np.uint8))
    seen = {}
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"):
        image = base.convert(mode) if mode != "LAB" else Image.new("LAB", (6, 8), (128, 128, 128))
        if mode == "F":
            image = Image.fromarray(waves(8, 6, 1)[..., 0])
        picture = read(image)
        seen[mode] = (picture.pixels.shape[2], picture.alpha is not None, picture.depth)
    for mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        image = (
            with_alpha.convert("LA").convert(mode)
            if "a" in mode.lower()[1:] and mode != "RGBa"
            else with_alpha.convert(mode)
        )
        picture = read(image)
        seen[mode] = (picture.pixels.shape[2], picture.alpha is not None, picture.depth)
    grey, colour = (1, False, 8), (3, False, 8)
    assert seen == {
        "1": grey, "L": grey, "P": colour, "RGB": colour, "CMYK": colour, "YCbCr": colour, "LAB": colour, "HSV": colour,
        "I": (1, False, 16), "F": (1, False, 32),
        "LA": (1, True, 8), "La": (1, True, 8), "PA": (3, True, 8), "RGBA": (3, True, 8), "RGBa": (3, True, 8),
    }  # fmt: skip


def test_sixteen_bits_cut_by_pillow_are_told(good: Path) -> None:
    with Image.open(good / "rgb16.png") as image:
        assert any("give the path" in warning for warning in read(image).warnings)


# --- what is wrong with arrays


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((4, 4, 5), np.uint8), "HxWx3"),
        (np.zeros((3, 8, 9), np.uint8), "transpose"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "HxW"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), complex), "complex"),
        (np.zeros((4, 4), object), "object"),
        (np.full((4, 4), 200.0), "divide it by 255 "),
        (np.full((4, 4), 4.9), "scale it to 0..1"),
        (np.full((4, 4), 60000.0), "divide it by 65535"),
        (np.full((4, 4), -0.5), "0..1"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: np.ndarray, says: str) -> None:
    with pytest.raises(PictureError, match=says) as caught:
        read(array)
    assert caught.value.kind == "bad_values"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_placed(value: float) -> None:
    array = np.zeros((5, 6, 3), np.float32)
    array[2, 4, 1] = array[3, 0, 0] = value
    with pytest.raises(PictureError, match=r"2 NaN or infinite values, the first at row 2, column 4") as caught:
        read(array)
    assert caught.value.kind == "bad_values"


def test_a_hair_over_one_is_rounding() -> None:
    picture = read(np.full((2, 2), 1.0005, np.float32))
    assert picture.pixels.max() == 1


def test_tensors_that_are_no_picture_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for tensor, says in (
        (torch.zeros(5, 6, 3), "permute"),
        (torch.zeros(2, 3, 4, 4), "one picture at a time"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
    ):
        with pytest.raises(PictureError, match=says):
            read(tensor)


def test_other_things_are_refused() -> None:
    with pytest.raises(PictureError, match="list"):
        read([[1, 2], [3, 4]])
    with pytest.raises(PictureError, match="binary mode"):
        read(io.StringIO("text"))
    with pytest.raises(PictureError, match="binary mode"):
        read(io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n"), "utf-8"))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(PictureError, match="closed file; open it again"):
        read(closed)


# --- what is wrong with paths


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "http://a/b.jpg", "s3://bucket/a.png", "HTTPS://X/Y.PNG"]
)
def test_addresses_are_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(PictureError, match="download it first"):
        read(address)


def test_paths_that_are_no_file_are_refused_without_hanging(tmp_path: Path) -> None:
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in (
        ("none.png", "does not exist"),
        ("", "folder"),
        ("pipe.png", "not a regular file"),
        ("dangling.png", "link to .*gone.png"),
    ):
        with pytest.raises(PictureError, match=says):
            read(tmp_path / name)
    with pytest.raises(PictureError, match="not a regular file"):
        read("/dev/zero")
    with pytest.raises(PictureError, match="path is empty"):
        read("")
    with pytest.raises(PictureError):
        read("a\0b.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(PictureError, match="permissions"):
        read(path)


def test_odd_names_work_and_stay_on_one_line(tmp_path: Path) -> None:
    data = saved(Image.new("L", (2, 2)), "PNG")
    for name in (b"-x.png", b"new\nline.png", "smile ☃.png".encode(), b"raw\xff\xfe.png", b"n" * 251 + b".png"):
        path = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(path)).write_bytes(data)
        assert read(os.fsdecode(path)).width == 2
        Path(os.fsdecode(path)).write_bytes(b"")
        with pytest.raises(PictureError) as caught:
            read(os.fsdecode(path))
        assert "\n" not in str(caught.value)
        str(caught.value).encode("utf-8")


def test_a_wrong_ending_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.new("RGB", (4, 4)), "JPEG"))
    picture = read(path)
    assert picture.format == "JPEG"
    assert "ends in .png but the file is JPEG" in picture.warnings[0]


# --- limits


def test_the_pixel_limit_is_judged_by_the_header(tmp_path: Path) -> None:
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "TGA"):
        data = saved(Image.new("RGB", (40, 30)), format)
        assert read(data, max_pixels=1200).width == 40
        with pytest.raises(PictureError, match="--max-pixels") as caught:
            read(data, max_pixels=1199)
        assert caught.value.kind == "too_large"
    with pytest.raises(PictureError):
        read(np.zeros((40, 30), np.uint8), max_pixels=1199)


def test_a_file_larger_than_its_pixels_can_need_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(8 << 30)
    with pytest.raises(PictureError) as caught:
        read(path)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize(("marker", "bits", "says"), [(0xC1, 12, "12 bits"), (0xC3, 8, "lossless")])
def test_jpegs_of_rare_kinds_are_named(marker: int, bits: int, says: str) -> None:
    data = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    with pytest.raises(PictureError, match=says) as caught:
        read(bytes(data))
    assert caught.value.kind == "unsupported_format"


# --- pages


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (6, 4), (40 * index, 0, 0)) for index in range(count)]


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "GIF", "AVIF"])
def test_pages_and_frames_are_taken_one_at_a_time(format: str) -> None:
    first, *rest = frames(3)
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    data = saved(first, format, save_all=True, append_images=rest, **lossless)
    picture = read(data)
    assert "3 pages or frames; the first was taken" in picture.warnings[0]
    assert picture.pixels[..., 0].max() < 0.05
    second = read(data, page=2)
    assert not second.warnings
    np.testing.assert_allclose(second.pixels[..., 0], 40 / 255, atol=0.03)
    with pytest.raises(SettingsError, match="pages 1 to 3"):
        read(data, page=4)


@pytest.mark.parametrize("page", [0, -1])
def test_pages_count_from_one(page: int) -> None:
    with pytest.raises(SettingsError, match="count from 1"):
        read(saved(Image.new("L", (2, 2)), "PNG"), page=page)


def test_one_page_only_is_said(tmp_path: Path) -> None:
    for format in ("PNG", "JPEG", "PPM", "TIFF"):
        with pytest.raises(SettingsError, match="only page 1"):
            read(saved(Image.new("RGB", (2, 2)), format), page=2)


# --- orientation


def exif(orientation: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int, format: str) -> None:
    from PIL import ImageOps

    image = Image.fromarray((waves(16, 24) * 255).astype(np.uint8))
    options = {"exif": exif(orientation)} if format != "TIFF" else {"tiffinfo": {0x0112: orientation}}
    data = saved(image, format, **options, **({"lossless": True} if format == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        want = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    picture = read(data)
    assert picture.pixels.shape == want.shape
    np.testing.assert_array_equal((picture.pixels * 255).round(), want)
    assert picture.pixels.flags.c_contiguous


def test_alpha_is_turned_with_the_colours() -> None:
    samples = noise(5, 7, 4, np.uint8)
    data = saved(Image.fromarray(samples), "PNG", exif=exif(6))
    picture = read(data)
    assert picture.alpha is not None
    np.testing.assert_array_equal((picture.alpha * 255).round(), np.rot90(samples[..., 3], -1))


def test_an_orientation_outside_its_range_is_ignored() -> None:
    assert read(saved(Image.new("L", (3, 2)), "PNG", exif=exif(9))).width == 3


def test_a_pillow_image_is_turned_too() -> None:
    with Image.open(io.BytesIO(saved(Image.new("L", (3, 2)), "JPEG", exif=exif(6)))) as image:
        assert (read(image).width, read(image).height) == (2, 3)


# --- HEIC


def test_heic_without_its_reader_names_the_extra(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PictureError, match=r'pip install "enlarger\[heif\]"') as caught:
        read(corpora / "bad" / "photo.heic")
    assert caught.value.kind == "needs_extra"


def test_heic_is_read_where_its_reader_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with pillow-heif's calls: it turns the picture itself, so its EXIF must not be obeyed again."""

    class Item:
        size = (3, 2)

        def to_pillow(self) -> Image.Image:
            image = Image.new("RGB", self.size, (10, 20, 30))
            image.info["exif"] = exif(6)
            return image

    class Heif:
        @staticmethod
        def open_heif(_: Any, **__: Any) -> list[Item]:
            return [Item(), Item()]

    monkeypatch.setitem(sys.modules, "pillow_heif", Heif)
    data = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic"
    picture = read(data)
    assert (picture.width, picture.height, picture.format) == (3, 2, "HEIC")
    assert "2 pages" in picture.warnings[0]
    with pytest.raises(SettingsError):
        read(data, page=3)


# --- what a picture is


def test_a_picture_says_what_it_is() -> None:
    picture = read(noise(4, 6, 1, np.uint8))
    assert (picture.height, picture.width, picture.megapixels, picture.grey) == (4, 6, 24e-6, True)
    assert picture.rgb().shape == (4, 6, 3)
    np.testing.assert_array_equal(picture.rgb()[..., 2], picture.pixels[..., 0])
    assert "6x4, grey, 8 bit" in repr(picture)
    assert read(picture) is picture


def test_importing_the_package_costs_neither_numpy_nor_pillow() -> None:
    import subprocess

    code = (
        "import sys, enlarger.picture, enlarger.picture.formats;"
        "print([m for m in ('numpy', 'PIL', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
