"""StableSR's checkpoints: which key is which part of which network. No torch here.

The published files keep the names of the code that made them. A network of diffusers or transformers has names of
its own; `...Names` translate, so that a network's own inventory says what a file must hold, and faults are told in the
file's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What is known of a published file.

    Attributes:
        name: It was published as this.
        prediction: What its UNet predicts, "epsilon" or "v_prediction".
        native: Pixels of the side of the squares that it was trained on.
    """

    name: str
    prediction: str
    native: int


CATALOG: Mapping[str, Published] = {}
"""First 16 digits of a file's SHA-256, as `enlarger inspect` prints them -> the file. None is recorded yet: there was
no published file at hand to take it from."""

UNET = "model.diffusion_model."
ENCODER = "structcond_stage_model."
AUTOENCODER = "first_stage_model."
TEXT = "cond_stage_model.model."

LEFTOVERS = re.compile(
    r"(jpeger|usm_sharpener|model_ema|loss)\..*|queue_.*|logvar|lvlb_weights"
    r"|cond_stage_model\.(model\.)?(attn_mask|text_projection|logit_scale)"
    # The schedule is computed anew, never trusted.
    r"|betas|alphas_cumprod(_prev)?|sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|scale_factor"
)
"""Keys that training leaves behind and that no network here reads."""


@dataclass(frozen=True)
class UNetNames:
    """Diffusers' names of a UNet -> the published ones.

    Attributes:
        levels: Of the network.
        blocks: Residual blocks in a level on the way down.
        attention: Levels with attention, 0 the largest.
        prefix: Before every published name.
    """

    levels: int
    blocks: int
    attention: frozenset[int]
    prefix: str = UNET

    def published(self, ours: str) -> str:
        """The published key of one of diffusers' keys."""
        for pattern, place in (
            (r"time_embedding\.linear_([12])\.(.*)", lambda m: f"time_embed.{2 * int(m[1]) - 2}.{m[2]}"),
            (r"conv_in\.(.*)", lambda m: f"input_blocks.0.0.{m[1]}"),
            (r"conv_norm_out\.(.*)", lambda m: f"out.0.{m[1]}"),
            (r"conv_out\.(.*)", lambda m: f"out.2.{m[1]}"),
            (r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", lambda m: f"{self._down(m)}.0.{_in_block(m[3])}"),
            (r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.*)", lambda m: f"{self._down(m)}.1.{m[3]}"),
            (r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", lambda m: f"{self._down(m, self.blocks)}.0.op.{m[2]}"),
            (r"mid_block\.resnets\.(\d)\.(.*)", lambda m: f"middle_block.{2 * int(m[1])}.{_in_block(m[2])}"),
            (r"mid_block\.attentions\.0\.(.*)", lambda m: f"middle_block.1.{m[1]}"),
            (r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)", lambda m: f"{self._up(m)}.0.{_in_block(m[3])}"),
            (r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.*)", lambda m: f"{self._up(m)}.1.{m[3]}"),
            (r"up_blocks\.(\d+)\.upsamplers\.(0)\.conv\.(.*)", self._upsampler),
        ):
            found = re.fullmatch(pattern, ours)
            if found:
                return self.prefix + place(found)
        raise KeyError(ours)

    def _down(self, found: re.Match[str], place: int | None = None) -> str:
        inner = int(found[2]) if place is None else place
        return f"input_blocks.{1 + int(found[1]) * (self.blocks + 1) + inner}"

    def _up(self, found: re.Match[str], place: int | None = None) -> str:
        inner = int(found[2]) if place is None else place
        return f"output_blocks.{int(found[1]) * (self.blocks + 1) + inner}"

    def _upsampler(self, found: re.Match[str]) -> str:
        level = self.levels - 1 - int(found[1])
        return f"{self._up(found, self.blocks)}.{2 if level in self.attention else 1}.conv.{found[3]}"


_IN_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _in_block(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{_IN_BLOCK.get(first, first)}.{rest}"


_IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@dataclass(frozen=True)
class AutoencoderNames:
    """Diffusers' names of an autoencoder -> the published ones.

    Attributes:
        levels: Of the network.
        prefix: Before every published name; "" in CFW files.
    """

    levels: int
    prefix: str = AUTOENCODER

    def published(self, ours: str) -> str:
        """The published key of one of diffusers' keys."""
        name = ours.replace("conv_norm_out", "norm_out")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"mid_block\.attentions\.0\.", "mid.attn_1.", name)
        for theirs, published in _IN_ATTENTION.items():
            name = name.replace(f"attn_1.{theirs}.", f"attn_1.{published}.")
        name = name.replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{self._up(m)}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{self._up(m)}.upsample.", name)
        return self.prefix + name

    def _up(self, found: re.Match[str]) -> int:
        return self.levels - 1 - int(found[1])


_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Stand one below the other in one published tensor."""


@dataclass(frozen=True)
class TextNames:
    """Transformers' names of a CLIP text encoder -> OpenCLIP's.

    Attributes:
        prefix: Before every published name.
    """

    prefix: str = TEXT

    def published(self, ours: str) -> str:
        """The published key of one of transformers' keys; three of them share one (`PROJECTIONS`)."""
        name = ours.removeprefix("text_model.")
        plain = {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "final_layer_norm.weight": "ln_final.weight",
            "final_layer_norm.bias": "ln_final.bias",
        }
        if name in plain:
            return self.prefix + plain[name]
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            raise KeyError(ours)
        if found[2].removeprefix("self_attn.") in PROJECTIONS:
            inner = f"attn.in_proj_{found[3]}"
        else:
            inner = f"{_IN_LAYER[found[2]]}.{found[3]}"
        return f"{self.prefix}transformer.resblocks.{found[1]}.{inner}"

    def unread(self, key: str, layers: int) -> bool:
        """Whether a published key belongs to a block that the penultimate context leaves out."""
        found = re.match(re.escape(self.prefix) + r"transformer\.resblocks\.(\d+)\.", key)
        return found is not None and int(found[1]) >= layers


def leftover(key: str) -> bool:
    """Whether a key is a leftover of training, to be ignored."""
    return LEFTOVERS.fullmatch(key) is not None


def described(faults: Mapping[str, Iterable[str]], shown: int = 5) -> str:
    """All faults in one line: "missing: a, b and 3 more; unexpected: c"."""
    parts = []
    for what, names in faults.items():
        listed = list(names)
        if listed:
            more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
            parts.append(f"{what}: {', '.join(listed[:shown])}{more}")
    return "; ".join(parts)
