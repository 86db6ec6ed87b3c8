"""One suite over every engine that works without the user's models: what each owes the house."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import enlarger
from enlarger.canvas.consistency import TOLERANCE
from enlarger.engines.catalog import engine_class, listings, setting_names
from enlarger.errors import Interrupted, SettingsError
from enlarger.picture.resize import resize
from enlarger.settings import rules

ENGINES = [name for name, listing in listings().items() if not (listing.facts.needs_model or listing.facts.extra)]
HALO = [name for name in ENGINES if listings()[name].facts.field is not None]


@pytest.fixture(scope="module")
def upscalers():
    return {name: enlarger.Upscaler(name) for name in ENGINES}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves and noise in colour, (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 5
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], 2) * 70 + 128
    return np.clip(waves + random.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 2), (13, 22)])
def test_any_size_gives_exactly_the_size_asked_for(upscalers, name, height, width):
    up = upscalers[name]
    assert up(picture(height, width)).size == (4 * height, 4 * width)
    assert up(picture(height, width), scale=2.5).size == (int(2.5 * height + 0.5), int(2.5 * width + 0.5))
    assert up(picture(height, width), size=f"{3 * width}x{2 * height}").size == (2 * height, 3 * width)


@pytest.mark.parametrize("name", ENGINES)
def test_beyond_the_factor_several_passes_reach_the_size(upscalers, name):
    up = upscalers[name]
    result = up(picture(5, 6), scale=9)
    assert result.size == (45, 54)
    assert up(picture(4, 4), scale=16).size == (64, 64)
    # Brightness is kept through the passes.
    assert abs(float(result.pixels.mean()) - float(picture(5, 6).mean())) < 4


@pytest.mark.parametrize("name", HALO)
def test_tiles_change_nothing(upscalers, name):
    """Strips, longer than a tile with its halo, so that a halo too small would show."""
    up = upscalers[name]
    for shape in ((6, 130), (130, 6)):
        source = picture(*shape).astype(np.float32) / 255
        whole = up(source, tile=4096).pixels
        for tile in (64, 96):
            assert np.abs(up(source, tile=tile).pixels - whole).max() <= 1e-5


@pytest.mark.parametrize("name", ENGINES)
def test_the_batch_changes_no_byte(upscalers, name):
    up = upscalers[name]
    one = up(picture(6, 130), tile=64, batch=1).pixels
    assert np.array_equal(one, up(picture(6, 130), tile=64, batch=3).pixels)


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_settings_give_the_same_bytes(upscalers, name):
    up = upscalers[name]
    assert np.array_equal(up(picture(9, 9)).pixels, up(picture(9, 9)).pixels)


@pytest.mark.parametrize("name", [name for name in ENGINES if "seed" in rules(listings()[name].facts.settings)])
def test_another_seed_gives_another_picture(upscalers, name):
    up = upscalers[name]
    assert not np.array_equal(up(picture(16, 16), seed=1).pixels, up(picture(16, 16), seed=2).pixels)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_depth_grey_and_alpha_come_back(upscalers, name, kind):
    up = upscalers[name]
    eight = picture(8, 10)
    sources = {"uint8": eight, "uint16": eight.astype(np.uint16) * 257, "float32": (eight / 255).astype(np.float32)}
    source = sources[kind]
    assert up(source).pixels.dtype == source.dtype
    grey = up(source[..., 0])
    assert grey.pixels.shape == (32, 40, 1)
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    alpha = np.full((8, 10, 1), full, source.dtype)
    alpha[:4] = 0
    clear = up(np.concatenate([source, alpha], 2))
    assert clear.alpha is not None
    assert clear.alpha.shape == (32, 40)
    assert clear.alpha.dtype == source.dtype
    assert clear.alpha[:8].max() == 0
    assert clear.alpha[24:].min() == full


@pytest.mark.parametrize("name", ENGINES)
def test_colour_under_transparent_pixels_does_not_show(upscalers, name):
    """Black under alpha 0 must not darken the visible edge."""
    up = upscalers[name]
    source = np.full((12, 12, 4), 255, np.uint8)
    source[:, :6] = 0
    result = up(source, **({"seed": 0} if "seed" in rules(up.facts.settings) else {}))
    assert result.alpha is not None
    assert result.pixels[result.alpha > 0].min() > 245


@pytest.mark.parametrize("name", ENGINES)
def test_a_flat_picture_stays_flat(upscalers, name):
    result = upscalers[name](np.full((12, 14, 3), (200, 90, 40), np.uint8))
    assert np.abs(result.pixels.astype(int) - (200, 90, 40)).max() <= 6


@pytest.mark.parametrize("name", ENGINES)
def test_progress_reaches_the_end_and_can_cancel(upscalers, name):
    up = upscalers[name]
    seen: list[enlarger.Progress] = []
    up(picture(20, 30), tile=64, progress=seen.append)
    assert seen[-1].done == seen[-1].total
    assert all(one.done < two.done for one, two in itertools.pairwise(seen))
    with pytest.raises(Interrupted):
        up(picture(20, 30), tile=64, progress=lambda progress: False)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("wish", [{"scale": 4}, {"scale": 1.5}, {"scale": 7}, {"size": "70x90"}], ids=str)
def test_at_full_consistency_the_result_made_small_again_is_the_input(upscalers, name, wish):
    source = picture(20, 26).astype(np.float32) / 255 * 0.8 + 0.1
    away = {}
    for amount in (0.0, 1.0):
        made = upscalers[name](source, consistency=amount, **wish).pixels
        small = resize(made, source.shape[:2])
        away[amount] = float(np.sqrt(((small - source) ** 2).mean())) * 255
    assert away[1.0] <= TOLERANCE
    assert away[1.0] < away[0.0] / 1.5


@pytest.mark.parametrize("name", ENGINES)
def test_settings_of_other_engines_are_refused(upscalers, name):
    up = upscalers[name]
    values = {"filter": "bicubic", "steps": 2, "fidelity": 0.5, "overlap": 8, "strength": 0.5}
    for setting in setting_names() & set(values) - set(rules(up.facts.settings)):
        with pytest.raises(SettingsError, match="has no setting"):
            up(picture(4, 4), **{setting: values[setting]})


def test_every_engine_of_the_catalog_names_a_class_with_its_facts():
    for listing in listings().values():
        if not listing.facts.extra:
            assert engine_class(listing).facts is listing.facts
