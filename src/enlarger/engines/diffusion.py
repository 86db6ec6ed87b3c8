"""What the Stable Diffusion engines share: their parts, the prompts, one guided forward pass, the autoencoder.

Networks are diffusers' and transformers' own modules, opened by `checkpoints` or taken from a pipeline in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from enlarger.canvas.autoencoder import Autoencoder, Plan
from enlarger.checkpoints.text import Text, TextEncoders
from enlarger.engines import adapters
from enlarger.engines.device import pick_device, pick_dtype
from enlarger.engines.engine import Conditioning, Decoded, Engine, Loaded, Prediction, together
from enlarger.engines.settings import ModelMachine, PromptedSettings
from enlarger.errors import ModelError
from enlarger.sampling.memory import BASE_MEMORY, RESERVE, free_memory
from enlarger.sampling.scheduler import DiffusersSteps
from enlarger.sampling.steps import Moment
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.canvas.noise import NoiseSource
    from enlarger.checkpoints.open import Checkpoint


@dataclass(frozen=True)
class Parts:
    """A Stable Diffusion model in memory.

    Attributes:
        unet: Diffusers' UNet, in `dtype` on `device`.
        vae: Diffusers' autoencoder, float32: in half precision it overflows.
        text: Tokenizers and text encoders.
        scheduler: The model's own scheduler configuration.
        configs: Other configurations by diffusers' names, such as low_res_scheduler.
        loaded: For records and errors.
        device: Where everything is.
        dtype: Of the UNet and the text encoders.
        limit: Bytes that the user allows, if told.
    """

    unet: nn.Module
    vae: nn.Module
    text: TextEncoders
    scheduler: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    loaded: Loaded
    device: torch.device
    dtype: torch.dtype
    limit: int | None = None

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """`vae`, at any size and in bounded memory."""
        return Autoencoder(self.vae)

    def free(self) -> int:
        """Bytes that may be taken beside the weights and what is held already."""
        free = int(free_memory(str(self.device)) * RESERVE)
        return free if self.limit is None else min(free, max(1, self.limit - BASE_MEMORY))

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        config: Any = self.vae.config
        return int(config.latent_channels)


@dataclass(frozen=True)
class Prompts:
    """What the network reads: the prompt, and its opposite while guidance is on."""

    conditional: Text
    unconditional: Text | None = None


def load_parts(
    engine: str,
    families: Collection[str],
    model: str | None,
    machine: ModelMachine,
    components: Mapping[str, Any] | None,
    *,
    configs: Collection[str] = (),
    vae: str = "vae",
) -> Parts:
    """Open a model, or take one from memory.

    Args:
        engine: For errors.
        families: What the engine can work with, as `checkpoints` names them.
        model: File, folder, hub id or name.
        machine: Device, dtype, another autoencoder, LoRAs and embeddings.
        components: Parts of a diffusers pipeline in memory; used as they are, copied where device or dtype differ.
        configs: Further scheduler configurations that the engine needs.
        vae: Family of the autoencoders that may take the place of the model's own.

    Raises:
        ModelError: Missing, incomplete or of the wrong kind.
        ResourceError: No such device.
    """
    device, dtype = _placed(machine, components)
    loaded = Loaded()
    zeros, ours = True, components is None
    if components is None:
        if model is None:
            raise ModelError(
                f"engine {engine} ships no weights: name your model with --model (a folder, a .safetensors or .ckpt "
                "file, a hub id, or a name in --models-dir)"
            )
        checkpoint = open_model(model, machine, families, engine)
        names = [name for name in PARTS if checkpoint.has(name)]
        own: Mapping[str, Any] | None = checkpoint.configs.find("vae")
        components = checkpoint.components([*names, "scheduler", *configs], dtype=dtype, device=device)
        if machine.vae is None:
            components["vae"] = checkpoint.module("vae", dtype=torch.float32, device=device)
        loaded = Loaded(checkpoint.name, checkpoint.digest, checkpoint.notes)
        zeros = bool((checkpoint.configs.find("model_index") or {}).get("force_zeros_for_empty_prompt", True))
    else:
        own = getattr(components.get("vae"), "config", None)
        zeros = bool(components.get("force_zeros_for_empty_prompt", True))  # its place in diffusers' constructors
        components = {name: moved(part, device, dtype) for name, part in components.items()}
    if machine.vae is not None:
        other = open_model(machine.vae, machine, (vae,), engine)
        replaced = other.module("vae", dtype=torch.float32, device=device)
        components = {**components, "vae": _scaled_as(replaced, own)}
        loaded = together(loaded, Loaded(other.name, other.digest, other.notes))

    def opened(name: str, families: Collection[str]) -> Checkpoint:
        return open_model(name, machine, families, engine)

    components, changes = adapters.with_loras(components, machine.lora, opened, own=ours)
    embeddings, words = adapters.with_words(machine.embedding, opened, components.get("unet"))
    loaded = together(loaded, *changes, *words)
    missing = [name for name in ("unet", "vae", "scheduler", *configs) if components.get(name) is None]
    if missing:
        raise ModelError(f"engine {engine} needs {', '.join(missing)}, and these components have none")
    return Parts(
        unet=components["unet"],
        vae=_in_full(components["vae"]),
        text=TextEncoders(components, force_zeros=zeros, embeddings=embeddings),
        scheduler=config_of(components["scheduler"]),
        configs={name: config_of(components[name]) for name in configs},
        loaded=loaded,
        device=device,
        dtype=dtype,
        limit=machine.max_memory,
    )


def _scaled_as(vae: nn.Module, own: Mapping[str, Any] | None) -> nn.Module:
    """An autoencoder with the latent's scale of the model's own, which the network was trained for.

    A file that holds an autoencoder alone says none.
    """
    autoencoder: Any = vae
    if own is not None and "scaling_factor" in own:
        autoencoder.register_to_config(scaling_factor=own["scaling_factor"])
    return vae


def _placed(machine: ModelMachine, components: Mapping[str, Any] | None) -> tuple[torch.device, torch.dtype]:
    """Device and dtype; "auto" leaves parts that are in memory where and as they are."""
    unet = None if components is None else components.get("unet")
    there = next(unet.parameters()) if isinstance(unet, nn.Module) else None
    device = pick_device(machine.device) if there is None or machine.device != "auto" else there.device
    if there is not None and machine.dtype == "auto":
        return device, there.dtype
    return device, pick_dtype(machine.dtype, device, half=True)


def open_model(model: str, machine: ModelMachine, families: Collection[str], engine: str) -> Checkpoint:
    from enlarger.checkpoints.open import open_checkpoint

    folders = (machine.models_dir,) if machine.models_dir else ()
    return open_checkpoint(model, models_dirs=folders, families=families, engine=engine)


def moved(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A part of a pipeline in memory, on the device and in the dtype; the pipeline's own stays as it is."""
    if not isinstance(part, nn.Module):
        return part
    first = next(part.parameters(), None)
    if first is None or (first.device == device and first.dtype == dtype):
        return part.eval()
    # torch's own `to`: diffusers' one warns of what does not concern these networks.
    return nn.Module.to(copy.deepcopy(part), device, dtype).eval()


