"""What a model is, told by the names and shapes of its tensors alone; what a file is called decides nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from enlarger.checkpoints import keys
from enlarger.checkpoints.tensors import Tensors

OPENRAIL = "CreativeML OpenRAIL-M"
OPENRAIL_PLUS = "CreativeML Open RAIL++-M"
S_LAB = "S-Lab 1.0 (non-commercial)"

STABLESR_LIMITS = (
    "many steps, so much slower than a GAN, the more above 512 or 768 pixels",
    "not wholly faithful: it generates, and may change what was there",
    "details of complex real scenes may be wrong",
    "small faces and Chinese characters are weak (its author, in issues 34 and 61)",
)
"""What StableSR's weights do not do well, as their card says (huggingface.co/Iceclear/StableSR), in other words; the
last as their author does (github.com/IceClear/StableSR)."""


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        words: What errors call it, with its article.
        config: The shipped folder with its published configuration; "" if there is none.
        licence: Of the published weights of this kind; "" where they differ. A fine-tune may add to it.
        pad: What the tokenizer fills up with: the end token, or "!" (which is token 0).
        limits: What its makers say that it does not do well, one line each.
        use: The options that it is given with, in words; "" for a kind that nothing here takes.
    """

    words: str
    config: str = ""
    licence: str = ""
    pad: str = "<|endoftext|>"
    limits: tuple[str, ...] = ()
    use: str = ""


PROMPTED = "-e img2img or -e controlnet"
CONTROL = "-e controlnet and --control"
LORA = "--lora of -e img2img, -e controlnet, -e x4 or generate"
EMBEDDING = "--embedding of -e img2img, -e controlnet, -e x4 or generate"


FAMILIES: Mapping[str, Family] = {
    "sd15": Family("a Stable Diffusion 1.x model", "sd15", OPENRAIL, use=PROMPTED),
    "sd15-inpainting": Family("a Stable Diffusion 1.5 inpainting model", "sd15", OPENRAIL),
    "sd15-pix2pix": Family("an InstructPix2Pix model (Stable Diffusion 1.5)", "sd15", OPENRAIL),
    "sd2": Family(
        "a Stable Diffusion 2.x model", "sd2", OPENRAIL_PLUS, "!", use=f"{PROMPTED}, or --base of -e stablesr"
    ),
    "sd2-inpainting": Family("a Stable Diffusion 2 inpainting model", "sd2", OPENRAIL_PLUS, "!"),
    "sd2-depth": Family("a Stable Diffusion 2 depth model", "sd2", OPENRAIL_PLUS, "!"),
    "sd2-unclip": Family("a Stable Diffusion 2.1 unCLIP model", "", OPENRAIL_PLUS),
    "sdxl": Family("a Stable Diffusion XL model", "sdxl", OPENRAIL_PLUS, use=PROMPTED),
    "sdxl-inpainting": Family("a Stable Diffusion XL inpainting model", "sdxl", OPENRAIL_PLUS),
    "sdxl-pix2pix": Family("an InstructPix2Pix model (Stable Diffusion XL)", "sdxl", OPENRAIL_PLUS),
    "sdxl-refiner": Family("a Stable Diffusion XL refiner", "", OPENRAIL_PLUS),
    "x4": Family("a Stable Diffusion x4 upscaler", "x4", OPENRAIL_PLUS, "!", use="-e x4"),
    "latent-x2": Family("the latent x2 upscaler"),
    "controlnet-sd15": Family("a ControlNet for Stable Diffusion 1.x", "controlnet-sd15", "OpenRAIL", use=CONTROL),
    "controlnet-sd2": Family("a ControlNet for Stable Diffusion 2.x", "controlnet-sd2", "OpenRAIL", use=CONTROL),
    "controlnet-sdxl": Family("a ControlNet for Stable Diffusion XL", "controlnet-sdxl", use=CONTROL),
    "controlnet-union-sdxl": Family("a union ControlNet for Stable Diffusion XL", "controlnet-union-sdxl", use=CONTROL),
    "vae": Family("an autoencoder (VAE) of factor 8", "sd15", use="--vae of -e img2img, -e controlnet or -e stablesr"),
    "vae-x4": Family("an autoencoder (VAE) of factor 4, as x4 has", "x4", use="--vae of -e x4"),
    "vae-other": Family("an autoencoder of a kind that no engine here has"),
    "text-encoder": Family("a text encoder alone"),
    "stablesr": Family("a whole StableSR model", "sd2", S_LAB, "!", STABLESR_LIMITS, "-e stablesr"),
    "stablesr-module": Family(
        "a trimmed StableSR module", "sd2", S_LAB, "!", STABLESR_LIMITS, "-e stablesr and --base"
    ),
    "cfw": Family("StableSR's CFW autoencoder", "sd2", S_LAB, use="--cfw of -e stablesr"),
    "cfw-fusion": Family("the fusion layers of StableSR's CFW autoencoder", "", S_LAB, use="--cfw of -e stablesr"),
    "lora-sd15": Family("a LoRA for Stable Diffusion 1.x", use=LORA),
    "lora-sd2": Family("a LoRA for Stable Diffusion 2.x", use=LORA),
    "lora-sdxl": Family("a LoRA for Stable Diffusion XL", use=LORA),
    "lora": Family("a LoRA", use=LORA),
    "embedding-sd15": Family("an embedding for Stable Diffusion 1.x", use=EMBEDDING),
    "embedding-sd2": Family("an embedding for Stable Diffusion 2.x", use=EMBEDDING),
    "embedding-sdxl": Family("an embedding for Stable Diffusion XL", use=EMBEDDING),
    "embedding": Family("an embedding", use=EMBEDDING),
    "gan": Family("a network of the ESRGAN family", use="-e gan"),
    "pocket": Family("a model of engine pocket", "", "Apache-2.0", use="-e pocket"),
    "swinir": Family("a SwinIR or HAT network", use="-e gan"),
    "sd3": Family("a Stable Diffusion 3 model"),
    "flux": Family("a Flux model"),
    "": Family("no model that Enlarger knows"),
}
"""Every kind that can be told, by the name that engines ask for."""

WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
"""Width of the text that published models see: what their LoRAs and embeddings are told by."""


OF_OTHERS = {1024: "sd2-unclip", 1280: "sdxl-refiner"}
"""Models that embed more than the time, as XL does, by the width of the text that they see."""


LEFTOVERS = r"^(loss|model_ema)\.|\.fusion_layer_|^(global_step|logvar)$"
"""What training and CFW leave in an autoencoder's file that is none of the autoencoder's."""


@dataclass(frozen=True)
class Anatomy:
    """What a file holds.

    Attributes:
        family: A key of `FAMILIES`.
        parts: diffusers' name of a part -> its tensors under diffusers' names, made when asked for.
    """

    family: str
    parts: Mapping[str, Callable[[], Tensors]] = field(default_factory=dict)


def identify(tensors: Tensors) -> Anatomy:
    """What a file holds, in this order: what StableSR adds, whole models, single parts, small add-ons, networks."""
    parts = _parts(tensors)
    for rule in (_stablesr, _diffusion, _other_diffusion, _addon, _network):
        family = rule(tensors, parts)
        if family in ("gan", "pocket", "swinir"):
            return Anatomy(family, {"network": lambda: tensors})
        if family:
            return Anatomy(family, parts)
    return Anatomy("", parts or {"network": lambda: tensors})


def _parts(tensors: Tensors) -> dict[str, Callable[[], Tensors]]:
    """The parts that are there, by prefix or, for a file of one part, by what its names look like."""
    parts: dict[str, Callable[[], Tensors]] = {}
    if _any(tensors, "model.diffusion_model."):
        parts["unet"] = lambda: keys.unet(tensors.below("model.diffusion_model.").without(r"\.spade\."))
    elif "controlnet_cond_embedding.conv_in.weight" in tensors or "input_hint_block.0.weight" in tensors:
        parts["controlnet"] = lambda: keys.unet(tensors)
    elif "conv_in.weight" in tensors and _any(tensors, "down_blocks."):
        parts["unet"] = lambda: tensors
    elif "input_blocks.0.0.weight" in tensors and _any(tensors, "output_blocks."):
        parts["unet"] = lambda: keys.unet(tensors)
    if _any(tensors, "control_model."):
        parts["controlnet"] = lambda: keys.unet(tensors.below("control_model."))
    if _any(tensors, "first_stage_model."):
        parts["vae"] = lambda: keys.vae(tensors.below("first_stage_model.").without(LEFTOVERS))
    elif "decoder.conv_in.weight" in tensors and _any(tensors, "encoder.conv_in."):
        parts["vae"] = lambda: keys.vae(tensors.without(LEFTOVERS))
    return parts | _text_parts(tensors)


