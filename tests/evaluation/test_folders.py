from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import PictureError, SettingsError
from enlarger.evaluation.__main__ import main
from enlarger.evaluation.fidelity import psnr
from enlarger.evaluation.folders import matching, measure_folder, pictures_in, read_rgb
from enlarger.evaluation.metrics import Judge


@pytest.fixture
def folders(tmp_path, pictures):
    truth, worse = pictures
    for name in ("results", "HR"):
        (tmp_path / name).mkdir()
    for i in range(3):
        picture = truth(40 + i, 50)
        Image.fromarray(picture).save(tmp_path / "HR" / f"img_{i}.webp", lossless=True)
        Image.fromarray(worse(picture)).save(tmp_path / "results" / f"img_{i}_4x.png")
    return tmp_path


def test_pictures_are_paired_by_name_whatever_their_format(folders):
    records = list(measure_folder(Judge(["psnr-y"]), folders / "results", folders / "HR"))
    assert [record.name for record in records] == ["img_0", "img_1", "img_2"]
    first = psnr(read_rgb(folders / "results" / "img_0_4x.png"), read_rgb(folders / "HR" / "img_0.webp"), border=4)
    assert records[0].values == {"psnr-y": first}


def test_one_bad_picture_does_not_end_the_run_and_the_code_says_so(folders, capsys):
    (folders / "results" / "img_1_4x.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(folders / "results" / "img_2_4x.png")
    assert main([str(folders / "results"), str(folders / "HR"), "--metrics", "psnr_y,dists"]) == 7
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "picture\tpsnr_y"
    assert out.splitlines()[-1].startswith("mean of 1\t")
    assert "img_1: " in err
    assert "8x8 and 50x42" in err
    assert "dists: unavailable" in err


def test_all_well_is_zero_and_nothing_to_do_is_two(folders, capsys):
    assert main([str(folders / "results"), str(folders / "HR"), "--metrics", "psnr_y"]) == 0
    (folders / "empty").mkdir()
    assert main([str(folders / "empty"), str(folders / "HR")]) == 2
    assert main([str(folders / "absent"), str(folders / "HR")]) == 2
    assert capsys.readouterr().err.count("enlarger: error: ") == 2


def test_a_missing_result_is_an_error_of_that_picture_only(folders):
    (folders / "results" / "img_0_4x.png").unlink()
    records = list(measure_folder(Judge(["psnr-y"]), folders / "results", folders / "HR"))
    assert [bool(record.error) for record in records] == [True, False, False]
    assert "no result named img_0" in records[0].error


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


def test_deep_and_turned_pictures_are_read_as_they_are_meant(tmp_path):
    deep = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_rgb(tmp_path / "deep.png")[..., 0], np.floor(deep / 257 + 0.5).astype(np.uint8))
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.array_equal(read_rgb(tmp_path / "float.tif")[..., 2], np.floor(values * 255 + 0.5).astype(np.uint8))
    turned = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read_rgb(tmp_path / "turned.png").shape == (4, 6, 3)


def test_pictures_with_nan_are_an_error_of_that_picture(folders, capsys):
    values = np.full((40, 50), 0.5, np.float32)
    values[3, 3] = np.nan
    (folders / "HR" / "img_0.webp").unlink()
    Image.fromarray(values).save(folders / "HR" / "img_0.tif")
    assert main([str(folders / "results"), str(folders / "HR"), "--metrics", "psnr-y"]) == 7
    out, err = capsys.readouterr()
    assert "NaN" in err
    assert out.splitlines()[-1].startswith("mean of 2\t")


def test_grey_pictures_become_rgb_and_broken_files_a_clear_error(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").shape == (8, 8, 3)
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:50])
    for name in ("cut.png", "absent.png"):
        with pytest.raises(PictureError, match=name):
            read_rgb(tmp_path / name)
