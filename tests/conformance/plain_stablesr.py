"""StableSR by plain arithmetic on tensors under published names: networks, processes, tiles; from the specification.

Nothing of the product is used here, so that the product can be compared with it on sizes that nobody recorded. It is
not fast, and knows no device, no dtype but float32 and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import silu

Weights = Mapping[str, Tensor]
Config = Mapping[str, Any]
Predict = Callable[[Tensor, int], Tensor]


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w[f"{name}.bias"], stride, weight.shape[-1] // 2)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return functional.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def sinusoid(t: Tensor, width: int) -> Tensor:
    half = width // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


def embedded(w: Weights, t: Tensor, width: int) -> Tensor:
    return linear(w, "time_embed.2", silu(linear(w, "time_embed.0", sinusoid(t, width))))


def block(w: Weights, name: str, x: Tensor, e: Tensor, told: Tensor | None = None) -> Tensor:
    """Residual block; with a map, SPADE acts on what its second convolution gives."""
    u = conv(w, f"{name}.in_layers.2", silu(norm(w, f"{name}.in_layers.0", x)))
    u = u + linear(w, f"{name}.emb_layers.1", silu(e))[:, :, None, None]
    u = conv(w, f"{name}.out_layers.3", silu(norm(w, f"{name}.out_layers.0", u)))
    if told is not None:
        a = torch.relu(conv(w, f"{name}.spade.mlp_shared.0", told))
        gamma, beta = (conv(w, f"{name}.spade.mlp_{each}", a) for each in ("gamma", "beta"))
        u = norm(w, f"{name}.spade.param_free_norm", u) * (1 + gamma) + beta
    return u + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


# --- the time-aware encoder -------------------------------------------------------------------------------------------


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention whose heads lie one behind the other, each with its query, key and value."""
    size, width = x.shape, x.shape[1] // heads
    qkv = functional.conv1d(norm(w, f"{name}.norm", x).flatten(2), w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    outs = []
    for head in range(heads):
        q, k, v = qkv[:, 3 * width * head : 3 * width * (head + 1)].split(width, 1)
        seen = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / width**0.5, -1)
        outs.append(torch.einsum("bij,bcj->bci", seen, v))
    out = functional.conv1d(torch.cat(outs, 1), w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
    return x + out.reshape(size)


def encoder(weights: Weights, config: Config, latent: Tensor, t: Tensor) -> list[Tensor]:
    """One map for each level, the largest first."""
    w, heads = below(weights, "structcond_stage_model."), config["num_heads"]
    e = embedded(w, t, config["model_channels"])
    x, number, kept = conv(w, "input_blocks.0.0", latent), 1, []
    for level in range(len(config["channel_mult"])):
        if level:
            x, number = conv(w, f"input_blocks.{number}.0.op", x, 2), number + 1
        for _ in range(config["num_res_blocks"]):
            x = block(w, f"input_blocks.{number}.0", x, e)
            if 2**level in config["attention_resolutions"]:
                x = attention(w, f"input_blocks.{number}.1", x, heads)
            number += 1
        kept.append(x)
    x = block(w, "middle_block.0", kept.pop(), e)
    kept.append(block(w, "middle_block.2", attention(w, "middle_block.1", x, heads), e))
    return [block(w, f"fea_tran.{place}", x, e) for place, x in enumerate(kept)]


# --- the UNet ---------------------------------------------------------------------------------------------------------


def attend(w: Weights, name: str, x: Tensor, context: Tensor, head: int) -> Tensor:
    q, k, v = (linear(w, f"{name}.to_{each}", y) for each, y in (("q", x), ("k", context), ("v", context)))
    outs = []
    for at in range(0, q.shape[-1], head):
        part = slice(at, at + head)
        seen = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / head**0.5, -1)
        outs.append(seen @ v[..., part])
    return linear(w, f"{name}.to_out.0", torch.cat(outs, -1))


