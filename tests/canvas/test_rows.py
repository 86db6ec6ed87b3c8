"""Rows: a stream gives what the whole would, and forgets what nobody can ask for again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from enlarger.canvas.exact import exactly
from enlarger.canvas.rows import ComputedRows, CutRows, Rows, WholeRows, windowed
from enlarger.canvas.tiles import spans
from enlarger.picture.resize import resize
from enlarger.size import Size


def all_of(rows: Rows, piece: int) -> torch.Tensor:
    return torch.cat(
        [rows.read(start, min(start + piece, rows.size.height)) for start in range(0, rows.size.height, piece)], 1
    )


@given(height=st.integers(1, 40), stretch=st.integers(1, 17), piece=st.integers(1, 41), stages=st.integers(1, 3))
def test_a_chain_of_local_operators_equals_the_whole(height, stretch, piece, stages):
    picture = torch.rand(3, height, 9, generator=torch.Generator().manual_seed(height))

    def mean(window: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(window[None], (0, 0, 2, 2), mode="constant")
        return functional.avg_pool2d(padded, (5, 1), stride=1)[0]

    rows: Rows = WholeRows(picture)
    whole = picture
    for _ in range(stages):
        rows = windowed(
            rows,
            spans(height, stretch, 2),
            lambda seen, span: mean(seen)[:, span.start - span.outer_start :][:, : span.stop - span.start],
            rows.size,
        )
        whole = mean(whole)
    assert torch.equal(all_of(rows, piece), whole)


def test_stretches_are_made_once_and_only_when_asked_for():
    made = []

    def compute(number: int) -> torch.Tensor:
        made.append(number)
        return torch.full((1, 4, 2), float(number))

    rows = ComputedRows(Size(16, 2), [(start, start + 4) for start in range(0, 16, 4)], compute)
    rows.read(0, 3)
    assert made == [0]
    rows.read(2, 9)
    assert made == [0, 1, 2]
    rows.read(8, 16)
    assert made == [0, 1, 2, 3]
    assert len(rows._kept) == 2, "rows above the last read are forgotten"
    with pytest.raises(AssertionError, match="out of order"):
        rows.read(0, 4)


def test_padding_is_cut_off():
    rows = CutRows(WholeRows(torch.arange(24.0).reshape(1, 4, 6)), Size(3, 5))
    assert rows.size == Size(3, 5)
    assert rows.read(1, 3).shape == (1, 2, 5)


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    stretch=st.integers(1, 20),
    filter=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    light=st.booleans(),
)
def test_the_exact_resize_in_stretches_equals_the_whole(size, target, stretch, filter, light):
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(sum(size)))
    made = all_of(exactly(WholeRows(picture), Size(*target), filter, linear_light=light, stretch=stretch), 7)
    whole = resize(picture.permute(1, 2, 0).numpy(), target, filter, linear_light=light)
    assert made.shape == (3, *target)
    assert (made.permute(1, 2, 0) - torch.from_numpy(whole)).abs().max() < 1e-5
