"""Tiny random models of every family, and writers that put them on disk as their publishers did.

The names here are derived the other way round than in `enlarger.checkpoints.keys`: from diffusers' modules to the
names of the original code.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (the extra 'diffusers')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra 'diffusers')")
logging.getLogger("diffusers").setLevel(logging.ERROR)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CONTEXT = 24
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"down": [CROSS, CROSS, CROSS, PLAIN]},
    "sd15-inpainting": {"down": [CROSS, CROSS, CROSS, PLAIN], "in_channels": 9},
    "sd15-pix2pix": {"down": [CROSS, CROSS, CROSS, PLAIN], "in_channels": 8},
    "sd2": {"down": [CROSS, CROSS, CROSS, PLAIN], "use_linear_projection": True},
    "sd2-inpainting": {"down": [CROSS, CROSS, CROSS, PLAIN], "use_linear_projection": True, "in_channels": 9},
    "sd2-depth": {"down": [CROSS, CROSS, CROSS, PLAIN], "use_linear_projection": True, "in_channels": 5},
    "sdxl": {
        "down": [PLAIN, CROSS, CROSS],
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    "x4": {
        "down": [PLAIN, CROSS, CROSS, CROSS],
        "use_linear_projection": True,
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": (True, True, True, False),
    },
}
"""What the families' UNets differ in."""

UNETS["sdxl-inpainting"] = {**UNETS["sdxl"], "in_channels": 9}
UNETS["sdxl-refiner"] = {
    **UNETS["sdxl"], "down": [PLAIN, CROSS, CROSS, PLAIN], "transformer_layers_per_block": (1, 2, 2, 2)
}  # fmt: skip


def unet(family: str) -> nn.Module:
    """A UNet of a family, seeded."""
    changes = dict(UNETS[family])
    down = changes.pop("down")
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        **{
            "down_block_types": tuple(down),
            "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
            "block_out_channels": (8, 12, 16, 16)[: len(down)],
            "layers_per_block": 2 if family in ("sd15", "x4") else 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": CONTEXT,
            "sample_size": 16,
            **changes,
        }
    ).eval()


def controlnet(family: str) -> nn.Module:
    """A ControlNet of a family, seeded, its closing convolutions not zero."""
    base = family.removeprefix("controlnet-").removeprefix("union-")
    changes = {key: value for key, value in UNETS[base].items() if key not in ("only_cross_attention",)}
    down = changes.pop("down")
    union = "union" in family
    torch.manual_seed(2)
    kind = diffusers.ControlNetUnionModel if union else diffusers.ControlNetModel
    more = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8, "num_control_type": 3} if union else {}
    if union:
        changes |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
    made = kind(
        **{
            "down_block_types": tuple(down),
            "block_out_channels": (8, 12, 16, 16)[: len(down)],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": CONTEXT,
            "conditioning_embedding_out_channels": (4, 6, 8, 10),
            **changes,
            **more,
        }
    ).eval()
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


def vae(levels: int) -> nn.Module:
    """An autoencoder of factor 2 ** (levels - 1), seeded."""
    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4, 8, 8, 12)[:levels], norm_num_groups=4, latent_channels=4, layers_per_block=2,
    ).eval()  # fmt: skip


def text_encoder(*, projection: bool = False, layers: int = 2) -> nn.Module:
    """A CLIP text encoder, seeded."""
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        vocab_size=600, hidden_size=CONTEXT, intermediate_size=2 * CONTEXT, num_hidden_layers=layers,
        num_attention_heads=2, projection_dim=CONTEXT, bos_token_id=598, eos_token_id=599,
    )  # fmt: skip
    made = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return made(config).eval()


def parts(family: str) -> dict[str, nn.Module]:
    """All modules of a model of a family."""
    if family.startswith("controlnet"):
        return {"controlnet": controlnet(family)}
    if family in ("vae", "vae-x4"):
        return {"vae": vae(4 if family == "vae" else 3)}
    base = family.partition("-")[0]
    made = {"unet": unet(family), "vae": vae(3 if base == "x4" else 4)}
    if family != "sdxl-refiner":
        made["text_encoder"] = text_encoder()
    if base == "sdxl":
        made["text_encoder_2"] = text_encoder(projection=True)
    return made


