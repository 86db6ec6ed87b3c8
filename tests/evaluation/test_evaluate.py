from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import main
from enlarger.errors import PictureError, SettingsError
from enlarger.evaluation import evaluate as module
from enlarger.evaluation.evaluate import Entry, Player, evaluate
from enlarger.evaluation.metrics import Judge
from enlarger.evaluation.protocols import of_folders, of_protocol
from enlarger.evaluation.report import comma_separated, markdown, record, rows, text
from enlarger.picture.bicubic import shrink


@pytest.fixture
def data(tmp_path, pictures):
    """A folder in the layout of the benchmarks, with three small pictures called Set5."""
    truth, _ = pictures
    for part in ("HR", "LRx4"):
        (tmp_path / "data" / "Set5" / part).mkdir(parents=True)
    for i in range(3):
        large = truth(48 + 4 * i, 64)
        Image.fromarray(large).save(tmp_path / "data" / "Set5" / "HR" / f"img_{i}.webp", lossless=True)
        Image.fromarray(shrink(large, 4)).save(tmp_path / "data" / "Set5" / "LRx4" / f"img_{i}.png")
    return tmp_path / "data"


BICUBIC = Entry("interpolate")
NEAREST = Entry("interpolate", {"filter": "nearest"})


def run(data, *entries, metrics=("psnr-y",), **options):
    return list(evaluate(entries, of_protocol("set5", data), Judge(metrics), **options))


def test_all_entries_do_one_picture_before_the_next_comes(data):
    outcomes = run(data, BICUBIC, NEAREST)
    assert [(o.picture, o.entry.label) for o in outcomes] == [
        (f"img_{i}", label) for i in range(3) for label in ("interpolate", "interpolate:filter=nearest")
    ]
    assert all(o.error is None and o.seconds > 0 and 0 < o.values["psnr-y"] < 60 for o in outcomes)
    assert outcomes[0].values["psnr-y"] != outcomes[1].values["psnr-y"]


def test_a_bad_picture_is_an_outcome_and_the_rest_goes_on(data):
    (data / "Set5" / "LRx4" / "img_0.png").unlink()
    Image.new("RGB", (16, 40)).save(data / "Set5" / "LRx4" / "img_1.png")
    Image.new("RGB", (16, 16)).save(data / "Set5" / "LRx4" / "img_9.png")
    outcomes = run(data, BICUBIC)
    errors = {o.picture: o.error for o in outcomes}
    assert "no small picture" in errors["img_0"]
    assert "not the same picture" in errors["img_1"]
    assert errors["img_2"] is None
    assert "no true picture" in errors["img_9"]


def test_even_a_bug_in_one_picture_does_not_end_the_run(data, monkeypatch):
    make = Player.make

    def failing(self, pair, size, seed):
        if pair.name == "img_1":
            raise ZeroDivisionError("by 0")
        return make(self, pair, size, seed)

    monkeypatch.setattr(Player, "make", failing)
    errors = [o.error for o in run(data, BICUBIC)]
    assert errors == [None, "internal error, ZeroDivisionError: by 0", None]


def test_a_stopped_run_goes_on_where_it_was(data, tmp_path, monkeypatch):
    made = []
    make = Player.make
    monkeypatch.setattr(Player, "make", lambda self, pair, *rest: made.append(pair.name) or make(self, pair, *rest))
    stopped = evaluate([BICUBIC], of_protocol("set5", data), Judge(["psnr-y"]), output=tmp_path / "out")
    first = next(stopped)
    stopped.close()
    outcomes = run(data, BICUBIC, output=tmp_path / "out")
    assert made == ["img_0", "img_1", "img_2"]
    assert [o.kept for o in outcomes] == [True, False, False]
    assert outcomes[0].values == first.values
    assert outcomes[0].seconds == first.seconds


def test_another_metric_uses_the_kept_result_and_another_setting_does_not(data, tmp_path, monkeypatch):
    run(data, BICUBIC, output=tmp_path / "out")
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").rglob("*.*")} == {plain.stat().st_mode}
    made = []
    make = Player.make
    monkeypatch.setattr(
        Player, "make", lambda self, pair, *rest: made.append(self.entry.label) or make(self, pair, *rest)
    )
    both = run(data, BICUBIC, metrics=["ssim-y", "psnr_y"], output=tmp_path / "out")
    assert made == []
    assert set(both[0].values) == {"ssim-y", "psnr_y"}
    assert both[0].values["psnr_y"] == run(data, BICUBIC)[0].values["psnr-y"]
    assert 0 < both[0].values["ssim-y"] < 1
    task = dataclasses.replace(of_protocol("set5", data), border=0)
    whole = next(evaluate([BICUBIC], task, Judge(["psnr-y"]), output=tmp_path / "out"))
    assert not whole.kept
    assert whole.values["psnr-y"] != both[0].values["psnr_y"]
    made.clear()
    run(data, NEAREST, output=tmp_path / "out")
    assert len(made) == 3


