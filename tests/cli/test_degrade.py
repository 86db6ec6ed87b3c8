from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import main
from enlarger.picture.bicubic import shrink
from enlarger.picture.read import read_rgb


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(40, 48), (43, 50)]):
        coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def degrade(*words):
    return main(["degrade", *map(str, words)])


def test_bicubic_is_matlabs_at_a_quarter_and_says_what_it_cut(photos, tmp_path, capsys):
    assert degrade(photos, "-o", tmp_path / "out", "--recipe", "bicubic") == 0
    assert np.array_equal(read_rgb(tmp_path / "out" / "0.png"), shrink(read_rgb(photos / "0.png"), 4))
    assert np.array_equal(read_rgb(tmp_path / "out" / "1.png"), shrink(read_rgb(photos / "1.png")[:40, :48], 4))
    assert "the last 3 rows and 2 columns cut" in capsys.readouterr().err


def test_pairs_are_ready_for_evaluate(photos, tmp_path, capsys):
    assert degrade(photos, "-o", tmp_path / "out", "--recipe", "stablesr", "--pairs") == 0
    pairs = ["--pairs", str(tmp_path / "out" / "HR"), str(tmp_path / "out" / "LRx4")]
    assert main(["evaluate", *pairs, "--engines", "interpolate", "--metrics", "psnr-y", "--border", "0"]) == 0
    assert "interpolate" in capsys.readouterr().out


def test_a_seed_gives_the_same_picture_in_any_company_and_another_seed_another(photos, tmp_path):
    for name, inputs, seed in (("a", photos, 3), ("b", photos / "1.png", 3), ("c", photos / "1.png", 4)):
        assert degrade(inputs, "-o", tmp_path / name, "--recipe", "realesrgan", "--seed", seed, "--quiet") == 0
    a, b, c = (read_rgb(tmp_path / name / "1.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(b, c)


def test_the_size_asked_for_is_given(photos, tmp_path):
    assert degrade(photos, "-o", tmp_path / "out", "--recipe", "realesrgan", "--size", "13x9") == 0
    assert read_rgb(tmp_path / "out" / "1.png").shape == (9, 13, 3)


def test_existing_files_are_kept_and_inputs_never_replaced(photos, tmp_path, capsys):
    assert degrade(photos, "-o", tmp_path / "out") == 0
    assert degrade(photos, "-o", tmp_path / "out") == 5
    assert degrade(photos, "-o", tmp_path / "out", "--overwrite") == 0
    assert degrade(photos, "-o", photos, "--overwrite") == 5
    assert "is an input" in capsys.readouterr().err
    assert not list(photos.glob("*.part"))


def test_a_bad_picture_leaves_the_others(photos, tmp_path, capsys):
    (photos / "2.png").write_bytes(b"bad")
    assert degrade(photos, "-o", tmp_path / "out") == 7
    made = list((tmp_path / "out").iterdir())
    assert len(made) == 2
    assert {path.stat().st_mode for path in made} == {(photos / "2.png").stat().st_mode}  # what the umask says
    assert "2.png" in capsys.readouterr().err
    assert degrade(photos / "2.png", "-o", tmp_path / "out") == 3
    assert capsys.readouterr().err.startswith("enlarger: error: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--recipe", "bsrgan"], 2, "not one of bicubic"),
        (["--size", "0x4"], 2, "not a size"),
        (["--seed", "-1"], 2, "--seed"),
        (["--size", "8x8", "--pairs"], 2, "not both"),
    ],
)
def test_wrong_options_are_refused(photos, tmp_path, capsys, words, code, message):
    assert degrade(photos, "-o", tmp_path / "out", *words) == code
    assert message in capsys.readouterr().err


def test_without_a_folder_or_pictures_there_is_nothing_to_do(photos, tmp_path, capsys):
    assert degrade(photos) == 2
    (tmp_path / "empty").mkdir()
    assert degrade(tmp_path / "empty", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("enlarger: error:") == 2
