"""From the key names that models were published with to those of diffusers and transformers.

Each function takes one part's tensors, its prefix taken off, and gives them under the names of diffusers' module.
Nothing is read: where a layout differs too (fused projections, 1x1 convolutions, transposes), the change is made when
the tensor is. How many levels and layers there are, the keys say; no configuration is asked.

Sources: the modules of CompVis/latent-diffusion and mlfoundations/open_clip that wrote these names, and those of
diffusers and transformers that bear the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from enlarger.checkpoints.tensors import LazyTensor, Tensors

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""Inside a residual block of a UNet."""

UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    # of a ControlNet
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    "middle_block_out.0": "controlnet_mid_block",
}
"""What stands before and behind the blocks of a UNet or ControlNet."""

VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    # diffusers' own older names, which most published folders have
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Inside the attention block of an autoencoder."""

CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Inside a block of open_clip's text transformer."""


def unet(tensors: Tensors) -> Tensors:
    """A UNet or ControlNet under diffusers' names; one that has them already is given back as it is."""
    if any(name.startswith(("down_blocks.", "conv_in.")) for name in tensors):
        return tensors
    per_level = _layers_per_level(tensors)
    hints = sorted(
        {int(found[1]) for name in tensors if (found := re.match(r"input_hint_block\.(\d+)\.weight$", name))}
    )
    ends = dict(UNET_ENDS)
    if hints:
        ends |= {f"input_hint_block.{n}": f"controlnet_cond_embedding.blocks.{i}" for i, n in enumerate(hints[1:-1])}
        ends[f"input_hint_block.{hints[-1]}"] = "controlnet_cond_embedding.conv_out"
    return _renamed(tensors, lambda name: _unet_name(name, per_level, ends))