def test_a_changed_input_or_damaged_file_is_measured_anew(data, tmp_path):
    before = run(data, BICUBIC, output=tmp_path / "out")
    path = data / "Set5" / "LRx4" / "img_0.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    for kept in (tmp_path / "out" / "results").glob("*.json"):
        if json.loads(kept.read_text()).get("picture") == "img_1":
            kept.write_text("{")
    after = run(data, BICUBIC, output=tmp_path / "out")
    assert [o.kept for o in after] == [False, False, True]
    assert after[0].values != before[0].values
    assert after[1].values == before[1].values


def test_seeds_are_averaged_and_their_deviation_is_known(data):
    few = {"steps": 1, "consistency": 0.0}
    outcomes = run(data, Entry("pocket", few), BICUBIC, metrics=["psnr-y", "deviation"], seeds=2)
    pocket, interpolate = outcomes[0].values, outcomes[1].values
    singles = [run(data, Entry("pocket", {**few, "seed": seed}))[0].values["psnr-y"] for seed in (0, 1)]
    assert singles[0] != singles[1]
    assert pocket["psnr-y"] == pytest.approx(np.mean(singles), abs=1e-9)
    assert pocket["deviation"] > 0
    assert interpolate["deviation"] == 0


def test_finished_results_are_a_row_like_any_other(data, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in (data / "Set5" / "HR").iterdir():
        Image.open(path).save(folder / f"{path.stem}_4x.png")
    (folder / "img_2_4x.png").unlink()
    outcomes = run(data, BICUBIC, Entry("theirs", results=folder))
    theirs = [o for o in outcomes if o.entry.engine == "theirs"]
    assert [o.values.get("psnr-y") for o in theirs] == [100, 100, None]
    assert theirs[0].seconds is None
    table = rows(outcomes, Judge(["psnr-y"]))
    assert [row.estimate.pictures for row in table] == [2, 2]  # the same pictures for both
    assert table[1].seconds_per_megapixel is None


def test_wrong_entries_are_refused_before_any_work(data):
    for entry, message in (
        (Entry("interpolat"), "interpolate"),
        (Entry("interpolate", {"filtre": "nearest"}), "did you mean filter"),
        (Entry("theirs", results=data / "absent"), "no such folder"),
    ):
        with pytest.raises(SettingsError, match=message):
            run(data, entry)
    with pytest.raises(SettingsError, match="leave scale out: the pairs"):
        Entry("interpolate", {"scale": 2})
    with pytest.raises(SettingsError, match="no engine"):
        run(data)


@pytest.mark.parametrize(
    ("large", "small"), [((50, 66), (12, 16)), ((51, 67), (13, 17)), ((7, 9), (2, 3)), ((64, 64), (16, 16))]
)
def test_sides_rounded_by_a_pixel_are_a_pair(large, small):
    from enlarger.evaluation.protocols import Pair
    from enlarger.size import Size

    module._check_pair(Pair("x", None, None), Size(*large), Size(*small))


@pytest.mark.parametrize(("large", "small"), [((64, 64), (16, 20)), ((16, 16), (64, 64)), ((200, 100), (25, 25))])
def test_other_pictures_are_no_pair(large, small):
    from enlarger.evaluation.protocols import Pair
    from enlarger.size import Size

    with pytest.raises(PictureError, match="not the same picture"):
        module._check_pair(Pair("x", None, None), Size(*large), Size(*small))


def test_tables_say_means_intervals_and_paired_differences(data):
    judge = Judge(["psnr-y", "ssim-y"])
    outcomes = list(evaluate([BICUBIC, NEAREST], of_protocol("set5", data), judge))
    table = rows(outcomes, judge)
    line = record("set5", table[0])
    assert set(line) >= {
        *("protocol", "engine", "settings", "metric", "mean", "low", "high", "pictures", "seconds_per_megapixel")
    }
    assert line["low"] <= line["mean"] <= line["high"]
    assert line["settings"]["filter"] == "bicubic"
    values = [[o.values["psnr-y"] for o in outcomes if o.entry is entry] for entry in (BICUBIC, NEAREST)]
    assert line["mean"] == pytest.approx(np.mean(values[0]))
    nearest = next(row for row in table if row.entry is NEAREST and row.metric == "psnr-y")
    assert nearest.gain.mean == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert f"{np.mean(values[0]):.2f} [" in text(table, judge)
    document = markdown(table, judge, "set5", ["a part"], "enlarger evaluate ...")
    assert "Note: a part." in document
    assert f"{nearest.gain.mean:+.2f} [" in document
    assert comma_separated("set5", outcomes).count("\n") == 1 + 3 * 2 * 2


def test_each_engine_takes_the_machine_settings_that_it_has(data):
    machine = {"device": "cpu", "dtype": "bfloat16", "max_memory": 2_000_000_000}
    players = [Player(entry, machine) for entry in (BICUBIC, Entry("pocket", {"steps": 1}))]
    assert [str(player.upscaler.engine.dtype) for player in players] == ["torch.float32", "torch.bfloat16"]
    assert [player.upscaler.machine.max_memory for player in players] == [2_000_000_000] * 2


def command(data, *options):
    return main(["evaluate", "--protocol", "set5", "--data", str(data), *options])


def test_the_command_prints_one_object_per_engine_and_metric(data, tmp_path, capsys):
    code = command(
        data, "--engines", "interpolate,interpolate:filter=nearest", "--metrics", "psnr-y,dists", "--json",
        "-o", str(tmp_path / "out"),
    )  # fmt: skip
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line.get("label"), line["metric"]) for line in lines] == [
        ("interpolate", "psnr-y"),
        ("interpolate:filter=nearest", "psnr-y"),
        (None, "dists"),
    ]
    assert lines[2]["mean"] is None
    assert "--vgg FILE" in lines[2]["error"]
    assert "dists is unavailable" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "values.csv",
        "table.md",
        "records.jsonl",
        "results",
    }
    assert (
        "not the published files" in (tmp_path / "out" / "table.md").read_text()
        or "not known here" in (tmp_path / "out" / "table.md").read_text()
    )


