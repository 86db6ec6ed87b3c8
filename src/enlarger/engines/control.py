"""ControlNets: what they see, and what they add to the network (Zhang et al. 2023, arXiv 2302.05543).

A ControlNet is a copy of the UNet's first half that looks at a picture beside the latent; what it finds is added to the
UNet's skips and to its middle. Its picture is read by a few convolutions first: they run once, over the whole canvas,
and tiles take their part of the outcome, so a tile sees the same control as the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from enlarger.canvas.tiles import halo_tiles
from enlarger.checkpoints.find import subfolder
from enlarger.controls.edges import canny, soft
from enlarger.controls.maps import MapModels
from enlarger.controls.pose import draw_pose, read_pose
from enlarger.engines import diffusion
from enlarger.engines.diffusion import Parts
from enlarger.engines.settings import CONTROL_TYPES, ControlledSettings, ControlMachine
from enlarger.errors import ModelError, SettingsError
from enlarger.picture.read import read
from enlarger.picture.resize import resize
from enlarger.size import Size

FAMILIES = ("controlnet-sd15", "controlnet-sd2", "controlnet-sdxl", "controlnet-union-sdxl")
"""Kinds of ControlNets, as `checkpoints` names them."""

CELL = 8
"""Pixels of a control picture per cell of the latent, along each side."""

REACH = 24
"""Pixels that one cell of a read control picture depends on beyond its own: 23, in whole cells."""

STRETCH = 1024
"""Pixels of a control picture that are read at a time, along each side."""

TYPE_OF_MAP = {"picture": "tile", "canny": "canny", "soft": "soft", "pose": "pose", "depth": "depth"}
"""What a union net is told of a map, unless the user says otherwise."""


@dataclass(frozen=True)
class Net:
    """A ControlNet in memory.

    Attributes:
        name: For errors.
        hint: The convolutions that read a control picture.
        body: The rest of it; it takes what `hint` gives in place of a picture.
        types: How many kinds of control pictures a union net knows; 0 for other nets.
        digest: Of its weights; "" if it came from memory.
    """

    name: str
    hint: nn.Module
    body: nn.Module
    types: int
    digest: str = ""


@dataclass(frozen=True)
class Control:
    """One control of a picture: which net, what it sees, when and how much it counts.

    Attributes:
        net: The ControlNet.
        map: A word of `settings.MAPS`.
        kind: What a union net is told, a word of `settings.CONTROL_TYPES`.
        scale: Factor of what it adds.
        start: Share of the steps after which it sets in.
        end: Share of the steps after which it stops.
        image: (H, W, 3), 0..1, what it sees; None for the input.
        pose: A JSON file with key points, in place of an image.
    """

    net: Net
    map: str
    kind: str
    scale: float
    start: float
    end: float
    image: np.ndarray[Any, Any] | None = None
    pose: str | None = None

    def acts(self, position: int, count: int) -> bool:
        """Whether it acts in a moment, counted from the noisiest: diffusers' rule."""
        return self.scale != 0 and not (position / count < self.start or (position + 1) / count > self.end)


def load_nets(engine: str, parts: Parts, machine: ControlMachine, components: Mapping[str, Any] | None) -> list[Net]:
    """The ControlNets of a command line or of a pipeline in memory.

    Raises:
        ModelError: Missing, no ControlNet, or made for another base model.
    """
    loaded: list[tuple[str, nn.Module, str]] = []
    given = None if components is None else components.get("controlnet")
    if given is not None:
        several = getattr(given, "nets", given)
        modules = list(several) if isinstance(several, (list, tuple, nn.ModuleList)) else [several]
        loaded += [
            (type(module).__name__, diffusion.moved(module, parts.device, parts.dtype), "") for module in modules
        ]
    opened: dict[str, tuple[str, nn.Module, str]] = {}
    for name in machine.control:
        if name not in opened:  # a union net that is named twice is one net that sees two pictures
            checkpoint = diffusion.open_model(subfolder(name), machine, FAMILIES, engine)
            module = checkpoint.module("controlnet", dtype=parts.dtype, device=parts.device)
            opened[name] = (checkpoint.name, module, checkpoint.digest)
        loaded.append(opened[name])
    nets: dict[int, Net] = {}
    for name, module, digest in loaded:
        if id(module) not in nets:
            _check_fit(name, module, parts)
            nets[id(module)] = _net(name, module, digest)
    return [nets[id(module)] for _, module, _ in loaded]


