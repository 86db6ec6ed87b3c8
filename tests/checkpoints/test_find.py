"""Models are found by name in the folders of web interfaces, by path, and by id on the hub."""

from __future__ import annotations

import json
import logging
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from enlarger.checkpoints import hub
from enlarger.checkpoints.families import FAMILIES
from enlarger.checkpoints.find import find_model, is_hub_id, kind_of, model_folders
from enlarger.checkpoints.open import open_checkpoint
from enlarger.errors import ModelError
from tests.checkpoints import published

A1111 = {
    "checkpoint": "models/Stable-diffusion", "vae": "models/VAE", "controlnet": "models/ControlNet",
    "lora": "models/Lora", "embedding": "embeddings", "gan": "models/ESRGAN",
}  # fmt: skip
COMFY = {
    "checkpoint": "models/checkpoints", "vae": "models/vae", "controlnet": "models/controlnet", "lora": "models/loras",
    "embedding": "models/embeddings", "gan": "models/upscale_models",
}  # fmt: skip


@pytest.mark.parametrize("layout", [A1111, COMFY])
def test_of_two_with_one_name_the_folder_of_its_kind_decides(layout: dict[str, str], tmp_path: Path) -> None:
    for folder in layout.values():
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "same.safetensors").touch()
    for kind, folder in layout.items():
        assert find_model("same", [tmp_path], {kind}) == tmp_path / folder / "deep" / "same.safetensors"