def _text_parts(tensors: Tensors) -> dict[str, Callable[[], Tensors]]:
    def clip(prefix: str) -> Callable[[], Tensors]:
        return lambda: keys.clip(tensors.below(prefix))

    def open_clip(prefix: str, *, without_last: bool) -> Callable[[], Tensors]:
        return lambda: keys.open_clip(tensors.below(prefix), without_last=without_last)

    parts: dict[str, Callable[[], Tensors]] = {}
    if _any(tensors, "cond_stage_model.transformer."):
        parts["text_encoder"] = clip("cond_stage_model.transformer.")
    elif _any(tensors, "cond_stage_model.model."):
        parts["text_encoder"] = open_clip("cond_stage_model.model.", without_last=True)
    elif _any(tensors, "conditioner.embedders.0.transformer."):
        parts["text_encoder"] = clip("conditioner.embedders.0.transformer.")
    elif "embeddings.token_embedding.weight" in tensors or _any(tensors, "text_model.embeddings."):
        parts["text_encoder"] = lambda: keys.clip(tensors)
    for number in (0, 1):
        if _any(tensors, f"conditioner.embedders.{number}.model."):
            parts["text_encoder_2"] = open_clip(f"conditioner.embedders.{number}.model.", without_last=False)
    return parts


def _any(tensors: Mapping[str, object], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in tensors)


def _stablesr(tensors: Tensors, parts: Mapping[str, Callable[[], Tensors]]) -> str:
    if _any(tensors, "structcond_stage_model."):
        return "stablesr" if "model.diffusion_model.input_blocks.0.0.weight" in tensors else "stablesr-module"
    if any("decoder.fusion_layer_" in name for name in tensors):
        return "cfw" if "vae" in parts else "cfw-fusion"
    return ""


def _diffusion(tensors: Tensors, parts: Mapping[str, Callable[[], Tensors]]) -> str:
    if "controlnet" in parts:
        return of_controlnet(parts["controlnet"]())
    return of_parts(parts)


def of_parts(parts: Mapping[str, Callable[[], Tensors]]) -> str:
    """The family of a model with these parts, by the main one."""
    if "unet" in parts:
        family = of_unet(parts["unet"]())
        alone = "text_encoder_2" in parts and "text_encoder" not in parts
        return "sdxl-refiner" if family == "sdxl" and alone else family
    if "controlnet" in parts:
        return of_controlnet(parts["controlnet"]())
    if "vae" in parts:
        return of_vae(parts["vae"]())
    return "text-encoder" if set(parts) & {"text_encoder", "text_encoder_2"} else ""


def of_unet(tensors: Tensors) -> str:
    """The family of a UNet, under diffusers' names."""
    first = tensors.get("conv_in.weight")
    channels = first.shape[1] if first is not None and len(first.shape) == 4 else 4
    if "class_embedding.weight" in tensors or channels == 7:
        return "x4"
    if "time_embedding.cond_proj.weight" in tensors and channels == 8:
        return "latent-x2"
    base = _base(tensors)
    if base == "sdxl" and _context(tensors) in OF_OTHERS:
        return OF_OTHERS[_context(tensors)]
    ending = {4: "", 8: "-pix2pix", 9: "-inpainting"} | ({5: "-depth"} if base == "sd2" else {})
    family = base + ending.get(channels, "?")
    return family if family in FAMILIES else ""


def of_controlnet(tensors: Tensors) -> str:
    """The family of a ControlNet, under diffusers' names."""
    if "task_embedding" in tensors:
        return "controlnet-union-sdxl"
    base = _base(tensors)
    return f"controlnet-{base}" if base else ""


