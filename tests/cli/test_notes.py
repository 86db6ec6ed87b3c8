"""What there is to say of a model is said once in a run: not with every picture, engine or sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enlarger.engines.engine import Loaded
from enlarger.engines.interpolate import Interpolate
from tests.cli.support import Called, picture

Call = Callable[..., Called]

NOTES = ("it is taken to be something", "its weights are not for sale")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, and an engine whose model has something to be said of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Interpolate, "loaded", Loaded("model", "", NOTES))
    for number in range(3):
        picture(f"in/{number}.png", (12, 8), number)
        picture(f"truth/{number}.png", (48, 32), number)
    return tmp_path


TWO = "interpolate,interpolate:filter=nearest"

COMMANDS = (
    ("upscale", "in/0.png", "-e", "interpolate"),
    ("upscale", "in", "-e", "interpolate", "-o", "out"),
    ("upscale", "in", "-e", "interpolate", "-o", "out", "--dry-run"),
    ("compare", "in/0.png", "--engines", TWO, "-o", "sheet.png"),
    ("evaluate", "--pairs", "truth", "in", "--engines", TWO, "--metrics", "psnr-y"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_notes_are_said_once(call: Call, command: tuple[str, ...]) -> None:
    done = call(*command)
    assert done.code == 0, done.err
    for note in NOTES:
        assert done.err.count(note) == 1, done.err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_notes_are_not_said_to_who_wants_quiet(call: Call, command: tuple[str, ...]) -> None:
    assert NOTES[0] not in call(*command, "--quiet").err


def test_they_come_before_the_work_and_every_record_keeps_them(call: Call) -> None:
    done = call("upscale", "in", "-e", "interpolate", "-o", "out", "--json")
    assert done.err.splitlines()[:2] == [f"enlarger: note: {note}" for note in NOTES]
    assert [record["warnings"] for record in done.records] == [list(NOTES)] * 3
