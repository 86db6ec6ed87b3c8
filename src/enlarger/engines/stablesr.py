"""StableSR: Stable Diffusion 2.1 as a restorer, told of the picture at every step (Wang et al. 2024, arXiv 2305.07015).

The input is enlarged to the target's size and encoded. A time-aware encoder turns that latent into maps, at every step
anew, which modulate every residual block of the UNet; the UNet's own input is the noisy latent alone. After the last
step a decoder makes pixels, with features of the enlarged input fused in as far as `cfw_weight` says.

Written from the paper and a specification of the published checkpoints; the original code was not used. The weights
are under the S-Lab License 1.0, which forbids commercial use, and are the user's to bring.

Order of draws: with compatibility "original" the posterior's noise (1, 4, h, w); the start; then what the process asks
for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from enlarger.canvas import autoencoder as tiled
from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Canvas, Pass
from enlarger.checkpoints.load import digest
from enlarger.checkpoints.stablesr import AUTOENCODER, TextNames, cfw_kind, leftover, model_kind
from enlarger.checkpoints.tensors import LazyTensor, open_tensors
from enlarger.engines import stablesr_parts as parts
from enlarger.engines.catalog import STABLESR
from enlarger.engines.device import pick_device, pick_dtype
from enlarger.engines.engine import Conditioning, Decoded, Engine, Facts, Loaded, Prediction
from enlarger.engines.stablesr_parts import Description, Inventory
from enlarger.errors import ModelError, SettingsError
from enlarger.networks.cfw import Weighted, Wrapping
from enlarger.networks.spade import maps
from enlarger.networks.time_aware_encoder import TimeAwareEncoder
from enlarger.sampling.memory import RESERVE, free_memory
from enlarger.sampling.respaced import RespacedDDIM, RespacedDDPM, training_chain
from enlarger.sampling.steps import Adjust, Moment
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.canvas.autoencoder import Map
    from enlarger.canvas.noise import NoiseSource
    from enlarger.engines.settings import StableSRMachine, StableSRSettings

PROBE = 0.5
"""How alike a prediction from pure noise is to that noise, at least, if the network predicts noise: 0.99 is usual, and
near 0 for v (the expectation of v is 0 there)."""


@dataclass(frozen=True)
class Contexts:
    """What the UNet is told in words.

    Attributes:
        positive: (1, 77, C).
        negative: The same while guidance is on.
    """

    positive: Tensor
    negative: Tensor | None = None


@dataclass(frozen=True)
class StableSRConditioning(Conditioning):
    """What a prediction looks at.

    Attributes:
        latent: Of the input enlarged to the target's size, times the latent scale, (1, 4, h, w).
        contexts: The prompts.
        start: Whether the process starts from that latent, noised; else from pure noise.
        cfw_weight: How much of the encoder's features is fused in, 0 to 1.
        reference: A latent (1, 4, h, w) that the clean estimate is pulled to, or None.
        reference_strength: How far, 0 to 1.
        reference_until: Down to this timestep.
    """

    latent: Plane
    contexts: Contexts
    start: bool = True
    cfw_weight: float = 0.0
    reference: Tensor | None = None
    reference_strength: float = 1.0
    reference_until: float = 0.0


class StableSR(Engine):
    """See `engines.engine.Engine`.

    Attributes:
        description: Sizes of the networks.
        prediction: What the UNet predicts, "epsilon" or "v_prediction".
        limit: Bytes that encoding or decoding may take; what is free if None.
        remarks: What was decided while loading, for the user.
        unet: Diffusers' UNet with the modulation.
        encoder: The time-aware encoder.
        autoencoder: In float32; CFW's own where one is given.
        text: The text tower.
        wrapping: CFW's fusion layers, float32, or None.
    """

    facts = STABLESR

    def __init__(
        self,
        description: Description,
        *,
        unet: nn.Module,
        encoder: TimeAwareEncoder,
        vae: nn.Module,
        text: nn.Module,
        wrapping: Wrapping | None = None,
        prediction: str = "epsilon",
        native: int = 512,
        limit: int | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.description = description
        self.unet: Any = unet
        self.encoder = encoder
        self.autoencoder = tiled.Autoencoder(vae)
        self.text: Any = text
        self.wrapping = wrapping
        self.prediction = prediction
        self.limit = limit
        self.remarks = remarks
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.chain = training_chain(*description.betas)
        grid = description.autoencoder.factor
        self.facts = dataclasses.replace(
            STABLESR, grid=grid, stride=grid, tile=native, overlap=native // 2, prediction=prediction
        )

    @classmethod
    def load(cls, model: str | None, machine: Any, components: Mapping[str, Any] | None = None) -> Engine:
        """See `Engine.load`; `model` is a published StableSR file, or a safetensors file made from one."""
        if components:
            raise ModelError("engine stablesr has no parts to take from memory: name a file with --model FILE")
        if model is None:
            raise ModelError(
                "engine stablesr ships no weights: name a StableSR checkpoint, such as stablesr_000117.ckpt, "
                "with --model FILE (S-Lab License 1.0, non-commercial: huggingface.co/Iceclear/StableSR)"
            )
        return load(Path(model), machine)

    def prepare(self, settings: StableSRSettings) -> Contexts:
        """See `Engine.prepare`: the encoded prompts, the negative one only while guidance is on."""
        positive = self.context(settings.prompt)
        return Contexts(positive, self.context(settings.negative_prompt) if settings.guided else None)

    def context(self, prompt: str) -> Tensor:
        """A prompt for the UNet, (1, 77, C); every character counts as text, and what is too long is cut."""
        shape = self.description.text
        inner: list[int] = []
        if prompt.strip():
            inner = list(tokenized(prompt, shape))[: shape.length - 2]
        ids = [shape.start, *inner, shape.end]
        return self.encode_ids(torch.tensor([ids + [shape.pad] * (shape.length - len(ids))]))

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor) -> Tensor:
        """What the penultimate block makes of token ids (B, 77), normed; (B, 77, C)."""
        context: Tensor = self.text(ids.to(self.device)).last_hidden_state
        return context

    def facts_for(self, settings: StableSRSettings) -> Facts:
        """See `Engine.facts_for`: with compatibility "original", that of the scripts."""
        if not settings.original:
            return self.facts
        return dataclasses.replace(
            self.facts,
            enlargement="bicubic-torch",
            weights="gaussian-original",
            placement="columns",
            fill=False,
            fixes_padding=True,
            cuts=True,
        )

    def placed(self, canvas: Canvas, settings: StableSRSettings) -> Canvas:
        """See `Engine.placed`: with compatibility "original", as `original_canvas`."""
        if not settings.original:
            return canvas
        return original_canvas(canvas, settings.scale, settings.tile or self.facts.tile)

    def steps(self, settings: StableSRSettings) -> RespacedDDPM | RespacedDDIM:
        """See `Engine.steps`."""
        if settings.scheduler == "ddim":
            return RespacedDDIM(
                settings.steps,
                prediction=self.prediction,
                eta=settings.eta,
                strength=settings.strength,
                published=settings.original,
                chain=self.chain,
            )
        return RespacedDDPM(settings.steps, prediction=self.prediction, strength=settings.strength, chain=self.chain)

    def state_channels(self) -> int:
        """See `Engine.state_channels`."""
        return self.description.unet.inputs

    def condition(
        self, source: Tensor, passage: Pass, prepared: Contexts, settings: StableSRSettings, noise: NoiseSource
    ) -> StableSRConditioning:
        """See `Engine.condition`: the picture's latent, the posterior's mean."""
        latent, admitted = self.encode(source * 2 - 1, noise if settings.original else None)
        return StableSRConditioning(
            Plane(source, self.facts.grid),
            Plane(latent),
            prepared,
            start=settings.start == "lr",
            cfw_weight=self.cfw_weight(settings),
            remarks=(*self.remarks, *admitted),
        )

    def cfw_weight(self, settings: StableSRSettings) -> float:
        """How much CFW counts: what is asked for, or 0.5 where there is a CFW file and 0 where there is none.

        Raises:
            SettingsError: It is asked for and there is no CFW file.
        """
        if self.wrapping is not None:
            return 0.5 if settings.cfw_weight is None else settings.cfw_weight
        if settings.cfw_weight:
            raise SettingsError(
                f"cfw_weight {settings.cfw_weight:g} needs a CFW file, such as vqgan_cfw_00011.ckpt: name it with --cfw"
            )
        return 0.0

    @torch.inference_mode()
    def encode(self, pixels: Tensor, noise: NoiseSource | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """A picture's latent times the latent scale, and what is to be admitted of how it was made.

        Args:
            pixels: (1, 3, H, W), -1..1.
            noise: Draws a sample of the posterior, (1, 4, h, w); None takes its mean.
        """
        with self.autoencoder.encode(pixels.to(self.device), limit=self.memory()) as encoded:
            latent = encoded.mean
            if noise is not None:
                latent = latent + (0.5 * encoded.logvar).exp() * noise.draw(latent.shape).to(self.device)
            return latent * self.description.latent_scale, _admitted(encoded.plan)

    def memory(self) -> int:
        """Bytes that encoding or decoding may take."""
        return self.limit or int(free_memory(str(self.device)) * RESERVE)

    def latent(self, conditioning: Conditioning) -> Tensor | None:
        """See `Engine.latent`."""
        assert isinstance(conditioning, StableSRConditioning)
        return conditioning.latent.tensor if conditioning.start else None

    def adjust(self, conditioning: Conditioning) -> Adjust | None:
        """See `Engine.adjust`: towards the reference."""
        assert isinstance(conditioning, StableSRConditioning)
        if conditioning.reference is None:
            return None
        return toward(conditioning.reference, conditioning.reference_strength, until=conditioning.reference_until)

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        """See `Engine.predict`; the encoder sees the tile alone, as it was trained."""
        assert isinstance(conditioning, StableSRConditioning)
        timestep = torch.full((len(noisy),), round(moment.timestep), device=self.device)
        contexts = conditioning.contexts
        both = [contexts.positive] if contexts.negative is None else [contexts.negative, contexts.positive]
        context = torch.cat([one.expand(len(noisy), -1, -1) for one in both])
        output = self.network(noisy, conditioning.latent.tensor, timestep, context)
        if contexts.negative is None:
            return Prediction(output)
        unconditional, conditional = output.chunk(2)
        return Prediction(conditional, unconditional)

    def network(self, noisy: Tensor, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The prediction of the UNet under the encoder's maps.

        Args:
            noisy: The state, (B, C, h, w).
            latent: Of the input, (B, C, h, w).
            timestep: (B,).
            context: (n * B, 77, C); everything else is repeated n times.

        Returns:
            (n * B, C, h, w), float32.
        """
        timestep = timestep.to(self.device)
        told = self.encoder(latent.to(self.device, self.dtype), timestep)
        times = len(context) // len(noisy)
        seen = noisy.to(self.device, self.dtype).repeat(times, 1, 1, 1)
        context = context.to(self.device, self.dtype)
        with maps(told):
            output = self.unet(seen, timestep.repeat(times), encoder_hidden_states=context, return_dict=False)[0]
        predicted: Tensor = output.float()
        return predicted

    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Engine.decode`."""
        return self.decode_canvas(latent, conditioning).pixels

    @torch.inference_mode()
    def decode_canvas(
        self, latent: Tensor, conditioning: Conditioning, progress: Callable[[float], None] | None = None
    ) -> Decoded:
        """See `Engine.decode_canvas`: with CFW the picture is encoded once more, so that nothing waits in memory."""
        assert isinstance(conditioning, StableSRConditioning)
        source = conditioning.source.tensor.to(self.device) * 2 - 1
        unscaled = latent.to(self.device, torch.float32) / self.description.latent_scale
        weight = conditioning.cfw_weight
        if weight:
            with self.wrapped(source) as features:
                made = self.decoded(unscaled, features, weight, progress)
        else:
            made = self.decoded(unscaled, {}, 0.0, progress)
        return Decoded(made.pixels / 2 + 0.5, _admitted(made.plan))

    @contextmanager
    def wrapped(self, pixels: Tensor) -> Iterator[Mapping[int, Map]]:
        """The encoder's features that CFW fuses in, of pixels in -1..1; by level, 0 the picture's own size."""
        assert self.wrapping is not None
        with self.autoencoder.encode(pixels, taps=self.wrapping.levels, limit=self.memory() // 2) as encoded:
            yield encoded.features

    def decoded(
        self,
        latent: Tensor,
        features: Mapping[int, Map],
        weight: float,
        progress: Callable[[float], None] | None = None,
    ) -> tiled.Decoded:
        """Pixels in -1..1 of an unscaled latent, not clamped; a weight of 0 is the plain decoder."""
        if not weight:
            return self.autoencoder.decode(latent, limit=self.memory(), progress=progress)
        # The decoder's levels are counted from the coarsest.
        last = len(self.description.autoencoder.multipliers) - 1
        return self.autoencoder.decode(
            latent,
            limit=self.memory() // 2,
            insertions=self.insertions(weight),
            features={last - level: each for level, each in features.items()},
            progress=progress,
        )

    def insertions(self, weight: float) -> Mapping[int, nn.Module]:
        """CFW's fusion layers for the decoder, by its levels."""
        assert self.wrapping is not None
        last = len(self.description.autoencoder.multipliers) - 1
        return {last - level: Weighted(self.wrapping.layer(level), weight) for level in self.wrapping.levels}

    def decode_memory(self, output: Size) -> int:
        """See `Engine.decode_memory`."""
        cells = Size(output.height // self.facts.grid, output.width // self.facts.grid)
        insertions = self.insertions(1.0) if self.wrapping is not None else {}
        return self.autoencoder.plan_decode(cells, limit=0, insertions=insertions).memory


def _admitted(plan: tiled.Plan) -> tuple[str, ...]:
    """What the record must say of an autoencoder's run."""
    return () if plan.attention == "exact" else (f"the autoencoder's attention: {plan.attention}",)


def original_scale(source: Size, scale: float, least: int) -> float:
    """How much the original's tile script enlarges: until the shorter side has `least` pixels, or more if asked for."""
    return max(least / min(source), scale)


def original_canvas(canvas: Canvas, scale: float | None, least: int) -> Canvas:
    """The canvas as the original's tile script has it.

    Args:
        canvas: Ours.
        scale: What was asked for, if that is a scale.
        least: Pixels of the shorter side at least.

    Returns:
        The picture enlarged by `original_scale`, sides rounded down, and padded to multiples of 32; both sides by up
        to 32 whenever one needs it. The target is ours.
    """
    source = canvas.source
    factor = original_scale(source, scale or canvas.scale, least)
    size = Size(int(source.height * factor), int(source.width * factor))
    padded = size
    if size.height % 32 or size.width % 32:
        padded = Size(*((side // 32 + 1) * 32 for side in size))
    return Canvas(source, canvas.target, (Pass(size, padded, 1),))


def toward(reference: Tensor, strength: float, *, until: float, since: float = math.inf) -> Adjust:
    """Pulls every clean estimate to a latent, as the original face scripts do by gradient steps (in closed form).

    Args:
        reference: Times the latent scale, (1, C, h, w).
        strength: How far, 0 to 1; K gradient steps of rate r on the squared distance are 1 - (1 - 2 r)^K.
        until: Down to this timestep, itself included.
        since: From this timestep on.
    """

    def pulled(clean: Tensor, moment: Moment) -> Tensor:
        if not until <= moment.timestep <= since:
            return clean
        there = reference.to(clean)
        return there + (1 - strength) * (clean - there)

    return pulled


def tokenized(prompt: str, shape: parts.TextShape) -> Sequence[int]:
    """Token ids of a text, without marks; nothing in it is a weight or a command."""
    raise NotImplementedError


# --- loading ---------------------------------------------------------------------------------------------------------


def load(path: Path, machine: StableSRMachine) -> StableSR:
    """Open a model and everything beside it; all inventories are checked before anything is read.

    Raises:
        ModelError: A file is missing, damaged, another one's, incomplete, or does not fit.
    """
    tensors = open_tensors(path)
    kind = model_kind(tensors.keys(), path.name)
    description = parts.described_beside(path) or Description()
    shape = description.autoencoder
    if kind == "trimmed":
        raise ModelError(f"{path.name} is a trimmed module: not yet")
    text_names = TextNames()
    inventory = Inventory(
        path.name, tensors, lambda key: leftover(key) or text_names.unread(key, description.text.layers - 1)
    )
    unet = parts.unet_part(description.unet, description.encoder.outputs)
    encoder = parts.encoder_part(description.encoder)
    vae = parts.autoencoder_part(shape, description.latent_scale)
    text = parts.text_part(description.text)
    found = {part: inventory.take(part) for part in (unet, encoder, vae, text)}
    inventory.check()

    wrapping: parts.Part | None = None
    if machine.cfw is not None:
        wrapping, vae = _open_cfw(Path(machine.cfw), description, vae, found)

    device = pick_device(machine.device)
    dtype = pick_dtype(machine.dtype, device, half=True)
    names = dict.fromkeys(found, path.name)
    for part in (unet, encoder, text):
        parts.fill(part.network, found[part], dtype, device, names[part])
    for part in (vae, wrapping) if wrapping is not None else (vae,):
        parts.fill(part.network, found[part], torch.float32, device, path.name)
    assert isinstance(encoder.network, TimeAwareEncoder)
    fusion = wrapping.network if wrapping is not None else None
    assert fusion is None or isinstance(fusion, Wrapping)
    engine = StableSR(
        description,
        unet=unet.network,
        encoder=encoder.network,
        vae=vae.network,
        text=text.network,
        wrapping=fusion,
        prediction=machine.prediction or description.prediction or "epsilon",
        native=description.native or 512,
        limit=machine.max_memory,
    )
    engine.loaded = Loaded(path.stem, digest(path))
    return engine


def _open_cfw(
    path: Path, description: Description, vae: parts.Part, found: dict[parts.Part, dict[str, LazyTensor]]
) -> tuple[parts.Part, parts.Part]:
    """The fusion layers, and the autoencoder that belongs to them, with their tensors found.

    Raises:
        ModelError: The file is another one, or does not fit.
    """
    tensors = open_tensors(path)
    kind = cfw_kind(tensors.keys(), path.name)
    prefix = AUTOENCODER if any(key.startswith(AUTOENCODER) for key in tensors) else ""
    inventory = Inventory(path.name, tensors)
    fusion = parts.fusion_part(description.autoencoder, description.fusion, prefix)
    found[fusion] = inventory.take(fusion)
    if kind == "cfw":
        vae = parts.autoencoder_part(description.autoencoder, description.latent_scale, prefix)
        found[vae] = inventory.take(vae)
    inventory.check()
    return fusion, vae