def of_vae(tensors: Tensors) -> str:
    """The family of an autoencoder, under diffusers' names."""
    first = tensors.get("decoder.conv_in.weight")
    if first is None or len(first.shape) != 4 or first.shape[1] != 4:
        return "vae-other"
    levels = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", name))}
    return {4: "vae", 3: "vae-x4"}.get(len(levels), "vae-other")


def _context(tensors: Tensors) -> int:
    """Width of the text that the cross-attention sees; 0 if there is none."""
    keys_in = (tensor for name, tensor in tensors.items() if name.endswith(".attn2.to_k.weight"))
    return next((tensor.shape[-1] for tensor in keys_in if tensor.shape), 0)


def _base(tensors: Tensors) -> str:
    """Which Stable Diffusion a UNet or ControlNet belongs to, by its structure and not by its width.

    SDXL embeds sizes beside the time; 1.x enters its transformers by 1x1 convolutions and 2.x by linear layers.
    """
    if _any(tensors, "add_embedding.linear_1."):
        return "sdxl"
    dims = {len(tensor.shape) for name, tensor in tensors.items() if name.endswith(".proj_in.weight")}
    return {4: "sd15", 2: "sd2"}.get(dims.pop(), "") if len(dims) == 1 else ""


def _other_diffusion(tensors: Tensors, parts: Mapping[str, Callable[[], Tensors]]) -> str:
    if any("joint_blocks.0." in name for name in tensors):
        return "sd3"
    if any("double_blocks.0." in name for name in tensors):
        return "flux"
    return ""


LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", ".hada_w1_a", ".lokr_w1")


def _addon(tensors: Tensors, parts: Mapping[str, Callable[[], Tensors]]) -> str:
    if any(mark in name for name in tensors for mark in LORA_MARKS):
        return _with_base("lora", _lora_width(tensors))
    if "clip_g" in tensors and "clip_l" in tensors:
        return "embedding-sdxl"
    if "emb_params" in tensors or any(name.startswith("string_to_param.") for name in tensors):
        return _with_base("embedding", next(iter(tensors.values())).shape[-1])
    for name, tensor in tensors.items():
        if len(tensors) == 1 and len(tensor.shape) in (1, 2) and "." not in name:
            return _with_base("embedding", tensor.shape[-1])
    return ""


def _with_base(kind: str, width: int | None) -> str:
    base = WIDTHS.get(width or 0)
    return f"{kind}-{base}" if base else kind


def _lora_width(tensors: Tensors) -> int | None:
    """Width of the text that the adapted cross-attention sees."""
    for name, tensor in tensors.items():
        down = any(mark in name for mark in (".lora_down.", ".lora_A.", ".lora.down."))
        if down and re.search(r"attn2[._](processor\.)?to_k", name) and len(tensor.shape) >= 2:
            return tensor.shape[1]
    return 2048 if any(name.startswith("lora_te2_") for name in tensors) else None


def _network(tensors: Tensors, parts: Mapping[str, Callable[[], Tensors]]) -> str:
    names = [re.sub(r"^(params_ema|params|module)\.", "", name) for name in tensors]
    marks = ("body.0.rdb1.conv1.", "RRDB_trunk.0.RDB1.", "model.1.sub.0.RDB1.")
    if any(name.startswith(marks) for name in names):
        return "gan"
    slopes = [tensor.shape for name, tensor in tensors.items() if name.endswith("body.1.weight")]
    if any(len(shape) == 1 for shape in slopes) and any(name == "body.0.weight" for name in names):
        return "gan"
    if tensors.metadata.get("architecture", "").startswith("pocket"):
        return "pocket"
    if any(name.startswith("layers.0.residual_group.") for name in names):
        return "swinir"
    return ""


def words(families: Iterable[str]) -> str:
    """Several families in words, joined by "or"; what is meant in general is not told for each base model, too."""
    wanted = [name for name in families if name]
    known = [FAMILIES[name].words for name in wanted if name.rpartition("-")[0] not in wanted]
    return " or ".join(known)
