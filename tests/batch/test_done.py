"""What is done is not done again: by the input's bytes and the settings, not by the name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from enlarger.batch.done import LEDGER, Ledger, digest, is_result
from enlarger.batch.jobs import plan
from enlarger.picture import write as writing
from enlarger.picture.write import read_record
from tests.batch.support import content, done, jobs, order, states
from tests.cli.support import files, picture

FORMATS = ("png", "jpg", "webp", "tif", "bmp", "ppm", "gif")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        picture(tmp_path / "in" / name, seed=number)
    return tmp_path / "in"


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


@pytest.mark.parametrize("strip", ["none", "private", "all"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_second_run_does_nothing_in_any_format(pictures: Path, tmp_path: Path, format: str, strip: str) -> None:
    what, wanted = jobs(pictures, to=tmp_path / "out", format=format), order(output_format=format, strip=strip)
    assert states(done(what, wanted)) == ["made"] * 3
    before = times(tmp_path / "out")
    held = strip != "all" and format not in ("bmp", "ppm", "gif")
    assert {name for name in before if LEDGER in name} == (set() if held else {LEDGER, f"sub/{LEDGER}"})
    outcomes = done(what, wanted)
    assert states(outcomes) == ["there"] * 3
    assert [outcome.settings["scale"] for outcome in outcomes] == [2.0] * 3
    assert times(tmp_path / "out") == before


def test_what_is_missing_is_made(pictures: Path, tmp_path: Path) -> None:
    what = jobs(pictures, to=tmp_path / "out")
    done(what)
    before = content(tmp_path / "out")
    (tmp_path / "out/b_2x.png").unlink()
    assert states(done(what)) == ["there", "made", "there"]
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("strip", ["none", "all"])
def test_an_input_that_changed_is_done_again_whatever_its_name(pictures: Path, tmp_path: Path, strip: str) -> None:
    what, wanted = jobs(pictures, to=tmp_path / "out"), order(strip=strip)
    done(what, wanted)
    picture(pictures / "b.png", seed=7)
    assert states(done(what, wanted)) == ["there", "made", "there"]
    assert states(done(what, wanted)) == ["there"] * 3
    done(jobs(pictures / "b.png", to=tmp_path / "fresh.png"), wanted)
    assert (tmp_path / "fresh.png").read_bytes() == (tmp_path / "out/b_2x.png").read_bytes()


def test_an_input_that_was_only_touched_is_not_done_again(pictures: Path, tmp_path: Path) -> None:
    what = jobs(pictures, to=tmp_path / "out")
    done(what)
    os.utime(pictures / "a.png")
    assert states(done(what)) == ["there"] * 3


def test_other_numbers_in_the_network_do_it_again(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    what = jobs(pictures / "a.png", pictures / "b.png", to=tmp_path / "out")
    for machine in ({}, {"dtype": "float32"}):
        wanted = order("pocket", steps=1, machine=machine)
        assert states(done(what, wanted)) == ["made"] * 2
        assert states(done(what, wanted)) == ["there"] * 2


def test_each_sample_is_known_by_its_number(pictures: Path, tmp_path: Path) -> None:
    what = plan([str(pictures / "a.png")], str(tmp_path / "b.png"), None, "_2x", samples=2)
    assert [(job.output.name, job.whole.name) for job in what] == [("b_1.png", "b.png"), ("b_2.png", "b.png")]
    wanted = order("pocket", steps=1, samples=2)
    assert states(done(what, wanted)) == ["made"] * 2
    (tmp_path / "b_1.png").rename(tmp_path / "b_2.png")
    assert states(done(what, wanted)) == ["made"] * 2  # the first took the second's place, and is not it
    assert states(done(what, wanted)) == ["there"] * 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"filter": "nearest"}),
        ({}, {"linear_light": True}),
        ({"output_format": "jpg"}, {"output_format": "jpg", "quality": 30}),
        ({}, {"strip": "private"}),
        ({"strip": "all"}, {"strip": "all", "filter": "nearest"}),
        ({"output_format": "ppm"}, {"output_format": "ppm", "filter": "nearest"}),
    ],
)
def test_changed_settings_do_it_again(
    pictures: Path, tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    format = first.get("output_format")
    what = jobs(pictures, to=tmp_path / "out", format=format)
    assert states(done(what, order(**first))) == ["made"] * 3
    assert states(done(what, order(**second))) == ["made"] * 3
    assert states(done(what, order(**second))) == ["there"] * 3
    done(jobs(pictures, to=tmp_path / "fresh", format=format), order(**second))
    fresh, again = content(tmp_path / "fresh"), content(tmp_path / "out")
    assert {name: again[name] for name in fresh if LEDGER not in name} == {
        name: data for name, data in fresh.items() if LEDGER not in name
    }


def test_settings_that_change_nothing_do_nothing_again(pictures: Path, tmp_path: Path) -> None:
    what = jobs(pictures, to=tmp_path / "out")
    done(what)
    assert states(done(what, order(max_pixels=10_000))) == ["there"] * 3


@pytest.mark.slow
def test_a_drawn_seed_is_as_good_as_another_but_a_named_one_is_meant(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png", size=(8, 8))
    what = jobs(tmp_path / "in", to=tmp_path / "out")
    assert states(done(what, order("pocket", seed=3, steps=1))) == ["made"]
    assert states(done(what, order("pocket", seed=4, steps=1, any_seed=True))) == ["there"]
    assert states(done(what, order("pocket", seed=4, steps=1))) == ["made"]


def test_another_model_is_another_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enlarger.engines.engine import Loaded
    from enlarger.engines.interpolate import Interpolate

    picture(tmp_path / "in/a.png")
    what = jobs(tmp_path / "in", to=tmp_path / "out")
    for model in ("one", "other"):
        monkeypatch.setattr(Interpolate, "loaded", Loaded(model, digest=model))
        assert states(done(what)) == ["made"]
        assert states(done(what)) == ["there"]


def test_the_earlier_result_stays_until_the_new_one_is_whole(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = jobs(pictures, to=tmp_path / "out")
    done(what)
    before = content(tmp_path / "out")

    def full(stream: Any, *_: object) -> None:
        assert content(tmp_path / "out").items() >= before.items()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_encode", full)
    assert all("disk is full" in state for state in states(done(what, order(filter="nearest"))))
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("strip", ["none", "all"])
def test_what_is_not_ours_is_never_replaced(pictures: Path, tmp_path: Path, strip: str) -> None:
    what, wanted = jobs(pictures, to=tmp_path / "out"), order(strip=strip)
    done(what, wanted)
    with Image.open(tmp_path / "out/a_2x.png") as image:
        image.convert("L").save(tmp_path / "out/a_2x.png")  # as an editor does that keeps no foreign texts
    (tmp_path / "out/b_2x.png").write_text("not even a picture")
    before = content(tmp_path / "out")
    for again in (wanted, order(strip=strip, filter="nearest")):
        first, second, _ = states(done(what, again))
        assert "a_2x.png exists" in first
        assert "b_2x.png exists" in second
    assert content(tmp_path / "out").items() >= {name: before[name] for name in ("a_2x.png", "b_2x.png")}.items()
    assert states(done(what, order(strip=strip, overwrite=True))) == ["made"] * 3


def test_a_result_of_another_picture_of_the_same_name_is_not_replaced(pictures: Path, tmp_path: Path) -> None:
    picture(tmp_path / "other/a.png", seed=9)
    time.sleep(0.01)
    done(jobs(pictures, to=tmp_path / "out"))
    before = content(tmp_path / "out")
    (state,) = states(done(jobs(tmp_path / "other", to=tmp_path / "out")))
    assert "made from another picture" in state
    assert content(tmp_path / "out") == before


def test_own_results_are_no_inputs_but_generated_pictures_are(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    done(jobs(tmp_path / "in", to=tmp_path / "results"))
    (tmp_path / "results/renamed.png").write_bytes((tmp_path / "results/a_2x.png").read_bytes())
    generated = Image.new("RGB", (8, 8))
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("enlarger", '{"engine":"generate","settings":{}}')
    generated.save(tmp_path / "results/b.png", pnginfo=texts)
    outcomes = done(jobs(tmp_path / "results", to=tmp_path / "out"))
    assert {Path(outcome.job.name).name: outcome.state for outcome in outcomes} == {
        "a_2x.png": "own", "b.png": "made", "renamed.png": "own",
    }  # fmt: skip
    assert states(done(jobs(tmp_path / "results/renamed.png", to=tmp_path / "named.png"))) == ["made"]


def test_a_recipe_names_the_input_by_a_digest_and_holds_no_path(pictures: Path, tmp_path: Path) -> None:
    done(jobs(pictures, to=tmp_path / "out"), order(quality=80))
    record = read_record(tmp_path / "out/a_2x.png")
    assert record is not None
    assert record["input"] == digest(pictures / "a.png", 1 << 30)[0]
    assert record["output"] == {"quality": 80}
    assert "a.png" not in str(record)
    assert str(tmp_path) not in str(record)


def test_the_digest_and_the_mark_are_found_across_pieces(tmp_path: Path) -> None:
    import hashlib

    data = b"x" * ((1 << 20) - 4) + b"enlarger" + b"y" * 10
    (tmp_path / "a").write_bytes(data)
    assert digest(tmp_path / "a", 1 << 30) == (hashlib.sha256(data).hexdigest()[:32], True)
    assert digest(tmp_path / "a", 100) == ("", False)
    assert digest(tmp_path, 100) == ("", False)
    os.mkfifo(tmp_path / "pipe")
    assert digest(tmp_path / "pipe", 100) == ("", False)
    assert not is_result(tmp_path / "a")


def test_a_ledger_survives_a_line_that_a_kill_has_cut(tmp_path: Path) -> None:
    ledger, recipe = Ledger(tmp_path), {"engine": "x", "settings": {}}
    (tmp_path / "a.ppm").write_bytes(b"one")
    ledger.add("a.ppm", tmp_path / "a.ppm", recipe)
    whole = (tmp_path / LEDGER).read_bytes()
    for length in range(len(whole)):
        (tmp_path / LEDGER).write_bytes(whole[:length])
        ledger.add("a.ppm", tmp_path / "a.ppm", recipe)
        assert ledger.find(tmp_path / "a.ppm") == recipe
    (tmp_path / "a.ppm").write_bytes(b"changed by the user")
    assert ledger.find(tmp_path / "a.ppm") is None