def transformer(w: Weights, name: str, x: Tensor, context: Tensor, head: int) -> Tensor:
    y = norm(w, f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2)
    y, inner = linear(w, f"{name}.proj_in", y), f"{name}.transformer_blocks.0"
    z = layer_norm(w, f"{inner}.norm1", y)
    y = y + attend(w, f"{inner}.attn1", z, z, head)
    y = y + attend(w, f"{inner}.attn2", layer_norm(w, f"{inner}.norm2", y), context, head)
    value, gate = linear(w, f"{inner}.ff.net.0.proj", layer_norm(w, f"{inner}.norm3", y)).chunk(2, -1)
    y = y + linear(w, f"{inner}.ff.net.2", value * functional.gelu(gate))
    return x + linear(w, f"{name}.proj_out", y).transpose(1, 2).reshape(x.shape)


def unet(
    weights: Weights,
    config: Config,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    told: Sequence[Tensor],
    seen: dict[str, Tensor] | None = None,
) -> Tensor:
    """The prediction; `seen` gets what the blocks give, by their published names."""
    w, seen = below(weights, "model.diffusion_model."), {} if seen is None else seen
    levels, blocks, head = len(config["channel_mult"]), config["num_res_blocks"], config["num_head_channels"]
    e = seen["time_embed"] = embedded(w, t, config["model_channels"])

    def at(name: str, x: Tensor, level: int) -> Tensor:
        x = block(w, f"{name}.0", x, e, told[level])
        if 2**level in config["attention_resolutions"]:
            x = transformer(w, f"{name}.1", x, context, head)
        return x

    x, number = conv(w, "input_blocks.0.0", x), 1
    skips = [x]
    for level in range(levels):
        for _ in range(blocks):
            x = seen[f"input_blocks.{number}"] = at(f"input_blocks.{number}", x, level)
            skips.append(x)
            number += 1
        if level < levels - 1:
            x = seen[f"input_blocks.{number}"] = conv(w, f"input_blocks.{number}.0.op", x, 2)
            skips.append(x)
            number += 1
    x = block(w, "middle_block.0", x, e, told[-1])
    x = transformer(w, "middle_block.1", x, context, head)
    x = seen["middle_block"] = block(w, "middle_block.2", x, e, told[-1])
    for number in range(levels * (blocks + 1)):
        level, name = levels - 1 - number // (blocks + 1), f"output_blocks.{number}"
        x = at(name, torch.cat([x, skips.pop()], 1), level)
        if level and number % (blocks + 1) == blocks:
            x = functional.interpolate(x, size=skips[-1].shape[2:], mode="nearest")
            x = conv(w, f"{name}.{2 if 2**level in config['attention_resolutions'] else 1}.conv", x)
        seen[name] = x
    return conv(w, "out.2", silu(norm(w, "out.0", x)))


# --- the autoencoder, CFW and the text tower --------------------------------------------------------------------------


def pair(w: Weights, name: str, x: Tensor, skip: str) -> Tensor:
    u = conv(w, f"{name}.conv1", silu(norm(w, f"{name}.norm1", x, 1e-6)))
    u = conv(w, f"{name}.conv2", silu(norm(w, f"{name}.norm2", u, 1e-6)))
    return u + (conv(w, f"{name}.{skip}", x) if f"{name}.{skip}.weight" in w else x)


def middle(w: Weights, name: str, x: Tensor) -> Tensor:
    x = pair(w, f"{name}.block_1", x, "nin_shortcut")
    y = norm(w, f"{name}.attn_1.norm", x, 1e-6)
    q, k, v = (conv(w, f"{name}.attn_1.{each}", y).flatten(2) for each in "qkv")
    seen = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, -1)
    x = x + conv(w, f"{name}.attn_1.proj_out", torch.einsum("bij,bcj->bci", seen, v).reshape(x.shape))
    return pair(w, f"{name}.block_2", x, "nin_shortcut")


