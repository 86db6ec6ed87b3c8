"""Which files of a folder are meant, in what order, and what is refused before the start."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from enlarger.batch.jobs import walk
from enlarger.errors import PictureError, SettingsError
from tests.batch.support import jobs
from tests.cli.support import picture


def names(folder: Path, results: Path | None = None) -> list[str]:
    return [str(path.relative_to(folder)) for path in walk(folder, results)]


def test_a_folder_is_listed_by_name_its_own_pictures_before_those_below(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "z/a.png", "c/d/e.png", "c/b.png", "B.png"):
        picture(tmp_path / name)
    assert names(tmp_path) == ["B.png", "a.jpg", "b.png", "c/b.png", "c/d/e.png", "z/a.png"]


def test_listing_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        picture(tmp_path / name)
    entered: list[str] = []
    right = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: entered.append(Path(place).name) or right(place))
    assert [path.parent.name for path in itertools.islice(walk(tmp_path), 1)] == ["a"]
    assert entered == [tmp_path.name, "a"]


def test_what_is_no_picture_or_not_meant_is_left_alone(tmp_path: Path) -> None:
    for name in (".hidden.png", ".cache/a.png", "a.png", "a_4x.png", "a_30x20.png", "a_1.5mp.png", "b_2x.png"):
        picture(tmp_path / name)
    for name in ("Thumbs.db", "thumbs.db", "desktop.ini", "ehthumbs.db"):
        picture(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.7\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.png").write_text("said to be a picture: the run tells what is wrong with it")
    picture(tmp_path / "unnamed", format="PNG")
    assert names(tmp_path) == ["a.png", "b_2x.png", "broken.png", "unnamed"]


def test_links_are_entered_and_each_folder_once(tmp_path: Path) -> None:
    picture(tmp_path / "in/a/1.png")
    picture(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/a/round").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/a/self").symlink_to("self")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert names(tmp_path / "in") == ["a/1.png", "b/2.png"]


def test_results_below_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "out/other.png")
    assert names(tmp_path, tmp_path / "out") == ["a.png"]
    assert names(tmp_path, tmp_path) == ["a.png", "out/other.png"]
    assert [job.name for job in jobs(tmp_path, to=tmp_path / "out")] == [str(tmp_path / "a.png")]


def test_a_folder_that_cannot_be_read_is_told_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "locked/b.png")
    right = os.scandir

    def scandir(place: Path) -> object:
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied")
        return right(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PictureError, match=r"locked cannot be read: permission denied; leave it out"):
        jobs(tmp_path)


@pytest.mark.parametrize(
    ("pair", "format"),
    [
        (("a.jpg", "a.png"), "png"),
        (("a.png", "A.png"), None),
        (("sub/a.png", "SUB/A.png"), None),
        (("\u00e9.png", "e\u0301.png"), None),  # one letter, or a letter and its accent: some disks make them one
    ],
)
def test_two_pictures_that_would_become_one_are_refused_before_the_start(
    tmp_path: Path, pair: tuple[str, str], format: str | None
) -> None:
    for name in pair:
        picture(tmp_path / "in" / name)
    with pytest.raises(SettingsError, match="would both become"):
        jobs(tmp_path / "in", to=tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_result_that_would_lie_on_another_input_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a_2x.png")
    with pytest.raises(SettingsError, match=r"a_2x\.png, which is an input too"):
        jobs(tmp_path / "a.png", tmp_path / "a_2x.png")
