"""A model of every family opens from every layout with equal numbers; what is wrong with one is told by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from enlarger.checkpoints.families import FAMILIES
from enlarger.checkpoints.open import Checkpoint, open_checkpoint
from enlarger.errors import ModelError
from tests.checkpoints import published

WHOLE = sorted(published.UNETS)
SINGLE = ["controlnet-sd15", "controlnet-sd2", "controlnet-sdxl", "controlnet-union-sdxl", "vae", "vae-x4"]


def opened(path: Path | str, **options: Any) -> Checkpoint:
    return open_checkpoint(path, families=FAMILIES, engine="test", **options)


def same(checkpoint: Checkpoint, modules: dict[str, nn.Module], dtype: torch.dtype = torch.float32) -> None:
    """Every part has the numbers of the module that it was written from, in evaluation mode and without gradients."""
    for part, module in modules.items():
        assert checkpoint.has(part)
        made = checkpoint.module(part, dtype=dtype)
        assert type(made) is type(module)
        assert not made.training
        assert not any(parameter.requires_grad for parameter in made.parameters())
        mine, theirs = made.state_dict(), module.state_dict()
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].dtype == dtype
            assert torch.equal(mine[key], value.to(dtype)), (part, key)
        assert not any(buffer.is_meta for buffer in made.buffers())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives a family's modules and its folder in diffusers' layout, made once."""
    root = tmp_path_factory.mktemp("models")
    kept: dict[str, tuple[dict[str, nn.Module], Path]] = {}

    def make(family: str) -> tuple[dict[str, nn.Module], Path]:
        if family not in kept:
            modules = published.parts(family)
            kept[family] = modules, published.write_folder(root / f"one {family}", modules)
        return kept[family]

    return make


FIRST = ("sd15", "sd2", "x4", "controlnet-sd15", "vae")
"""Families that the fast part of the tests opens, too."""


@pytest.mark.parametrize(
    "family", [family if family in FIRST else pytest.param(family, marks=pytest.mark.slow) for family in WHOLE + SINGLE]
)
def test_a_folder_and_a_file_with_the_published_names_hold_the_same_model(
    family: str, written: Any, tmp_path: Path
) -> None:
    modules, folder = written(family)
    whole = opened(folder)
    assert (whole.family, whole.layout, whole.name) == (family, "folder", f"one {family}")
    same(whole, modules)
    tensors = published.original(family, modules)
    file = published.write_file(tmp_path / "a.bin", tensors)
    single = opened(file, config=str(folder))
    assert (single.family, single.layout, single.name) == (family, "file", "a")
    same(single, modules)
    assert single.digest != whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "x4", "controlnet-sd15"])
@pytest.mark.parametrize("kind", ["pickle", "old pickle"])
def test_a_pickle_holds_the_same_model(family: str, kind: str, written: Any, tmp_path: Path) -> None:
    modules, folder = written(family)
    file = published.write_file(tmp_path / "a.bin", published.original(family, modules), kind)
    single = opened(file, config=str(folder))
    assert single.family == family
    same(single, modules)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "x4", "controlnet-sd15"])
def test_shards_are_put_together(family: str, written: Any, tmp_path: Path) -> None:
    modules, _ = written(family)
    folder = published.write_folder(tmp_path / "a", modules, max_shard_size="60KB")
    indices = list(folder.rglob("*.index.json"))
    assert indices
    assert len(list(folder.rglob("*-of-*"))) > 2 * len(indices)
    same(opened(folder), modules)
    shard = sorted(folder.rglob("*-of-*"))[0]
    shard.unlink()
    with pytest.raises(ModelError, match=f"shards, missing: {shard.name}"):
        opened(folder).module(shard.parent.name if shard.parent != folder else "controlnet", dtype=torch.float32)


@pytest.mark.parametrize("family", ["sd15", "x4", "vae"])
def test_a_half_precision_variant_is_taken_where_it_is(family: str, written: Any, tmp_path: Path) -> None:
    modules, _ = written(family)
    for module in modules.values():  # plain files with other numbers, which must not be taken
        nn.init.zeros_(next(module.parameters()))
    other = published.write_folder(tmp_path / "a", modules)
    true = published.parts(family)
    for name, module in true.items():
        place = other if len(true) == 1 else other / name
        module.half().save_pretrained(place, variant="fp16")
    same(opened(other), true, torch.float16)
    for name, module in published.parts(family).items():  # back, for the tests that share them
        modules[name].load_state_dict(module.state_dict())


