"""LoRA: small changes of a model's weights, kept as products of two thin matrices.

W' = W + scale * (alpha / rank) * B A, with A (rank, in) and B (out, rank); for a convolution A has the kernel. Hu et
al. 2021, arXiv 2106.09685, section 4.1; kernels taken apart by a middle tensor as LyCORIS writes them ("LoCon", arXiv
2309.14859). The change is added to the weights once, in float32, so that a step costs what it costs without.

Files name layers in five ways: kohya's with underscores, after diffusers' or after the original's modules; peft's; and
diffusers' two older ones. The model's own modules decide what a name means.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.checkpoints import keys
from enlarger.checkpoints.tensors import LazyTensor, Tensors
from enlarger.errors import ModelError

OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "glora_": "GLoRA",
    "a1.weight": "GLoRA",
    "on_input": "(IA)^3",
    "diff": "full differences of weights",
    "diff_b": "full differences of weights",
    "w_norm": "differences of norms",
    "b_norm": "differences of norms",
    "lora_B.bias": "biases",
}
"""What follows a layer's name in files of kinds that cannot be added as products, or not by these names."""

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
"""What stands before a layer's name, and the part of the model that it says."""

_FACTOR = re.compile(
    r"(?P<path>.+?)(?:\.|_)(?P<factor>lora_down|lora_up|lora_mid|lora_A|lora_B"
    r"|lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up|lora_?\.down|lora_?\.up)"
    r"(?:\.default(?:_\d+)?)?\.weight"
)
_ROLES = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}