def _in_full(vae: nn.Module) -> nn.Module:
    """An autoencoder in float32, a copy if it is not: in half precision it overflows."""
    if next(vae.parameters()).dtype == torch.float32:
        return vae
    return nn.Module.to(copy.deepcopy(vae), torch.float32)


PARTS = ("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
"""Diffusers' names of what is opened in the chosen dtype; the autoencoder has its own."""


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """A scheduler's configuration, whether it is one of diffusers' objects or the configuration itself."""
    if isinstance(scheduler, Mapping):
        return scheduler
    config: Mapping[str, Any] = scheduler.config
    # Diffusers keeps the defaults that it filled in; a file would not have them, and they must not go over to another
    # scheduler as the model's own words.
    filled = set(config.get("_use_default_values", ()))
    kept = {word: value for word, value in config.items() if word not in filled}
    return {**kept, "_class_name": type(scheduler).__name__}


def read_prompts(parts: Parts, settings: PromptedSettings) -> Prompts:
    """Encode both prompts, the negative one only while guidance is on."""
    return encode(parts, [settings.prompt], settings.negative_prompt, settings.guided, settings)[0]


def encode(
    parts: Parts, prompts: Sequence[str], negative: str | None, guided: bool, settings: PromptedSettings
) -> list[Prompts]:
    """Encode several prompts, each with the same negative one while guidance is on, all into as many chunks."""
    skip = settings.clip_skip
    longest = max(parts.text.chunks(prompt) for prompt in prompts)
    if not guided:
        return [Prompts(parts.text.encode(prompt, clip_skip=skip, chunks=longest)) for prompt in prompts]
    return [Prompts(*parts.text.encode_both(prompt, negative, clip_skip=skip, chunks=longest)) for prompt in prompts]


def lengths(prompts: Prompts) -> tuple[str, ...]:
    """What a result's record says of prompts that the text encoder cannot read at once."""
    texts = {"prompt": prompts.conditional, "negative prompt": prompts.unconditional}
    told = [f"{name} of {text.tokens} tokens" for name, text in texts.items() if text is not None and text.tokens]
    chunks = prompts.conditional.chunks
    return (f"{' and '.join(told)}: read in {chunks} parts",) if chunks > 1 else ()


def make_steps(parts: Parts, settings: Any, *, strength: float | None = None) -> DiffusersSteps:
    """The process that settings and model ask for."""
    return DiffusersSteps(
        parts.scheduler,
        settings.steps,
        name=settings.scheduler,
        spacing=settings.spacing,
        eta=settings.eta,
        strength=strength,
    )


def encode_picture(parts: Parts, pixels: Tensor, noise: NoiseSource) -> tuple[Tensor, tuple[str, ...]]:
    """A sample (1, 4, h, w) of the latents that a picture (1, 3, H, W), 0..1, may have; one draw of its shape.

    Kingma and Welling 2014, arXiv 1312.6114: mean + deviation * noise, scaled as the networks were trained.

    Returns:
        The sample, and what the result's record must admit.
    """
    with parts.autoencoder.encode(pixels.float() * 2 - 1, limit=parts.free()) as spread:
        drawn = noise.draw(spread.mean.shape).to(spread.mean.device)
        sample = spread.mean + torch.exp(spread.logvar / 2) * drawn
    mean, deviation = _levels(parts.vae, sample)
    return (sample - mean) / deviation * parts.autoencoder.scaling, _admitted("encoded", spread.plan)


def decode(parts: Parts, latent: Tensor, progress: Callable[[float], None] | None = None) -> Decoded:
    """From a canvas's latent (1, C, h, w) to pixels, about 0..1, in float32: whole, or in tiles that do not show."""
    mean, deviation = _levels(parts.vae, latent)
    clean = latent.float() / parts.autoencoder.scaling * deviation + mean
    made = parts.autoencoder.decode(clean, limit=parts.free(), progress=progress)
    return Decoded(made.pixels / 2 + 0.5, _admitted("decoded", made.plan))


def decode_memory(parts: Parts, output: Size) -> int:
    """Bytes that `decode` takes at the least for so many output pixels."""
    factor = parts.autoencoder.factor
    size = Size(max(1, output.height // factor), max(1, output.width // factor))
    return parts.autoencoder.plan_decode(size, limit=1).memory


def _admitted(done: str, plan: Plan) -> tuple[str, ...]:
    """What a result's record must say of a run of the autoencoder; nothing where it ran whole."""
    if plan.tile is None and plan.attention == "exact":
        return ()
    tiles = "whole" if plan.tile is None else f"in tiles of {plan.tile} cells"
    return (f"autoencoder: {done} {tiles}, attention {plan.attention}",)


def _levels(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Mean and deviation of the latent's channels that some autoencoders state; 0 and 1 for the others."""
    mean, deviation = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or deviation is None:
        return 0.0, 1.0
    mean, deviation = (torch.tensor(each, device=like.device).view(1, -1, 1, 1) for each in (mean, deviation))
    return mean, deviation


def guided(
    unet: nn.Module,
    seen: Tensor,
    moment: Moment,
    prompts: Prompts,
    *,
    time_ids: Tensor | None = None,
    control: Control | None = None,
    **extras: Tensor,
) -> Prediction:
    """One forward pass: with guidance on, both halves as one batch, the unconditional one first.

    Args:
        unet: Diffusers' network.
        seen: (B, C, h, w), everything that goes in on channels.
        moment: Its timestep is what the network gets.
        prompts: Encoded.
        time_ids: SDXL's size numbers, (B, 6).
        control: Gives what is added to the network's skips and middle, from the arguments that it gets itself.
        extras: Further arguments of the network with one item for each of the batch, doubled under guidance.
    """
    count = seen.shape[0]
    dtype, device = seen.dtype, seen.device
    texts = [prompts.conditional] if prompts.unconditional is None else [prompts.unconditional, prompts.conditional]
    arguments: dict[str, Any] = {
        "sample": torch.cat([seen] * len(texts)),
        "timestep": torch.tensor(moment.timestep, device=device),
        "encoder_hidden_states": torch.cat([_each(text.embeddings, count).to(device, dtype) for text in texts]),
        **{name: torch.cat([value] * len(texts)) for name, value in extras.items()},
    }
    if time_ids is not None:
        pooled = torch.cat([_each(text.pooled, count).to(device, dtype) for text in texts if text.pooled is not None])
        arguments["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.cat([time_ids] * len(texts))}
    if control is not None:
        arguments |= control(arguments, count)
    sample, timestep = arguments.pop("sample"), arguments.pop("timestep")
    output: Tensor = unet(sample, timestep, **arguments, return_dict=False)[0]
    if len(texts) == 1:
        return Prediction(output)
    unconditional, conditional = output.chunk(2)
    return Prediction(conditional, unconditional)


Control = Callable[[Mapping[str, Any], int], Mapping[str, Any]]
"""From the network's arguments, and the number of tiles in the batch, to further arguments of it."""


def _each(tensor: Tensor, count: int) -> Tensor:
    """(1, ...) as (count, ...)."""
    return tensor.expand(count, *tensor.shape[1:])


class DiffusionEngine(Engine):
    """An engine on the parts of a Stable Diffusion model: what it decodes is always the same."""

    parts: Parts

    def state_channels(self) -> int:
        """See `Engine.state_channels`."""
        return self.parts.latent_channels

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Engine.decode`."""
        return decode(self.parts, latent).pixels

    def decode_canvas(
        self, latent: Tensor, conditioning: Conditioning, progress: Callable[[float], None] | None = None
    ) -> Decoded:
        """See `Engine.decode_canvas`: exact, and in tiles where the whole does not fit."""
        return decode(self.parts, latent, progress)

    def decode_memory(self, output: Size) -> int:
        """See `Engine.decode_memory`."""
        return decode_memory(self.parts, output)