def test_old_names_of_autoencoders_and_missing_prefixes_of_text_encoders(written: Any, tmp_path: Path) -> None:
    modules, folder = written("sd15")
    shutil.copytree(folder, tmp_path / "a")
    weights = tmp_path / "a" / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(weights)
    for new, old in names.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensors[key] for key in tensors}
    assert sum("query" in key for key in tensors) == 4
    save_file(tensors, weights)
    text = tmp_path / "a" / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(text).items()}
    save_file({**bare, "embeddings.position_ids": torch.arange(77)[None]}, text)
    same(opened(tmp_path / "a"), modules)
    save_file({f"text_model.{key}": value for key, value in bare.items()}, text)
    same(opened(tmp_path / "a"), modules)


def test_the_modules_compute(written: Any) -> None:
    modules, folder = written("x4")
    inputs = torch.randn(1, 7, 8, 12), torch.tensor(500), torch.randn(1, 77, published.CONTEXT)
    with torch.inference_mode():
        made = opened(folder).module("unet", dtype=torch.float32)
        labels = torch.tensor([20])
        assert torch.equal(
            made(*inputs, class_labels=labels).sample, modules["unet"](*inputs, class_labels=labels).sample
        )
        words = torch.randint(0, 600, (1, 77))
        made = opened(folder).module("text_encoder", dtype=torch.float32)
        assert torch.equal(made(words).last_hidden_state, modules["text_encoder"](words).last_hidden_state)


DAMAGE = {
    "missing": (
        "unet",
        "missing: mid_block.resnets.0.conv1.weight",
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
    ),
    "reshaped": ("vae", r"wrong shape: decoder.conv_in.bias", "first_stage_model.decoder.conv_in.bias"),
    "not finite": ("text_encoder", "not finite: final_layer_norm.bias", None),
    "unexpected": ("unet", "unexpected: surprise.weight", "model.diffusion_model.surprise.weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("family", ["sd15", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sd2", "x4", "sdxl"))])
def test_what_is_wrong_is_told_by_name(what: str, family: str, written: Any, tmp_path: Path) -> None:
    modules, folder = written(family)
    tensors = published.original(family, modules)
    part, words, key = DAMAGE[what]
    if what == "not finite":
        key = next(key for key in tensors if key.endswith(("final_layer_norm.bias", "ln_final.bias")))
        tensors[key][3] = float("inf")
        part = "text_encoder_2" if key.startswith("conditioner.embedders.1") else part
    elif what == "missing":
        del tensors[key]
    elif what == "reshaped":
        tensors[key] = torch.cat([tensors[key], tensors[key]])
    else:
        tensors[key] = torch.ones(3)
    checkpoint = opened(published.write_file(tmp_path / "a.bin", tensors), config=str(folder))
    with pytest.raises(ModelError, match=words) as told:
        checkpoint.module(part, dtype=torch.float32)
    assert "\n" not in str(told.value)
    assert "fetch it again" in str(told.value)


def test_all_faults_are_told_at_once(written: Any, tmp_path: Path) -> None:
    modules, folder = written("vae")
    tensors = published.original("vae", modules)
    del tensors["quant_conv.bias"]
    tensors["post_quant_conv.bias"] = torch.ones(5)
    tensors["further.weight"] = torch.ones(1)
    checkpoint = opened(published.write_file(tmp_path / "a.bin", tensors), config=str(folder))
    told = "missing: quant_conv.bias; unexpected: further.weight; of the wrong shape: post_quant_conv.bias"
    with pytest.raises(ModelError, match=told):
        checkpoint.module("vae", dtype=torch.float32)


def test_numbers_too_large_for_half_precision_are_told(written: Any, tmp_path: Path) -> None:
    modules, folder = written("vae")
    tensors = published.original("vae", modules)
    tensors["decoder.conv_in.bias"][0] = 1e5
    checkpoint = opened(published.write_file(tmp_path / "a.bin", tensors), config=str(folder))
    with pytest.raises(ModelError, match=r"too large for float16: decoder.conv_in.bias.*--dtype float32 or bfloat16"):
        checkpoint.module("vae", dtype=torch.float16)
    checkpoint.module("vae", dtype=torch.bfloat16)


