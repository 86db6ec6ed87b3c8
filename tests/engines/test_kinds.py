"""Every engine of the catalog takes every kind of picture, at odd sizes, and gives it back as it came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger.engines.catalog import listings
from tests.engines import tiny
from tests.engines.test_gan import SHAPES, engine, network

pytestmark = pytest.mark.slow

LATENT = {"x4": tiny.x4, "img2img": tiny.sd, "controlnet": tiny.with_control}
ENGINES = (*LATENT, "stablesr", "gan", "pocket", "interpolate")

SIZE = (7, 5)
"""Width and height, both odd."""


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory):
    """Asked for by name, and made once."""
    made = {}

    def get(name, request):
        if name in made:
            return made[name]
        if name in LATENT:
            made[name] = enlarger.Upscaler(name, components=LATENT[name](tmp_path_factory.mktemp(name)))
        elif name == "stablesr":
            made[name] = enlarger.Upscaler(
                name, str(request.getfixturevalue("stablesr") / "model.safetensors"), device="cpu"
            )
        else:
            made[name] = enlarger.Upscaler(engine(network(SHAPES["compact"])) if name == "gan" else name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One file of each kind."""
    place = tmp_path_factory.mktemp("pictures")
    levels = np.random.default_rng(0).integers(40, 216, (SIZE[1], SIZE[0], 4), np.uint8)
    Image.fromarray(levels).save(place / "RGBA.png")
    Image.fromarray(levels[..., :3]).save(place / "RGB.png")
    Image.fromarray(levels[..., 0]).save(place / "L.png")
    Image.fromarray(levels[..., :2]).save(place / "LA.png")
    Image.fromarray(levels, "CMYK").save(place / "CMYK.tif")
    Image.fromarray(levels[..., 0].astype(np.uint16) * 257).save(place / "16bit.png")
    return place


KINDS = {"RGBA.png": (8, 3, True), "RGB.png": (8, 3, False), "L.png": (8, 1, False), "LA.png": (8, 1, True),
         "CMYK.tif": (8, 3, False), "16bit.png": (16, 1, False)}  # fmt: skip
"""File -> bits, channels of colour, and whether there is alpha, of the result."""


def test_these_are_all_engines():
    assert set(ENGINES) == set(listings())


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_it_comes_back_as_it_came(upscalers, pictures, request, tmp_path, name, kind):
    up = upscalers(name, request)
    fast = {"steps": 1} if name in (*LATENT, "stablesr") else {}
    result = up(pictures / kind, scale=3, **fast)
    bits, channels, alpha = KINDS[kind]
    assert result.size == (3 * SIZE[1], 3 * SIZE[0])
    assert result.pixels.dtype == {8: np.uint8, 16: np.uint16}[bits]
    assert result.pixels.shape[2] == channels
    assert (result.alpha is not None) == alpha
    assert result.pixels.std() > 0
    result.save(tmp_path / f"made.{kind[-3:]}")
    with Image.open(tmp_path / f"made.{kind[-3:]}") as image:
        assert image.size == (3 * SIZE[0], 3 * SIZE[1])
