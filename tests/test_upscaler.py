"""The whole way of one picture, through the public functions."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger.engines.engine import Facts
from enlarger.errors import ModelError, OutputError, ResourceError, SettingsError
from enlarger.sampling.memory import fit_tile
from enlarger.size import Size
from tests.engines import toy
from tests.engines.test_contract import picture


def test_all_kinds_of_input_give_the_same_result(tmp_path):
    source = picture(9, 11)
    file = tmp_path / "a.png"
    image = Image.fromarray(source)
    image.save(file)
    results = [
        enlarger.upscale(given, engine="interpolate", scale=2).pixels
        for given in (
            str(file),
            file,
            file.read_bytes(),
            io.BytesIO(file.read_bytes()),
            image,
            source,
            torch.from_numpy(source).permute(2, 0, 1),
        )
    ]
    assert all(np.array_equal(results[0], other) for other in results)


def test_the_input_array_is_not_changed():
    source = picture(6, 6).astype(np.float32) / 255
    before = source.copy()
    enlarger.upscale(source, scale=2)
    assert np.array_equal(source, before)


def test_a_result_is_saved_whole_with_its_recipe(tmp_path):
    file = tmp_path / "in.png"
    Image.fromarray(picture(8, 8)).save(file)
    result = enlarger.upscale(file, scale=2, seed=3)
    written = result.save(tmp_path / "out.png")
    with Image.open(written) as image:
        assert np.array_equal(np.asarray(image), result.pixels)
        record = json.loads(image.text["enlarger"])
    assert record["engine"] == "pocket"
    assert record["settings"]["seed"] == 3
    assert record["digest"] == result.digest
    again = enlarger.upscale(file, **{name: value for name, value in record["settings"].items() if value is not None})
    assert np.array_equal(again.pixels, result.pixels)
    with pytest.raises(OutputError):
        result.save(tmp_path / "out.png")
    with pytest.raises(OutputError):
        result.save(file, overwrite=True)


def test_the_batch_changes_no_byte_of_the_file(tmp_path):
    files = []
    for batch in (1, 3):
        result = enlarger.upscale(picture(6, 40), scale=2, tile=64, batch=batch)
        files.append(result.save(tmp_path / f"{batch}.png").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(("size", "told"), [("60x30", 0), ("61x30", 0), ("60x45", 1), ("90x30", 1)])
def test_a_size_of_another_shape_is_told(size, told):
    result = enlarger.upscale(picture(10, 20), engine="interpolate", size=size)
    assert sum("another shape" in warning for warning in result.warnings) == told


def test_image_is_a_pil_picture():
    assert enlarger.upscale(picture(4, 5), engine="interpolate").image.size == (20, 16)
    assert enlarger.upscale(picture(4, 5)[..., 0], engine="interpolate").image.mode == "L"
    deep = enlarger.upscale(picture(4, 5).astype(np.uint16) * 257, engine="interpolate")
    assert deep.image.mode == "RGB"
    assert np.array_equal(np.asarray(deep.image), (deep.pixels / 257 + 0.5).astype(np.uint8))


def test_machine_settings_and_picture_settings_are_told_apart():
    assert enlarger.upscale(picture(3, 3), device="cpu", dtype="float32", scale=2).size == (6, 6)
    with pytest.raises(SettingsError, match="did you mean"):
        enlarger.upscale(picture(3, 3), devise="cpu")


def test_a_model_is_refused_by_an_engine_that_has_none():
    with pytest.raises(ModelError, match="interpolate has no model"):
        enlarger.upscale(picture(3, 3), engine="interpolate", model="mine.safetensors")
    with pytest.raises(ModelError, match="interpolate has no model"):
        enlarger.Upscaler("interpolate", components={"unet": None})


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match="this machine has: cpu"):
        enlarger.Upscaler("pocket", device="cuda")


def test_less_memory_means_smaller_tiles_and_too_little_is_refused():
    up = enlarger.Upscaler("pocket")
    size = Size(3000, 4000)
    wide = up.plan(size, up.settings())
    tight = enlarger.Upscaler("pocket", max_memory=wide.memory * 3 // 4)
    assert tight.plan(size, tight.settings()).tile < wide.tile
    assert tight.plan(size, tight.settings()).memory <= wide.memory * 3 // 4
    none = enlarger.Upscaler("pocket", max_memory="500MB")
    with pytest.raises(ResourceError, match="smallest tile"):
        none.plan(size, none.settings())


def test_fit_tile_keeps_to_the_grid():
    assert fit_tile(100, lambda tile: tile**2, 50**2, grid=8, least=16) % 8 == 0
    assert fit_tile(100, lambda tile: tile**2, 10**9, grid=8, least=16) == 96


def test_the_default_tile_wastes_at_most_half():
    up = enlarger.Upscaler("pocket")
    plan = up.plan(Size(3000, 4000), up.settings())
    halo = up.facts.field * up.facts.factor
    assert (plan.tile + 2 * halo) ** 2 / plan.tile**2 <= 1.5


class PixelToy(toy.Toy):
    """The toy with a state of one cell a pixel, so that its result is a picture."""

    facts = Facts(name="toy", summary="A toy.", settings=toy.SeededSettings, factor=2, grid=2, tile=64, overlap=16)

    def state_channels(self):
        return 3

    def steps(self, settings):
        from enlarger.sampling.scheduler import DiffusersSteps

        return DiffusersSteps(toy.config(self.kind), 3)

    def decode(self, latent, conditioning):
        return torch.nn.functional.interpolate(latent, scale_factor=2, mode="nearest")


def test_a_blended_engine_goes_the_same_way():
    pytest.importorskip("diffusers")
    engine = PixelToy(deviation=0.01)
    up = enlarger.Upscaler(engine)
    source = picture(24, 30)
    seen = []
    result = up(source, scale=2, seed=3, progress=seen.append)
    assert result.size == (48, 60)
    assert seen[-1].done == seen[-1].total
    assert np.abs(result.pixels.astype(int)[::2, ::2] - source).mean() < 8, "it is the picture"
    tiled = up(source, scale=2, seed=3, tile=32)
    assert tiled.size == result.size
    assert len(engine.shapes) > 3
    assert up(source, scale=3, seed=3).size == (72, 90)
