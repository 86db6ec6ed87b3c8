"""`enlarger upscale` on real files: where results go, what they are, what is told."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.cli import work
from enlarger.engines.settings import PocketSettings
from enlarger.errors import ResourceError
from enlarger.picture.read import read_rgb
from tests.cli.support import Called, files, picture

Call = Callable[..., Called]


def settings_of(done: Called) -> dict[str, Any]:
    assert done.code == 0, done.err
    settings: dict[str, Any] = done.records[0]["settings"]
    return settings


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    ("words", "name", "size"),
    [
        ("", "a_4x.png", (96, 64)),
        ("-s 2.5", "a_2.5x.png", (60, 40)),
        ("-s2", "a_2x.png", (48, 32)),
        ("--scale=16", "a_16x.png", (384, 256)),
        ("--size 70x33", "a_70x33.png", (70, 33)),
        ("--longest 50", "a_50px.png", (50, 33)),
        ("--megapixels 0.002", "a_0.002mp.png", (55, 37)),
        ("-o b.png", "b.png", (96, 64)),
        ("-o out", "out/a_4x.png", (96, 64)),
        ("-o out/", "out/a_4x.png", (96, 64)),
        ("--format jpg", "a_4x.jpg", (96, 64)),
        ("--format tiff -o b", "b", (96, 64)),
    ],
)
def test_the_result_has_the_size_asked_for_and_the_name_expected(
    call: Call, folder: Path, words: str, name: str, size: tuple[int, int]
) -> None:
    picture("a.png")
    (folder / "out").mkdir()
    done = call("upscale", "a.png", "-e", "interpolate", *words.split())
    assert done.code == 0, done.err
    assert files(folder) == {"a.png", name}
    assert size_of(name) == size
    assert name in done.err
    assert "{}x{}".format(*size) in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("name", "options", "result", "format"),
    [
        ("a.jpeg", {}, "a_4x.jpeg", "JPEG"),
        ("a.JPG", {}, "a_4x.JPG", "JPEG"),
        ("a.webp", {}, "a_4x.webp", "WEBP"),
        ("a.tif", {}, "a_4x.tif", "TIFF"),
        ("a.bmp", {}, "a_4x.bmp", "BMP"),
        ("a.b.png", {}, "a.b_4x.png", "PNG"),
        ("a.jpg", {"format": "PNG"}, "a_4x.png", "PNG"),  # the content decides, not the name
        ("a", {"format": "PNG"}, "a_4x.png", "PNG"),
    ],
)
def test_the_result_has_the_format_of_the_input(
    call: Call, folder: Path, name: str, options: dict[str, str], result: str, format: str
) -> None:
    picture(name, **options)
    assert call("upscale", name, "-e", "interpolate").code == 0
    assert files(folder) == {name, result}
    with Image.open(result) as image:
        assert image.format == format


def test_options_and_inputs_stand_in_any_order_and_odd_names_work(call: Call, folder: Path) -> None:
    for name in ("a.png", "-x.png", "b b.png", "née.png", "new\nline.png"):
        picture(folder / name)
    done = call(
        "upscale", "a.png", "-e", "interpolate", "b b.png", "--scale", "2", "née.png", "new\nline.png", "--", "-x.png"
    )
    assert done.code == 0, done.err
    results = {"a_2x.png", "-x_2x.png", "b b_2x.png", "née_2x.png", "new\nline_2x.png"}
    assert {path.name for path in folder.iterdir()} >= results
    told = done.err.splitlines()
    assert len(told) == 6, "a name with a line break is told on one line"
    assert told[-1] == "5 pictures enlarged"


def test_settings_reach_the_engine(call: Call, folder: Path) -> None:
    picture("a.png")
    one = settings_of(call("upscale", "a.png", "-e", "interpolate", "--json"))
    assert (one["filter"], one["linear_light"]) == ("bicubic", False)
    words = ["--filter", "nearest", "-o", "b.png", "--linear-light"]
    other = settings_of(call("upscale", "a.png", "-e", "interpolate", *words, "--json"))
    assert (other["filter"], other["linear_light"]) == ("nearest", True)
    assert (np.asarray(Image.open("a_4x.png")) != np.asarray(Image.open("b.png"))).any()


def test_pocket_is_the_default_and_its_seed_matters(call: Call, folder: Path) -> None:
    picture("a.png")
    results = []
    for words in ([], ["--seed", "0"], ["--seed", "7"], ["--preset", "faithful"]):
        done = call("upscale", "a.png", "--json", "--overwrite", *words)
        assert done.code == 0, done.err
        assert done.records[0]["engine"] == "pocket"
        results.append(Path("a_4x.png").read_bytes() if not words else np.asarray(Image.open("a_4x.png")))
    zero, same, seven, faithful = (
        np.asarray(Image.open(io.BytesIO(result))) if isinstance(result, bytes) else result for result in results
    )
    assert (zero == same).all()
    assert (zero != seven).any()
    assert (seven != faithful).any()


def test_a_random_seed_is_told_and_stored_and_gives_the_same_again(call: Call, folder: Path) -> None:
    picture("a.png")
    done = call("upscale", "a.png", "--seed", "random", "--json", "-o", "b.png")
    seed = done.records[0]["seed"]
    assert done.records[0]["settings"]["seed"] == seed
    assert f"seed {seed}" in done.err
    assert call("upscale", "a.png", "--seed", "random", "--json", "--overwrite").records[0]["seed"] != seed
    again = call("upscale", "a.png", "--seed", str(seed), "-o", "c.png")
    assert again.code == 0
    assert Path("b.png").read_bytes() == Path("c.png").read_bytes()


def test_json_is_one_object_a_picture_with_every_key(call: Call, folder: Path) -> None:
    picture("a.png")
    picture("b.png")
    done = call("upscale", "a.png", "b.png", "-s", "2", "-e", "interpolate", "--json")
    assert [record["input"] for record in done.records] == ["a.png", "b.png"]
    keys = {
        "input", "output", "width", "height", "engine", "model", "settings", "seed", "seconds", "peak_memory_bytes",
        "sample", "warnings", "error",
    }  # fmt: skip
    for record in done.records:
        assert set(record) == keys
        assert (record["width"], record["height"]) == (48, 32)
        assert Path(record["output"]).exists()
        assert record["settings"]["scale"] == 2
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > 30e6
        assert record["error"] is None


def test_a_failing_picture_does_not_stop_the_others(call: Call, folder: Path) -> None:
    picture("a.png")
    picture("c.png")
    Path("b.png").write_text("no picture at all")
    done = call("upscale", "a.png", "b.png", "gone.png", "c.png", "-e", "interpolate", "--json")
    assert done.code == 7
    assert [bool(record["error"]) for record in done.records] == [False, True, True, False]
    assert files(folder) == {"a.png", "b.png", "c.png", "a_4x.png", "c_4x.png"}
    lines = [line for line in done.err.splitlines() if line.startswith("enlarger: error:")]
    assert [any(name in line for line in lines) for name in ("b.png", "gone.png", "2 of 4")] == [True, True, True]
    assert len(lines) == 3


def test_an_unforeseen_failure_of_one_picture_does_not_stop_the_others(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enlarger.upscaler import Upscaler

    picture("a.png")
    picture("b.png", size=(10, 10))
    right = Upscaler.__call__

    def wrong(self: Upscaler, image: object, **values: object) -> object:
        if image.height == 16:  # type: ignore[attr-defined]
            raise ZeroDivisionError("by zero")
        return right(self, image, **values)

    monkeypatch.setattr(Upscaler, "__call__", wrong)
    done = call("upscale", "a.png", "b.png", "-e", "interpolate")
    assert done.code == 7
    assert "a.png: a bug in Enlarger" in done.err
    assert "Traceback" not in done.err
    assert files(folder) == {"a.png", "b.png", "b_4x.png"}


def test_a_folder_is_done_in_order_without_hidden_files_own_results_and_other_things(call: Call, folder: Path) -> None:
    for name in ("in/b.png", "in/a.jpg", "in/sub/c.png", "in/.hidden.png", "in/.cache/d.png", "in/lone_4x.png"):
        picture(name)
    Path("in/notes.txt").write_text("not a picture, and not said to be one")
    picture("in/unnamed", format="PNG")
    first = call("upscale", "in", "-e", "interpolate", "-s", "2", "--json")
    assert first.code == 0, first.err
    made = ["in/a_2x.jpg", "in/b_2x.png", "in/lone_4x_2x.png", "in/unnamed_2x.png", "in/sub/c_2x.png"]
    assert [record["output"] for record in first.records] == made
    again = call("upscale", "in", "-e", "interpolate", "-s", "2", "--json", "--overwrite")
    assert [record["output"] for record in again.records] == made, "own results are enlarged again"


def test_a_folder_s_tree_is_kept_in_the_output_folder_which_is_made(call: Call, folder: Path) -> None:
    picture("in/b.png")
    picture("in/sub/deep/c.png")
    planned = call("upscale", "in", "-o", "out", "-e", "interpolate", "--dry-run")
    assert planned.code == 0, planned.err
    assert files(folder) == {"in/b.png", "in/sub/deep/c.png"}
    assert not Path("out").exists()
    assert call("upscale", "in", "-o", "out", "-e", "interpolate").code == 0
    assert files(folder / "out") == {"b_4x.png", "sub/deep/c_4x.png"}


def test_what_is_done_of_a_folder_is_not_done_again(call: Call, folder: Path) -> None:
    for name in ("in/a.png", "in/b.png", "in/c.png"):
        picture(name)
    words = ["upscale", "in", "-o", "out", "-e", "interpolate"]
    assert call(*words).code == 0
    Path("out/b_4x.png").unlink()
    done = call(*words, "--json")
    assert done.code == 0, done.err
    assert "2 of 3 results were there already" in done.err
    assert [record["seconds"] is None for record in done.records] == [True, False, True]
    assert "not made again" in done.records[0]["warnings"][0]
    assert files(folder / "out") == {"a_4x.png", "b_4x.png", "c_4x.png"}
    again = call(*words, "--json", "--overwrite")
    assert [record["seconds"] is None for record in again.records] == [False, False, False]
    assert call("upscale", "in/b.png", "-o", "out", "-e", "interpolate").code == 5, "a file given by name is asked for"


def test_what_is_no_result_of_ours_is_kept(call: Call, folder: Path) -> None:
    for name in ("in/a.png", "in/b.png"):
        picture(name)
    (folder / "out").mkdir()
    Path("out/b_4x.png").write_text("precious")
    done = call("upscale", "in", "-o", "out", "-e", "interpolate")
    assert done.code == 7
    assert "out/b_4x.png exists" in done.err
    assert Path("out/b_4x.png").read_text() == "precious"
    assert call("upscale", "in", "-o", "out", "-e", "interpolate", "--overwrite").code == 0
    assert size_of("out/b_4x.png") == (96, 64)


def test_a_link_that_leads_round_in_a_folder_ends(call: Call, folder: Path) -> None:
    picture("in/b.png")
    Path("in/round").symlink_to(folder / "in", target_is_directory=True)
    assert call("upscale", "in", "-e", "interpolate").code == 0
    assert files(folder) == {"in/b.png", "in/b_4x.png"}


def test_existing_results_are_kept_without_overwrite(call: Call, folder: Path) -> None:
    picture("a.png")
    Path("a_4x.png").write_text("precious")
    refused = call("upscale", "a.png", "-e", "interpolate")
    assert refused.code == 5
    assert "a_4x.png exists" in refused.error
    assert Path("a_4x.png").read_text() == "precious"
    assert call("upscale", "a.png", "-e", "interpolate", "--overwrite").code == 0
    assert size_of("a_4x.png") == (96, 64)


def test_a_folder_that_may_not_be_written_is_an_output_error(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.png")
    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write everywhere
    done = call("upscale", "a.png", "-e", "interpolate", "-o", "locked/b.png")
    assert done.code == 5
    assert "locked cannot be written" in done.error


def test_standard_input_and_output(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture("a.png").read_bytes()

    class Stream(io.StringIO):
        def __init__(self, content: bytes = b"") -> None:
            super().__init__()
            self.buffer = io.BytesIO(content)

    out = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(data))
    monkeypatch.setattr(sys, "stdout", out)
    assert call("upscale", "-", "-e", "interpolate", "-o", "-", "--format", "png").code == 0
    assert Image.open(io.BytesIO(out.buffer.getvalue())).size == (96, 64)
    monkeypatch.setattr(sys, "stdin", Stream(data))
    done = call("upscale", "-", "-e", "interpolate", "-o", "b.jpg")
    assert done.code == 0, done.err
    assert size_of("b.jpg") == (96, 64)
    monkeypatch.setattr(sys, "stdin", Stream(data + b" " * 13_000))
    monkeypatch.setattr(work, "SLACK", 0)
    done = call("upscale", "-", "-e", "interpolate", "-o", "c.png", "--max-pixels", "384")
    assert done.code == 3
    assert "standard input is longer than 12,288 bytes" in done.error
    assert files(folder) == {"a.png", "b.jpg"}


def test_a_picture_is_not_written_to_a_terminal(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    done = call("upscale", "a.png", "-e", "interpolate", "-o", "-", "--format", "png")
    assert done.code == 5
    assert "terminal" in done.error


def test_dry_run_tells_and_does_nothing(call: Call, folder: Path) -> None:
    picture("a.png", size=(50, 40))
    done = call("upscale", "a.png", "--dry-run", "-s", "6", "--tile", "64", "--steps", "1", "--json")
    assert done.code == 0, done.err
    assert files(folder) == {"a.png"}
    for part in ("300x240", "2 passes", "1 step,", "tiles of 64", " GB", " s "):
        assert part in done.err
    told = done.records[0]
    assert (told["width"], told["height"]) == (300, 240)
    assert told["plan"]["passes"] == 2
    assert told["plan"]["steps"] == 1
    assert told["plan"]["tiles"] > 4
    assert told["plan"]["seconds"] > 0
    assert told["plan"]["memory_bytes"] > 1e6


def test_the_recipe_of_a_result_can_be_used_again(call: Call, folder: Path) -> None:
    picture("a.png")
    picture("b.png", seed=1)
    assert call("upscale", "a.png", "-s", "2", "--steps", "1", "--seed", "5", "--fidelity", "0.5").code == 0
    done = call("upscale", "b.png", "--from", "a_2x.png", "--json")
    assert done.code == 0, done.err
    assert done.records[0]["output"] == "b_2x.png"
    settings = done.records[0]["settings"]
    assert (settings["scale"], settings["steps"], settings["seed"], settings["fidelity"]) == (2, 1, 5, 0.5)
    again = ["upscale", "b.png", "--from", "a_2x.png", "--json"]
    settings = settings_of(call(*again, "--size", "48x32", "--seed", "6"))
    assert (settings["scale"], settings["size"], settings["steps"], settings["seed"]) == (None, "48x32", 1, 6)
    settings = settings_of(call(*again, "--preset", "vivid", "-o", "c.png"))
    vivid = PocketSettings.presets["vivid"]
    assert (settings["steps"], settings["fidelity"], settings["seed"]) == (vivid["steps"], vivid["fidelity"], 5)
    other = call("upscale", "b.png", "--from", "a_2x.png", "-e", "interpolate", "-o", "d.png")
    assert other.code == 2
    assert "a_2x.png was made with pocket, whose settings are not interpolate's" in other.error


def test_a_recipe_repeats_a_result_byte_for_byte(call: Call, folder: Path) -> None:
    picture("a.png")
    words = ["-e", "interpolate", "--filter", "nearest", "-s", "3", "--quality", "40", "--strip-private"]
    assert call("upscale", "a.png", *words, "-o", "b.jpg").code == 0
    assert call("upscale", "a.png", "--from", "b.jpg", "-o", "c.jpg").code == 0
    assert Path("b.jpg").read_bytes() == Path("c.jpg").read_bytes()
    assert call("upscale", "a.png", "--from", "b.jpg", "-o", "d.jpg", "--quality", "90").code == 0
    assert Path("d.jpg").stat().st_size > Path("b.jpg").stat().st_size


def test_metadata_can_be_left_out(call: Call, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8825)[1] = "N"
    picture("a.jpg", exif=exif)
    assert call("upscale", "a.jpg", "-e", "interpolate", "-o", "kept.jpg").code == 0
    assert call("upscale", "a.jpg", "-e", "interpolate", "-o", "private.jpg", "--strip-private").code == 0
    assert call("upscale", "a.jpg", "-e", "interpolate", "-o", "bare.jpg", "--no-metadata").code == 0
    found = {}
    for name in ("kept", "private", "bare"):
        with Image.open(f"{name}.jpg") as image:
            found[name] = image.getexif()
    assert found["kept"][0x010E] == "a description"
    assert found["kept"].get_ifd(0x8825)[1] == "N"
    assert found["private"][0x010E] == "a description"
    assert not found["private"].get_ifd(0x8825)
    assert not dict(found["bare"])


def test_samples_are_files_of_their_own_that_can_be_made_again(call: Call, folder: Path) -> None:
    picture("a.png")
    done = call("upscale", "a.png", "--samples", "3", "--steps", "1", "--seed", "5", "--json")
    assert done.code == 0
    assert [(record["output"], record["sample"]) for record in done.records] == [
        (f"a_4x_{number}.png", number) for number in (1, 2, 3)
    ]
    assert files(folder) == {"a.png", "a_4x_1.png", "a_4x_2.png", "a_4x_3.png"}
    made = [read_rgb(f"a_4x_{number}.png") for number in (1, 2, 3)]
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[1], made[2])
    assert call("upscale", "a.png", "--from", "a_4x_2.png", "-o", "again.png").code == 0
    assert np.array_equal(read_rgb("again.png"), made[1])
    again = call("upscale", "a.png", "--samples", "3", "--steps", "1", "--seed", "5")
    assert again.code == 0
    assert "3 of 3 results were there already" in again.err
    assert call("upscale", "a.png", "--from", "a_4x_2.png", "--samples", "2", "-o", "two.png").code == 0
    assert {"two_1.png", "two_2.png"} <= files(folder)


def test_samples_of_what_is_piped_in_are_made_of_one_reading(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture("a.png").read_bytes())))
    done = call("upscale", "-", "-o", "b.png", "--samples", "2", "--steps", "1")
    assert done.code == 0, done.err
    assert files(folder) == {"a.png", "b_1.png", "b_2.png"}


def test_the_report_shows_where_a_result_left_its_input(call: Call, folder: Path) -> None:
    picture("a.png", size=(20, 12))
    assert call("upscale", "a.png", "-e", "interpolate", "--filter", "nearest", "--report").code == 0
    assert files(folder) == {"a.png", "a_4x.png", "a_4x.consistency.png", "a_4x.report.json"}
    report = json.loads(Path("a_4x.report.json").read_text())
    assert report["results"] == ["a_4x.png"]
    assert report["maps"] == {"consistency": "a_4x.consistency.png"}
    with Image.open("a_4x.consistency.png") as heat:
        assert heat.size == (20, 12)
    free = report["consistency"]
    words = ["-e", "interpolate", "--filter", "nearest", "--consistency", "1", "--report", "--overwrite"]
    assert call("upscale", "a.png", *words).code == 0
    assert json.loads(Path("a_4x.report.json").read_text())["consistency"] > free + 5


def test_the_report_of_samples_shows_what_the_seed_decides(call: Call, folder: Path) -> None:
    picture("a.png", size=(20, 12))
    (folder / "reports").mkdir()
    words = ["--samples", "2", "--steps", "1", "--fidelity", "0", "--report=reports"]
    done = call("upscale", "a.png", *words)
    assert done.code == 0
    assert "2 samples differ by" in done.err
    names = {"a_4x.consistency.png", "a_4x.deviation.png", "a_4x.report.json"}
    assert files(folder / "reports") == names
    report = json.loads(Path("reports/a_4x.report.json").read_text())
    assert report["results"] == ["a_4x_1.png", "a_4x_2.png"]
    both = np.stack([read_rgb(f"a_4x_{number}.png").astype(float) for number in (1, 2)])
    assert report["deviation"] == pytest.approx(both.std(axis=0, ddof=1).mean(), rel=1e-9)
    with Image.open("reports/a_4x.deviation.png") as heat:
        assert heat.size == (80, 48)
    # Maps are no photographs: a run over the folder leaves them alone, and the samples too.
    assert call("upscale", "reports", "-o", "more").code == 3
    assert call("upscale", ".", "-o", "more", "--steps", "1").code == 0
    assert files(folder / "more") == {"a_4x.png"}


def test_reports_of_a_folder_are_written_picture_by_picture(call: Call, folder: Path) -> None:
    for name in ("a", "b"):
        picture(f"in/{name}.png", seed=ord(name))
    (folder / "in/c.png").write_bytes(b"no picture")
    words = ["upscale", "in", "-o", "out", "-e", "interpolate", "--report"]
    assert call(*words).code == 7
    assert {f"{name}_4x.report.json" for name in "ab"} == {n for n in files(folder / "out") if n.endswith(".json")}
    (folder / "out/a_4x.png").unlink()
    assert call(*words).code == 7  # its earlier report does not stand in the way
    Path("out/b_4x.report.json").write_text("{}")
    assert "b_4x.report.json" in call(*words).error
    assert Path("out/b_4x.report.json").read_text() == "{}"


def test_a_model_is_found_by_its_name(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enlarger.checkpoints.load import SHIPPED

    picture("a.png")
    (folder / "models/ours").mkdir(parents=True)
    (folder / "models/ours/mine.safetensors").write_bytes((SHIPPED / "pocket.safetensors").read_bytes())
    for words in (["mine", "--models-dir", "models"], ["mine.safetensors", "--models-dir", "models"]):
        assert call("upscale", "a.png", "-s", "2", "--overwrite", "-m", *words).code == 0
    assert call("upscale", "a.png", "-s", "2", "--overwrite", "-m", "mine").code == 4
    monkeypatch.setenv("ENLARGER_MODELS", f"nowhere{os.pathsep}models")
    assert call("upscale", "a.png", "-s", "2", "--overwrite", "-m", "mine").code == 0


def test_quality_makes_smaller_files(call: Call, folder: Path) -> None:
    picture("a.png")
    for quality in ("30", "95"):
        assert call("upscale", "a.png", "-e", "interpolate", "-o", f"{quality}.jpg", "--quality", quality).code == 0
    assert Path("30.jpg").stat().st_size < Path("95.jpg").stat().st_size / 2


def test_what_a_format_loses_is_told(call: Call, folder: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 100)).save("a.png")
    done = call("upscale", "a.png", "-e", "interpolate", "-o", "b.jpg", "--json")
    assert done.code == 0, done.err
    assert "enlarger: warning: a.png: transparency" in done.err
    assert "transparency" in done.records[0]["warnings"][0]


def test_quiet_says_nothing(call: Call, folder: Path) -> None:
    picture("a.png")
    done = call("upscale", "a.png", "-e", "interpolate", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert call("upscale", "a.png", "-e", "interpolate", "-q").error.startswith("a_4x.png exists")


def test_too_little_memory_is_a_resource_error(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    done = call("upscale", "a.png", "--max-memory", "1MB")
    assert done.code == ResourceError.exit_code
    assert "--max-memory" in done.error
    assert call("upscale", "a.png", "--device", "cuda:99").code == ResourceError.exit_code
    assert files(folder) == {"a.png"}


def test_the_engine_is_loaded_once_for_many_pictures(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enlarger import upscaler

    loaded = []
    right = upscaler.Upscaler.__init__

    def counting(self: upscaler.Upscaler, *words: object, **options: object) -> None:
        loaded.append(words)
        right(self, *words, **options)

    monkeypatch.setattr(upscaler.Upscaler, "__init__", counting)
    names = [picture(f"{number}.png") for number in range(3)]
    assert call("upscale", *names, "-e", "interpolate").code == 0
    assert len(loaded) == 1


def test_interrupting_leaves_finished_results_and_nothing_partial(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enlarger.picture import write

    right = write._encode
    calls = []

    def breaking(stream: io.BytesIO, *rest: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            stream.write(b"half a pic")
            raise KeyboardInterrupt
        right(stream, *rest)

    monkeypatch.setattr(write, "_encode", breaking)
    names = [picture(f"{number}.png") for number in range(3)]
    done = call("upscale", *names, "-e", "interpolate")
    assert done.code == 130
    assert "1 of 3 pictures are done" in done.err
    assert "interrupted" in done.error
    assert files(folder) == {"0.png", "1.png", "2.png", "0_4x.png"}


def test_peak_memory_is_in_bytes() -> None:
    peak = work.peak_memory()
    assert peak is not None
    assert 50e6 < peak < 100e9
