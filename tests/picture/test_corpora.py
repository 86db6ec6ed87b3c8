"""Every file of the corpus comes out as its table says, in bounded time and memory."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enlarger.errors import PictureError
from enlarger.picture.picture import Picture
from enlarger.picture.read import read
from tests.picture.support import CORPORA, require_corpora


def rows(folder: str) -> list[dict[str, str]]:
    table = CORPORA / "expected.tsv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines, delimiter="\t") if row["file"].startswith(folder)]


def mode_of(picture: Picture) -> str:
    plain = {(1, False): "L", (1, True): "LA", (3, False): "RGB", (3, True): "RGBA"}
    mode = plain[picture.pixels.shape[2], picture.alpha is not None]
    if picture.depth == 16:
        return {"L": "I;16"}.get(mode, mode + "16")
    return {"L": "F", "RGB": "RGBF"}[mode] if picture.depth == 32 else mode


def test_the_corpus_is_here() -> None:
    require_corpora()
    assert len(rows("good/")) == 89
    assert len(rows("bad/")) == 52


@pytest.mark.parametrize("row", rows("good/"), ids=lambda row: row["file"])
def test_good_pictures_are_read(row: dict[str, str]) -> None:
    started = time.perf_counter()
    picture = read(CORPORA / row["file"])
    assert time.perf_counter() - started < 2
    assert (picture.width, picture.height) == (int(row["width"]), int(row["height"]))
    assert mode_of(picture) == row["mode"]
    # The table asks for warnings where something is lost or odd; that inks and Lab became sRGB is said beyond it.
    converted = [told for told in picture.warnings if "became sRGB" in told]
    assert bool(converted) == any(word in row["file"] for word in ("cmyk", "lab.")), converted
    assert (len(picture.warnings) > len(converted)) == (row["warn"] == "1"), picture.warnings
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.dtype == "float32"
    assert 0 <= picture.pixels.min() <= picture.pixels.max() <= 1


@pytest.mark.parametrize("row", rows("bad/"), ids=lambda row: row["file"])
def test_bad_pictures_are_refused_in_one_line(row: dict[str, str]) -> None:
    expected = row["expected"]
    started = time.perf_counter()
    picture: Picture | PictureError
    try:
        picture = read(CORPORA / row["file"])
    except PictureError as error:
        picture = error
    assert time.perf_counter() - started < 2
    if isinstance(picture, Picture):
        assert "read with a warning" in expected
        assert picture.warnings
        return
    assert re.search(rf"\b{picture.kind}\b", expected), f"{picture.kind} instead of {expected}"
    message = str(picture)
    assert "\n" not in message
    assert Path(row["file"]).name in message
    assert "cannot identify" not in message


def test_a_pointer_of_git_lfs_says_how_to_get_the_picture(corpora: Path) -> None:
    with pytest.raises(PictureError, match="git lfs pull"):
        read(corpora / "bad" / "lfs_pointer.png")


@pytest.mark.parametrize("folder", ["good", "bad"])
def test_a_name_changes_nothing(folder: str, corpora: Path) -> None:
    """What a file is, its bytes say: the same files with no name at all come out alike."""
    for row in rows(folder + "/"):
        path = corpora / row["file"]
        if path.suffix == ".tga":
            continue  # the one format without a signature at its start
        outcomes = []
        for source in (path, path.read_bytes()):
            try:
                picture = read(source)
                outcomes.append((picture.pixels.shape, picture.depth, picture.format))
            except PictureError as error:
                outcomes.append(error.kind)
        assert outcomes[0] == outcomes[1], row["file"]


HUNGRY = """
import sys
from pathlib import Path
from enlarger.errors import EnlargerError
from enlarger.picture.read import read
for path in sys.argv[1:]:
    try:
        read(Path(path))
    except EnlargerError:
        pass
# Not ru_maxrss: that one remembers the process it was forked from.
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is on Linux only")
def test_bombs_take_less_than_500_megabytes(corpora: Path) -> None:
    names = [
        "bomb_30000.png",
        "bomb.gif",
        "huge_declared.jpg",
        "huge_declared.tif",
        "oom.tif",
        "reallybig.bmp",
        "width2e31.png",
    ]
    paths = [str(corpora / "bad" / name) for name in names] + [str(corpora / "good" / "ztxt_bomb.png")]
    run = subprocess.run([sys.executable, "-c", HUNGRY, *paths], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 500
    assert run.stderr == ""