def test_a_download_that_left_zeros_is_told(written: Any, tmp_path: Path) -> None:
    modules, folder = written("vae")
    tensors = {key: torch.zeros_like(value) for key, value in published.original("vae", modules).items()}
    checkpoint = opened(published.write_file(tmp_path / "a.bin", tensors), config=str(folder))
    with pytest.raises(ModelError, match="incomplete: nothing but zeros"):
        checkpoint.module("vae", dtype=torch.float32)


def test_the_wrong_model_is_named_with_what_is_needed(written: Any, tmp_path: Path) -> None:
    modules, folder = written("sd15-inpainting")
    file = published.write_file(tmp_path / "a.bin", published.original("sd15-inpainting", modules))
    for path, name in ((folder, folder.name), (file, "a")):
        told = f"{name} is a Stable Diffusion 1.5 inpainting model; engine x4 needs a Stable Diffusion x4 upscaler"
        with pytest.raises(ModelError, match=f"^{told}; nothing here takes such a file$"):
            open_checkpoint(path, families=["x4"], engine="x4")


def test_a_model_of_another_size_needs_a_configuration_and_the_error_says_so(written: Any, tmp_path: Path) -> None:
    modules, _ = written("sd15")
    file = published.write_file(tmp_path / "a.bin", published.original("sd15", modules))
    remedy = r"name the folder that it came in, with its config.json, or put a folder a/ with its configurations"
    with pytest.raises(ModelError, match=rf"tensors have other shapes, such as .*{remedy}"):
        opened(file).module("unet", dtype=torch.float32)


def test_a_configuration_beside_the_file_is_used(written: Any, tmp_path: Path) -> None:
    modules, folder = written("sd2")
    file = published.write_file(tmp_path / "a.bin", published.original("sd2", modules))
    for source in folder.rglob("*.json"):
        target = tmp_path / "a" / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    same(opened(file), modules)
    assert opened(file).config("scheduler")["prediction_type"] == "v_prediction"
    assert opened(file).notes == ()
    shutil.rmtree(tmp_path / "a")
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in modules}
    (tmp_path / "a.json").write_text(json.dumps({"description": "mine", **configs}))
    same(opened(file), modules)
    (tmp_path / "a.json").write_text(json.dumps({"description": "as A1111 writes it", "sd version": "SD2"}))
    with pytest.raises(ModelError, match="another size"):
        opened(file).module("unet", dtype=torch.float32)


def test_a_configuration_can_be_given_by_folder_or_by_a_published_models_name(written: Any, tmp_path: Path) -> None:
    modules, _ = written("sd2")
    file = published.write_file(tmp_path / "a.bin", published.original("sd2", modules))
    assert opened(file, config="sd2-v").config("unet")["upcast_attention"] is True
    assert opened(file, config="sd2-turbo").config("scheduler")["timestep_spacing"] == "trailing"
    assert opened(file, config="sd2-turbo").config("vae")["scaling_factor"] == 0.18215
    with pytest.raises(ModelError, match=r"sd3 is no folder with configurations, nor a published model: .*sd2-v, sdxl"):
        opened(file, config="sd3")


def test_a_part_alone_with_its_configuration_beside_it(written: Any, tmp_path: Path) -> None:
    modules, folder = written("controlnet-sd15")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    checkpoint = opened(tmp_path / "diffusion_pytorch_model.safetensors")
    assert checkpoint.family == "controlnet-sd15"
    same(checkpoint, modules)


