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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from enlarger.canvas import autoencoder as tiled
from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Canvas, Pass
from enlarger.engines.catalog import STABLESR
from enlarger.engines.device import pick_device, pick_dtype
from enlarger.engines.engine import Conditioning, Decoded, Engine, Facts, Loaded, Prediction, together
from enlarger.engines.stablesr_files import LICENCE, WORDS, Shelf, native_size, opened, predicted
from enlarger.engines.stablesr_parts import Description, described_beside
from enlarger.errors import ModelError, SettingsError
from enlarger.networks.cfw import Weighted, Wrapping
from enlarger.networks.spade import maps
from enlarger.networks.time_aware_encoder import TimeAwareEncoder
from enlarger.picture.read import read
from enlarger.sampling.memory import BASE_MEMORY, RESERVE, free_memory
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
    """What is the same for every picture of a run.

    Attributes:
        positive: The prompt, (1, 77, C).
        negative: The negative prompt while guidance is on.
        reference: A picture to be pulled to, (1, 3, H, W), 0..1, at its own size.
    """

    positive: Tensor
    negative: Tensor | None = None
    reference: Tensor | None = None


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
    ) -> None:
        self.description = description
        self.unet: Any = unet
        self.encoder = encoder
        self.autoencoder = tiled.Autoencoder(vae)
        self.text: Any = text
        self.wrapping = wrapping
        self.prediction = prediction
        self.limit = limit
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
        return load(model, machine)

    def prepare(self, settings: StableSRSettings) -> Contexts:
        """See `Engine.prepare`: the encoded prompts, the negative one only while guidance is on, and the reference."""
        reference = None
        if settings.reference is not None:
            reference = torch.from_numpy(np.ascontiguousarray(read(settings.reference).rgb().transpose(2, 0, 1)))[None]
        negative = self.context(settings.negative_prompt) if settings.guided else None
        return Contexts(self.context(settings.prompt), negative, reference)

    def context(self, prompt: str) -> Tensor:
        """A prompt for the UNet, (1, 77, C); every character counts as text, and what is too long is cut."""
        shape = self.description.text
        inner: list[int] = []
        if prompt.strip():
            inner = self.tokens(prompt)[: shape.length - 2]
        ids = [shape.start, *inner, shape.end]
        return self.encode_ids(torch.tensor([ids + [shape.pad] * (shape.length - len(ids))]))

    def tokens(self, prompt: str) -> list[int]:
        """Ids of a text, without marks; nothing in it is a weight or a command.

        Raises:
            ModelError: The text tower has another vocabulary than CLIP's, which is the one that ships.
        """
        from enlarger.checkpoints.configs import VOCABULARY
        from enlarger.checkpoints.modules import load_tokenizer

        tokenizer = load_tokenizer(VOCABULARY, "!")
        if len(tokenizer) != self.description.text.vocabulary:
            raise ModelError(
                f"{self.loaded.model} knows {self.description.text.vocabulary} tokens and CLIP's vocabulary has "
                f"{len(tokenizer)}: it can only be used without a prompt"
            )
        return [int(token) for token in tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids]

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
        weight = self.cfw_weight(settings)
        self.check(settings)
        latent, admitted = self.encode(source * 2 - 1, noise if settings.original else None)
        reference = None
        if prepared.reference is not None:
            # The input's own way: enlarged to its size, padded, encoded.
            large = functional.interpolate(prepared.reference, size=tuple(passage.source), mode="bicubic")
            spare = (0, source.shape[3] - large.shape[3], 0, source.shape[2] - large.shape[2])
            padded = functional.pad(large.clamp(0, 1), spare, mode="replicate")
            reference, more = self.encode(padded * 2 - 1)
            admitted = tuple(dict.fromkeys((*admitted, *more)))
        return StableSRConditioning(
            Plane(source, self.facts.grid),
            Plane(latent),
            prepared,
            start=settings.start == "lr",
            cfw_weight=weight,
            reference=reference,
            reference_strength=settings.reference_strength,
            reference_until=settings.reference_until,
            remarks=admitted,
        )

    def check(self, settings: StableSRSettings) -> None:
        """Refuse what this model cannot do.

        Raises:
            SettingsError: Tiles smaller than 8 latent cells.
        """
        least = 8 * self.facts.grid
        if settings.tile is not None and settings.tile < least:
            raise SettingsError(
                f"tile {settings.tile} is too small for StableSR, which sees nothing in it: at least {least}, "
                f"best {self.facts.tile}, which the model was trained on"
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
        """Bytes that encoding or decoding may take beside the weights."""
        free = int(free_memory(str(self.device)) * RESERVE)
        return free if self.limit is None else min(free, max(1, self.limit - BASE_MEMORY))

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
        to 32 whenever one needs it. The target is ours, but for a scale, which gives sides that are rounded down.
    """
    source = canvas.source
    factor = original_scale(source, scale or canvas.scale, least)
    size = Size(int(source.height * factor), int(source.width * factor))
    padded = size
    if size.height % 32 or size.width % 32:
        padded = Size(*((side // 32 + 1) * 32 for side in size))
    target = canvas.target if scale is None else Size(int(source.height * scale), int(source.width * scale))
    return Canvas(source, target, (Pass(size, padded, 1),))


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


# --- loading ---------------------------------------------------------------------------------------------------------


def load(model: str, machine: StableSRMachine) -> StableSR:
    """Open a model and everything beside it; all inventories are checked before anything is read.

    Raises:
        ModelError: A file is missing, damaged, another one's, incomplete, or does not fit.
        ResourceError: No such device.
    """
    checkpoint = opened(model, machine, STABLESR.families, "model")
    device = pick_device(machine.device)
    dtype = pick_dtype(machine.dtype, device, half=True)
    path = checkpoint.files[0]
    found = described_beside(path)
    description = found or Description()
    prediction, why = predicted(machine.prediction, found, checkpoint)
    shelf = Shelf(description)
    loaded = [Loaded(checkpoint.name, checkpoint.digest, checkpoint.notes)]
    if checkpoint.family == "stablesr-module":
        if machine.base is None:
            raise ModelError(
                f"{checkpoint.name} holds StableSR's own modules only: name with --base the Stable Diffusion 2.1 "
                "(or SD-Turbo) that they belong to"
            )
        base = opened(machine.base, machine, ("sd2",), "base")
        shelf.take_trimmed(checkpoint, base)
        loaded.append(Loaded(base.name, base.digest))
    else:
        if machine.base is not None:
            raise ModelError(f"{checkpoint.name} is a whole model and needs no --base: leave it out")
        shelf.take_whole(checkpoint)
    if machine.cfw is not None:
        cfw = opened(machine.cfw, machine, ("cfw", "cfw-fusion"), "cfw")
        shelf.take_cfw(cfw)
        loaded.append(Loaded(cfw.name, cfw.digest, shelf.remarks))
    elif machine.vae is not None:
        vae = opened(machine.vae, machine, ("vae",), "vae")
        shelf.take_vae(vae)
        loaded.append(Loaded(vae.name, vae.digest))
    networks = shelf.read(dtype, device)
    native = native_size(found, checkpoint, prediction)
    engine = StableSR(description, **networks, prediction=prediction, native=native, limit=machine.max_memory)
    notes = [f"{checkpoint.name} is taken to predict {WORDS[prediction]}: {why}", *probed(engine), LICENCE]
    record = together(*loaded)
    engine.loaded = dataclasses.replace(record, notes=(*record.notes, *notes))
    return engine


@torch.inference_mode()
def probed(engine: StableSR) -> tuple[str, ...]:
    """A line if the network does not do what it is taken to do.

    From pure noise a network that predicts noise gives just that back; one that predicts velocity gives almost
    nothing that is like it.
    """
    side = min(32, engine.facts.tile // engine.facts.grid)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, engine.state_channels(), side, side, generator=generator)
    last = torch.full((1,), len(engine.chain) - 1)
    predicted = engine.network(noise, torch.zeros_like(noise), last, engine.context("")).cpu()
    alike = float(functional.cosine_similarity(predicted.flatten(), noise.flatten(), dim=0))
    seems = "epsilon" if alike > PROBE else "v_prediction"
    if seems == engine.prediction:
        return ()
    told = (
        f"from pure noise it gives {max(0.0, alike):.0%} of that noise back, as one that predicts {WORDS[seems]} "
        f"would: if results are noise or blur, try --prediction {seems}"
    )
    return (told,)
