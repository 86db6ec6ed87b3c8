"""What a run will do, where the user's wishes meet the memory: tiles and what they share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enlarger import Upscaler
from enlarger.canvas.blend import Plane
from enlarger.engines.catalog import STABLESR
from enlarger.engines.engine import Conditioning, Facts
from enlarger.engines.settings import DenoisingSettings
from enlarger.errors import SettingsError
from enlarger.planning import make_plan
from enlarger.sampling.memory import BASE_MEMORY
from enlarger.settings import Machine, build
from enlarger.size import Size
from tests.engines.toy import Toy

SQUARE = Size(600, 600)


class Still(Toy):
    """A toy that gives its tiles back as they are."""

    facts = Facts(
        name="toy", summary="A toy.", settings=DenoisingSettings, factor=1, grid=8, stride=8, tile=256, overlap=64,
        bytes_per_pixel=1000,
    )  # fmt: skip

    def steps(self, settings):
        return None

    def condition(self, source, *_):
        return Conditioning(Plane(source, self.facts.grid))


def planned(size=SQUARE, *, engine=None, max_memory=None, **values):
    engine = engine or Still()
    settings = build(engine.facts.settings, {"scale": 1, **values}, owner="toy")
    plan = make_plan(engine, Machine(max_memory=max_memory), size, settings)
    return plan, plan.tiling(engine, plan.canvas.passes[-1], settings)


def test_tiles_share_what_is_asked_for_up_to_half_of_them():
    assert planned(overlap=40)[1].overlap == 5
    assert planned(overlap=128)[1].overlap == 16
    assert planned(tile=128, overlap=64)[1].overlap == 8
    assert planned(tile=64)[1].overlap == 4  # the usual 64 is not asked for, so it is cut to half a tile


@pytest.mark.parametrize(("values", "most"), [({"overlap": 136}, 128), ({"tile": 96, "overlap": 56}, 48)])
def test_more_than_half_a_tile_is_refused_with_the_most_that_is_possible(values, most):
    with pytest.raises(SettingsError, match=rf"overlap {values['overlap']} .* at most {most}, .*--tile"):
        planned(**values)
    planned(**{**values, "overlap": most})


def test_as_the_original_has_it_tiles_may_share_all_but_a_cell():
    class Original(Still):
        facts = replace(STABLESR, placement="columns", bytes_per_pixel=1000)

    original = {"engine": Original(), "compatibility": "original"}
    assert planned(tile=128, overlap=120, **original)[1].overlap == 15
    with pytest.raises(SettingsError, match="at most 120"):
        planned(tile=128, overlap=128, **original)
    with pytest.raises(SettingsError, match="at most 64"):
        planned(tile=128, overlap=120, engine=type("Ours", (Original,), {"facts": STABLESR})())


def test_where_the_memory_makes_tiles_smaller_the_overlap_is_cut_and_that_is_said():
    free = BASE_MEMORY + 600 * 600 * 55 + 180 * 180 * 1000
    plan, tiling = planned(overlap=128, max_memory=free)
    assert plan.tile < 200
    assert tiling.overlap == plan.tile // 8 // 2
    shared = 8 * tiling.overlap
    assert plan.warnings == (f"the memory allows tiles of {plan.tile} pixels only: they share {shared}, not 128",)
    assert planned(max_memory=free)[0].warnings == ()
    assert planned(overlap=16, max_memory=free)[0].warnings == ()
    made = Upscaler(Still(), max_memory=free)(np.zeros((600, 600, 3), np.uint8), scale=1, overlap=128)
    assert plan.warnings[0] in made.warnings
