"""The one loop: a whole canvas moves from noise to a picture, whatever the engine and the process.

In each moment the network sees the canvas tile by tile; its outputs are blended, guidance is applied to the whole,
and the whole canvas steps once. So there is one state, one scheduler and one field of noise for each picture, and
tiles never show in any of them. The loop is a generator of small records: progress bar, preview and cancelling
(stop iterating) are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from enlarger.canvas.blend import WHOLE, Blend, Tiling, crop, crop_tensor
from enlarger.errors import ModelError, ResourceError
from enlarger.sampling.guidance import guide
from enlarger.sampling.memory import is_out_of_memory

if TYPE_CHECKING:
    from enlarger.canvas.noise import NoiseSource
    from enlarger.canvas.tiles import Tile
    from enlarger.sampling.steps import Adjust, Moment, Steps
    from enlarger.size import Size


class Outputs(Protocol):
    """What a network says of a batch of tiles; `engines.engine.Prediction` is one."""

    @property
    def conditional(self) -> Tensor:
        """(B, C, h, w)."""

    @property
    def unconditional(self) -> Tensor | None:
        """The same without the prompt, while guidance is on."""


class Denoiser(Protocol):
    """What the loop asks of an engine; `engines.engine.Engine` is one."""

    device: torch.device
    dtype: torch.dtype

    def latent(self, conditioning: Any) -> Tensor | None:
        """Where the process starts from, (1, C, h, w), or None for pure noise."""

    def state_channels(self) -> int:
        """Channels of the state."""

    def predict(self, noisy: Tensor, moment: Moment, conditioning: Any) -> Outputs:
        """The network's output for a batch of tiles."""


@dataclass(frozen=True)
class Step:
    """How far the loop is; one after each forward pass.

    Attributes:
        moment: Where in the process.
        done: Tiles predicted so far, over all moments.
        total: Tiles to predict; changes when memory runs out and tiles become smaller.
        state: (1, C, h, w), the canvas after this moment, an inference tensor; None while its tiles are under
            way. The last step's is the clean result.
        clean: The clean estimate (1, C, h, w) that the moment's prediction stands for, if previews are asked for.
        warnings: What the loop had to change so far, in words for the user.
    """

    moment: Moment
    done: int
    total: int
    state: Tensor | None = None
    clean: Tensor | None = None
    warnings: tuple[str, ...] = ()


def denoise(
    engine: Denoiser,
    conditioning: Any,
    steps: Steps,
    noise: NoiseSource,
    *,
    size: Size,
    tiling: Tiling = WHOLE,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    adjust: Adjust | None = None,
    preview: bool = False,
) -> Iterator[Step]:
    """Run a process on a canvas.

    Args:
        engine: Whose network predicts.
        conditioning: What `engine.condition` gave, for the whole canvas.
        steps: A fresh process.
        noise: Where the start and the steps draw from; draws have the canvas's size, whatever the tiles.
        size: Of the canvas, in cells of the state.
        tiling: How it is cut.
        guidance_scale: Used where the engine gives an unconditional output too; 1 is none.
        guidance_rescale: 0 .. 1, see `guidance.guide`.
        adjust: An engine's change of the clean estimate, on the whole canvas.
        preview: Whether steps carry the clean estimate.

    Yields:
        A step after each forward pass; the last one's `state` is the result, float32.

    Raises:
        ModelError: A prediction that is not finite.
        ResourceError: Not enough memory for the smallest tile.
    """
    moments = steps.moments
    tiles = tiling.plan(size)
    canvas = _Canvas(tiles, size, tiling)
    warnings: tuple[str, ...] = ()
    with torch.inference_mode():
        state = steps.start(noise, (1, engine.state_channels(), *size), engine.latent(conditioning))
        state = state.to(engine.device, torch.float32)
    for number, moment in enumerate(moments):
        predicted = 0
        scaled = state
        while predicted < len(tiles):
            group = tiling.group(tiles, predicted)
            following: Tensor | None = None
            clean: Tensor | None = None
            # The mode is entered anew for each forward pass: a generator must not leave it on while it waits.
            with torch.inference_mode():
                if predicted == 0:
                    scaled = steps.scale(state, moment)
                outputs, shortage = _predict(engine, scaled, moment, conditioning, group)
                if outputs is not None:
                    predicted += len(group)
                    canvas.add(outputs, group)
                    if predicted == len(tiles):
                        prediction = guide(*canvas.result(), guidance_scale, guidance_rescale)
                        _check(prediction, engine, moment, number, len(moments))
                        clean = steps.clean(prediction, state, moment) if preview else None
                        following = state = steps.step(prediction, state, moment, noise, adjust)
            if outputs is None:
                tiling, remark = _smaller(tiling, size, shortage, engine)
                warnings += (remark,)
                if tiling.plan(size) != tiles:  # smaller tiles: this moment begins anew
                    tiles = tiling.plan(size)
                    canvas, predicted = _Canvas(tiles, size, tiling), 0
                continue
            done = number * len(tiles) + predicted
            yield Step(moment, done, len(moments) * len(tiles), following, clean, warnings)


