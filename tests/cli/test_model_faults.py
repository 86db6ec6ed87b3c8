"""Whatever is wrong with a model, the command ends with 4 and one line, and writes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import published
from tests.cli.support import Called, files, picture

Call = Callable[..., Called]
CORPORA = Path(__file__).parents[2].parent / "shared" / "corpora" / "models"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small x4 as a folder."""
    return published.write_folder(tmp_path_factory.mktemp("models") / "good", published.parts("x4"))


@pytest.fixture
def refused(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Enlarge with a model that must be refused; gives the line."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("ENLARGER_MODELS", str(folder / "mine"))
    picture("photo.png")

    def run(name: str | Path, *options: str, engine: str = "x4") -> str:
        before = files(folder)
        done = call("upscale", "photo.png", "-e", engine, "-m", name, "--device", "cpu", *options)
        assert done.code == 4, done.err
        assert done.out == ""
        assert files(folder) == before
        return done.error

    return run


@pytest.mark.parametrize("name", ["nothing", "nothing.safetensors", "some/thing"])
def test_35_a_missing_model_lists_the_places(name: str, refused: Callable[..., str], folder: Path) -> None:
    told = refused(name)
    assert f"there is no model {name}" in told
    assert str(folder / "mine") in told


def test_36_a_folder_with_parts_missing(refused: Callable[..., str], model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "a")
    shutil.rmtree(folder / "a" / "vae")
    assert "a holds no vae, only text_encoder, unet" in refused("a")
    shutil.rmtree(folder / "a" / "low_res_scheduler")
    assert "the folder of a has no configuration of its low_res_scheduler: fetch the model again" in refused("a")
    for weights in (folder / "a").rglob("*.safetensors"):
        weights.unlink()
    assert "the folder a is no model" in refused("a")


def test_37_the_wrong_kind_is_named(refused: Callable[..., str], folder: Path) -> None:
    published.write_file(folder / "a.bin", published.original("controlnet-sd15", published.parts("controlnet-sd15")))
    assert "a is a ControlNet for Stable Diffusion 1.x; engine x4 needs a Stable Diffusion x4 upscaler" in refused(
        "a.bin"
    )
    assert "engine img2img needs a Stable Diffusion 1.x model or a" in refused("a.bin", engine="img2img")
    assert "engine gan needs a network of the ESRGAN family" in refused("a.bin", engine="gan")


def test_38_a_cut_file_says_both_sizes(refused: Callable[..., str], model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "a")
    file = folder / "a" / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    told = refused("a")
    assert f"the file has {len(content) - 1000:,} bytes, its header says {len(content):,}" in told


def test_40_a_pickle_with_code_is_refused_and_not_run(refused: Callable[..., str], folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
            return os.system, (f"touch {folder / 'marker'}",)

    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Evil()}, "a.safetensors")
    assert "would run code (posix.system): it was not opened" in refused("a.safetensors")
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_42_numbers_that_are_not_finite_are_named(
    value: float, refused: Callable[..., str], model: Path, folder: Path
) -> None:
    from safetensors.torch import load_file

    shutil.copytree(model, folder / "a")
    file = folder / "a" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.weight"][0, 0, 0, 0] = value
    save_file(tensors, file)
    assert "a's vae is damaged: not finite: decoder.conv_out.weight; fetch it again" in refused("a")


@pytest.mark.parametrize("name", sorted(path.name for path in CORPORA.iterdir()) if CORPORA.is_dir() else [])
@pytest.mark.parametrize("engine", ["x4", "gan"])
def test_39_43_44_the_corpus_of_bad_weights(name: str, engine: str, refused: Callable[..., str], folder: Path) -> None:
    shutil.copyfile(CORPORA / name, folder / "a.bin")
    refused("a.bin", engine=engine)


def test_46_a_missing_extra_names_what_to_install(
    refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    told = refused(model)
    assert "needs diffusers and transformers, an extra that is not installed" in told
    assert 'pip install "enlarger[diffusers]"' in told
