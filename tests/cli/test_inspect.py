"""`enlarger inspect`: what a model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import published
from tests.cli.support import Called

Call = Callable[..., Called]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small x4 in one file, half of it in half precision, with one tensor that is no part's."""
    tensors = published.original("x4", published.parts("x4"))
    tensors = {key: value.half() if key.startswith("first_stage") else value for key, value in tensors.items()}
    return published.write_file(tmp_path_factory.mktemp("models") / "a.bin", tensors, "pickle")


def test_kind_parts_numbers_and_licence_are_told(call: Call, model: Path) -> None:
    done = call("inspect", model)
    assert done.code == 0
    assert done.out.splitlines()[0] == "a"
    for words in (
        "a Stable Diffusion x4 upscaler (x4)", "one file, a PyTorch pickle", "CreativeML Open RAIL++-M", "v_prediction",
        "engines          x4",
    ):  # fmt: skip
        assert words in done.out
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in published.parts("x4").items()}
    (record,) = call("inspect", "--json", model).records
    assert {name: part["parameters"] for name, part in record["parts"].items()} == counts
    assert record["parts"]["vae"]["dtypes"] == {"float16": counts["vae"]}
    assert record["parts"]["unet"]["dtypes"] == {"float32": counts["unet"]}
    assert record["all"]["parameters"] > sum(counts.values())
    assert record["engines"] == ["x4"]
    assert record["bytes"] == model.stat().st_size
    for name, count in counts.items():
        assert f"{name:<16} {count:,} parameters" in done.out


def test_a_folder_and_a_name(call: Call, tmp_path: Path) -> None:
    published.write_folder(tmp_path / "VAE" / "mine", {"vae": published.vae(4)})
    records = call("inspect", "--json", "--models-dir", tmp_path, "mine", tmp_path / "VAE" / "mine").records
    assert len(records) == 2
    assert records[0] == records[1]
    assert (records[0]["family"], records[0]["layout"], records[0]["engines"]) == ("vae", "folder", [])


def test_the_licence_is_the_files_own_where_it_says_one(call: Call, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "a.bin", {"modelspec.license": "CC-BY-4.0"})
    assert "licence          CC-BY-4.0" in call("inspect", tmp_path / "a.bin").out


def test_check_reads_every_number(call: Call, tmp_path: Path) -> None:
    save_file({"fine": torch.ones(3), "bad.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "a.bin")
    assert call("inspect", tmp_path / "a.bin").code == 0
    done = call("inspect", "--check", tmp_path / "a.bin")
    assert done.code == 4
    assert "not finite: bad.weight; fetch it again" in done.error
    assert "fine" not in done.error


@pytest.mark.parametrize("name", ["nothing", "some/thing:else"])
def test_what_is_not_there_is_one_line(call: Call, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    done = call("inspect", name)
    assert done.code == 4
    assert f"there is no model {name}" in done.error


def test_a_stablesr_file_tells_its_licence_and_what_its_makers_say(call: Call, stablesr: Path) -> None:
    done = call("inspect", stablesr / "model.safetensors")
    assert done.code == 0
    for words in (
        "a whole StableSR model (stablesr)", "S-Lab 1.0 (non-commercial)", "its makers say", "slower than a GAN",
        "not wholly faithful", "complex real scenes", "small faces", "engines          stablesr",
    ):  # fmt: skip
        assert words in done.out
    (record,) = call("inspect", "--json", stablesr / "model.safetensors").records
    assert len(record["limits"]) == 4
    (record,) = call("inspect", "--json", stablesr / "cfw.safetensors").records
    assert (record["family"], record["limits"]) == ("cfw", [])


def test_what_no_engine_takes_as_its_model_is_told_with_the_option_that_does(call, tiny):
    adapters = tiny / "adapters"
    told = call("inspect", adapters / "lora_kohya_sd15.safetensors").out
    assert "none takes it as its model; it goes with --lora of -e img2img" in told
    assert "--embedding of -e img2img" in call("inspect", adapters / "textual_inversion_diffusers_sd15.bin").out