def test_names_with_and_without_ending_and_folders(tmp_path: Path) -> None:
    for name in (
        "sd/v1.5.ckpt",
        "sd/v1.5.safetensors",
        "sd/v1.5.preview.png",
        "other/v1.5.safetensors.json",
        "sd/v1.yaml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_model("v1.5", [tmp_path]) == tmp_path / "sd/v1.5.safetensors"
    assert find_model("v1.5.ckpt", [tmp_path]) == tmp_path / "sd/v1.5.ckpt"
    assert find_model("sd/v1.5", [tmp_path]) == tmp_path / "sd/v1.5.safetensors"
    assert find_model("v1", [tmp_path]) is None
    assert find_model("5", [tmp_path]) is None
    assert find_model(str(tmp_path / "sd"), []) == tmp_path / "sd"


def test_a_model_folder_is_found_whole_and_program_folders_are_not_searched(tmp_path: Path) -> None:
    model = tmp_path / "diffusers" / "mine"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").touch()
    (model / "unet" / "net.safetensors").touch()
    for name in ("venv/lib/net.safetensors", ".cache/net.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert find_model("mine", [tmp_path]) == model
    assert find_model("net", [tmp_path]) is None


def test_folders_are_looked_through_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("given", "first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{place}.pth").touch()
        (tmp_path / place / "all.pth").touch()
    monkeypatch.setenv("ENLARGER_MODELS", f"{tmp_path / 'first'}:{tmp_path / 'second'}:{tmp_path / 'gone'}")
    folders = model_folders([tmp_path / "given"])
    assert find_model("all", folders) == tmp_path / "given" / "all.pth"
    assert find_model("second", folders) == tmp_path / "second" / "second.pth"
    assert find_model("all", model_folders()) == tmp_path / "first" / "all.pth"
    with pytest.raises(ModelError, match="nowhere of --models-dir does not exist"):
        model_folders([tmp_path / "nowhere"])


def test_every_family_belongs_in_a_folder() -> None:
    assert {kind_of(family) for family in FAMILIES} <= {*A1111, "stablesr", "checkpoint"}
    assert kind_of("controlnet-union-sdxl") == "controlnet"
    assert kind_of("vae-x4") == "vae"
    assert kind_of("sdxl") == "checkpoint"


def test_what_can_be_a_hub_id() -> None:
    assert is_hub_id("stabilityai/stable-diffusion-x4-upscaler")
    assert is_hub_id("lllyasviel/ControlNet-v1-1:control_v11f1e_sd15_tile.pth")
    assert not any(map(is_hub_id, ("x4", "a/b/c", "./here", "../there", "/etc/passwd", "a/b:", "~/a", "a/b.pth")))


def put_in_cache(cache: Path, repository: str, model: Path) -> Path:
    """A model as the hub's own client keeps it: snapshots by commit, a name that points to the newest."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache / ("models--" + repository.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(model, root / "snapshots" / commit)
    return root / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network: asking for anything fails."""
    huggingface = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    place = tmp_path / "hub"
    place.mkdir()
    for module in (huggingface.constants, huggingface._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(place))
    plain = huggingface.snapshot_download

    def here(repository: str, **options: Any) -> str:
        assert options.get("local_files_only"), "the network was asked"
        return str(plain(repository, cache_dir=place, **options))

    monkeypatch.setattr(huggingface, "snapshot_download", here)
    monkeypatch.setattr(huggingface, "HfApi", None)
    return place


def test_a_model_in_the_hubs_cache_opens_offline(cache: Path, tmp_path: Path) -> None:
    vae = published.vae(4)
    folder = tmp_path / "model"
    vae.save_pretrained(folder / "vae")  # type: ignore[operator]
    shutil.copytree(folder / "vae", folder / "alone")
    (folder / "model_index.json").write_text(
        json.dumps({"vae": ["diffusers", "AutoencoderKL"], "safety": [None, None]})
    )
    put_in_cache(cache, "some/thing", folder)
    for name, layout in (("some/thing", "thing"), ("some/thing:alone", "thing:alone")):
        checkpoint = open_checkpoint(name, families=["vae"], engine="test")
        assert (checkpoint.name, checkpoint.layout, checkpoint.family) == (layout, "hub", "vae")
    assert open_checkpoint(
        "some/thing:alone/diffusion_pytorch_model.safetensors", families=["vae"], engine="test"
    ).parts.keys() == {"vae"}


def test_offline_nothing_is_asked_and_the_places_are_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"there is no model some/thing: looked at .*HF_HUB_OFFLINE forbids") as told:
        open_checkpoint("some/thing", families=["vae"], engine="test")
    assert str(cache) in str(told.value)
    assert "\n" not in str(told.value)


class Hub:
    """Stands in for the hub: a repository of files, and what was fetched of it."""

    def __init__(self, files: dict[str, int], source: Path) -> None:
        self.files, self.source, self.fetched = files, source, [""]

    def model_info(self, repository: str, files_metadata: bool) -> Any:
        assert files_metadata
        siblings = [types.SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return types.SimpleNamespace(siblings=siblings, sha="abc", card_data=None, tags=["license:mit", "x"])

    def snapshot_download(self, repository: str, **options: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not there")
        self.fetched = options["allow_patterns"]
        return str(self.source)


def test_size_and_licence_are_said_before_a_download(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    folder = tmp_path / "thing"
    published.vae(4).save_pretrained(folder)  # type: ignore[operator]
    files = {
        "config.json": 1000,
        "diffusion_pytorch_model.safetensors": 1_230_000_000,
        "README.md": 5,
        "other.bin": 9**10,
    }
    stand_in = Hub(files, folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    with caplog.at_level(logging.WARNING, "enlarger"):
        checkpoint = open_checkpoint("some/thing", families=["vae"], engine="test")
    (line,) = caplog.messages
    assert line.startswith("fetching some/thing: 2 files, 1.23 GB, licence mit; into ")
    assert stand_in.fetched == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert (checkpoint.name, checkpoint.layout, checkpoint.licence) == ("thing", "hub", "mit")


def test_a_failing_download_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Failing:
        def model_info(self, *words: Any, **options: Any) -> Any:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Failing)
    with pytest.raises(ModelError, match="cannot be fetched: ConnectionError: no route to host"):
        open_checkpoint("some/thing", families=["vae"], engine="test")


WHOLE = [
    "model_index.json", "README.md", "v1-5.safetensors", "v1-5.ckpt",
    *(f"unet/{name}" for name in ("config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors",
                                  "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.bin")),
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    *(f"text_encoder/{name}" for name in ("config.json", "model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors", "model.safetensors.index.json")),
    "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
    "safety_checker/model.safetensors", "safety_checker/config.json",
]  # fmt: skip


def test_one_set_of_weights_is_fetched_and_no_safety_checker() -> None:
    wanted = hub.needed(WHOLE, "")
    weights = [name for name in wanted if name.endswith((".safetensors", ".bin", ".ckpt"))]
    assert weights == [
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= set(wanted)
    assert not any(name.startswith(("safety_checker", "README")) for name in wanted)
    assert hub.needed(WHOLE, "v1-5.ckpt") == ["v1-5.ckpt"]
    assert hub.needed(WHOLE, "vae") == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert hub.needed(WHOLE, "nothing") == []


def test_what_is_fetched_is_what_the_folder_reader_takes(tmp_path: Path) -> None:
    from enlarger.checkpoints.folders import weight_files

    for name in WHOLE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = hub.needed(WHOLE, "")
    for part in ("unet", "vae", "text_encoder"):
        taken = [f"{part}/{file.name}" for file in weight_files(tmp_path / part)]
        assert taken == [name for name in wanted if name.startswith(part) and name.endswith("safetensors")]


def test_an_index_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    import torch

    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    index = tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ModelError, match="names no shards beside it"):
        open_checkpoint(tmp_path / "vae", families=["vae"], engine="test")
