"""CMYK through the command: told once a picture, and the result is labelled as what it became."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from enlarger.picture.profile import srgb_profile
from tests.cli.support import Called
from tests.picture.test_cmyk import in_cyan, swapped

Call = Callable[..., Called]


def test_that_inks_became_srgb_is_said_once_a_picture(call: Call, folder: Path) -> None:
    Path("a.jpg").write_bytes(in_cyan("JPEG", swapped()))
    Path("b.tif").write_bytes(in_cyan("TIFF", swapped()))
    done = call("upscale", "a.jpg", "b.tif", "--samples", "2", "--steps", "1", "--json")
    assert done.code == 0, done.err
    for name in ("a.jpg", "b.tif"):
        assert done.err.count(f"enlarger: warning: {name}: CMYK became sRGB by its colour profile") == 1
    assert all(any("became sRGB" in told for told in record["warnings"]) for record in done.records)
    for name in ("a_4x_1.jpg", "b_4x_2.tif"):
        with Image.open(name) as image:
            assert image.mode == "RGB"
            assert image.info["icc_profile"] == srgb_profile()
            red, green, blue = image.getpixel((16, 16))  # type: ignore[misc]
            assert red > 200 > 60 > max(green, blue)
