"""StableSR's five networks: their sizes, how they are built, and how a checkpoint's tensors find their places.

A network is built without memory first (torch's meta device); its own inventory says what the files must hold. Then
tensor after tensor is read. So everything that is wrong is told together and before any work, whatever the sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enlarger.checkpoints.stablesr import (
    AUTOENCODER,
    ENCODER,
    PROJECTIONS,
    AutoencoderNames,
    TextNames,
    UNetNames,
    described,
    leftover,
)
from enlarger.checkpoints.tensors import LazyTensor
from enlarger.errors import ModelError
from enlarger.networks.cfw import FusionShape, Wrapping
from enlarger.networks.spade import modulate
from enlarger.networks.time_aware_encoder import EncoderShape, TimeAwareEncoder

Lazy = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class UNetShape:
    """Hyperparameters of the denoising UNet; the defaults are those of Stable Diffusion 2.1.

    Attributes:
        inputs: channels of the latent.
        outputs: channels of the prediction.
        channels: width of the first level.
        multipliers: width of each level in units of `channels`.
        blocks: residual blocks in a level on the way down.
        attention: how many times smaller than the latent a level is that has attention.
        head: channels of one head; 0 where the number of heads is the same everywhere.
        context: channels of the text.
        heads: of every attention, where that is so.
        depth: transformer blocks in an attention.
        linear: whether an attention is entered and left by linear layers; else by convolutions of one cell.
    """

    inputs: int = 4
    outputs: int = 4
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    head: int = 64
    context: int = 1024
    heads: int = 0
    depth: int = 1
    linear: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def attended(self) -> frozenset[int]:
        """Levels with attention."""
        return frozenset(level for level in range(len(self.multipliers)) if 2**level in self.attention)


@dataclass(frozen=True)
class AutoencoderShape:
    """Hyperparameters of the autoencoder; the defaults are those of Stable Diffusion.

    Attributes:
        channels: width of the first convolution.
        multipliers: width of each level in units of `channels`; the picture's own size first.
        blocks: residual blocks in a level of the encoder; the decoder has one more.
        latent: channels of the latent.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 4

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class TextShape:
    """Hyperparameters of the text tower; the defaults are those of OpenCLIP's ViT-H/14.

    Attributes:
        width: of a token.
        heads: of its attention.
        layers: of which the last is left out.
        vocabulary: known tokens.
        length: tokens that are read.
        start: id that begins a text.
        end: id that ends it.
        pad: id that fills the rest.
    """

    width: int = 1024
    heads: int = 16
    layers: int = 24
    vocabulary: int = 49408
    length: int = 77
    start: int = 49406
    end: int = 49407
    pad: int = 0


