"""Finished results of any program, measured beside the truth: `enlarger evaluate --results`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import main
from enlarger.errors import SettingsError
from enlarger.evaluation.fidelity import psnr
from enlarger.evaluation.folders import matching, pictures_in
from enlarger.picture.bicubic import shrink
from enlarger.picture.read import read_rgb


@pytest.fixture
def folders(tmp_path, pictures):
    truth, worse = pictures
    for name in ("results", "HR", "LR"):
        (tmp_path / name).mkdir()
    for i in range(3):
        picture = truth(40 + 4 * i, 48)
        Image.fromarray(picture).save(tmp_path / "HR" / f"img_{i}.webp", lossless=True)
        Image.fromarray(shrink(picture, 4)).save(tmp_path / "LR" / f"img_{i}.png")
        Image.fromarray(worse(picture)).save(tmp_path / "results" / f"img_{i}_4x.png")
    return tmp_path


def measure(folders, *words, results="results"):
    pairs = [str(folders / "HR"), str(folders / "LR")]
    return main(["evaluate", "--pairs", *pairs, "--results", f"theirs={folders / results}", "--quiet", *words])


def test_pictures_are_paired_by_name_whatever_their_format(folders, capsys):
    assert measure(folders, "--metrics", "psnr-y", "--limit", "1", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["pictures"] == 1
    first = psnr(read_rgb(folders / "results" / "img_0_4x.png"), read_rgb(folders / "HR" / "img_0.webp"), border=4)
    assert row["mean"] == first


def test_one_bad_picture_does_not_end_the_run_and_the_code_says_so(folders, capsys):
    (folders / "results" / "img_1_4x.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(folders / "results" / "img_2_4x.png")
    assert measure(folders, "--metrics", "psnr_y,dists", "--json") == 7
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["metric"], row.get("pictures")) for row in rows] == [("psnr_y", 1), ("dists", None)]
    assert "img_1, theirs: " in err
    assert "8x8 and 48x48" in err
    assert "dists is unavailable" in err


def test_all_well_is_zero_and_nothing_to_do_is_two(folders, capsys):
    assert measure(folders, "--metrics", "psnr_y") == 0
    (folders / "empty").mkdir()
    assert measure(folders, results="empty") == 2
    assert measure(folders, results="absent") == 2
    assert capsys.readouterr().err.count("enlarger: error: ") == 2


def test_a_missing_result_is_an_error_of_that_picture_only(folders, capsys):
    (folders / "results" / "img_0_4x.png").unlink()
    assert measure(folders, "--metrics", "psnr-y", "--json") == 7
    out, err = capsys.readouterr()
    assert json.loads(out)["pictures"] == 2
    assert "no result named img_0" in err


def test_a_longer_name_is_taken_only_when_it_is_the_only_one(tmp_path):
    names = {name: tmp_path / name for name in ("img_1", "img_10", "img_10_4x", "img_2_pocket", "img_2_4x")}
    assert matching(names, "img_1").name == "img_1"
    assert matching(names, "img_10").name == "img_10"
    assert matching(names, "img_2") is None
    assert matching({"img_10": tmp_path}, "img_1") is None


def test_two_pictures_of_one_name_are_refused(folders):
    Image.new("RGB", (8, 8)).save(folders / "HR" / "img_0.png")
    with pytest.raises(SettingsError, match="two pictures of one name"):
        pictures_in(folders / "HR")


def test_pictures_with_nan_are_an_error_of_that_picture(folders, capsys):
    values = np.full((40, 48), 0.5, np.float32)
    values[3, 3] = np.nan
    (folders / "HR" / "img_0.webp").unlink()
    Image.fromarray(values).save(folders / "HR" / "img_0.tif")
    assert measure(folders, "--metrics", "psnr-y", "--json") == 7
    out, err = capsys.readouterr()
    assert "NaN" in err
    assert json.loads(out)["pictures"] == 2
