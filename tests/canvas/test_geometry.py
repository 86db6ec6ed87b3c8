"""The result has exactly the size asked for, and as few passes as reach it."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.canvas.geometry import place, target_size
from enlarger.errors import SettingsError
from enlarger.size import Size

sizes = st.builds(Size, st.integers(1, 5000), st.integers(1, 5000))


@given(sizes, st.floats(1, 16))
def test_scale_rounds_both_sides_to_the_nearest_pixel(source, scale):
    target = target_size(source, scale=scale)
    for made, side in zip(target, source, strict=True):
        assert abs(made - side * scale) <= 0.5 + 1e-9 * made


@pytest.mark.parametrize(
    ("wish", "target"),
    [
        ({"scale": 4}, Size(600, 400)),
        ({"scale": 2.5}, Size(375, 250)),
        ({"scale": 1}, Size(150, 100)),
        ({"scale": 1.25}, Size(188, 125)),  # halves go up
        ({"size": Size(300, 333)}, Size(300, 333)),
        ({"longest": 1000}, Size(1000, 667)),
        ({"megapixels": 1.5}, Size(1500, 1000)),
    ],
)
def test_each_wish_gives_its_size(wish, target):
    assert target_size(Size(150, 100), **wish) == target


@given(sizes, st.floats(1, 16))
def test_longest_and_megapixels_keep_the_aspect_ratio_to_a_pixel(source, times):
    longest = round(max(source) * times)
    target = target_size(source, longest=longest)
    assert max(target) == longest
    assert abs(min(target) - min(source) * longest / max(source)) <= 0.5 + 1e-6
    megapixels = source.area * times * times / 1e6
    for made, side in zip(target_size(source, megapixels=megapixels), source, strict=True):
        assert abs(made - side * math.sqrt(megapixels * 1e6 / source.area)) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "give one of"),
        ({"scale": 2, "longest": 300}, "scale and longest"),
        ({"size": Size(149, 300)}, "height would become smaller"),
        ({"size": Size(300, 99)}, "width would become smaller"),
        ({"longest": 149}, "only enlarges"),
        ({"size": Size(150 * 16 + 1, 100)}, "at most 16 times"),
        ({"megapixels": 0.0149}, "only enlarges"),
    ],
)
def test_an_impossible_wish_is_one_clear_line(wish, words):
    with pytest.raises(SettingsError, match=words) as caught:
        target_size(Size(150, 100), **wish)
    assert "\n" not in str(caught.value)


def test_sixteen_times_is_still_allowed():
    assert target_size(Size(3, 5), scale=16) == Size(48, 80)


@given(sizes, st.floats(1, 16), st.sampled_from([2, 3, 4, 8]), st.integers(1, 8))
def test_passes_reach_the_target_and_none_is_needless(source, scale, factor, stride):
    target = target_size(source, scale=scale)
    canvas = place(source, target, factor=factor, stride=stride)
    assert (canvas.source, canvas.target) == (source, target)
    assert canvas.passes[0].source == source
    for earlier, later in pairwise(canvas.passes):
        assert later.source == earlier.native
        assert earlier.native.height < target.height or earlier.native.width < target.width
    assert canvas.native.height >= target.height
    assert canvas.native.width >= target.width
    for passage in canvas.passes:
        assert passage.native == passage.source.times(factor)
        for padded, side in zip(passage.padded, passage.source, strict=True):
            assert padded % stride == 0
            assert side <= padded < side + stride


def test_an_engine_of_factor_one_passes_once():
    canvas = place(Size(30, 20), Size(300, 200), factor=1)
    assert [passage.source for passage in canvas.passes] == [Size(30, 20)]
    assert canvas.native == Size(30, 20)


def test_an_engine_at_the_targets_size_gets_the_enlarged_picture():
    canvas = place(Size(30, 20), Size(301, 200), factor=1, stride=8, at_target=True)
    assert [(passage.source, passage.padded) for passage in canvas.passes] == [(Size(301, 200), Size(304, 200))]
    assert canvas.native == canvas.target
    assert canvas.scale == 301 / 30
