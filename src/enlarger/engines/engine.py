"""The seam between an engine and the house.

An engine says how to condition, predict and decode. It has no loop, no tile plan, no file access; the
canvas, the loop and the restoration are the same for all. Its facts are data that need no torch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from enlarger.canvas.tiles import Placement
from enlarger.settings import Loading, Machine, SizeSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from enlarger.canvas.blend import Plane, Weights
    from enlarger.canvas.geometry import Canvas, Pass
    from enlarger.canvas.noise import NoiseSource
    from enlarger.sampling.steps import Adjust, Moment, Steps
    from enlarger.size import Size


@dataclass(frozen=True)
class Facts:
    """What the house must know of an engine before it is loaded.

    Attributes:
        name: As users write it.
        summary: One line for `enlarger models` and --help.
        settings: The record of everything that one picture's run may be told.
        machine: The record of everything that loading may be told.
        factor: Output pixels per input pixel of one pass.
        at_target: Whether it works at the target's own size: its source is enlarged to that before.
        enlargement: The filter of that enlargement.
        default_scale: Enlargement when the user names no size.
        grid: Output pixels per cell of the state that the loop moves.
        stride: Input pixels that the sides of what goes in must be a multiple of.
        padding: How the input is padded to `stride`: "edge" or "reflect".
        field: Input pixels that one prediction sees beyond its own on each side, for purely convolutional
            networks; their tiles carry that halo and change nothing. None: tiles overlap and are blended.
        decode_field: The same for `decode`, in the latent; 0 when decoding looks at its own pixel only.
        tile: Default side of a tile, in output pixels.
        overlap: Default overlap of blended tiles, in output pixels.
        weights: Shape of a blended tile's weight.
        placement: How blended tiles are placed.
        fill: Whether its network is given whole tiles even where the canvas is smaller (`canvas.blend.Tiling`).
        fixes_padding: Whether the colour fix sees the padding, too.
        cuts: Whether samples are cut down to whole numbers, not rounded.
        prediction: What the network predicts: "x0", "epsilon", "v_prediction"; "" when a model's own
            configuration says it, or when nothing is predicted.
        bytes_per_pixel: Peak memory of a forward pass per output pixel of a tile's outer size, float32.
        needs_model: Whether the user must name a model.
        families: What that model may be, as `enlarger inspect` names it.
        extra: The package extra it needs, "" for none.
        licence: Of the weights that ship, "" if none ship.
        links: Where to read more.
    """

    name: str
    summary: str
    settings: type[SizeSettings]
    machine: type[Loading] = Machine
    factor: int = 4
    at_target: bool = False
    enlargement: str = "bicubic"
    default_scale: float = 4.0
    grid: int = 1
    stride: int = 1
    padding: Literal["edge", "reflect"] = "edge"
    field: int | None = None
    decode_field: int = 0
    tile: int = 512
    overlap: int = 64
    weights: Weights = "cosine"
    placement: Placement = "even"
    fill: bool = False
    fixes_padding: bool = False
    cuts: bool = False
    prediction: str = ""
    bytes_per_pixel: int = 64
    needs_model: bool = False
    families: tuple[str, ...] = ()
    extra: str = ""
    licence: str = ""
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What a network says of a batch of tiles.

    Attributes:
        conditional: (B, C, h, w).
        unconditional: The same without the prompt, while guidance is on; else None.
    """

    conditional: Tensor
    unconditional: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """What a prediction may look at. Engines add fields of their own in a frozen subclass.

    Fields of type `Plane` lie on the picture and are cropped for a tile (`canvas.blend.crop`);
    all other fields pass unchanged.

    Attributes:
        source: The picture that goes in, (1, 3, H, W), 0..1, with the number of its pixels per cell.
        remarks: What the result's record must admit of how this was made, such as an approximation.
    """

    source: Plane
    remarks: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Decoded:
    """A whole canvas as pixels.

    Attributes:
        pixels: (1, 3, H, W), nominally 0..1, not clamped.
        remarks: What the result's record must admit of how this was made, such as an approximation.
    """

    pixels: Tensor
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What an engine was loaded from, for records and errors: never a path.

    Attributes:
        model: The model's name; "" when there is none.
        digest: First 16 hexadecimal digits of the weights' SHA-256; "" when there are none.
        notes: What the user should know about how it was taken, one line each.
    """

    model: str = ""
    digest: str = ""
    notes: tuple[str, ...] = ()


def together(first: Loaded, *others: Loaded) -> Loaded:
    """One record for a model and what is put into it (another autoencoder, controls, adapters).

    Each of them changes the picture, so each is named, and the digest is one of all digests in their order.
    """
    if not others:
        return first
    every = (first, *others)
    digests = "".join(each.digest for each in every)
    return Loaded(
        " + ".join(each.model for each in every if each.model),
        hashlib.sha256(digests.encode()).hexdigest()[:16] if digests else "",
        tuple(note for each in every for note in each.notes),
    )


class Engine(ABC):
    """One way of making pictures bigger, loaded and immutable: one serves many pictures and threads.

    Subclasses set `facts` and answer the methods below. Without denoising, `steps` returns None and all
    work is `decode`. Tensors are (B, C, H, W) on `device`; pixels are float32, sRGB-encoded, 0..1.
    """

    facts: Facts
    loaded: Loaded = Loaded()
    device: torch.device
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def load(cls, model: str | None, machine: Any, components: Mapping[str, Any] | None = None) -> Engine:
        """Open the weights and put them on the device.

        Args:
            model: File, folder or hub id; None for what ships.
            machine: The engine's own record (`Facts.machine`): memory, and device and dtype where it has them.
            components: Parts already in memory, by diffusers' names.

        Raises:
            ModelError: Missing, incomplete or of the wrong kind.
            ResourceError: No such device.
        """

    def prepare(self, settings: Any) -> Any:
        """Whatever is the same for every picture of a folder: encoded text, above all."""
        return None

    def steps(self, settings: Any) -> Steps | None:
        """A fresh process for one picture, or None for engines that do not denoise."""
        return None

    @abstractmethod
    def condition(
        self, source: Tensor, passage: Pass, prepared: Any, settings: Any, noise: NoiseSource
    ) -> Conditioning:
        """What every prediction of this picture looks at.

        Args:
            source: (1, 3, H, W), 0..1, padded to `passage.padded`.
            passage: The geometry of this pass.
            prepared: What `prepare` gave.
            settings: The engine's record.
            noise: For draws that come before the start (x4's low-res noise, img2img's posterior sample).
        """

    def facts_for(self, settings: Any) -> Facts:
        """The facts of one run: an option to be compatible with others' code may change how a canvas is treated."""
        return self.facts

    def placed(self, canvas: Canvas, settings: Any) -> Canvas:
        """The canvas of one run, for the same reason."""
        return canvas

    def resampling(self, settings: Any) -> tuple[str, bool]:
        """Filter of the resize between an engine's own factor and the exact size, and whether it works on light."""
        return "bicubic", False

    def later(self, settings: Any) -> Any:
        """The settings of a second or later pass, which enlarges what this engine invented: more faithful ones."""
        return settings

    def latent(self, conditioning: Conditioning) -> Tensor | None:
        """Where the process starts from, (1, C, h, w), or None for pure noise."""
        return None

    def adjust(self, conditioning: Conditioning) -> Adjust | None:
        """A change of every clean estimate, on the whole canvas; None for none."""
        return None

    def state_channels(self) -> int:
        """Channels of the state that the loop moves."""
        return 3

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Conditioning) -> Prediction:
        """The network's output for a batch of tiles of one picture.

        Args:
            noisy: (B, C, h, w), scaled as the process wants it.
            moment: Where in the process.
            conditioning: Cropped to the same tiles: planes are (B, C, ..).
        """
        raise AssertionError(f"{self.facts.name} does not denoise")

    @abstractmethod
    def decode(self, latent: Tensor, conditioning: Conditioning) -> Tensor:
        """From the loop's result to pixels (B, 3, H, W), nominally 0..1, not clamped.

        Engines without denoising get the source here as `latent`: this is their "enlarge a tile".
        """

    def decode_canvas(
        self, latent: Tensor, conditioning: Conditioning, progress: Callable[[float], None] | None = None
    ) -> Decoded:
        """The same for the whole canvas of a blended engine, which keeps to its memory by itself.

        Args:
            latent: (1, C, h, w), the loop's result.
            conditioning: Of the whole canvas.
            progress: Told the share that is done, 0..1; what it raises ends the work.
        """
        return Decoded(self.decode(latent, conditioning))

    def decode_memory(self, output: Size) -> int:
        """Bytes that `decode_canvas` takes at the least for a canvas of so many output pixels."""
        return 0
