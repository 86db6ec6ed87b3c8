"""Tiny random Stable Diffusion models in memory: real structure, narrow, seeded; as a pipeline's `components`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (the extra 'diffusers')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra 'diffusers')")
logging.getLogger("diffusers").setLevel(logging.ERROR)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CONTEXT = 32
"""Width of the text encoders."""

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tokenizer(folder: Path, pad: str = "!") -> Any:
    """A true CLIP tokenizer without merges: every byte is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({chr(code) for code in range(33, 127)} | {chr(code) for code in range(161, 256)})
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77
    )


def text_encoder(words: int, seed: int = 0, width: int = CONTEXT) -> Any:
    """A CLIP text encoder of three layers."""
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        hidden_act="gelu", projection_dim=16, bos_token_id=words - 2, eos_token_id=words - 1,
        initializer_factor=8.0,  # so that words differ clearly
    )  # fmt: skip
    return transformers.CLIPTextModel(config).eval()


def unet(seed: int = 1, **changes: Any) -> Any:
    """A UNet of four levels."""
    torch.manual_seed(seed)
    kinds = {
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(
        **{
            **kinds,
            "block_out_channels": (8, 16, 16, 24),
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": CONTEXT,
            "use_linear_projection": True,
            "layers_per_block": 1,
            "sample_size": 16,
            **changes,
        }
    ).eval()


def vae(levels: int, scaling: float, seed: int = 2) -> Any:
    """An autoencoder of factor 2 ** (levels - 1)."""
    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, *[16] * (levels - 1)), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        scaling_factor=scaling, sample_size=64,
    ).eval()  # fmt: skip


def x4(folder: Path) -> dict[str, Any]:
    """The parts of a StableDiffusionUpscalePipeline."""
    words = tokenizer(folder / "tokenizer")
    only_cross = (True, True, True, False)
    return {
        "vae": vae(3, 0.08333),
        "unet": unet(in_channels=7, num_class_embeds=1000, only_cross_attention=only_cross),
        "text_encoder": text_encoder(len(words)),
        "tokenizer": words,
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER, prediction_type="v_prediction"),
        "low_res_scheduler": diffusers.DDPMScheduler(
            num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"
        ),
    }


def sd(folder: Path) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1.x pipeline."""
    words = tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    return {
        "vae": vae(4, 0.18215),
        "unet": unet(in_channels=4),
        "text_encoder": text_encoder(len(words)),
        "tokenizer": words,
        "scheduler": diffusers.DDIMScheduler(**{**SCHEDULER, "beta_start": 0.00085, "beta_end": 0.012}),
    }


def sdxl(folder: Path) -> dict[str, Any]:
    """The parts of an SDXL pipeline."""
    words, second = tokenizer(folder / "tokenizer", pad="<|endoftext|>"), tokenizer(folder / "tokenizer_2")
    torch.manual_seed(3)
    projected = transformers.CLIPTextModelWithProjection(text_encoder(len(words)).config).eval()
    return {
        "vae": vae(4, 0.13025),
        "unet": unet(
            in_channels=4, cross_attention_dim=2 * CONTEXT, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        "text_encoder": text_encoder(len(words)),
        "text_encoder_2": projected,
        "tokenizer": words,
        "tokenizer_2": second,
        "scheduler": diffusers.EulerDiscreteScheduler(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            timestep_spacing="leading", steps_offset=1,
        ),
    }  # fmt: skip


def controlnet(base: Any, seed: int = 4, union: bool = False) -> Any:
    """A ControlNet for a UNet, its zero convolutions random."""
    kind = diffusers.ControlNetUnionModel if union else diffusers.ControlNetModel
    config = base.config
    names = (
        "in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups",
        "cross_attention_dim", "attention_head_dim", "use_linear_projection", "addition_embed_type",
        "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    same = {name: config[name] for name in names}
    torch.manual_seed(seed)
    more = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8, "num_control_type": 8} if union else {}
    if union:
        same |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
    net = kind(conditioning_embedding_out_channels=(4, 8, 8, 16), **same, **more)
    for name, parameter in net.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3 if "weight" in name else 0.05)
    for convolution in net.controlnet_cond_embedding.modules():  # so that what it sees shows
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.normal_(convolution.weight, std=2.0 / convolution.weight[0].numel() ** 0.5)
    return net.eval()


def with_control(folder: Path) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1.x pipeline with one ControlNet."""
    parts = sd(folder)
    return {**parts, "controlnet": controlnet(parts["unet"])}


def save(folder: Path, components: dict[str, Any]) -> None:
    """Write parts as a folder in diffusers' layout."""
    index: dict[str, Any] = {}
    for name, part in components.items():
        part.save_pretrained(folder / name)
        library = "transformers" if type(part).__module__.startswith("transformers") else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