def _layers_per_level(tensors: Mapping[str, LazyTensor]) -> int:
    """Blocks of one level in the numbering of `input_blocks`: its layers and the down-sampler."""
    down = [int(found[1]) for name in tensors if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    return min(
        down,
        default=max((int(n[1]) for name in tensors if (n := re.match(r"input_blocks\.(\d+)\.", name))), default=0) + 1,
    )


def _unet_name(name: str, per_level: int, ends: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    if found := re.fullmatch(r"zero_convs\.(\d+)\.0", stem):
        return f"controlnet_down_blocks.{found[1]}.{kind}"
    found = re.fullmatch(r"(input_blocks|output_blocks|middle_block)\.(\d+)(?:\.(\d+))?\.(.+)", name)
    if not found:
        return name
    where, number, inner, rest = found[1], int(found[2]), found[3], found[4]
    if where == "middle_block":
        rest = rest if inner is None else f"{inner}.{rest}"
        part = {0: "resnets.0", 1: "attentions.0", 2: "resnets.1"}.get(number)
        return name if part is None else f"mid_block.{part}.{_inside(rest, part)}"
    if inner is None:
        return name
    if where == "input_blocks":
        level, layer = divmod(number - 1, per_level)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        block = f"down_blocks.{level}"
    else:
        level, layer = divmod(number, per_level)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
        block = f"up_blocks.{level}"
    part = f"resnets.{layer}" if inner == "0" else f"attentions.{layer}"
    return f"{block}.{part}.{_inside(rest, part)}"


def _inside(rest: str, part: str) -> str:
    """The name inside a residual block; attention blocks are named alike in both."""
    if not part.startswith("resnets"):
        return rest
    stem, _, kind = rest.rpartition(".")
    return f"{RESNET[stem]}.{kind}" if stem in RESNET else rest


def published_unet(name: str, per_level: int) -> tuple[str, ...]:
    """What the original may call a layer of diffusers' UNet: the way back of `unet`, which can fork.

    Args:
        name: Without "weight" or "bias" behind it.
        per_level: Blocks of one level: its layers, and the sampler behind them.
    """
    ends = {new: old for old, new in UNET_ENDS.items() if not old.startswith(("input_hint", "middle_block_out"))}
    if name in ends:
        return (ends[name],)
    inside = {new: old for old, new in RESNET.items()}
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, number, rest = found[1], int(found[2]), found[3]
        return (f"middle_block.{2 * number + (kind == 'attentions')}.{inside.get(rest, rest)}",)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not found:
        return ()
    blocks, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return (f"input_blocks.{(level + 1) * per_level}.0.op",)
    if kind == "upsamplers":  # behind a resnet alone, or behind its attention
        return tuple(f"output_blocks.{(level + 1) * per_level - 1}.{place}.conv" for place in (1, 2))
    block = level * per_level + number
    where = f"input_blocks.{block + 1}" if blocks == "down" else f"output_blocks.{block}"
    if kind == "attentions":
        return (f"{where}.1.{rest}",)
    return (f"{where}.0.{inside.get(rest, rest)}",)


def vae(tensors: Tensors) -> Tensors:
    """An autoencoder under diffusers' names, from the published ones or from diffusers' own older ones."""
    ups = [int(found[1]) for name in tensors if (found := re.match(r"decoder\.up\.(\d+)\.", name))]
    last = max(ups, default=0)
    made: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        new = _vae_name(name, last)
        if ".attentions.0." in new and new.endswith("weight") and len(tensor.shape) == 4:
            tensor = tensor.changed(tensor.shape[:2], lambda convolution: convolution[:, :, 0, 0])
        made[new] = tensor
    return Tensors(made, tensors.metadata, tensors.kind)


def _vae_name(name: str, last: int) -> str:
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    rest = re.sub(r"^norm_out\.", "conv_norm_out.", rest)
    if half == "encoder":
        rest = re.sub(r"^down\.(\d+)\.block\.(\d+)\.", r"down_blocks.\1.resnets.\2.", rest)
        rest = re.sub(r"^down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", rest)
    else:
        rest = re.sub(
            r"^up\.(\d+)\.block\.(\d+)\.", lambda found: f"up_blocks.{last - int(found[1])}.resnets.{found[2]}.", rest
        )
        rest = re.sub(r"^up\.(\d+)\.upsample\.", lambda found: f"up_blocks.{last - int(found[1])}.upsamplers.0.", rest)
    rest = re.sub(r"^mid\.block_([12])\.", lambda found: f"mid_block.resnets.{int(found[1]) - 1}.", rest)
    rest = re.sub(r"^mid\.attn_1\.", "mid_block.attentions.0.", rest)
    rest = rest.replace(".nin_shortcut.", ".conv_shortcut.")
    found = re.fullmatch(r"(mid_block\.attentions\.0)\.(.+)\.(weight|bias)", rest)
    if found:
        rest = f"{found[1]}.{VAE_ATTENTION.get(found[2], found[2])}.{found[3]}"
    return f"{half}.{rest}"


def clip(tensors: Tensors) -> Tensors:
    """A text encoder of transformers, with or without `text_model.` before its names: without, and no position ids."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return Tensors(
        {name: tensor for name, tensor in plain.items() if not name.endswith("position_ids")},
        tensors.metadata,
        tensors.kind,
    )


def open_clip(tensors: Tensors, *, without_last: bool) -> Tensors:
    """open_clip's text encoder under the names of transformers, without `text_model.`.

    Args:
        tensors: Names from `token_embedding.weight` on.
        without_last: Whether the last block is left out, with the projection behind it: Stable Diffusion 2 and x4
            take the states before it.
    """
    blocks = [int(found[1]) for name in tensors if (found := re.match(r"transformer\.resblocks\.(\d+)\.", name))]
    keep = max(blocks, default=-1) + (0 if without_last else 1)
    made: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if found:
            if int(found[1]) < keep:
                made.update(_clip_block(f"encoder.layers.{found[1]}", found[2], tensor))
        elif name == "token_embedding.weight":
            made["embeddings.token_embedding.weight"] = tensor
        elif name == "positional_embedding":
            made["embeddings.position_embedding.weight"] = tensor
        elif name.startswith("ln_final."):
            made[name.replace("ln_final", "final_layer_norm")] = tensor
        elif name == "text_projection" and not without_last:
            shape = (tensor.shape[1], tensor.shape[0]) if len(tensor.shape) == 2 else tensor.shape
            made["text_projection.weight"] = tensor.changed(shape, lambda matrix: matrix.T.contiguous())
        elif name not in ("text_projection", "logit_scale", "attn_mask"):
            made[name] = tensor
    return Tensors(made, tensors.metadata, tensors.kind)


def _clip_block(layer: str, name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """One tensor of a block; the fused input projection becomes three."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        third = tensor.shape[0] // 3
        return {
            f"{layer}.self_attn.{which}_proj.{kind}": tensor.changed(
                (third, *tensor.shape[1:]), _rows(i * third, third)
            )
            for i, which in enumerate("qkv")
        }
    stem, _, kind = name.rpartition(".")
    return {f"{layer}.{CLIP_BLOCK.get(stem, stem)}.{kind}": tensor}


def _rows(start: int, count: int) -> Callable[[Tensor], Tensor]:
    def cut(fused: Tensor) -> Tensor:
        return fused[start : start + count]

    return cut


def _renamed(tensors: Tensors, rule: Callable[[str], str]) -> Tensors:
    return Tensors({rule(name): tensor for name, tensor in tensors.items()}, tensors.metadata, tensors.kind)
