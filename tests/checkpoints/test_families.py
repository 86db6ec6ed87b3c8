"""What a file is, its content says: every kind is told from every other under the name a.bin."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from enlarger.checkpoints.families import FAMILIES
from enlarger.checkpoints.load import SHIPPED
from enlarger.checkpoints.open import look_at, open_checkpoint
from enlarger.errors import ModelError
from tests.checkpoints import published

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures"
CORPORA = Path(__file__).parents[2].parent / "shared" / "corpora"


def ones(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in shapes}


UNET_KEY = ("model.diffusion_model.input_blocks.0.0.weight", (320, 4, 3, 3))
VAE_KEYS = [(f"{half}.conv_in.weight", (8, channels, 3, 3)) for half, channels in (("encoder", 3), ("decoder", 4))]
LEVELS = [(f"encoder.down.{level}.block.0.norm1.weight", (8,)) for level in range(4)]

SMALL: dict[str, list[dict[str, Tensor]]] = {
    "stablesr": [ones(UNET_KEY, ("structcond_stage_model.time_embed.0.bias", (8,)))],
    "stablesr-module": [
        ones(("structcond_stage_model.time_embed.0.bias", (8,)),
             ("model.diffusion_model.input_blocks.1.0.spade.mlp_shared.0.weight", (8, 4, 3, 3)))
    ],
    "cfw": [
        ones(*VAE_KEYS, *LEVELS, ("decoder.fusion_layer_2.encode_enc_1.conv1.weight", (8, 8, 3, 3))),
        ones(*((f"first_stage_model.{name}", shape) for name, shape in VAE_KEYS),
             ("first_stage_model.decoder.fusion_layer_2.encode_enc_1.conv1.weight", (8, 8, 3, 3))),
    ],
    "cfw-fusion": [ones(("decoder.fusion_layer_2.encode_enc_1.conv1.weight", (8, 8, 3, 3)))],
    "lora-sd15": [
        ones(("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", (4, 768)),
             ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight", (320, 4))),
        ones(("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", (4, 768))),
        ones(("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", (4, 768)),
             ("x.lora.up.weight", (4, 4)), ("x.attn2.to_k.lora.down.weight", (4, 768))),
    ],
    "lora-sd2": [ones(("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", (4, 1024)))],
    "lora-sdxl": [
        ones(("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", (4, 2048))),
        ones(("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 1280))),
    ],
    "lora": [ones(("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 32)))],
    "embedding-sd15": [ones(("emb_params", (3, 768))), ones(("string_to_param.*", (1, 768))), ones(("<cat>", (768,)))],
    "embedding-sd2": [ones(("emb_params", (3, 1024)))],
    "embedding-sdxl": [ones(("clip_l", (3, 768)), ("clip_g", (3, 1280)))],
    "gan": [
        ones(("conv_first.weight", (64, 3, 3, 3)), ("body.0.rdb1.conv1.weight", (32, 64, 3, 3))),
        ones(("RRDB_trunk.0.RDB1.conv1.weight", (32, 64, 3, 3))),
        ones(("model.1.sub.0.RDB1.conv1.0.weight", (32, 64, 3, 3))),
        ones(("params_ema.body.0.rdb1.conv1.weight", (32, 64, 3, 3))),
        ones(("body.0.weight", (64, 3, 3, 3)), ("body.1.weight", (64,)), ("body.2.weight", (48, 64, 3, 3))),
    ],
    "sd3": [ones(("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (4, 4)))],
    "flux": [ones(("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", (4, 4))),
             ones(("double_blocks.0.img_attn.qkv.weight", (4, 4)))],
    "swinir": [ones(("layers.0.residual_group.blocks.0.norm1.weight", (8,)))],
    "vae-other": [ones(*VAE_KEYS[:1], ("decoder.conv_in.weight", (8, 16, 3, 3)), *LEVELS)],
    "text-encoder": [ones(("text_model.embeddings.token_embedding.weight", (9, 8)))],
    "embedding": [ones(("emb_params", (3, 32)))],
    "latent-x2": [
        ones(("conv_in.weight", (8, 8, 3, 3)), ("time_embedding.cond_proj.weight", (8, 4)),
             ("down_blocks.0.resnets.0.conv1.weight", (8, 8, 3, 3)))
    ],
    "sd2-unclip": [
        ones(UNET_KEY, ("model.diffusion_model.label_emb.0.0.weight", (8, 8)),
             ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (8, 1024)))
    ],
    "sdxl-pix2pix": [
        ones(("model.diffusion_model.input_blocks.0.0.weight", (320, 8, 3, 3)),
             ("model.diffusion_model.label_emb.0.0.weight", (8, 8)))
    ],
    "": [ones(("conv.weight", (4, 3, 3, 3)), ("conv.bias", (4,))), ones(("a.b", (2, 2)))],
}  # fmt: skip


@pytest.mark.parametrize("family", SMALL)
def test_small_kinds_are_told_by_their_keys(family: str, tmp_path: Path) -> None:
    for tensors in SMALL[family]:
        save_file(tensors, tmp_path / "a.bin")
        assert look_at(tmp_path / "a.bin").family == family, list(tensors)
        torch.save({"state_dict": tensors}, tmp_path / "a.bin")
        assert look_at(tmp_path / "a.bin").family == family, list(tensors)


def test_every_family_has_a_test() -> None:
    told = {*SMALL, *published.UNETS, "vae", "vae-x4", "pocket"}
    told |= {"controlnet-sd15", "controlnet-sd2", "controlnet-sdxl", "controlnet-union-sdxl"}
    assert set(FAMILIES) == told


def test_the_shipped_model_is_a_pocket(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "pocket.safetensors", tmp_path / "a.bin")
    opened = look_at(tmp_path / "a.bin")
    assert (opened.family, opened.licence) == ("pocket", "Apache-2.0")


def test_the_error_for_an_unknown_file_names_its_tensors(tmp_path: Path) -> None:
    save_file(SMALL[""][0], tmp_path / "a.bin")
    told = r"a is no model that Enlarger knows \(its tensors are conv.bias, conv.weight\); engine x4 needs a Stable"
    with pytest.raises(ModelError, match=told):
        open_checkpoint(tmp_path / "a.bin", families=["x4"], engine="x4")


KIND = {  # the corpus' words for what is wrong -> ours
    "truncated": "cut", "empty": "is empty", "corrupt": "damaged|no PyTorch checkpoint",
    "lfs_pointer": "Git LFS pointer",
    "web_page": "a web page", "unknown_architecture": "no model that", "not_finite": "no model that|not finite",
}  # fmt: skip


def weight_files() -> list[tuple[str, str]]:
    table = CORPORA / "expected.tsv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["file"].startswith("models/")]
    return [(row["file"], next(value for key, value in row.items() if key != "file")) for row in rows]


def test_the_corpus_of_bad_weights_is_here() -> None:
    if not CORPORA.is_dir():
        pytest.skip("the corpora are not beside the repository (../shared/corpora)")
    assert len(weight_files()) == 11


@pytest.mark.parametrize(("name", "kind"), weight_files())
def test_bad_weights_are_refused_for_what_they_are(name: str, kind: str, tmp_path: Path) -> None:
    shutil.copyfile(CORPORA / name, tmp_path / "a.bin")
    with pytest.raises(ModelError, match=KIND[kind]) as told:
        open_checkpoint(tmp_path / "a.bin", families=["x4"], engine="x4")
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 4


def headed(header: bytes, data: int) -> bytes:
    """A safetensors file with this header and so many bytes of numbers."""
    return len(header).to_bytes(8, "little") + header + bytes(data)


@pytest.mark.parametrize(("content", "told"), [
    (b'{"error": "Repository not found"}', "JSON text"),
    (b"GGUF\x03\x00\x00\x00" + bytes(20), "GGUF"),
    (b"\x89PNG\r\n\x1a\n" + bytes(20), "a picture"),
    (b"hello", "no model file"),
    (b"\x10\0\0\0\0\0\0\0" + b'{"a":1,"a":2}   ', "stands in its header twice"),
    (b"\x02\0\0\0\0\0\0\0{}" + bytes(8), "its header says 10"),
    (headed(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 1), "F4"),
    (headed(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4), "whole number"),
    (headed(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}', 4), "does not fit its shape"),
    (headed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', 8), "overlap or leave gaps"),
    (headed(b'{"a":[1,2]}', 0), "makes no sense"),
])  # fmt: skip
def test_other_files_are_told_for_what_they_are(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ModelError, match=told):
        open_checkpoint(tmp_path / "a.bin", families=["x4"], engine="x4")


@pytest.mark.parametrize(("file", "family"), [
    ("tiny/single_file/sd15_fp16.safetensors", "sd15"),
    ("tiny/single_file/x4_fp16.ckpt", "x4"),
    ("tiny/adapters/lora_kohya_sd15.safetensors", "lora"),
    ("tiny/adapters/lora_diffusers_sd15.safetensors", "lora"),
    ("tiny/adapters/textual_inversion_a1111_sd15.safetensors", "embedding"),
    ("tiny/adapters/textual_inversion_diffusers_sd15.bin", "embedding"),
    ("stablesr/model.safetensors", "stablesr"),
    ("stablesr/cfw.safetensors", "cfw"),
    ("stablesr/envelope.ckpt", "stablesr"),
])  # fmt: skip
def test_files_that_others_wrote(file: str, family: str, tmp_path: Path) -> None:
    if not (FIXTURES / file).is_file():
        pytest.skip("the fixtures are not beside the repository (../shared/fixtures)")
    shutil.copyfile(FIXTURES / file, tmp_path / "a.bin")
    assert look_at(tmp_path / "a.bin").family == family


@pytest.mark.parametrize("rename", [lambda name: f"net.{name}", lambda name: name.upper()])
def test_other_names_are_no_model(rename: Callable[[str], str], tmp_path: Path) -> None:
    save_file({rename(name): value for name, value in published.vae(4).state_dict().items()}, tmp_path / "a.bin")
    assert look_at(tmp_path / "a.bin").family == ""
