"""Models that an engine cannot run, as folders and as files: what they are and what would do is said."""

from __future__ import annotations

import shutil

import pytest

import enlarger
from enlarger.errors import ModelError
from tests.checkpoints import published
from tests.engines import tiny

LATENT = ("img2img", "controlnet", "x4")

WRONG = {
    "sd15-inpainting": "inpainting model",
    "sd2-inpainting": "inpainting model",
    "sdxl-inpainting": "inpainting model",
    "sd15-pix2pix": "InstructPix2Pix model",
    "sd2-depth": "depth model",
    "sdxl-refiner": "refiner",
    "controlnet-sd15": "ControlNet",
    "vae": "autoencoder",
}
"""Family -> what errors call it."""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A model of each family, as a folder and as a file whose name says nothing."""
    place = tmp_path_factory.mktemp("wrong")
    for family in WRONG:
        parts = published.parts(family)
        published.write_folder(place / f"{family}-folder", parts)
        published.write_file(place / f"{family}.bin", published.original(family, parts))
    return place


@pytest.mark.parametrize("engine", LATENT)
@pytest.mark.parametrize("family", WRONG)
@pytest.mark.parametrize("form", ["{}-folder", "{}.bin"])
def test_another_kind_is_named_with_what_the_engine_needs(wrong, engine, family, form):
    with pytest.raises(ModelError, match=f"{WRONG[family]}.*; engine {engine} needs a Stable Diffusion"):
        enlarger.Upscaler(engine, str(wrong / form.format(family)), **({"control": "x"} if engine[0] == "c" else {}))


@pytest.mark.parametrize(("engine", "make"), [("img2img", tiny.sd), ("x4", tiny.x4)])
def test_what_runs_elsewhere_is_told_with_the_engine_that_takes_it(tmp_path, engine, make):
    tiny.save(tmp_path / "a", make(tmp_path / "words"))
    other, takes = ("x4", "img2img") if engine == "img2img" else ("img2img", "x4")
    with pytest.raises(ModelError, match=rf"-e .*{takes}"):
        enlarger.Upscaler(other, str(tmp_path / "a"))


@pytest.mark.parametrize(("engine", "make"), [("img2img", tiny.sd), ("img2img", tiny.sdxl), ("x4", tiny.x4)])
def test_without_its_tokenizer_a_model_of_another_vocabulary_is_refused(tmp_path, engine, make):
    """CLIP's own vocabulary stands in where a folder has none, as for files; it fits only what was trained with it."""
    tiny.save(tmp_path / "a", make(tmp_path / "words"))
    shutil.rmtree(tmp_path / "a" / "tokenizer")
    with pytest.raises(ModelError, match=r"tokenizer has 49408 tokens and the text encoder knows \d+"):
        enlarger.Upscaler(engine, str(tmp_path / "a"))
