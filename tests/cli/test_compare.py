from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import main
from enlarger.upscaler import Upscaler


@pytest.fixture
def photo(tmp_path):
    coarse = np.random.default_rng(1).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


BOTH = "interpolate,interpolate:filter=nearest"


def compare(photo, *words):
    return main(["compare", str(photo), *map(str, words)])


def test_one_sheet_with_a_column_for_the_input_and_each_engine(photo, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert compare(photo, "--engines", BOTH, "-o", sheet, "--crop", 32, "--zoom", 3, "--places", 2, "--json") == 0
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 12 + 3 * (96 + 12)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == ["interpolate", "interpolate:filter=nearest"]
    assert all((row["width"], row["height"]) == (160, 120) and row["values"]["consistency"] > 20 for row in rows)
    # The first place of the nearest-neighbour column is that of the input column: both repeat pixels.
    last = pixels[-(96 + 12) : -12]
    columns = [last[:, 12 + i * 108 + 20 : 12 + i * 108 + 96] for i in range(3)]
    assert np.array_equal(columns[0], columns[2])
    assert not np.array_equal(columns[0], columns[1])


def test_a_reference_adds_its_column_and_metrics(photo, tmp_path, capsys):
    Image.open(photo).resize((100, 75)).save(tmp_path / "large.png")
    sheet = tmp_path / "sheet.webp"
    words = ["--engines", "interpolate", "--reference", tmp_path / "large.png", "-o", sheet, "--crop", 24, "--zoom", 4]
    assert compare(photo, *words) == 0
    assert "psnr-y" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.width == 12 + 3 * (96 + 12)


def test_a_page_holds_everything_that_it_shows(photo, tmp_path, capsys):
    page = tmp_path / "sheet.html"
    assert compare(photo, "--engines", BOTH, "-o", page, "--crop", 24, "--zoom", 5, "--places", 2) == 0
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    images = re.findall(
        r'<img alt="([^"]*)" width="(\d+)" height="(\d+)" src="data:image/(png|jpeg);base64,([^"]*)"', text
    )
    assert text.count("<img") == len(images) == 1 + 2 * 3 + 3  # the whole, two places of three columns, three wholes
    crops = {label: data for label, width, _, _, data in images if width == "120"}
    assert "interpolate:filter=nearest, place 2" in crops
    with Image.open(io.BytesIO(base64.b64decode(crops["input, place 1"]))) as crop:
        assert crop.size == (24, 24)
    whole = {label: data for label, width, _, kind, data in images if (width, kind) == ("160", "png")}
    with Image.open(io.BytesIO(base64.b64decode(whole["interpolate"]))) as made:
        assert np.array_equal(np.asarray(made), Upscaler("interpolate")(photo).pixels)
    frames = [float(part) for part in re.findall(r"top: ([\d.]+)%", text)]
    assert len(frames) == 2
    assert max(frames) <= 100 * (120 - 24) / 120


def test_names_cannot_become_parts_of_the_page(photo, tmp_path):
    odd = photo.with_name("a<b>&.png")
    photo.rename(odd)
    assert compare(odd, "--engines", "interpolate", "-o", tmp_path / "sheet.html") == 0
    assert "<h1>a&lt;b&gt;&amp;.png</h1>" in (tmp_path / "sheet.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["compare", "absent.png", "--engines", "pocket", "-o", "sheet.png"],
                                   ["compare", "photo.png", "--engines", "pocket", "-o", "absent/sheet.png"],
                                   ["evaluate", "--engines", "pocket"],
                                   ["evaluate", "--pairs", "absent", "absent", "--engines", "pocket"],
                                   ["degrade", "photo.png"]], ids=" ".join)  # fmt: skip
def test_refusals_come_before_torch(photo, words):
    code = (
        "import sys; from enlarger.cli.main import main; "
        f"code = main({words!r}); assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=photo.parent, capture_output=True, text=True)
    assert done.returncode in (2, 3, 5), done.stderr
    assert done.stderr.startswith("enlarger: error: ")


def test_one_failing_engine_leaves_the_others(photo, tmp_path, capsys):
    (tmp_path / "broken.pth").write_bytes(b"no model")
    words = ["--engines", f"interpolate,gan@{tmp_path / 'broken.pth'}", "-o", tmp_path / "sheet.png"]
    assert compare(photo, *words) == 7
    assert "broken.pth" in capsys.readouterr().err
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--engines", BOTH], 2, "-o sheet.png"),
        (["--engines", BOTH, "-o", "sheet.pdf"], 5, "a sheet ends in"),
        (["--engines", BOTH, "-o", "sheet.png", "--device", "cpu"], 2, "--device changes nothing for interpolate"),
        (["--engines", "gan", "-o", "sheet.png"], 4, "gan@FILE"),
        (["--engines", BOTH, "-o", "absent/sheet.png"], 5, "does not exist"),
        (["--engines", "pockett", "-o", "sheet.png"], 2, "did you mean pocket"),
        (["--engines", BOTH, "-o", "sheet.png", "--scale", "17"], 2, "1 to 16"),
        (["--engines", BOTH, "-o", "sheet.png", "--zoom", "0"], 2, "--zoom '0'"),
        (["-o", "sheet.png"], 2, "compare needs --engines A,B"),
        (["--engines", " , ", "-o", "sheet.png"], 2, "such as --engines interpolate,pocket"),
    ],
)
def test_wrong_options_are_refused_before_any_work(photo, tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert compare(photo, *words) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_a_broken_input_and_an_existing_sheet(photo, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    assert compare(photo, "--engines", BOTH, "-o", sheet) == 5
    assert sheet.read_bytes() == b"mine"
    assert compare(photo, "--engines", BOTH, "-o", sheet, "--overwrite") == 0
    assert sheet.stat().st_mode == photo.stat().st_mode  # what the user's umask says
    before = photo.read_bytes()
    assert compare(photo, "--engines", BOTH, "-o", photo, "--overwrite") == 5
    assert photo.read_bytes() == before
    photo.write_bytes(b"bad")
    assert compare(photo, "--engines", BOTH, "-o", tmp_path / "new.png") == 3
    assert not list(tmp_path.glob("*.part"))