def _net(name: str, module: nn.Module, digest: str) -> Net:
    """A net as its hint and its body; the module itself stays as it is."""
    body = copy.copy(module)
    body._modules = {**module._modules, "controlnet_cond_embedding": nn.Identity()}
    config: Any = module.config
    hint: Any = module.controlnet_cond_embedding
    return Net(name, hint, body, int(getattr(config, "num_control_type", 0) or 0), digest)


def _check_fit(name: str, module: nn.Module, parts: Parts) -> None:
    """Refuse a ControlNet of another base model.

    Raises:
        ModelError: With both names.
    """
    ours: Any = parts.unet.config
    theirs: Any = getattr(module, "config", None)
    if theirs is None or not hasattr(module, "controlnet_cond_embedding"):
        raise ModelError(f"{name} is no ControlNet, but {type(module).__name__}")
    for what in ("cross_attention_dim", "block_out_channels", "addition_embed_type", "in_channels"):
        one, other = getattr(ours, what, None), getattr(theirs, what, None)
        if (list(one) if isinstance(one, (list, tuple)) else one) != (
            list(other) if isinstance(other, (list, tuple)) else other
        ):
            raise ModelError(
                f"{name} is made for {_base(theirs)}, and {parts.loaded.model or 'the model'} is {_base(ours)}: "
                "take a ControlNet that is made for the model"
            )


def _base(config: Any) -> str:
    if getattr(config, "addition_embed_type", None) == "text_time":
        return "Stable Diffusion XL"
    width = config.cross_attention_dim
    known = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
    return known.get(width, f"a model whose text is {width} wide")


def controls_of(
    nets: Sequence[Net], settings: ControlledSettings, maps: MapModels, *, needs_image: bool
) -> tuple[Control, ...]:
    """Each net with its part of the settings; control pictures are read here, once for a folder.

    Args:
        nets: In the order in which they were named.
        settings: Lists have one value for each net, or one for all.
        maps: The models that make maps.
        needs_image: Whether there is no input that a net could see.

    Raises:
        SettingsError: A list of another length, or a setting without a net that it is for.
        PictureError: A control picture that cannot be read.
    """
    names = ("control_image", "control_map", "control_scale", "control_start", "control_end", "control_type")
    for name in (*names, "guess_mode", "control_size"):
        if not nets and getattr(settings, name):
            raise SettingsError(f"{name} is for a ControlNet, and none is named: name it with --control")
    images: list[str | None] = _spread("control_image", settings.control_image, len(nets), None)
    words: list[str | None] = _spread("control_map", settings.control_map, len(nets), None)
    kinds: list[str | None] = _spread("control_type", settings.control_type, len(nets), None)
    scales = _spread("control_scale", settings.control_scale, len(nets), 1.0)
    starts = _spread("control_start", settings.control_start, len(nets), 0.0)
    ends = _spread("control_end", settings.control_end, len(nets), 1.0)
    pictures: dict[str, np.ndarray[Any, Any]] = {}
    found = []
    for net, image, made, kind, scale, start, end in zip(nets, images, words, kinds, scales, starts, ends, strict=True):
        if image is None and needs_image:
            raise SettingsError(f"{net.name} has nothing to see: name a picture with --control-image")
        is_pose = image is not None and image.lower().endswith(".json")
        made = made or ("pose" if is_pose else "picture")
        _check_map(made, maps, is_pose=is_pose)
        if image is not None and not is_pose and image not in pictures:
            pictures[image] = np.ascontiguousarray(read(image, max_pixels=settings.max_pixels).rgb(), np.float32)
        kind = kind or TYPE_OF_MAP[made]
        if net.types and CONTROL_TYPES.index(kind) >= net.types:
            raise SettingsError(
                f"{net.name} knows {', '.join(CONTROL_TYPES[: net.types])}, not {kind}: choose with --control-type"
            )
        if settings.control_type and not net.types:
            raise SettingsError(f"control_type is for union nets, and {net.name} is none: leave it out")
        seen = None if image is None or is_pose else pictures[image]
        found.append(Control(net, made, kind, scale, start, end, seen, image if is_pose else None))
    return tuple(found)


