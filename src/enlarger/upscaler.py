"""One picture's whole way, from top to bottom: `Upscaler.__call__`.

read -> place on a canvas -> condition -> denoise -> decode -> restore -> develop
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from enlarger.canvas.blend import Tiling, crop, over_tiles
from enlarger.canvas.consistency import consistent
from enlarger.canvas.exact import exactly
from enlarger.canvas.geometry import Canvas, Pass
from enlarger.canvas.noise import NoiseSource, PositionalNoise, SampledNoise, SequentialNoise
from enlarger.canvas.rows import CutRows, Rows, WholeRows
from enlarger.engines import catalog
from enlarger.errors import Interrupted, SettingsError
from enlarger.picture.alpha import bleed, enlarge_alpha
from enlarger.picture.colour import adain, quantise, wavelet
from enlarger.picture.read import read
from enlarger.picture.resize import resize
from enlarger.planning import Plan, cells_of, make_plan
from enlarger.result import Result
from enlarger.sampling.loop import denoise
from enlarger.sampling.stream import Cutting, stream
from enlarger.settings import Loading, build, rules, to_json
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.canvas.tiles import Tile
    from enlarger.engines.engine import Conditioning, Engine, Facts
    from enlarger.picture.picture import Picture

STRETCH = 256
"""Rows of the result that are finished at a time."""


@dataclass(frozen=True)
class Progress:
    """How far the work on one picture is.

    Attributes:
        done: Output pixels finished, each counted once for every step.
        total: The same for the whole picture.
        seconds: Since the start.
        left: Seconds that are left, as far as can be told.
    """

    done: int
    total: int
    seconds: float
    left: float


Callback = Callable[[Progress], "bool | None"]
"""Told after every tile; the work is cancelled when it returns False."""


class Upscaler:
    """An engine, loaded once, that enlarges pictures.

    Args:
        engine: Name of an engine (`enlarger models` lists them), or one that is loaded already.
        model: File, folder or hub id of the model; None for what ships.
        components: Parts already in memory, such as `pipe.components` of a diffusers pipeline.
        **machine: max_memory and, for engines with a network, device and dtype (see `enlarger.settings.Machine`).

    Raises:
        SettingsError: No such engine, or wrong machine settings.
        ModelError: The model is missing or does not fit.
        ResourceError: The device is not there.
    """

    def __init__(
        self,
        engine: str | Engine = "pocket",
        model: str | None = None,
        *,
        components: Mapping[str, Any] | None = None,
        **machine: Any,
    ) -> None:
        if isinstance(engine, str):
            listing = catalog.find(engine)
            facts = listing.facts
            self.machine: Loading = build(
                facts.machine, machine, owner=f"engine {engine}", known=catalog.setting_names()
            )
            self.engine: Engine = catalog.engine_class(listing).load(model, self.machine, components)
        else:
            self.engine = engine
            self.machine = build(engine.facts.machine, machine, owner=f"engine {engine.facts.name}")
        self._prepared: tuple[Any, Any] | None = None

    @property
    def facts(self) -> Facts:
        """What is known of the engine."""
        return self.engine.facts

    def settings(self, **values: Any) -> Any:
        """The engine's settings record for some values, everything checked.

        Raises:
            SettingsError: A value or name is wrong, or the engine has no such setting.
        """
        facts = self.facts
        owner = f"engine {facts.name}"
        return build(facts.settings, values, owner=owner, known=catalog.setting_names())

    def plan(self, source: Size, settings: Any) -> Plan:
        """What a run on a picture of this size will do.

        Raises:
            SettingsError: The size asked for is not possible.
            ResourceError: It does not fit into the memory.
        """
        return make_plan(self.engine, self.machine, source, settings)

    @torch.inference_mode()
    def __call__(self, image: Any, *, progress: Callback | None = None, **values: Any) -> Result:
        """Enlarge one picture.

        Args:
            image: Path, bytes, file object, PIL picture, numpy array (H, W[, C]; uint8, uint16, or float 0..1)
                or torch tensor ([1,] C, H, W).
            progress: Told after every tile; returns False to cancel.
            **values: The engine's settings: scale, size, seed, steps and so on.

        Returns:
            The result, of exactly the size asked for, in the input's depth.

        Raises:
            SettingsError: A setting is wrong or not for this engine.
            PictureError: The picture cannot be read.
            ResourceError: Memory is not enough for the smallest tile.
            Interrupted: `progress` returned False.
        """
        started = time.monotonic()
        settings = self.settings(**values)
        if getattr(settings, "samples", 1) > 1 and settings.sample is None:
            raise SettingsError(
                f"samples {settings.samples} gives several results: choose one with sample, or call Upscaler.samples"
            )
        picture = read(image, max_pixels=settings.max_pixels, page=settings.page)
        plan = self.plan(Size(picture.height, picture.width), settings)
        clock = _Clock(plan.work, progress, started)
        for line in (*distortion(plan.canvas), *plan.warnings):
            clock.warn(line)

        rows: Rows = WholeRows(_tensor(picture)[0])
        for number, passage in enumerate(plan.canvas.passes):
            if number:
                settings = self.engine.later(settings)
            facts = self.engine.facts_for(settings)
            rows = exactly(rows, passage.source, facts.enlargement, linear_light=False, stretch=STRETCH)
            source = rows.read(0, passage.source.height)[None]
            if facts.at_target:
                source = source.clamp(0, 1)  # enlarging overshoots at edges
            rows = self._enlarge(source, passage, number, settings, plan, clock)
        filter, light = self.engine.resampling(settings)
        rows = exactly(rows, plan.canvas.target, filter, linear_light=light, stretch=STRETCH)
        first = plan.canvas.passes[0]
        if settings.consistency and (first.factor == 1 or rows.size != first.native):
            # Passes are true to what they enlarged; here the exact size is made true to the picture itself.
            rows = consistent(rows, _tensor(picture)[0], settings.consistency, STRETCH)

        pixels = develop(rows, picture, cut=self.engine.facts_for(settings).cuts)
        alpha = None
        if picture.alpha is not None:
            alpha = quantise(enlarge_alpha(picture.alpha, plan.canvas.target), picture.depth)
        return Result(
            pixels,
            alpha,
            picture,
            image if isinstance(image, (str, Path)) else None,
            self.facts.name,
            self.engine.loaded.model,
            self.engine.loaded.digest,
            to_json(self.settings(**values)),
            getattr(settings, "seed", None),
            time.monotonic() - started,
            (*picture.warnings, *self.engine.loaded.notes, *clock.warnings),
            tuple(clock.remarks),
        )

    def samples(self, image: Any, *, progress: Callback | None = None, **values: Any) -> Iterator[Result]:
        """All samples of one picture, one after the other; arguments and errors as in `__call__`.

        The noise of all samples is one draw with an item for each, so sample 3 of 5 is another picture than
        sample 3 of 4; what is drawn before the start (x4's low-res noise) is common to all.
        """
        settings = self.settings(**values)
        count = getattr(settings, "samples", 1)
        if count == 1 or settings.sample is not None:
            yield self(image, progress=progress, **values)
            return
        for sample in range(1, count + 1):
            yield self(image, progress=progress, **{**values, "sample": sample})

    def _enlarge(self, source: Tensor, passage: Pass, number: int, settings: Any, plan: Plan, clock: _Clock) -> Rows:
        """One pass: rows at the engine's factor, its padding cut, colours and detail made true to the source."""
        facts, fix = self.engine.facts_for(settings), getattr(settings, "color_fix", "none")
        padded = pad(source, passage.padded, facts.padding)
        run = self._blended if facts.field is None else self._streamed
        rows = run(padded, passage, number, settings, plan, clock)
        if facts.fixes_padding:
            rows, fix = colour_fixed(rows, padded[0], fix), "none"
        rows = colour_fixed(CutRows(rows, passage.native), source[0], fix)
        if settings.consistency and passage.factor > 1:
            rows = consistent(rows, source[0], settings.consistency, STRETCH)
        return rows

    def _streamed(self, padded: Tensor, passage: Pass, number: int, settings: Any, plan: Plan, clock: _Clock) -> Rows:
        """For networks with a stated receptive field: rows that are computed when they are read."""
        engine = self.engine
        seed, sample = getattr(settings, "seed", 0), (getattr(settings, "sample", None) or 1) - 1
        noise = PositionalNoise(seed, engine.state_channels(), number, sample)
        draws = SequentialNoise(seed)
        conditioning = engine.condition(padded, passage, self.prepared(settings), settings, draws)
        # Convolution libraries round differently for batches; a CPU gains nothing by them, so there the bytes win.
        batch = 1 if engine.device.type == "cpu" else plan.batch
        cutting = Cutting(max(1, plan.tile // passage.factor), batch, clock.advance, clock.warn)
        return stream(engine, conditioning, engine.steps(settings), noise, passage, cutting)

    def _blended(self, padded: Tensor, passage: Pass, number: int, settings: Any, plan: Plan, clock: _Clock) -> Rows:
        """For all other networks: the whole canvas moves at once, its tiles overlap and are blended."""
        engine = self.engine
        noise: NoiseSource = SequentialNoise(getattr(settings, "seed", 0))
        conditioning = engine.condition(padded, passage, self.prepared(settings), settings, noise)
        if getattr(settings, "samples", 1) > 1:
            noise = SampledNoise(noise, settings.samples, settings.sample - 1)
        steps = engine.steps(settings)
        cells, tiling = cells_of(engine, passage), plan.tiling(engine, passage, settings)
        if steps is None:
            return self._transformed(conditioning, cells, tiling, clock)
        reached, last = clock.done, None
        for last in denoise(
            engine,
            conditioning,
            steps,
            noise,
            size=cells,
            tiling=tiling,
            guidance_scale=getattr(settings, "guidance_scale", 1.0),
            guidance_rescale=getattr(settings, "guidance_rescale", 0.0),
            adjust=engine.adjust(conditioning),
        ):
            share = passage.padded.times(passage.factor).area * len(steps.moments) * last.done // last.total
            clock.advance(reached + share - clock.done)
        assert last is not None
        assert last.state is not None
        clock.warnings += last.warnings
        reached, area = clock.done, passage.padded.times(passage.factor).area
        decoded = engine.decode_canvas(
            last.state, conditioning, lambda share: clock.advance(reached + int(area * share) - clock.done)
        )
        clock.advance(reached + area - clock.done)
        clock.remarks += conditioning.remarks + decoded.remarks
        return WholeRows(decoded.pixels[0].float().cpu())

    def _transformed(self, conditioning: Conditioning, cells: Size, tiling: Tiling, clock: _Clock) -> Rows:
        """For networks that look far and do not denoise: each tile is enlarged once, and the pictures are blended."""

        def enlarge(tiles: Sequence[Tile]) -> Tensor:
            cut = crop(conditioning, tiles)
            made = self.engine.decode(cut.source.tensor, cut).float().cpu()
            share = clock.total * len(tiles) // len(plan)
            clock.advance(min(share, clock.total - clock.done))
            return made

        plan = tiling.plan(cells)
        blended = over_tiles(enlarge, plan, cells, batch=tiling.batch, weights=tiling.weights, ratio=self.facts.grid)
        return WholeRows(blended[0])

    def prepared(self, settings: Any) -> Any:
        """What is the same for every picture with these settings; made once."""
        if self._prepared is None or self._prepared[0] != settings:
            self._prepared = (settings, self.engine.prepare(settings))
        return self._prepared[1]


def distortion(canvas: Canvas) -> list[str]:
    """A line for the user if the size asked for has another shape than the picture."""
    down, across = (made / there for made, there in zip(canvas.target, canvas.source, strict=True))
    # Whole pixels alone may change the shape of small pictures: one pixel on either side is no wish.
    if abs(down - across) * min(canvas.source) <= 1:
        return []
    stretched = f"it is stretched {across:.3g} times across and {down:.3g} times down"
    return [f"{canvas.target} has another shape than {canvas.source}: {stretched}"]


def develop(rows: Rows, picture: Picture, *, cut: bool = False) -> np.ndarray[Any, Any]:
    """Rows (3, n, W) become the final samples (H, W, C), in the depth and with the channels that the input had.

    Args:
        rows: The finished picture, 0..1.
        picture: The input.
        cut: See `quantise`.
    """
    channels = picture.pixels.shape[2]
    kinds = {8: np.uint8, 16: np.uint16, 32: np.float32}
    result = np.empty((*rows.size, channels), kinds[picture.depth])
    for start in range(0, rows.size.height, STRETCH):
        stop = min(start + STRETCH, rows.size.height)
        made = rows.read(start, stop).permute(1, 2, 0)
        made = made.mean(2, keepdim=True) if channels == 1 else made
        result[start:stop] = quantise(made.numpy(), picture.depth, cut=cut)
    return result


def colour_fixed(rows: Rows, source: Tensor, fix: str) -> Rows:
    """Rows with the colours of the picture they came from.

    Args:
        rows: The enlarged picture.
        source: (3, H, W), 0..1, what was enlarged.
        fix: none, adain (`picture.colour.adain`) or wavelet (`picture.colour.wavelet`); both see the whole picture.
    """
    if fix == "none":
        return rows
    made = rows.read(0, rows.size.height).permute(1, 2, 0).numpy()
    reference = np.ascontiguousarray(source.permute(1, 2, 0).numpy())
    if fix == "wavelet" and tuple(rows.size) != reference.shape[:2]:
        reference = resize(reference, rows.size)
    fixed = adain(made, reference) if fix == "adain" else wavelet(made, reference)
    return WholeRows(torch.from_numpy(fixed).permute(2, 0, 1))


def pad(source: Tensor, size: Size, mode: str) -> Tensor:
    """Extend (1, C, H, W) to a size at the bottom and right, by repeating or mirroring the edge."""
    below, right = size.height - source.shape[2], size.width - source.shape[3]
    if not below and not right:
        return source
    if mode == "reflect" and below < source.shape[2] and right < source.shape[3]:
        return functional.pad(source, (0, right, 0, below), mode="reflect")
    return functional.pad(source, (0, right, 0, below), mode="replicate")


def _tensor(picture: Picture) -> Tensor:
    """The picture's colours as (1, 3, H, W), 0..1; what lies under transparent pixels is filled from around them."""
    colours = picture.rgb()
    if picture.alpha is not None:
        colours = bleed(np.ascontiguousarray(colours), picture.alpha)
    return torch.from_numpy(np.array(colours.transpose(2, 0, 1), dtype=np.float32, order="C"))[None]


class _Clock:
    """Counts finished pixels and tells the caller."""

    def __init__(self, total: int, callback: Callback | None, started: float) -> None:
        self.total = total
        self.callback = callback
        self.started = started
        self.done = 0
        self.warnings: list[str] = []
        self.remarks: list[str] = []

    def advance(self, pixels: int) -> None:
        """Count a finished tile."""
        self.done += pixels
        if self.callback is None:
            return
        seconds = time.monotonic() - self.started
        left = seconds * (self.total - self.done) / self.done
        if self.callback(Progress(self.done, self.total, seconds, left)) is False:
            raise Interrupted("cancelled: nothing was written")

    def warn(self, line: str) -> None:
        """Keep a line for the result."""
        self.warnings.append(line)


def upscale(image: Any, *, engine: str = "pocket", model: str | None = None, **values: Any) -> Result:
    """Enlarge one picture with a freshly loaded engine; `Upscaler` loads once for several.

    Args:
        image: See `Upscaler.__call__`.
        engine: Name of the engine.
        model: See `Upscaler`.
        **values: Settings of the engine and of its loading, and `progress`, `components`.
    """
    facts = catalog.find(engine).facts
    of_machine = {name for name in values if name in rules(facts.machine)} | {"components"} & set(values)
    upscaler = Upscaler(engine, model, **{name: values[name] for name in of_machine})
    return upscaler(image, **{name: value for name, value in values.items() if name not in of_machine})
