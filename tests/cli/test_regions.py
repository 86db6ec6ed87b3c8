"""Regional prompts are checked before anything is loaded, in a rehearsal as in a run."""

from __future__ import annotations

from typing import Any

import pytest

from enlarger import generator
from enlarger.batch.desk import Desk
from tests.cli.support import files, picture

FORM = "X,Y,W,H:PROMPT in pixels of the result"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, folder: Any) -> Any:
    """A folder with a picture of 24x16 pixels, and models that must not be loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Desk, "load", load)
    monkeypatch.setattr(generator.Generator, "__init__", load)
    picture("photo.png")
    (folder / "model").mkdir()
    return folder


@pytest.mark.parametrize("rehearsed", [(), ("--dry-run",)])
@pytest.mark.parametrize("engine", ["img2img", "controlnet"])
@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("900,0,9,10:a dog", "lies outside the result, which has 48x32 pixels: X is below 48 and Y below 32"),
        ("0,32,9,10:a dog", "lies outside the result, which has 48x32 pixels"),
        ("0,0,9:a dog", FORM),
        ("0,0,9,9 a dog", FORM),
        ("0,0,9,9:", FORM),
        ("0,0,0,9:a dog", FORM),
        ("0,0,9,9:a (dog:77)", "0 to 10"),
    ],
)
def test_a_wrong_region_is_refused_before_a_model_is_loaded(call, unloaded, rehearsed, engine, region, said):
    before = files(unloaded)
    done = call("upscale", "photo.png", "-e", engine, "-m", "model", "--region", region, *rehearsed)
    assert done.code == 2, done.err
    assert said in done.error
    assert files(unloaded) == before


def test_each_picture_is_told_its_own_size(call, unloaded):
    picture("small.png", (8, 8))
    done = call("upscale", "photo.png", "small.png", "-e", "img2img", "-m", "model", "--region", "50,0,9,9:a dog")
    for name, size in (("photo.png", "48x32"), ("small.png", "16x16")):
        assert f"{name}: region '50,0,9,9:a dog' lies outside the result, which has {size}" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--region", "64,0,9,9:a dog", "--width", "64", "--height", "32"), "which has 64x32 pixels"),
        (("--region", "0,0,9,9:"), FORM),
        (("--region", "0,0,9,9:(a:99)"), "0 to 10"),
        (("--negative-prompt", "(a:99)"), "0 to 10"),
    ],
)
def test_generate_refuses_them_too(call, unloaded, words, said):
    done = call("generate", "a cat", "-m", "model", "-o", "a.png", *words)
    assert done.code == 2, done.err
    assert said in done.error