def _check_map(made: str, maps: MapModels, *, is_pose: bool) -> None:
    """Refuse a map that nothing here can make.

    Raises:
        SettingsError: Says how to supply it.
    """
    if is_pose and made != "pose":
        raise SettingsError(
            f"a JSON file of key points is drawn as a pose, not made into {made}: leave out --control-map, or name a "
            "picture with --control-image"
        )
    ready = "or a ready-made map with --control-image FILE --control-map picture"
    if made == "depth" and maps.depth is None:
        raise SettingsError(f"a depth map needs a model: name its folder with --map-model, {ready}")
    if made == "pose" and not is_pose and maps.pose is None:
        raise SettingsError(
            "a pose is drawn from OpenPose's JSON or found by a model: name the file with --control-image, the model's "
            f"folder with --map-model, {ready}"
        )


def _spread(name: str, values: Sequence[Any], count: int, default: Any) -> list[Any]:
    """One value for each net."""
    if len(values) in (0, 1):
        return [values[0] if values else default] * count
    if len(values) != count:
        nets = "one ControlNet" if count == 1 else f"{count} ControlNets"
        raise SettingsError(f"{name} has {len(values)} values for {nets}: give one for each, or one for all")
    return list(values)


def control_pictures(
    controls: Sequence[Control], source: Tensor, size: Size, settings: ControlledSettings, maps: MapModels
) -> list[Tensor]:
    """What each net sees, (1, 3, H, W), 0..1, padded as the source is.

    Args:
        controls: As `controls_of` gives them.
        source: The input on the canvas, (1, 3, H, W), padded at the bottom and right.
        size: Of the canvas without padding.
        settings: Thresholds, and the frame of key points.
        maps: The models that make maps.

    Raises:
        PictureError: Key points that cannot be read, or a picture without the people whose pose is asked for.
    """
    pictures = []
    for control in controls:
        if control.pose is not None:
            seen = draw_pose(read_pose(control.pose, size, settings.control_size), size)
        elif control.image is not None:
            seen = _mapped(np.clip(resize(control.image, size, "lanczos"), 0, 1), control.map, settings, maps)
        else:
            pixels = source[0, :, : size.height, : size.width].permute(1, 2, 0).cpu().numpy()
            seen = _mapped(pixels, control.map, settings, maps)
        made = torch.from_numpy(np.ascontiguousarray(seen))
        made = (made[..., None].expand(-1, -1, 3) if made.ndim == 2 else made).permute(2, 0, 1)[None]
        below, right = source.shape[2] - size.height, source.shape[3] - size.width
        pictures.append(functional.pad(made, (0, right, 0, below), mode="replicate") if below or right else made)
    return pictures


def _mapped(
    pixels: np.ndarray[Any, Any], kind: str, settings: ControlledSettings, maps: MapModels
) -> np.ndarray[Any, Any]:
    """A picture (H, W, 3), 0..1, as a map of some kind: (H, W) or (H, W, 3), 0..1."""
    if kind == "canny":
        return canny(pixels, settings.canny_low, settings.canny_high)
    if kind == "soft":
        return soft(pixels)
    if kind == "depth":
        assert maps.depth is not None
        return maps.depth(pixels)
    if kind == "pose":
        assert maps.pose is not None
        return draw_pose(maps.pose(pixels), Size(*pixels.shape[:2]))
    return pixels