def encode(w: Weights, config: Config, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Moments of pixels in -1..1, and what each level gives; names have no prefix."""
    levels, x, features = len(config["ch_mult"]), conv(w, "encoder.conv_in", pixels), []
    for level in range(levels):
        for inner in range(config["num_res_blocks"]):
            x = pair(w, f"encoder.down.{level}.block.{inner}", x, "nin_shortcut")
        features.append(x)
        if level < levels - 1:
            name = f"encoder.down.{level}.downsample.conv"
            x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), w[f"{name}.weight"], w[f"{name}.bias"], 2)
    x = silu(norm(w, "encoder.norm_out", middle(w, "encoder.mid", x), 1e-6))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", x)), features


def fused(w: Weights, name: str, feature: Tensor, x: Tensor) -> Tensor:
    y = pair(w, f"{name}.encode_enc_1", torch.cat([feature, x], 1), "conv_out")
    number = 0
    while f"{name}.encode_enc_2.{number}.rdb1.conv1.weight" in w:
        start = y
        for dense in (1, 2, 3):
            parts, place = [y], f"{name}.encode_enc_2.{number}.rdb{dense}"
            for layer in (1, 2, 3, 4):
                made = conv(w, f"{place}.conv{layer}", torch.cat(parts, 1))
                parts.append(functional.leaky_relu(made, 0.2))
            y = y + 0.2 * conv(w, f"{place}.conv5", torch.cat(parts, 1))
        y, number = start + 0.2 * y, number + 1
    return pair(w, f"{name}.encode_enc_3", y, "conv_out")


def decode(w: Weights, config: Config, latent: Tensor, features: Sequence[Tensor] = (), weight: float = 0.0) -> Tensor:
    """Pixels in -1..1 of an unscaled latent; with a weight, the encoder's features are fused in."""
    levels = len(config["ch_mult"])
    x = middle(w, "decoder.mid", conv(w, "decoder.conv_in", conv(w, "post_quant_conv", latent)))
    for level in reversed(range(levels)):
        for inner in range(config["num_res_blocks"] + 1):
            x = pair(w, f"decoder.up.{level}.block.{inner}", x, "nin_shortcut")
        if weight and 0 < level < levels - 1:
            x = x + weight * fused(w, f"decoder.fusion_layer_{level}", features[level], x)
        if level:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = conv(w, f"decoder.up.{level}.upsample.conv", x)
    return conv(w, "decoder.conv_out", silu(norm(w, "decoder.norm_out", x, 1e-6)))


def text(weights: Weights, config: Config, ids: Tensor) -> Tensor:
    """The penultimate context of token ids (B, L)."""
    w = below(weights, "cond_stage_model.model.")
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    width, length = config["width"] // config["heads"], ids.shape[1]
    mask = torch.full((length, length), -math.inf).triu(1)
    for layer in range(config["layers"] - 1):
        name = f"transformer.resblocks.{layer}"
        y = layer_norm(w, f"{name}.ln_1", x)
        qkv = functional.linear(y, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
        q, k, v = qkv.chunk(3, -1)
        outs = []
        for at in range(0, config["width"], width):
            part = slice(at, at + width)
            seen = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / width**0.5 + mask, -1)
            outs.append(seen @ v[..., part])
        x = x + linear(w, f"{name}.attn.out_proj", torch.cat(outs, -1))
        y = linear(w, f"{name}.mlp.c_fc", layer_norm(w, f"{name}.ln_2", x))
        x = x + linear(w, f"{name}.mlp.c_proj", functional.gelu(y))
    return layer_norm(w, "ln_final", x)


# --- processes --------------------------------------------------------------------------------------------------------


def betas_of(schedule: Config) -> Any:
    count, low, high = schedule["timesteps"], schedule["linear_start"] ** 0.5, schedule["linear_end"] ** 0.5
    return np.array([(low + step / (count - 1) * (high - low)) ** 2 for step in range(count)])


def shares_of(betas: Any) -> Any:
    """Alpha-bar, by a loop."""
    made, share = [], 1.0
    for beta in betas:
        share *= 1 - beta
        made.append(share)
    return np.array(made)


def spaced(count: int, training: int) -> list[int]:
    stride, place, kept = (training - 1) / (count - 1), 0.0, []
    for _ in range(count):
        kept.append(round(place))
        place += stride
    return kept


def respaced(shares: Any, kept: Sequence[int]) -> Any:
    """Betas of the chain that keeps some steps; in float32, as published."""
    single = shares.astype(np.float32)
    return np.array(
        [1 - single[step] / (single[kept[at - 1]] if at else np.float32(1)) for at, step in enumerate(kept)]
    ).astype(np.float64)


def tables(betas: Any) -> dict[str, Any]:
    """Everything that follows from a chain's betas, entry by entry."""
    rows: dict[str, list[float]] = {}
    before = 1.0
    for beta in betas:
        share = before * (1 - beta)
        variance = beta * (1 - before) / (1 - share)
        for name, value in {
            "betas": beta,
            "alphas_cumprod": share,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": share**0.5,
            "sqrt_one_minus_alphas_cumprod": (1 - share) ** 0.5,
            "log_one_minus_alphas_cumprod": math.log(1 - share),
            "sqrt_recip_alphas_cumprod": share**-0.5,
            "sqrt_recipm1_alphas_cumprod": (1 / share - 1) ** 0.5,
            "posterior_variance": variance,
            "posterior_log_variance_clipped": math.log(max(variance, 1e-20)),
            "posterior_mean_coef1": beta * before**0.5 / (1 - share),
            "posterior_mean_coef2": (1 - before) * (1 - beta) ** 0.5 / (1 - share),
        }.items():
            rows.setdefault(name, []).append(value)
        before = share
    return {name: np.array(values) for name, values in rows.items()}


def clean_of(output: Tensor, x: Tensor, share: float, kind: str) -> Tensor:
    if kind == "v":
        return share**0.5 * x - (1 - share) ** 0.5 * output
    return (x - (1 - share) ** 0.5 * output) / share**0.5


def ddpm(
    x: Tensor,
    kept: Sequence[int],
    shares: Any,
    kind: str,
    predict: Predict,
    noises: Sequence[Any],
    pull: Callable[[Tensor, int], Tensor] = lambda clean, index: clean,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Clean estimate, mean and state of each step, the noisiest first; as many as there is noise for."""
    table = tables(respaced(shares, kept))
    for number, noise in enumerate(noises):
        index = len(noises) - 1 - number
        clean = pull(clean_of(predict(x, kept[index]), x, table["alphas_cumprod"][index], kind), index)
        mean = table["posterior_mean_coef1"][index] * clean + table["posterior_mean_coef2"][index] * x
        x = mean + (index > 0) * math.exp(table["posterior_log_variance_clipped"][index] / 2) * torch.from_numpy(noise)
        yield clean, mean, x


def ddim(
    x: Tensor,
    told: Sequence[int],
    shares: Any,
    before: Any,
    sigmas: Any,
    kind: str,
    predict: Predict,
    noises: Sequence[Any] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clean estimate and state of each step; the networks are told other timesteps than the coefficients are of."""
    for index in reversed(range(len(told))):
        share, sigma, output = float(shares[index]), float(sigmas[index]), predict(x, told[index])
        noise = share**0.5 * output + (1 - share) ** 0.5 * x if kind == "v" else output
        clean = (x - (1 - share) ** 0.5 * noise) / share**0.5
        last = float(before[index])
        x = last**0.5 * clean + (1 - last - sigma**2) ** 0.5 * noise
        if noises is not None:
            x = x + sigma * torch.from_numpy(noises[len(told) - 1 - index])
        yield clean, x


# --- tiles ------------------------------------------------------------------------------------------------------------


def starts(length: int, side: int, stride: int) -> list[int]:
    """Every stride, those that reach beyond the end moved back to it; at 0 where one window is enough."""
    if length <= side:
        return [0]
    return list(dict.fromkeys(min(at, length - side) for at in range(0, length, stride)))


def windows(height: int, width: int, side: int, stride: int) -> list[tuple[int, int, int, int]]:
    return [
        (top, top + side, left, left + side)
        for left in starts(width, side, stride)
        for top in starts(height, side, stride)
    ]


def bell(side: int) -> Any:
    """Weight of a window's cells, one by one."""
    made = np.empty((side, side))
    for row in range(side):
        for column in range(side):
            away = (row - side / 2) ** 2 + (column - (side - 1) / 2) ** 2
            made[row, column] = math.exp(-away / side**2 / 0.02) / (2 * math.pi * 0.01)
    return made


def merged(parts: Sequence[Tensor], places: Sequence[tuple[int, int, int, int]], size: Sequence[int], w: Any) -> Tensor:
    total, weight = torch.zeros(*size, dtype=torch.float64), torch.zeros(*size, dtype=torch.float64)
    for part, (top, bottom, left, right) in zip(parts, places, strict=True):
        total[..., top:bottom, left:right] += part * torch.as_tensor(w)
        weight[..., top:bottom, left:right] += torch.as_tensor(w)
    return (total / weight).float()