@dataclass(frozen=True)
class Description:
    """The whole model; the defaults are the published ones.

    Attributes:
        unet: The denoising UNet.
        encoder: The time-aware encoder.
        autoencoder: The autoencoder.
        fusion: The fusion layers of CFW.
        text: The text tower.
        latent_scale: What a latent is multiplied by.
        betas: First and last beta of the training's schedule, and its steps.
        prediction: "epsilon", "v_prediction", or "" when nothing says it.
        native: Pixels of the square that it was trained on; 0 when nothing says it.
    """

    unet: UNetShape = UNetShape()
    encoder: EncoderShape = field(default_factory=EncoderShape)
    autoencoder: AutoencoderShape = AutoencoderShape()
    fusion: FusionShape = field(default_factory=FusionShape)
    text: TextShape = TextShape()
    latent_scale: float = 0.18215
    betas: tuple[float, float, int] = (0.00085, 0.012, 1000)
    prediction: str = ""
    native: int = 0

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Description:
        """The description that a configuration gives, in the words of the published ones; what is absent is published.

        Raises:
            ModelError: A value has no sense.
        """
        try:
            return cls._of_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the configuration beside the model makes no sense: {error}") from error

    @classmethod
    def _of_config(cls, config: Mapping[str, Any]) -> Description:
        unet, encoder = config.get("unet", {}), config.get("structcond", {})
        first, text = config.get("first_stage", {}).get("ddconfig", {}), config.get("text", {})
        cfw, schedule = config.get("cfw", {}), config.get("schedule", {})
        _check_known({"unet": unet, "structcond": encoder, "schedule": schedule})
        other = cfw.get("ddconfig", first)
        if any(other.get(name) != first.get(name) for name in ("ch", "ch_mult", "num_res_blocks", "z_channels")):
            raise ValueError("cfw has another autoencoder than first_stage")
        unet_head, encoder_head = unet.get("num_head_channels", 64), encoder.get("num_head_channels", -1)
        plain, e, v, t = UNetShape(), EncoderShape(), AutoencoderShape(), TextShape()
        start, end, count = cls.betas
        return cls(
            UNetShape(
                int(unet.get("in_channels", plain.inputs)),
                int(unet.get("out_channels", plain.outputs)),
                int(unet.get("model_channels", plain.channels)),
                tuple(map(int, unet.get("channel_mult", plain.multipliers))),
                int(unet.get("num_res_blocks", plain.blocks)),
                tuple(map(int, unet.get("attention_resolutions", plain.attention))),
                max(0, int(unet_head)),
                int(unet.get("context_dim", plain.context)),
                int(unet["num_heads"]) if unet_head < 1 else 0,
                int(unet.get("transformer_depth", plain.depth)),
                bool(unet.get("use_linear_in_transformer", plain.linear)),
            ),
            EncoderShape(
                int(encoder.get("in_channels", e.inputs)),
                int(encoder.get("model_channels", e.channels)),
                tuple(map(int, encoder.get("channel_mult", e.multipliers))),
                int(encoder.get("num_res_blocks", e.blocks)),
                tuple(map(int, encoder.get("attention_resolutions", e.attention))),
                int(encoder.get("num_heads", e.heads)),
                int(encoder.get("out_channels", e.outputs)),
                max(0, int(encoder_head)),
            ),
            AutoencoderShape(
                int(first.get("ch", v.channels)),
                tuple(map(int, first.get("ch_mult", v.multipliers))),
                int(first.get("num_res_blocks", v.blocks)),
                int(first.get("z_channels", v.latent)),
            ),
            FusionShape(int(cfw.get("num_fuse_block", 2)), int(cfw.get("num_grow_ch", 32))),
            TextShape(
                int(text.get("width", t.width)),
                int(text.get("heads", t.heads)),
                int(text.get("layers", t.layers)),
                int(text.get("vocab_size", t.vocabulary)),
                int(text.get("context_length", t.length)),
                int(text.get("start_token", t.start)),
                int(text.get("end_token", t.end)),
                int(text.get("pad_token", t.pad)),
            ),
            float(config.get("scale_factor", cls.latent_scale)),
            (
                float(schedule.get("linear_start", start)),
                float(schedule.get("linear_end", end)),
                int(schedule.get("timesteps", count)),
            ),
            PREDICTIONS[str(config.get("parameterization", "eps"))],
            int(config.get("image_size", 512)),
        )


PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""A configuration's word for what the network predicts -> ours."""


KNOWN: Mapping[str, Mapping[str, Any]] = {
    "unet": {"use_spatial_transformer": True, "dims": 2, "use_scale_shift_norm": False},
    "structcond": {
        "dims": 2,
        "conv_resample": True,
        "use_scale_shift_norm": False,
        "resblock_updown": False,
        "use_new_attention_order": False,
    },
    "schedule": {"v_posterior": 0, "clip_denoised": False},
}
"""Part -> what its configuration may say of what has one form here."""