def read_hint(net: Net, picture: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A control picture (1, 3, H, W) as the net's first convolutions read it, (1, C, H / 8, W / 8), tile by tile.

    Tiles carry what the convolutions see beyond them, so they change nothing.
    """
    config: Any = net.body.config
    backwards = config.controlnet_conditioning_channel_order == "bgr"
    if backwards:
        picture = picture.flip(1)
    size = Size(picture.shape[2], picture.shape[3])
    tiles = halo_tiles(size, STRETCH, REACH, CELL)
    read: Tensor | None = None
    for tile in tiles:
        outer, inner = tile.outer, tile.inner
        part = picture[:, :, outer.top : outer.bottom, outer.left : outer.right].to(device, dtype)
        made = net.hint(part)
        if read is None:
            read = torch.empty((1, made.shape[1], size.height // CELL, size.width // CELL), device=device, dtype=dtype)
        top, left = (inner.top - outer.top) // CELL, (inner.left - outer.left) // CELL
        height, width = inner.height // CELL, inner.width // CELL
        read[:, :, inner.top // CELL :, inner.left // CELL :][:, :, :height, :width] = made[
            :, :, top : top + height, left : left + width
        ]
    assert read is not None
    # The body turns its channels round for such nets, as if they were the picture's.
    return read.flip(1) if backwards else read


@dataclass(frozen=True)
class Acting:
    """The controls of a moment, for `diffusion.guided`.

    Attributes:
        controls: Those that act.
        hints: For each of them what its net has read, (B, C, h, w).
        guess: Whether the nets run on the prompt's half alone, weaker in fine features.
    """

    controls: tuple[Control, ...]
    hints: tuple[Tensor, ...]
    guess: bool

    def __call__(self, arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
        """What is added to the network's skips and middle."""
        halves = arguments["sample"].shape[0] // count
        alone = self.guess and halves == 2
        seen = {name: _second_half(value) if alone else value for name, value in arguments.items()}
        down: list[Tensor] | None = None
        middle: Tensor | None = None
        for group in self._groups():
            skips, mid = self._run(group, seen, 1 if alone else halves)
            down = list(skips) if down is None else [one + other for one, other in zip(down, skips, strict=True)]
            middle = mid if middle is None else middle + mid
        assert down is not None
        assert middle is not None
        if alone:
            down = [torch.cat([torch.zeros_like(skip), skip]) for skip in down]
            middle = torch.cat([torch.zeros_like(middle), middle])
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _groups(self) -> list[list[int]]:
        """Controls that go through a net together: those of one union net, all others alone."""
        groups: dict[Any, list[int]] = {}
        for number, control in enumerate(self.controls):
            groups.setdefault(id(control.net) if control.net.types else f"{number}", []).append(number)
        return list(groups.values())

    def _run(self, group: list[int], seen: Mapping[str, Any], halves: int) -> tuple[Sequence[Tensor], Tensor]:
        net = self.controls[group[0]].net
        hints = [torch.cat([self.hints[number]] * halves) for number in group]
        scales = [self.controls[number].scale for number in group]
        more: dict[str, Any] = {"conditioning_scale": scales[0], "controlnet_cond": hints[0]}
        if net.types:
            kinds = [CONTROL_TYPES.index(self.controls[number].kind) for number in group]
            types = torch.zeros(net.types, device=hints[0].device, dtype=hints[0].dtype)
            types[kinds] = 1
            more = {
                "conditioning_scale": scales,
                "controlnet_cond": hints,
                "control_type": types.expand(hints[0].shape[0], -1),
                "control_type_idx": kinds,
            }
        if "added_cond_kwargs" in seen:
            more["added_cond_kwargs"] = seen["added_cond_kwargs"]
        skips, middle = net.body(
            seen["sample"],
            seen["timestep"],
            encoder_hidden_states=seen["encoder_hidden_states"],
            guess_mode=self.guess,
            return_dict=False,
            **more,
        )
        return skips, middle


def _second_half(value: Any) -> Any:
    """The prompt's half of a batch; what has no batch stays."""
    if isinstance(value, Mapping):
        return {name: _second_half(each) for name, each in value.items()}
    return value if value.ndim == 0 else value.chunk(2)[1]
