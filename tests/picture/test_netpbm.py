"""PGM, PPM and PFM beyond 8 bits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture.netpbm import write_ppm
from enlarger.picture.read import read
from tests.picture.support import noise, waves


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("top", [65535, 1023, 256])
def test_sixteen_bits_and_any_maximum(channels: int, top: int) -> None:
    samples = np.random.default_rng(0).integers(0, top + 1, (5, 7, channels))
    head = f"P{5 if channels == 1 else 6}\n# a comment\n7 5\n{top}\n".encode()
    picture = read(head + samples.astype(">u2").tobytes())
    assert picture.depth == 16
    np.testing.assert_allclose(picture.pixels, samples / top, atol=0.5001 / 65535)


@pytest.mark.parametrize("scale", ["-1.0", "1.0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_of_both_orders(scale: str, channels: int) -> None:
    samples = waves(4, 6, channels)
    order = "<f4" if scale.startswith("-") else ">f4"
    data = f"{'Pf' if channels == 1 else 'PF'}\n6 4\n{scale}\n".encode() + samples[::-1].astype(order).tobytes()
    picture = read(data)
    assert picture.depth == 32
    np.testing.assert_array_equal(picture.pixels, samples)


def test_what_is_missing_is_counted() -> None:
    with pytest.raises(PictureError, match="after 2 of 5 rows") as caught:
        read(b"P6 7 5 65535\n" + bytes(7 * 3 * 2 * 2 + 5))
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read_by_others(dtype: type) -> None:
    samples = noise(70, 9, 3 if dtype == np.uint8 else 1, dtype)
    stream = io.BytesIO()
    write_ppm(stream, samples)
    with Image.open(stream) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(samples.shape), samples)
