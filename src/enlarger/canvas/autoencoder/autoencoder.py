"""Stable Diffusion's autoencoder at any size in bounded memory, without a trace of tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from enlarger.canvas.autoencoder.insertion import operations_of
from enlarger.canvas.autoencoder.maps import Map, MemoryMap, spill_folder
from enlarger.canvas.autoencoder.operations import Operation, Program, Reader, Shape, decoder, encoder
from enlarger.canvas.autoencoder.plan import TOKENS, Plan, plan
from enlarger.canvas.autoencoder.run import Progress, Run
from enlarger.canvas.tiles import Tile
from enlarger.errors import ResourceError
from enlarger.size import Size

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture from a latent.

    Attributes:
        pixels: (1, 3, H, W), nominally -1..1, not clamped, on the latent's device.
        plan: How it was made: tiles, memory, and in `plan.attention` whether attention was exact.
    """

    pixels: Tensor
    plan: Plan


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A latent's distribution from a picture.

    Attributes:
        mean: (1, C, h, w), not scaled, on the picture's device.
        logvar: (1, C, h, w), logarithm of the variance, clamped to -30..20 as everywhere.
        features: Maps of the tapped levels, by level, 0 the finest; for `Autoencoder.decode`. They may hold
            temporary files: close them when done, or leave the `with` block.
        plan: How it was made.
    """

    mean: Tensor
    logvar: Tensor
    features: Mapping[int, Map]
    plan: Plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the features' memory and files back."""
        for each in self.features.values():
            each.close()