@pytest.mark.parametrize(("family", "counts"), [
    ("sd15", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
    ("sd2", {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
    ("sd2-v", {"unet": 865_910_724, "text_encoder": 340_387_840}),
    ("x4", {"unet": 473_398_020, "vae": 55_325_927, "text_encoder": 340_387_840}),
    ("sdxl", {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ("controlnet-sd15", {"controlnet": 361_279_120}),
    ("controlnet-sdxl", {"controlnet": 1_251_014_160}),
])  # fmt: skip
def test_the_shipped_configurations_are_those_of_the_published_models(family: str, counts: dict[str, int]) -> None:
    from enlarger.checkpoints.configs import published as shipped
    from enlarger.checkpoints.modules import _empty

    for part, count in counts.items():
        config = shipped(family).find(part)
        assert config is not None
        assert sum(parameter.numel() for parameter in _empty(config, family, part).parameters()) == count


@pytest.mark.parametrize(("family", "pads"), [
    ("sd15", ["<|endoftext|>"]), ("sd2", ["!"]), ("x4", ["!"]), ("sdxl", ["<|endoftext|>", "!"]),
])  # fmt: skip
def test_a_file_without_vocabulary_gets_clips_with_its_familys_filling(
    family: str, pads: list[str], written: Any, tmp_path: Path
) -> None:
    modules, _ = written(family)
    checkpoint = opened(published.write_file(tmp_path / "a.bin", published.original(family, modules)))
    for name, pad in zip(("tokenizer", "tokenizer_2"), pads, strict=False):
        assert checkpoint.has(name)
        tokenizer = checkpoint.tokenizer(name)
        assert tokenizer.pad_token == pad
        assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
        ids = tokenizer("a", padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert len(ids) == 77
        assert ids[-1] == (0 if pad == "!" else 49407)


def test_what_says_that_a_file_predicts_velocity(written: Any, tmp_path: Path) -> None:
    modules, _ = written("sd2")
    tensors = published.original("sd2", modules)
    file = published.write_file(tmp_path / "a.bin", tensors)
    plain = opened(file)
    assert plain.config("scheduler")["prediction_type"] == "epsilon"
    assert len(plain.notes) == 1
    (tmp_path / "a.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert opened(file).config("scheduler")["prediction_type"] == "v_prediction"
    assert opened(file).notes == ()
    for words in ("timesteps: 1000", "parameterization: eps"):
        (tmp_path / "a.yaml").write_text(f"model:\n  params:\n    {words}\n")
        assert opened(file).config("scheduler")["prediction_type"] == "epsilon"
        assert opened(file).notes == ()
    (tmp_path / "a.yaml").unlink()
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, {"modelspec.prediction_type": "v"})
    assert opened(file).config("scheduler")["prediction_type"] == "v_prediction"


def test_xl_models_that_say_so_predict_velocity(written: Any, tmp_path: Path) -> None:
    modules, _ = written("sdxl")
    tensors = published.original("sdxl", modules)
    file = published.write_file(tmp_path / "a.bin", tensors)
    assert opened(file).config("scheduler")["prediction_type"] == "epsilon"
    published.write_file(file, {**tensors, "v_pred": torch.ones(1)})
    told = opened(file).config("scheduler")
    assert (told["prediction_type"], told["_class_name"]) == ("v_prediction", "EulerDiscreteScheduler")


def test_files_beside_that_are_others_matter_are_passed_over(written: Any, tmp_path: Path) -> None:
    modules, folder = written("vae")
    file = published.write_file(
        tmp_path / "a.bin", {**published.original("vae", modules), "loss.logvar": torch.ones(1)}
    )
    (tmp_path / "a.json").write_text("[1, 2")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "in_channels": 4}')
    assert opened(file).config("vae")["block_out_channels"] == [128, 256, 512, 512]
    (tmp_path / "a.bin.json").write_text((folder / "config.json").read_text())
    same(opened(file), modules)
    whole = published.write_file(tmp_path / "b.bin", published.original("sd15", written("sd15")[0]))
    assert opened(whole).config("unet")["block_out_channels"] == [320, 640, 1280, 1280]


def test_parts_come_as_a_pipelines_components(written: Any) -> None:
    _, folder = written("x4")
    made = opened(folder).components(
        ["unet", "vae", "text_encoder", "tokenizer", "scheduler"], torch.bfloat16, dtypes={"vae": torch.float32}
    )
    assert next(made["unet"].parameters()).dtype == torch.bfloat16
    assert next(made["vae"].parameters()).dtype == torch.float32
    assert made["tokenizer"].pad_token == "!"
    assert made["scheduler"]["prediction_type"] == "v_prediction"
    with pytest.raises(ModelError, match="holds no controlnet, only"):
        opened(folder).module("controlnet", dtype=torch.float32)


def test_an_autoencoder_alone_takes_the_scaling_of_the_model_that_it_is_for(written: Any, tmp_path: Path) -> None:
    modules, _ = written("vae")
    file = published.write_file(tmp_path / "a.bin", published.original("vae", modules))
    assert opened(file).config("vae")["scaling_factor"] == 0.18215
    assert opened(file, default="sdxl").config("vae")["scaling_factor"] == 0.13025


def test_the_digest_is_the_hash_that_others_show_and_tells_models_apart(written: Any, tmp_path: Path) -> None:
    modules, folder = written("vae")
    file = published.write_file(tmp_path / "a.bin", published.original("vae", modules))
    before = opened(file).digest
    assert before == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert opened(file).digest != before
    whole = opened(folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere").digest == whole
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.13025"))
    assert opened(tmp_path / "elsewhere").digest != whole


def test_a_published_configuration_is_fitted_to_what_the_shapes_say(written: Any, tmp_path: Path) -> None:
    for family, part, told in (
        ("sd15-inpainting", "unet", {"in_channels": 9, "block_out_channels": [320, 640, 1280, 1280]}),
        ("sd2-depth", "unet", {"in_channels": 5, "cross_attention_dim": 1024}),
        ("controlnet-sd15", "controlnet", {"conditioning_embedding_out_channels": [4, 6, 8, 10]}),
        ("controlnet-union-sdxl", "controlnet", {"num_control_type": 3, "in_channels": 4}),
    ):
        tensors = published.original(family, written(family)[0])
        config = opened(published.write_file(tmp_path / "a.bin", tensors)).config(part)
        assert {key: config[key] for key in told} == told


def test_no_class_is_looked_up_by_a_configuration(written: Any, tmp_path: Path) -> None:
    _, folder = written("controlnet-sd15")
    shutil.copytree(folder, tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ModelError, match=r"config.json names no UNet, autoencoder, ControlNet"):
        opened(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "block_out_channels": "eight"}))
    with pytest.raises(ModelError, match="the configuration of a's controlnet makes no sense"):
        opened(tmp_path / "a").module("controlnet", dtype=torch.float32)
    shutil.copytree(written("sd15")[1], tmp_path / "b")
    for name in ("FluxTransformer2DModel", "logging", "../module.py", ""):
        (tmp_path / "b" / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": name}))
        with pytest.raises(ModelError, match=r"is a .*, which is not known here"):
            opened(tmp_path / "b").module("unet", dtype=torch.float32)


def test_an_empty_folder_and_a_name_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENLARGER_MODELS", str(tmp_path / "mine"))
    with pytest.raises(ModelError, match="is no model: it has no folder unet, vae or text_encoder"):
        opened(tmp_path)
    with pytest.raises(ModelError, match=r"there is no model nothing: looked at nothing itself and in .*mine"):
        opened("nothing")


@pytest.mark.parametrize(("model", "file"), [
    ("sd15", "single_file/sd15_fp16.safetensors"), ("x4", "single_file/x4_fp16.ckpt"), ("sd21base", None),
    ("sdxl", None),
])  # fmt: skip
def test_the_tiny_fixtures_compute_the_recorded_numbers(model: str, file: str | None, tiny: Path) -> None:
    """Single modules, from single files where there are some, against what diffusers' own loading computed."""
    with np.load(tiny / "expected" / "components.npz") as archive:
        recorded = {key: torch.from_numpy(archive[key]) for key in archive.files if key.startswith(f"{model}.")}

    def told(name: str) -> torch.Tensor:
        value = recorded[f"{model}.{name}"]
        return value.float() if value.is_floating_point() else value

    checkpoint = opened(tiny / (file or model), config=tiny / model)
    with torch.inference_mode():
        text = checkpoint.module("text_encoder", dtype=torch.float32)
        assert torch.allclose(text(told("ids")).last_hidden_state, told("text_last"), atol=2e-5)
        if f"{model}.vae.mean" in recorded:
            vae = checkpoint.module("vae", dtype=torch.float32)
            pixels = vae.decode(told("vae.mean")).sample
            assert torch.allclose(
                pixels, told("vae.decode_of_mean"), atol=1e-3, rtol=1e-3
            )  # recorded in half precision
        if model == "sdxl":
            second = checkpoint.module("text_encoder_2", dtype=torch.float32)
            assert torch.allclose(second(told("ids_2")).text_embeds, told("pooled"), atol=2e-5)
            return
        labels = {"class_labels": torch.tensor([20] * len(told("unet.x")))} if model == "x4" else {}
        unet = checkpoint.module("unet", dtype=torch.float32)
        made = unet(told("unet.x"), told("unet.t"), told("unet.ctx"), **labels).sample
        assert torch.allclose(made, told("unet.y"), atol=2e-5)