def _check_known(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what is built otherwise than anything published.

    Raises:
        ValueError: A part is.
    """
    for part, config in parts.items():
        for name, value in KNOWN[part].items():
            if config.get(name, value) != value:
                raise ValueError(f"{part}.{name} is {config[name]}, and nothing published has other than {value}")


def described_beside(model: Path) -> Description | None:
    """The description that NAME.json or config.json beside the model gives; None if neither speaks of StableSR.

    Raises:
        ModelError: Such a file is damaged.
    """
    for path in (model.with_suffix(".json"), model.with_name("config.json")):
        if path.is_file():
            try:
                config = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise ModelError(f"{path.name} beside {model.name} is no JSON: {error}") from error
            if isinstance(config, dict) and "structcond" in config:
                return Description.of_config(config)
    return None


# --- building, without memory ---------------------------------------------------------------------------------------


def build_unet(shape: UNetShape, map_channels: int) -> nn.Module:
    """Diffusers' UNet with a modulation in each of its residual blocks, on the meta device."""
    from diffusers import UNet2DConditionModel

    attended = [level in shape.attended for level in range(len(shape.widths))]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=shape.inputs,
            out_channels=shape.outputs,
            block_out_channels=shape.widths,
            layers_per_block=shape.blocks,
            down_block_types=tuple("CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attended),
            up_block_types=tuple("CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attended)),
            cross_attention_dim=shape.context,
            # Diffusers' name for the number of heads.
            attention_head_dim=tuple(width // shape.head if shape.head else shape.heads for width in shape.widths),
            transformer_layers_per_block=shape.depth,
            use_linear_projection=shape.linear,
        )
        modulate(unet, map_channels)
    network: nn.Module = unet
    return network


def build_autoencoder(shape: AutoencoderShape, latent_scale: float = 0.18215) -> nn.Module:
    """Diffusers' autoencoder, on the meta device."""
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    levels = len(shape.widths)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=shape.widths,
            layers_per_block=shape.blocks,
            latent_channels=shape.latent,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            scaling_factor=latent_scale,
        )
        if shape.multipliers[0] != 1:
            # Diffusers gives the first convolution the width of the first level.
            vae.encoder.conv_in = nn.Conv2d(3, shape.channels, 3, padding=1)
            vae.encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
                in_channels=shape.channels, out_channels=shape.widths[0], temb_channels=None, eps=1e-6, groups=32
            )
    network: nn.Module = vae
    return network


def build_text(shape: TextShape) -> nn.Module:
    """Transformers' CLIP text encoder without the last block, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers - 1,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        bos_token_id=shape.start,
        eos_token_id=shape.end,
        pad_token_id=shape.pad,
    )
    with torch.device("meta"):
        network: nn.Module = CLIPTextModel(config)
    return network


# --- finding places --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """A network and where its tensors stand in a file.

    Attributes:
        network: On the meta device.
        published: A key of the network -> the file's key.
    """

    network: nn.Module
    published: Callable[[str], str]

    def slots(self) -> dict[str, tuple[tuple[int, ...], list[str]]]:
        """Published key -> the shape it must have, and which of the network's keys it fills."""
        places: dict[str, tuple[tuple[int, ...], list[str]]] = {}
        for own, tensor in self.network.state_dict().items():
            key, shape = self.published(own), tuple(tensor.shape)
            if own.split(".")[-2] in PROJECTIONS:
                _, others = places.get(key, ((), []))
                places[key] = ((3 * shape[0], *shape[1:]), [*others, own])
            else:
                # Published as convolutions of one cell.
                places[key] = ((*shape, 1, 1) if ".attn_1." in key and len(shape) == 2 else shape, [own])
        return places


@dataclass(eq=False)
class Inventory:
    """What is wanted of a file, and what was found so far.

    Attributes:
        name: The file's, for errors.
        tensors: What it holds.
        ignored: Told a key; whether it is one that nothing here reads.
    """

    name: str
    tensors: Lazy
    ignored: Callable[[str], bool] = leftover
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def take(self, part: Part, only: Callable[[str], bool] = lambda own: True) -> dict[str, LazyTensor]:
        """A network's tensors under its own keys, or some of them; faults are noted, not raised."""
        found: dict[str, LazyTensor] = {}
        for key, (shape, owns) in part.slots().items():
            if not all(map(only, owns)):
                continue
            tensor = self.tensors.get(key)
            self.taken.add(key)
            if tensor is None:
                self.missing.append(key)
            elif tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
                self.misshapen.append(f"{key} ({_shape(tensor.shape)}, not {_shape(shape)})")
            elif len(owns) == 1:
                found[owns[0]] = tensor if len(shape) < 4 or ".attn_1." not in key else _squeezed(tensor)
            else:
                # q, k, v, whatever the order in which the network lists them
                found.update({own: _third(tensor, PROJECTIONS.index(own.split(".")[-2])) for own in owns})
        return found

    def check(self) -> None:
        """Stop if anything is wrong, telling all of it.

        Raises:
            ModelError: Keys are missing, of another shape, or not expected.
        """
        unexpected = [key for key in self.tensors if key not in self.taken and not self.ignored(key)]
        told = described({"missing": self.missing, "of the wrong shape": self.misshapen, "unexpected": unexpected})
        if told:
            raise ModelError(f"{self.name} does not fit StableSR: {told}")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _squeezed(tensor: LazyTensor) -> LazyTensor:
    return tensor.changed(tensor.shape[:2], lambda numbers: numbers[:, :, 0, 0])


def _third(tensor: LazyTensor, place: int) -> LazyTensor:
    rows = tensor.shape[0] // 3
    return tensor.changed((rows, *tensor.shape[1:]), lambda numbers: numbers[place * rows : (place + 1) * rows])


def is_modulation(own: str) -> bool:
    """Whether a key of the UNet belongs to StableSR's modulation."""
    return ".spade." in own


def own(part: Part, tensors: Lazy, name: str) -> dict[str, LazyTensor]:
    """A network's tensors out of a model in diffusers' layout, but for StableSR's modulation.

    Raises:
        ModelError: Tensors are missing, unexpected or of another shape; all are named.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in part.network.state_dict().items() if not is_modulation(key)}
    plain = {key.removeprefix("text_model."): shape for key, shape in wanted.items()}
    there = {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}
    faults = {
        "missing": [key for key in plain if key not in there],
        "of the wrong shape": [
            f"{key} ({_shape(there[key].shape)}, not {_shape(shape)})"
            for key, shape in plain.items()
            if key in there and there[key].shape != shape
        ],
        "unexpected": [key for key in there if key not in plain],
    }
    told = described(faults)
    if told:
        raise ModelError(f"{name} does not fit StableSR, which is made for Stable Diffusion 2.1 and SD-Turbo: {told}")
    return there


def differ(first: Lazy, second: Lazy, limit: float = 1e-3) -> bool:
    """Whether two networks of one kind have other numbers, beyond rounding to half precision."""
    return any(
        bool((tensor.load(torch.float32) - second[key].load(torch.float32)).abs().max() > limit)
        for key, tensor in first.items()
    )


def unet_part(shape: UNetShape, map_channels: int) -> Part:
    """The UNet with its modulation."""
    names = UNetNames(len(shape.multipliers), shape.blocks, shape.attended)
    return Part(build_unet(shape, map_channels), names.published)


def encoder_part(shape: EncoderShape) -> Part:
    """The time-aware encoder."""
    with torch.device("meta"):
        network = TimeAwareEncoder(shape)
    return Part(network, lambda own: ENCODER + own)


def autoencoder_part(shape: AutoencoderShape, latent_scale: float, prefix: str = AUTOENCODER) -> Part:
    """The autoencoder; `prefix` is "" in CFW files."""
    names = AutoencoderNames(len(shape.multipliers), prefix)
    return Part(build_autoencoder(shape, latent_scale), names.published)


def text_part(shape: TextShape) -> Part:
    """The text tower."""
    return Part(build_text(shape), TextNames().published)


def fusion_part(shape: AutoencoderShape, fusion: FusionShape, prefix: str = "") -> Part:
    """The fusion layers of CFW."""
    with torch.device("meta"):
        network = Wrapping(shape.widths, fusion)
    return Part(network, lambda own: f"{prefix}decoder.{own}")