def test_the_command_exits_seven_when_some_pictures_failed(data, capsys):
    (data / "Set5" / "LRx4" / "img_0.png").write_bytes(b"no picture")
    assert command(data, "--engines", "interpolate", "--metrics", "psnr-y") == 7
    out, err = capsys.readouterr()
    assert "img_0" in err
    assert "1 of 3 pictures failed" in err
    assert "PSNR-Y" in out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--engines", "interpolate", "--metrics", "pnsr-y"], 2, "did you mean psnr-y"),
        (["--metrics", "psnr-y"], 2, "nothing to measure: give --engines"),
        (["--engines", "gan", "--metrics", "psnr-y"], 4, "gan@FILE"),
        (["--engines", "gan@absent.pth", "--metrics", "psnr-y"], 4, "no model absent.pth"),
        (["--engines", "interpolate", "--device", "cpu"], 2, "--device changes nothing for interpolate"),
        (["--engines", "interpolate,pocket", "--device", "tpu"], 2, "not one of auto, cpu"),
        (["--engines", "interpolate", "--results", "theirs=absent"], 2, "no such folder"),
        (["--engines", "interpolate:scale=2"], 2, "leave scale out"),
        (["--engines", "pocket:samples=2"], 2, "leave samples out"),
        (["--engines", "interpolate", "--metrics", "dists"], 2, "--vgg"),
        (["--engines", "interpolate", "--seeds", "0"], 2, "--seeds '0'"),
        (["--engines", "interpolate,interpolate"], 2, "given twice"),
        (["--engines", "interpolate:filter=cubic"], 2, "not one of"),
        (["--engines", "interpolate", "--results", "theirs"], 2, "NAME=DIR"),
        (["--engines", "interpolate", "--pairs", "a", "b"], 2, "either --protocol"),
    ],
)
def test_wrong_options_are_one_line_with_the_remedy(data, capsys, options, code, message):
    assert command(data, *options) == code
    err = capsys.readouterr().err
    assert "enlarger: error: " in err
    assert message in err


def test_an_empty_folder_is_nothing_to_do(tmp_path, capsys):
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    assert main(["evaluate", "--pairs", str(tmp_path / "HR"), str(tmp_path / "LR"), "--engines", "interpolate"]) == 2
    assert "no pictures" in capsys.readouterr().err


def test_the_list_of_metrics_needs_no_engine(capsys):
    assert main(["evaluate", "--list"]) == 0
    assert "lpips-alex" in capsys.readouterr().out


def test_pairs_of_the_users_own_are_matched_by_name(data):
    task = of_folders(data / "Set5" / "HR", data / "Set5" / "LRx4", border=2)
    assert [(pair.name, pair.source.name) for pair in task.pairs] == [(f"img_{i}", f"img_{i}.png") for i in range(3)]
    (data / "Set5" / "LRx4" / "img_1.png").rename(data / "Set5" / "LRx4" / "img_1x4.png")
    assert of_folders(data / "Set5" / "HR", data / "Set5" / "LRx4").pairs[1].source.name == "img_1x4.png"