class _Canvas:
    """The outputs of a moment's tiles, with and without the prompt."""

    def __init__(self, tiles: list[Tile], size: Size, tiling: Tiling) -> None:
        self._conditional = Blend(tiles, size, weights=tiling.weights)
        self._unconditional = Blend(tiles, size, weights=tiling.weights)
        self._guided = False

    def add(self, outputs: Outputs, tiles: list[Tile]) -> None:
        self._conditional.add(outputs.conditional, tiles)
        if outputs.unconditional is not None:
            self._unconditional.add(outputs.unconditional, tiles)
            self._guided = True

    def result(self) -> tuple[Tensor, Tensor | None]:
        """Both planes; the canvas is empty again."""
        return self._conditional.result(), self._unconditional.result() if self._guided else None


def _predict(
    engine: Denoiser, scaled: Tensor, moment: Moment, conditioning: Any, tiles: list[Tile]
) -> tuple[Outputs | None, str]:
    """One forward pass, or None and why the memory did not suffice.

    The error is swallowed here, so that its traceback, which holds the network's tensors, is gone before
    anything is tried again.
    """
    try:
        if scaled.shape[2:] != tuple(tiles[0].size):  # else the one tile is the canvas
            scaled, conditioning = crop_tensor(scaled, tiles), crop(conditioning, tiles)
        return engine.predict(scaled, moment, conditioning), ""
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error).partition("\n")[0]


def _smaller(tiling: Tiling, size: Size, shortage: str, engine: Denoiser) -> tuple[Tiling, str]:
    """The next smaller tiling and what to tell the user.

    Raises:
        ResourceError: There is none.
    """
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    smaller = tiling.smaller(size)
    if smaller is None:
        raise ResourceError(
            f"not enough memory for the smallest tile, {tiling.plan(size)[0].size} cells ({shortage[:80]}): "
            "close other programs, or try --dtype bfloat16 or --device cpu"
        )
    if smaller.tile == tiling.tile:
        count = "one tile" if smaller.batch == 1 else f"{smaller.batch} tiles"
        return smaller, f"memory ran out: {count} in one forward pass from here on"
    return smaller, f"memory ran out: tiles of {smaller.plan(size)[0].size} cells from here on, details may differ"


def _check(prediction: Tensor, engine: Denoiser, moment: Moment, number: int, count: int) -> None:
    """Stop at numbers that are none, before they become a black picture.

    Raises:
        ModelError: There are some; names the step and what may help.
    """
    if math.isfinite(float(prediction.sum())):  # one number that is none makes the sum none
        return
    remedy = "another --scheduler or a lower --guidance-scale"
    if engine.dtype != torch.float32:
        remedy = f"--dtype float32 (now {str(engine.dtype).removeprefix('torch.')}), or {remedy}"
    raise ModelError(
        f"the network's prediction is not a finite number at step {number + 1} of {count} "
        f"(timestep {moment.timestep:g}): try {remedy}"
    )
