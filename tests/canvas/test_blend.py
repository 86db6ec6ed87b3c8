"""Planes are cut alike whatever their ratio, and blended tiles are a partition of unity."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enlarger.canvas.blend import (
    WHOLE,
    Plane,
    Tiling,
    axis_weights,
    batches,
    cosine,
    crop,
    crop_tensor,
    gaussian,
    over_tiles,
)
from enlarger.canvas.tiles import Tile, blended_starts
from enlarger.size import Size

SHAPES = ("cosine", "gaussian")


@dataclass(frozen=True)
class Record:
    source: Plane
    hint: Plane
    text: str
    spare: Plane | None = None


def numbers(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


@st.composite
def tilings(draw):
    tile = draw(st.integers(4, 24))
    return Tiling(
        tile,
        draw(st.integers(0, tile * 3 // 4)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(("even", "flush"))),
        draw(st.booleans()),
    )


canvases = st.builds(Size, st.integers(1, 50), st.integers(1, 50))


# Crops


def test_a_record_is_cut_at_the_same_place_on_planes_of_every_ratio():
    record = Record(Plane(numbers(1, 1, 4, 6)), Plane(numbers(1, 2, 32, 48), 8), "words")
    cut = crop(record, [Tile(1, 2, 2, 3), Tile(2, 3, 2, 3)])
    source = record.source.tensor[0]
    assert torch.equal(cut.source.tensor, torch.stack([source[:, 1:3, 2:5], source[:, 2:4, 3:6]]))
    assert cut.hint.ratio == 8
    assert torch.equal(cut.hint.tensor[1], record.hint.tensor[0, :, 16:32, 24:48])
    assert (cut.text, cut.spare) == ("words", None)


def test_beyond_the_canvas_a_plane_is_mirrored_about_its_border():
    row = crop_tensor(numbers(1, 1, 1, 3), [Tile(0, 0, 1, 11)])
    assert row.flatten().tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1]
    assert crop_tensor(numbers(1, 1, 1, 1), [Tile(0, 0, 3, 2)]).flatten().tolist() == [0] * 6


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.integers(0, 40), st.sampled_from([2, 8]))
def test_planes_of_different_ratios_stay_aligned_in_the_mirror(height, width, below, right, ratio):
    size = Size(height, width)
    fine = numbers(1, 1, *size.times(ratio)).sin().double()
    coarse = torch.nn.functional.avg_pool2d(fine, ratio)
    tile = Tile(0, 0, size.height + below, size.width + right)
    mirrored = torch.nn.functional.avg_pool2d(crop_tensor(fine, [tile.times(ratio)]), ratio)
    torch.testing.assert_close(mirrored, crop_tensor(coarse, [tile]))


# Plans


@given(canvases)
def test_the_whole_is_one_tile_of_exactly_the_canvas(size):
    assert WHOLE.plan(size) == [Tile(0, 0, *size)]


@given(canvases, tilings())
def test_tiles_of_a_plan_are_of_one_size_and_cover_the_canvas(size, tiling):
    tiles = tiling.plan(size)
    assert len({tile.size for tile in tiles}) == 1
    assert tiles[0].size == (
        Size(tiling.tile, tiling.tile) if tiling.fill else Size(*(min(tiling.tile, side) for side in size))
    )
    covered = torch.zeros(*size)
    for tile in tiles:
        assert tile.top < size.height
        assert tile.left < size.width
        covered[tile.top : tile.bottom, tile.left : tile.right] = 1
    assert covered.all()


def test_with_less_memory_the_batch_is_halved_before_the_tile():
    size, seen = Size(500, 300), []
    tiling = Tiling(128, 32, 5, smallest=30)
    while tiling:
        seen.append((tiling.tile, tiling.overlap, tiling.batch))
        tiling = tiling.smaller(size)
    assert seen == [(128, 32, 5), (128, 32, 2), (128, 32, 1), (64, 32, 1), (32, 16, 1)]


def test_a_batch_larger_than_the_plan_is_not_halved_in_vain():
    assert Tiling(64, 16, 100).smaller(Size(64, 112)).batch == 1


def test_a_whole_canvas_that_is_too_large_becomes_tiles_that_overlap():
    smaller = WHOLE.smaller(Size(100, 300))
    assert (smaller.tile, smaller.overlap) == (144, 36)
    assert len(smaller.plan(Size(100, 300))) > 1


def test_a_tile_larger_than_its_canvas_shrinks_below_it():
    assert Tiling(512, 64).smaller(Size(100, 80)).tile == 48


# Weights


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(1, 300), st.integers(1, 64), st.data())
def test_weights_are_above_zero_and_sum_to_one_over_every_cell(shape, length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = blended_starts(length, tile, overlap, data.draw(st.sampled_from(("even", "flush"))))
    weights = axis_weights(starts, min(tile, length), shape)
    assert weights.dtype == torch.float32
    assert (weights > 0).all()
    total = torch.zeros(length, dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + tile] += row
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-7)


def test_the_cosine_fades_over_exactly_the_overlap():
    weights = axis_weights([0, 12], 16, "cosine")
    assert (weights[0, :12] == 1).all()
    assert (weights[1, 4:] == 1).all()
    ramp = 0.5 - 0.5 * torch.cos(torch.pi * torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(weights[1, :4], ramp)


@pytest.mark.parametrize(("shape", "profile"), [("cosine", cosine(16, 4)), ("gaussian", gaussian(16))])
def test_tiles_fade_as_their_engine_asks(shape, profile):
    first, second = axis_weights([0, 12], 16, shape)[:, [12, 13, 14, 15, 0, 1, 2, 3]].double()
    torch.testing.assert_close(first[:4] / second[4:], profile[12:] / profile[:4], rtol=1e-5, atol=0)


def test_the_gaussian_is_that_of_stablesr():
    # StableSR's w(u) = exp(-(u - m)^2 / (2 * 0.01 * L^2)) / sqrt(2 pi 0.01) at L = 64: 2.191e-5 at the ends.
    bell = gaussian(64) / (2 * torch.pi * 0.01) ** 0.5
    assert bell[0] == bell[-1]
    assert bell[0].item() == pytest.approx(2.191e-5, rel=1e-3)
    shifted = gaussian(64, 32) / (2 * torch.pi * 0.01) ** 0.5
    assert [shifted[0].item(), shifted[-1].item()] == pytest.approx([1.487e-5, 3.208e-5], rel=1e-3)


def test_without_overlap_a_weight_is_flat():
    assert (cosine(8, 0) == 1).all()


# Over tiles


@given(canvases, tilings())
def test_blending_what_was_cut_gives_it_back(size, tiling):
    state = numbers(1, 3, *size).sin()
    tiles = tiling.plan(size)
    made = over_tiles(lambda group: crop_tensor(state, group), tiles, size, batch=tiling.batch, weights=tiling.weights)
    torch.testing.assert_close(made, state, rtol=0, atol=1e-6)


@given(canvases, tilings())
def test_a_cell_that_one_tile_covers_is_passed_through_exactly(size, tiling):
    tiles = tiling.plan(size)
    covered = torch.zeros(*size)
    for tile in tiles:
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    state = numbers(1, 1, *size).sin()
    made = over_tiles(lambda group: crop_tensor(state, group), tiles, size, weights=tiling.weights)
    assert torch.equal(made[0, 0][covered == 1], state[0, 0][covered == 1])


@given(canvases, tilings(), st.sampled_from([2, 4]))
def test_the_output_may_be_finer_than_the_input(size, tiling, ratio):
    fine = numbers(1, 2, *size.times(ratio)).sin()

    def enlarge(group):
        return crop_tensor(fine, [tile.times(ratio) for tile in group])

    made = over_tiles(enlarge, tiling.plan(size), size, weights=tiling.weights, ratio=ratio)
    torch.testing.assert_close(made, fine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tiling", [WHOLE, Tiling(64, 8), Tiling(64, 8, fill=True), Tiling(64, 8, weights="gaussian")])
def test_one_tile_is_exactly_what_the_function_gave(tiling):
    size = Size(37, 50)
    output = torch.randn(1, 4, *tiling.plan(size)[0].size, generator=torch.Generator().manual_seed(0)) * 1e-30
    made = over_tiles(lambda group: output, tiling.plan(size), size)
    assert torch.equal(made, output[..., :37, :50])


def test_the_batch_changes_nothing():
    size, tiling = Size(90, 130), Tiling(32, 12)
    state = numbers(1, 2, *size).sin()
    seen = []

    def work(group):
        seen.append(len(group))
        return crop_tensor(state, group).tanh()

    one, three = (over_tiles(work, tiling.plan(size), size, batch=batch) for batch in (1, 3))
    assert torch.equal(one, three)
    assert set(seen[: len(tiling.plan(size))]) == {1}
    assert 3 in seen


def test_half_precision_is_blended_in_single():
    size, tiling = Size(64, 64), Tiling(32, 16, weights="gaussian")
    for tiles in (tiling.plan(size), WHOLE.plan(size)):
        half = torch.full((1, 1, *tiles[0].size), 0.1, dtype=torch.float16)
        made = over_tiles(lambda group, half=half: half, tiles, size)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, torch.full_like(made, half[0, 0, 0, 0].item()), rtol=1e-6, atol=0)


def test_batches_keep_the_order_and_lose_nothing():
    tiles = Tiling(8, 2).plan(Size(30, 30))
    assert [tile for group in batches(tiles, 7) for tile in group] == tiles
    assert max(len(group) for group in batches(tiles, 7)) == 7
