from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import OutputError
from enlarger.evaluation.maps import FULL_DEVIATION, faithfulness, heat, write_maps
from enlarger.picture.bicubic import shrink


def brightness(colours):
    return colours.astype(float).sum(axis=-1)


def test_hotter_is_lighter_in_colour_and_in_grey_and_the_ends_are_held():
    colours = heat(np.linspace(-1, 12, 200)[None], 10.0)[0]
    assert (np.diff(brightness(colours)) >= 0).all()
    assert (np.diff(colours @ np.array([0.299, 0.587, 0.114])) >= -1).all()
    assert np.array_equal(colours[0], heat(np.zeros((1, 1)), 10.0)[0, 0])
    assert np.array_equal(colours[-1], heat(np.full((1, 1), 10.0), 10.0)[0, 0])


def test_the_maps_show_where_the_result_left_the_input_and_where_seeds_differ(pictures):
    result = pictures[0](64, 80)
    source = shrink(result, 4)
    changed = result.copy()
    changed[16:24, 40:48] = 0
    other = changed.copy()
    other[48:, :20] = 255 - other[48:, :20]
    numbers, maps = faithfulness([changed, other], source)
    assert maps["consistency"].shape == source.shape
    assert maps["deviation"].shape == result.shape
    assert np.unravel_index(brightness(maps["consistency"]).argmax(), (16, 20)) in [
        (y, x) for y in (4, 5) for x in (10, 11)
    ]
    assert brightness(maps["deviation"])[:48].max() == brightness(heat(np.zeros((1, 1)), FULL_DEVIATION)).max()
    assert brightness(maps["deviation"])[48:, :20].mean() > 200
    assert numbers["worst"] > 20
    assert numbers["deviation"] > 0
    assert numbers["consistency"] < 50


def test_one_result_has_no_deviation_and_a_faithful_one_nothing_to_show(pictures):
    result = pictures[0](64, 80)
    numbers, maps = faithfulness([result], shrink(result, 4))
    assert set(maps) == {"consistency"}
    assert numbers == {"consistency": 100, "worst": 0, "colour-shift": pytest.approx(0, abs=0.2)}
    assert brightness(maps["consistency"]).max() == 4


def test_maps_are_written_beside_the_result_and_never_over_a_file(tmp_path, pictures):
    result = pictures[0](32, 32)
    _, maps = faithfulness([result, 255 - result], shrink(result, 4))
    written = write_maps(maps, tmp_path / "photo_4x.webp")
    assert [path.name for path in written] == ["photo_4x.consistency.png", "photo_4x.deviation.png"]
    with Image.open(written[1]) as picture:
        assert "32 levels" in picture.text["Description"]
    with pytest.raises(OutputError, match="--overwrite"):
        write_maps(maps, tmp_path / "photo_4x.webp")
    write_maps(maps, tmp_path / "photo_4x.webp", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        write_maps(maps, tmp_path / "absent" / "photo_4x.png")
    assert not list(tmp_path.glob("*.part"))
