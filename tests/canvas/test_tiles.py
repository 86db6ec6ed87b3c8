"""Tiles cover a plane, overlap as asked, and see their halo."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.canvas.tiles import Tile, blended_starts, blended_tiles, halo_tiles, spans
from enlarger.size import Size

PLACEMENTS = ("even", "flush")


@st.composite
def plans(draw):
    tile = draw(st.integers(1, 64))
    return draw(st.integers(1, 400)), tile, draw(st.integers(0, tile - 1)), draw(st.sampled_from(PLACEMENTS))


@given(plans())
def test_blended_tiles_cover_an_axis_and_never_overlap_less_than_asked(plan):
    length, tile, overlap, placement = plan
    starts = blended_starts(length, tile, overlap, placement)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    for earlier, later in pairwise(starts):
        assert later > earlier
        assert earlier + tile - later >= overlap


@given(plans())
def test_no_plan_has_a_tile_more_than_needed(plan):
    length, tile, overlap, placement = plan
    count = len(blended_starts(length, tile, overlap, placement))
    assert count == 1 or (count - 2) * (tile - overlap) + tile < length


@given(plans())
def test_even_placement_shares_the_overlap_out_and_flush_keeps_the_stride(plan):
    length, tile, overlap, placement = plan
    starts = blended_starts(length, tile, overlap, placement)
    steps = [later - earlier for earlier, later in pairwise(starts)]
    if steps and placement == "even":
        assert max(steps) - min(steps) <= 1
    else:
        assert all(step == tile - overlap for step in steps[:-1])


@pytest.mark.parametrize("overlap", [-1, 16, 20])
def test_an_overlap_outside_the_tile_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        blended_starts(100, 16, overlap)


def test_a_tile_is_never_larger_than_its_plane():
    assert blended_tiles(Size(10, 100), 64, 16) == [Tile(0, 0, 10, 64), Tile(0, 36, 10, 64)]
    assert blended_tiles(Size(10, 20), 64, 16) == [Tile(0, 0, 10, 20)]


def test_blended_tiles_come_row_by_row():
    tiles = blended_tiles(Size(100, 90), 64, 16)
    assert [(tile.top, tile.left) for tile in tiles] == [(0, 0), (0, 26), (36, 0), (36, 26)]


@given(st.integers(1, 500), st.integers(1, 80), st.integers(0, 60), st.integers(1, 8))
def test_stretches_tile_an_axis_exactly_and_see_their_halo(length, tile, halo, stride):
    stretches = spans(length, tile, halo, stride)
    assert [stretch.start for stretch in stretches] == [0, *(stretch.stop for stretch in stretches[:-1])]
    assert stretches[-1].stop == length
    for stretch in stretches:
        assert 0 < stretch.stop - stretch.start <= max(tile, stride)
        assert stretch.start % stride == 0
        assert stretch.outer_start % stride == 0
        # All of the halo is there, but for what lies outside the plane; at most a stride more.
        assert max(0, stretch.start - halo - stride) < max(stretch.outer_start, 1)
        assert stretch.outer_start <= max(0, stretch.start - halo)
        assert min(length, stretch.stop + halo) <= stretch.outer_stop <= min(length, stretch.stop + halo + stride - 1)


@given(st.integers(1, 500), st.integers(1, 80), st.integers(1, 8))
def test_stretches_are_nearly_equal(length, tile, stride):
    lengths = [stretch.stop - stretch.start for stretch in spans(length, tile, 0, stride)]
    assert len(set(lengths[:-1])) <= 1
    assert lengths[-1] <= lengths[0]
    # No more of them than the tile makes necessary.
    assert len(lengths) <= -(-length // max(stride, tile // stride * stride))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 20), st.integers(1, 4))
def test_halo_tiles_give_every_cell_once(height, width, tile, halo, stride):
    given_by = [[0] * width for _ in range(height)]
    for inner, outer in halo_tiles(Size(height, width), tile, halo, stride):
        for row in range(inner.top, inner.bottom):
            for column in range(inner.left, inner.right):
                given_by[row][column] += 1
        assert outer.top <= inner.top < inner.bottom <= outer.bottom <= height
        assert outer.left <= inner.left < inner.right <= outer.right <= width
        within = inner.within(outer)
        assert (within.top, within.left, within.size) == (inner.top - outer.top, inner.left - outer.left, inner.size)
    assert all(count == 1 for row in given_by for count in row)


def test_a_tile_on_a_finer_plane_has_all_its_numbers_multiplied():
    assert Tile(1, 2, 3, 4).times(8) == Tile(8, 16, 24, 32)