@dataclass(frozen=True)
class Change:
    """What a file says of one layer.

    Attributes:
        part: "unet", "text_encoder" or "text_encoder_2".
        path: The layer's name in that part, as the file has it, dots made underscores.
        down: A, (rank, in) or (rank, in, k, k).
        up: B, (out, rank) or (out, rank, 1, 1).
        mid: (rank, rank, k, k) between them, where the kernel is taken apart.
        alpha: Divided by the rank, it is the file's own scale; None is the rank.
        rank_root: Whether it is divided by the root of the rank (rsLoRA).
    """

    part: str
    path: str
    down: LazyTensor
    up: LazyTensor
    mid: LazyTensor | None = None
    alpha: float | None = None
    rank_root: bool = False

    @property
    def scale(self) -> float:
        """The file's own factor."""
        rank = self.down.shape[0]
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.rank_root else rank)

    def fits(self, weight: Tensor) -> bool:
        """Whether the product has the weight's shape; a matrix may stand for a 1x1 kernel."""
        shape = [1, 1] if self.mid is None else list(self.mid.shape[2:])
        kernel = list(self.down.shape[2:]) or [1, 1]
        made = (self.up.shape[0], self.down.shape[1], *(a * b for a, b in zip(shape, kernel, strict=True)))
        rank = self.down.shape[0]
        return (*weight.shape, 1, 1)[:4] == made and self.up.shape[1] == rank

    def of(self, weight: Tensor) -> Tensor:
        """The change of a weight that it fits, in its shape, float32, without any scale."""
        down, up = (each.load(torch.float32, weight.device) for each in (self.down, self.up))
        if self.mid is None:
            return (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        mid = self.mid.load(torch.float32, weight.device)
        return torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1)).view(weight.shape)


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        name: For records and errors.
        changes: One for each layer.
    """

    name: str
    changes: tuple[Change, ...] = field(repr=False)

    def parts(self) -> list[str]:
        """The parts of a model that it changes."""
        return list(dict.fromkeys(change.part for change in self.changes))

    def apply(self, components: Mapping[str, Any], scale: float) -> tuple[str, ...]:
        """Add it to the weights of modules.

        Args:
            components: Part -> diffusers' or transformers' module, whose parameters are replaced, never written to.
            scale: Factor of the whole; 0 changes nothing.

        Returns:
            A line for the user where layers have no place in the model.

        Raises:
            ModelError: It was made for another model: a layer has another size, or none is known.
        """
        homeless: list[str] = []
        layers = {part: named(part, components[part]) for part in self.parts() if components.get(part) is not None}
        for change in self.changes:
            layer = layers.get(change.part, {}).get(change.path)
            if layer is None:
                homeless.append(f"{change.part}'s {change.path}")
                continue
            weight = layer.weight
            assert isinstance(weight, Tensor)
            if not change.fits(weight):
                here = " x ".join(map(str, weight.shape))
                raise ModelError(
                    f"LoRA {self.name} was made for another model: it changes {change.path} by "
                    f"{change.up.shape[0]} x {change.down.shape[1]}, and here it is {here}"
                )
            if scale:
                changed = weight.float() + scale * change.scale * change.of(weight)
                layer.weight = nn.Parameter(changed.to(weight.dtype), requires_grad=False)
        if len(homeless) == len(self.changes):
            raise ModelError(
                f"LoRA {self.name} was made for another model: none of its {len(homeless)} layers is here, such as "
                f"{homeless[0]}"
            )
        if homeless:
            told = f"{len(homeless)} of {len(self.changes)} layers have no place in this model, such as {homeless[0]}"
            return (f"LoRA {self.name}: {told}; the others are used",)
        return ()


def read_lora(tensors: Tensors, name: str) -> Lora:
    """The layers of a LoRA file.

    Args:
        tensors: As the file has them.
        name: For records and errors.

    Raises:
        ModelError: Another kind of change (LoHa, LoKr, DoRA, ...), or a layer with one factor only.
    """
    factors: dict[str, dict[str, LazyTensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found:
            role = _ROLES[re.split(r"[._]", found["factor"])[-1]]
            path = f"{found['path']}_lora" if found["factor"].startswith("lora_.") else found["path"]
            factors.setdefault(path, {})[role] = tensor
        elif key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = float(tensor.load(torch.float32))
        else:
            raise ModelError(f"{name} {_stranger(key)}")
    said = _Said(tensors)
    changes = []
    for path, both in factors.items():
        if "down" not in both or "up" not in both:
            raise ModelError(f"LoRA {name} is incomplete: {path} has only one of its two factors; fetch it again")
        part, layer = _place(path)
        alpha, root = alphas.get(path), False
        if alpha is None:
            alpha, root = said.alpha(part, layer)
        changes.append(
            Change(part, layer.replace(".", "_"), both["down"], both["up"], both.get("mid"), alpha, root)
        )  # fmt: skip
    return Lora(name, tuple(changes))


def _stranger(key: str) -> str:
    """What is to be said of a key that is no factor."""
    for mark, kind in OTHER_KINDS.items():
        if re.search(rf"\.{re.escape(mark)}", key):
            return f"holds {kind}, which cannot be used: only LoRA's products can; take the LoRA version of it"
    return f"is no LoRA that is known here: {key[:80]} is none of its tensors"


def _place(path: str) -> tuple[str, str]:
    """Part and layer of a path; without a known beginning it is the UNet's."""
    path = path.removeprefix("base_model.model.")
    prefix = next((prefix for prefix in PREFIXES if path.startswith(prefix)), "")
    part, layer = PREFIXES.get(prefix, "unet"), path.removeprefix(prefix)
    # Diffusers' oldest files name attention's processor instead of the layer.
    layer = re.sub(r"\.processor\.to_out(_lora)?$", ".to_out.0", layer)
    layer = re.sub(r"\.processor\.(to_[qkv])(_lora)?$", r".\1", layer)
    if part != "unet":
        layer = re.sub(r"^text_model[._]", "", layer)
    return part, layer


class _Said:
    """What a file's metadata says of alphas, as diffusers writes peft's configuration."""

    def __init__(self, tensors: Tensors) -> None:
        try:
            found = json.loads(tensors.metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            found = {}
        self.said: Mapping[str, Any] = found if isinstance(found, dict) else {}

    def alpha(self, part: str, layer: str) -> tuple[float | None, bool]:
        """Alpha of a layer, None where nothing is said; and whether the rank's root divides it."""
        root = bool(self.said.get(f"{part}.use_rslora"))
        for pattern, alpha in (self.said.get(f"{part}.alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                return float(alpha), root
        alpha = self.said.get(f"{part}.lora_alpha")
        return None if alpha is None else float(alpha), root


def named(part: str, module: nn.Module) -> dict[str, nn.Module]:
    """A part's layers with weights under every name that files have for them, dots made underscores."""
    config: Any = getattr(module, "config", None)
    layers: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            for alias in _aliases(part, name, config):
                layers[alias.replace(".", "_")] = layer
    return layers


def _aliases(part: str, name: str, config: Any) -> Iterator[str]:
    yield name
    if part != "unet":
        yield name.removeprefix("text_model.")
    elif isinstance(config.layers_per_block, int):
        yield from keys.published_unet(name, config.layers_per_block + 1)
