"""Folders that cannot be written to or hold something else, and what is heard while a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enlarger.batch import desk
from enlarger.cli import progress
from enlarger.cli.progress import Reporter
from tests.cli.support import Called, files, picture
from tests.cli.test_given_models import small_gan

Call = Callable[..., Called]


@pytest.fixture
def shut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that says no to whatever is written into it; rights alone do not stop the superuser."""
    place = folder / "shut"
    place.mkdir()
    picture("shut/a.png")
    picture("a.png")
    true = Path.mkdir

    def mkdir(self: Path, *args: Any, **options: Any) -> None:
        if place in self.absolute().parents:
            raise OSError(30, "Read-only file system", str(self))
        true(self, *args, **options)

    import os

    may = os.access
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != place and may(path, mode))
    return place


@pytest.mark.parametrize(
    "words",
    [
        "upscale shut -o shut/out -e interpolate",
        "upscale a.png -o shut/b.png -e interpolate",
        "upscale a.png --report=shut -e interpolate",
        "compare a.png --engines interpolate -o shut/sheet.png",
        "evaluate --pairs shut shut --engines interpolate --metrics psnr-y -o shut/numbers",
        "degrade a.png -o shut/small",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_the_outputs_fault(call: Call, shut: Path, words: str) -> None:
    before = files(Path())
    done = call(*words.split())
    assert done.code == 5, done.err
    assert "shut" in done.error
    assert "bug" not in done.error
    assert files(Path()) == before


def test_a_model_that_takes_long_to_load_is_told_of(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    small_gan(Path("slow.safetensors"))
    told = "enlarger: loading the model slow.safetensors ..."
    words = ["upscale", "a.png", "-e", "gan", "-m", "slow.safetensors", "-s", "2", "--overwrite"]
    assert told not in call(*words).err
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    true = desk.Desk.load

    def load(self: desk.Desk) -> Any:
        time.sleep(0.3)
        return true(self)

    monkeypatch.setattr(desk.Desk, "load", load)
    assert call(*words).err.startswith(told)
    assert told not in call(*words, "--quiet").err


def test_patience_that_was_not_needed_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    patience = Reporter(quiet=False, bar=False).waiting("loading")
    patience.start()
    patience.stop()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_a_folder_of_models_and_a_part_of_one_say_what_to_name(call: Call, folder: Path, tiny: Path) -> None:
    picture("a.png")
    done = call("upscale", "a.png", "-e", "img2img", "-m", tiny)
    assert done.code == 4
    assert "the folder tiny is no model" in done.error
    assert "it holds others (adapters/lora_diffusers_sd15.safetensors, " in done.error
    assert done.error.endswith(", ...): name one of them")
    done = call("upscale", "a.png", "-e", "img2img", "-m", tiny / "sd15" / "unet")
    assert done.code == 4
    assert "unet is a unet alone, without a scheduler: name the folder of the whole model, above it" in done.error


def test_a_pocket_of_the_users_own_is_found_again(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from enlarger.checkpoints.load import SHIPPED

    picture("a.png")
    (folder / "mine").mkdir()
    shutil.copy(SHIPPED / "pocket.safetensors", "mine/trained.safetensors")
    assert call("upscale", "a.png", "-m", "mine/trained.safetensors", "-s", "2", "--steps", "1").code == 0
    done = call("upscale", "a.png", "--from", "a_2x.png", "-o", "b.png")
    assert done.code == 4
    assert "made with the model trained" in done.error
    monkeypatch.setenv("ENLARGER_MODELS", str(folder / "mine"))
    done = call("upscale", "a.png", "--from", "a_2x.png", "-o", "b.png", "--json")
    assert (done.code, done.records[0]["model"]) == (0, "trained")