def write_folder(folder: Path, modules: dict[str, nn.Module], **options: Any) -> Path:
    """A model in diffusers' layout; a part alone if there is only one that is not part of a whole."""
    if set(modules) <= {"controlnet"} or set(modules) == {"vae"}:
        next(iter(modules.values())).save_pretrained(folder, **options)
        return folder
    for name, module in modules.items():
        module.save_pretrained(folder / name, **options)
    index = {name: ["some", type(module).__name__] for name, module in modules.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    for name in ("scheduler", "low_res_scheduler") if "vae" in modules else ():
        (folder / name).mkdir()
        (folder / name / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def original(family: str, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of a model under the names that it was published with, with what such files have besides."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        state = {key: value.detach().clone() for key, value in module.state_dict().items()}
        if name == "unet":
            tensors |= {f"model.diffusion_model.{key}": value for key, value in original_unet(state).items()}
        elif name == "controlnet":
            found = state if "union" in family else original_unet(state)
            tensors |= {f"control_model.{key}" if "sd15" in family else key: value for key, value in found.items()}
        elif name == "vae":
            prefix = "" if len(modules) == 1 else "first_stage_model."
            tensors |= {f"{prefix}{key}": value for key, value in original_vae(state).items()}
        else:
            tensors |= original_text(family, name, state)
    if len(modules) > 1:
        tensors |= {
            "betas": torch.ones(10),
            "model_ema.num_updates": torch.tensor(3),
            "model_ema.decay": torch.ones(()),
        }
    return tensors


RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
          ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]  # fmt: skip


def original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UNet or ControlNet under the names of the latent diffusion code."""
    layers = 1 + max(int(found[1]) for key in state if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)", key)))
    per = layers + 1
    with_attention = {int(found[1]) for key in state if (found := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    hints = max(
        (int(found[1]) for key in state if (found := re.match(r".*cond_embedding\.blocks\.(\d+)", key))), default=0
    )

    def rename(key: str) -> str:
        for new, old in RESNET:
            key = re.sub(rf"(resnets\.\d+)\.{new}\.", rf"\1.{old}.", key)
        rules = [
            (r"^time_embedding\.linear_1", lambda f: "time_embed.0"),
            (r"^time_embedding\.linear_2", lambda f: "time_embed.2"),
            (r"^class_embedding", lambda f: "label_emb"),
            (r"^add_embedding\.linear_1", lambda f: "label_emb.0.0"),
            (r"^add_embedding\.linear_2", lambda f: "label_emb.0.2"),
            (r"^conv_in", lambda f: "input_blocks.0.0"),
            (r"^conv_norm_out", lambda f: "out.0"),
            (r"^conv_out", lambda f: "out.2"),
            (r"^down_blocks\.(\d+)\.resnets\.(\d+)", lambda f: f"input_blocks.{1 + int(f[1]) * per + int(f[2])}.0"),
            (r"^down_blocks\.(\d+)\.attentions\.(\d+)", lambda f: f"input_blocks.{1 + int(f[1]) * per + int(f[2])}.1"),
            (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda f: f"input_blocks.{(int(f[1]) + 1) * per}.0.op"),
            (r"^mid_block\.resnets\.0", lambda f: "middle_block.0"),
            (r"^mid_block\.attentions\.0", lambda f: "middle_block.1"),
            (r"^mid_block\.resnets\.1", lambda f: "middle_block.2"),
            (r"^up_blocks\.(\d+)\.resnets\.(\d+)", lambda f: f"output_blocks.{int(f[1]) * per + int(f[2])}.0"),
            (r"^up_blocks\.(\d+)\.attentions\.(\d+)", lambda f: f"output_blocks.{int(f[1]) * per + int(f[2])}.1"),
            (
                r"^up_blocks\.(\d+)\.upsamplers\.0\.conv",
                lambda f: f"output_blocks.{int(f[1]) * per + layers}.{2 if int(f[1]) in with_attention else 1}.conv",
            ),
            (r"^controlnet_cond_embedding\.conv_in", lambda f: "input_hint_block.0"),
            (r"^controlnet_cond_embedding\.blocks\.(\d+)", lambda f: f"input_hint_block.{2 * int(f[1]) + 2}"),
            (r"^controlnet_cond_embedding\.conv_out", lambda f: f"input_hint_block.{2 * hints + 4}"),
            (r"^controlnet_down_blocks\.(\d+)", lambda f: f"zero_convs.{f[1]}.0"),
            (r"^controlnet_mid_block", lambda f: "middle_block_out.0"),
        ]
        for pattern, replacement in rules:
            key, changed = re.subn(pattern, replacement, key)
            if changed:
                break
        return key

    return {rename(key): value for key, value in state.items()}


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder under the names of the latent diffusion code."""
    levels = 1 + max(int(found[1]) for key in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))

    def rename(key: str) -> str:
        for pattern, replacement in [
            (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
            (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
            (r"^decoder\.up_blocks\.(\d+)\.resnets\.", lambda f: f"decoder.up.{levels - 1 - int(f[1])}.block."),
            (
                r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
                lambda f: f"decoder.up.{levels - 1 - int(f[1])}.upsample.",
            ),
            (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
            (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
            (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
            (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
            (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
            (r"\.conv_norm_out\.", ".norm_out."),
            (r"\.conv_shortcut\.", ".nin_shortcut."),
        ]:
            key = re.sub(pattern, replacement, key)
        return key

    made = {rename(key): value for key, value in state.items()}
    square = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")
    return {key: value[:, :, None, None] if square.search(key) else value for key, value in made.items()}


def original_text(family: str, part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder as its family publishes it: OpenAI's names, or open_clip's with one block more."""
    plain = {key.removeprefix("text_model."): value for key, value in state.items()}
    if family.startswith("sd15"):
        tensors = {f"cond_stage_model.transformer.text_model.{key}": value for key, value in plain.items()}
        return tensors | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    if part == "text_encoder" and family.startswith("sdxl"):
        return {f"conditioner.embedders.0.transformer.text_model.{key}": value for key, value in plain.items()}
    if part == "text_encoder_2":
        number = 0 if family == "sdxl-refiner" else 1
        made = open_clip(plain, spare=False)
        return {f"conditioner.embedders.{number}.model.{key}": value for key, value in made.items()}
    return {f"cond_stage_model.model.{key}": value for key, value in open_clip(plain, spare=True).items()}


def open_clip(plain: dict[str, Tensor], *, spare: bool) -> dict[str, Tensor]:
    """open_clip's names and fused projections; with `spare` one more block at the end and an unused projection."""
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    made = {
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
        "attn_mask": torch.zeros(77, 77),
    }
    layers = 1 + max(int(found[1]) for key in plain if (found := re.match(r"encoder\.layers\.(\d+)\.", key)))
    for layer in range(layers):
        before, after = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                made[f"{after}{ours}.{kind}"] = plain[f"{before}{theirs}.{kind}"]
        for kind in ("weight", "bias"):
            fused = [plain[f"{before}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            made[f"{after}attn.in_proj_{kind}"] = torch.cat(fused)
    if spare:
        last = {key: value for key, value in made.items() if key.startswith(f"transformer.resblocks.{layers - 1}.")}
        made |= {
            key.replace(f".{layers - 1}.", f".{layers}.", 1): torch.randn_like(value) for key, value in last.items()
        }
        made["text_projection"] = torch.randn(CONTEXT, CONTEXT)
    elif "text_projection.weight" in plain:
        made["text_projection"] = plain["text_projection.weight"].T.contiguous()
    return made


def write_file(path: Path, tensors: dict[str, Tensor], kind: str = "safetensors") -> Path:
    """A single file: safetensors, or a pickle of torch with the envelope of training code."""
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    else:
        envelope = {"state_dict": tensors, "global_step": 470000, "epoch": 4}
        torch.save(envelope, path, _use_new_zipfile_serialization=kind != "old pickle")
    return path