class Autoencoder:
    """The encoder and the decoder of a diffusers AutoencoderKL, or of anything with its parts by the same names.

    Whole and in tiles the result is the same up to rounding: every group norm has the statistics of the whole
    picture and attention looks at all of it (above `TOKENS` cells at averages of cells, see `Plan.attention`).

    Args:
        vae: An AutoencoderKL on the device where the work is to be done. Its weights are shared, not copied, where
            they are in `dtype` already.
        dtype: What is computed in; statistics always pool in float64. Half precision overflows in the f=4 decoder.
    """

    def __init__(self, vae: Any, *, dtype: torch.dtype = torch.float32) -> None:
        self._vae = vae
        self._reader = Reader(dtype)
        self.dtype = dtype
        weight = vae.decoder.conv_in.weight
        self.device: torch.device = weight.device
        self.factor: int = 2 ** sum(len(block.upsamplers or ()) for block in vae.decoder.up_blocks)
        """Pixels per latent cell: 4 or 8."""
        self.latent_channels: int = weight.shape[1]
        """Channels of a latent."""
        self.scaling: float = getattr(vae.config, "scaling_factor", 1.0)
        """What a latent is multiplied by before diffusion; `encode` and `decode` leave that to the caller."""
        self._encoders: dict[tuple[int, ...], Program] = {}
        self._decoders = {remake: self._decoder({}, remake) for remake in (False, True)}

    def decode(
        self,
        latent: Tensor,
        *,
        limit: int | None = None,
        tile: int | None = None,
        insertions: Mapping[int, nn.Module] | None = None,
        features: Mapping[int, Map | Tensor] | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
        tokens: int = TOKENS,
    ) -> Decoded:
        """From a latent to a picture.

        Args:
            latent: (1, C, h, w), any size, divided by `scaling`.
            limit: Bytes that may be taken beside the weights. What does not fit goes to temporary files.
            tile: Side of a tile in latent cells; None decides by `limit`, and without one takes the whole.
            insertions: Modules behind levels of the decoder, by level, 0 the coarsest: see `insertion`. StableSR's
                feature wrapping stands behind 1 and 2.
            features: What each insertion looks at beside the decoder's map, by the insertion's level: a map of
                `Encoded.features` or a tensor, of the size of that level's map.
            folder: Where temporary files go; None is TMPDIR, else /var/tmp.
            progress: Told the share of the work that is done, 0..1, after every tile; what it raises ends the work.
            tokens: Cells up to which attention looks at each; of more it sees averages, see `Plan.attention`.

        Raises:
            ResourceError: Not even the smallest tile fits into `limit`, or the disk is too small.
            ValueError: The latent or the features have another shape.
        """
        insertions, features = insertions or {}, features or {}
        if latent.ndim != 4 or latent.shape[:2] != (1, self.latent_channels) or min(latent.shape[2:]) < 1:
            raise ValueError(f"a latent is (1, {self.latent_channels}, h, w), not {tuple(latent.shape)}")
        if set(features) != set(insertions):
            raise ValueError(f"insertions behind {sorted(insertions)} with features for {sorted(features)}")
        programs = {remake: self._decoder(insertions, remake) for remake in (False, True)}
        maps = {f"features.{level}": self._map(each, 0) for level, each in features.items()}
        start = self._map(latent, 1)
        for level, each in features.items():
            name = f"features.{level}"
            maps[name].shape = dataclasses.replace(maps[name].shape, ratio=2**level)
            if isinstance(each, torch.Tensor):
                maps[name].statistics.add(each[0].permute(1, 2, 0))
        maps["latent"] = start
        result, planned = self._run(programs, maps, limit, tile, folder, progress, tokens)
        return Decoded(self._tensor(result["out"], latent.device), planned)

    def encode(
        self,
        pixels: Tensor,
        *,
        taps: Iterable[int] = (),
        limit: int | None = None,
        tile: int | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
        tokens: int = TOKENS,
    ) -> Encoded:
        """From a picture to the distribution of its latent.

        Args:
            pixels: (1, 3, H, W), -1..1, any size of at least `factor`; what a latent cell does not cover is left out.
            taps: Levels whose maps are wanted, 0 the finest: behind the level's resnets, before its downsampler.
            limit: As in `decode`.
            tile: As in `decode`.
            folder: As in `decode`.
            progress: As in `decode`.
            tokens: As in `decode`.

        Raises:
            ResourceError: Not even the smallest tile fits into `limit`, or the disk is too small.
            ValueError: The picture has another shape.
        """
        channels = self._vae.encoder.conv_in.weight.shape[1]
        if pixels.ndim != 4 or pixels.shape[:2] != (1, channels) or min(pixels.shape[2:]) < self.factor:
            raise ValueError(
                f"a picture is (1, {channels}, {self.factor}.., {self.factor}..), not {tuple(pixels.shape)}"
            )
        program = self._encoder(taps)
        maps = {"picture": self._map(pixels, self.factor)}
        result, planned = self._run({False: program, True: program}, maps, limit, tile, folder, progress, tokens)
        mean, logvar = self._tensor(result.pop(program.result), pixels.device).chunk(2, 1)
        features = {int(name.removeprefix("down.")): each for name, each in result.items()}
        return Encoded(mean, logvar.clamp(-30, 20), features, planned)

    def plan_decode(
        self,
        size: Size,
        *,
        limit: int | None = None,
        tile: int | None = None,
        insertions: Mapping[int, nn.Module] | None = None,
        tokens: int = TOKENS,
    ) -> Plan:
        """What `decode` would take for a latent of a size, by the same rules, without doing it."""
        insertions = insertions or {}
        given = {"latent": Shape(self.latent_channels, size, 1)}
        for level in insertions:
            side = 2**level
            channels = self._vae.decoder.up_blocks[level].resnets[-1].conv2.weight.shape[0]
            given[f"features.{level}"] = Shape(channels, Size(size.height * side, size.width * side), side)
        return plan(lambda remake: self._decoder(insertions, remake), given, limit=limit, tile=tile, tokens=tokens)

    def plan_encode(
        self,
        size: Size,
        *,
        taps: Iterable[int] = (),
        limit: int | None = None,
        tile: int | None = None,
        tokens: int = TOKENS,
    ) -> Plan:
        """What `encode` would take for a picture of a size, by the same rules, without doing it."""
        given = {"picture": Shape(self._vae.encoder.conv_in.weight.shape[1], size, self.factor)}
        program = self._encoder(taps)
        return plan(lambda remake: program, given, limit=limit, tile=tile, tokens=tokens)

    def _run(
        self,
        programs: Mapping[bool, Program],
        maps: dict[str, Map],
        limit: int | None,
        tile: int | None,
        folder: Path | None,
        progress: Progress | None,
        tokens: int,
    ) -> tuple[dict[str, Map], Plan]:
        given = {name: each.shape for name, each in maps.items()}
        planned = plan(programs.__getitem__, given, limit=limit, tile=tile, tokens=tokens)
        folder = folder or spill_folder()
        _check(planned, limit, folder)
        program = programs[planned.tile is not None]
        run = Run(program, planned, maps, device=self.device, dtype=self.dtype, folder=folder, progress=progress)
        return run(), planned

    def _map(self, tensor: Map | Tensor, ratio: int) -> Map:
        if not isinstance(tensor, torch.Tensor):
            return tensor
        cells = tensor[0].permute(1, 2, 0)
        shape = Shape(cells.shape[2], Size(*cells.shape[:2]), ratio)
        made = MemoryMap(shape, cells.device)
        made.write(Tile(0, 0, *shape.size), cells)
        return made

    def _tensor(self, result: Map, device: torch.device) -> Tensor:
        cells = result.view(Tile(0, 0, *result.shape.size))
        assert cells is not None
        tensor = cells.permute(2, 0, 1)[None].to(device, torch.float32).contiguous()
        result.close()
        return tensor

    def _encoder(self, taps: Iterable[int]) -> Program:
        levels = tuple(sorted(set(taps)))
        if levels not in self._encoders:
            self._encoders[levels] = encoder(self._vae, self._reader, levels, self.factor)
        return self._encoders[levels]

    def _decoder(self, insertions: Mapping[int, nn.Module], remake: bool) -> Program:
        if not insertions and hasattr(self, "_decoders"):
            return self._decoders[remake]

        def insert(level: int, state: str) -> tuple[list[Operation], str]:
            if level not in insertions:
                return [], state
            return operations_of(insertions[level], self._reader, f"features.{level}", state, f"insert.{level}")

        program = decoder(self._vae, self._reader, insert, remake=remake)
        return dataclasses.replace(program, given=tuple(f"features.{level}" for level in insertions))


def _check(planned: Plan, limit: int | None, folder: Path) -> None:
    """Refuse what will not end well before it begins."""
    import shutil

    if limit is not None and planned.memory > limit:
        raise ResourceError(
            f"the autoencoder needs {planned.memory / 1e9:.2f} GB even in tiles of {planned.tile} cells, and "
            f"{limit / 1e9:.2f} GB may be used: raise --max-memory or ask for a smaller result"
        )
    free = shutil.disk_usage(folder).free if planned.disk else 0
    if planned.disk > free:
        raise ResourceError(
            f"the autoencoder needs {planned.disk / 1e9:.1f} GB for temporary files in {folder}, where "
            f"{free / 1e9:.1f} GB are free: set TMPDIR to a folder with room, raise --max-memory or ask for a smaller "
            "result"
        )
