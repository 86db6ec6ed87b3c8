"""Back-projection: the result made small again is the picture it came from."""

from __future__ import annotations

import pytest
import torch

from enlarger.canvas.consistency import TOLERANCE, _consistent_at_any_ratio, back_project, consistent, resized
from enlarger.canvas.rows import WholeRows
from enlarger.settings import TiledSettings, rules


def wrong_and_source(factor: int = 4, size: tuple[int, int] = (23, 31)) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture away from 0 and 1, and an enlargement of it with noise and a colour cast."""
    random = torch.Generator().manual_seed(1)
    rough = torch.rand(1, 3, 6, 8, generator=random)
    source = resized(rough, *size).clamp(0, 1)[0] * 0.6 + 0.2
    larger = resized(source[None], size[0] * factor, size[1] * factor)[0]
    return larger + 0.05 * torch.randn(larger.shape, generator=random) + 0.03, source


def decibels(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10(((one - other) ** 2).mean()))


@pytest.mark.parametrize("factor", [2, 4])
def test_at_one_the_reduced_result_equals_the_source(factor):
    wrong, source = wrong_and_source(factor)
    before = decibels(resized(wrong[None], *source.shape[-2:])[0], source)
    result = back_project(wrong, source, 1.0)
    after = resized(result[None], *source.shape[-2:])[0]
    assert before < 35
    assert decibels(after, source) > 55
    assert (after - source).abs().max() < 2 / 255


def test_the_amount_is_a_dial():
    wrong, source = wrong_and_source()
    found = [
        decibels(resized(back_project(wrong, source, amount)[None], *source.shape[-2:])[0], source)
        for amount in (0.0, 0.25, 0.5, 1.0)
    ]
    assert found == sorted(found)
    assert found[-1] > found[0] + 20


@pytest.mark.parametrize("stretch", [3, 8, 100])
def test_in_stretches_it_is_the_same(stretch):
    wrong, source = wrong_and_source()
    rows = consistent(WholeRows(wrong), source, 1.0, stretch * 4)
    made = torch.cat([rows.read(start, min(start + 10, 92)) for start in range(0, 92, 10)], 1)
    assert (made - back_project(wrong, source, 1.0)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(50, 80), (101, 70), (24, 31), (23, 31), (92, 125)], ids=str)
def test_at_any_ratio_it_is_the_same_in_stretches_and_holds(size):
    wrong, source = wrong_and_source()
    larger = resized(wrong[None], *size)[0]

    def made(stretch: int) -> torch.Tensor:
        rows = consistent(WholeRows(larger), source, 1.0, stretch)
        return torch.cat([rows.read(start, min(start + 7, size[0])) for start in range(0, size[0], 7)], 1)

    whole = made(1000)
    assert (made(9) - whole).abs().max() < 1e-6
    assert decibels(resized(whole[None], *source.shape[-2:])[0], source) > 55


def test_both_ways_of_doing_it_agree():
    wrong, source = wrong_and_source()
    any_ratio = _consistent_at_any_ratio(WholeRows(wrong), source, 0.7, 40).read(0, 92)
    assert (any_ratio - consistent(WholeRows(wrong), source, 0.7, 40).read(0, 92)).abs().max() < 1e-5


def test_the_help_states_the_tolerance():
    assert f"to {TOLERANCE} levels" in rules(TiledSettings)["consistency"].help
