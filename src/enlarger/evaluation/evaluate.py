"""Engines x settings x pictures -> values: the run behind every table of numbers.

All entries do one picture before the next picture comes, so whatever slows the machine for a while slows all of them,
and ratios of their times mean something. A run with an output folder can be stopped at any time and goes on where
it was: each value is kept under a hash of everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import enlarger
from enlarger.engines.catalog import find
from enlarger.errors import EnlargerError, Interrupted, PictureError, SettingsError
from enlarger.evaluation.folders import matching, pictures_in
from enlarger.evaluation.metrics import Case, Judge, Need
from enlarger.evaluation.pixels import Bytes, Pixels, as_bytes
from enlarger.evaluation.protocols import Pair, Task, sha256
from enlarger.picture.atomic import appearing, make_folder
from enlarger.picture.read import read_rgb
from enlarger.settings import rules, to_json
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.upscaler import Upscaler

SIZE_SETTINGS = ("scale", "size", "longest", "megapixels", "page", "max_pixels", "seed")
"""Settings that a run sets itself; they say nothing of the engine."""

NOT_FOR_ENTRIES = {
    "scale": "the pairs of pictures set it",
    "size": "the pairs of pictures set it",
    "longest": "the pairs of pictures set it",
    "megapixels": "the pairs of pictures set it",
    "samples": "seeds give several results here",
    "sample": "seeds give several results here",
}
"""Settings that an entry cannot have, and why."""

REVISION = 1
"""Counted up when a metric's definition or the way of measuring changes, so that kept values are not used again."""


@dataclass(frozen=True)
class Entry:
    """One row of a table: an engine with settings, or a folder of finished results.

    Attributes:
        engine: name of the engine, or the name given to the folder.
        settings: those that differ from the engine's defaults.
        model: file, folder or hub id; None for what ships.
        results: folder of finished pictures instead of an engine.
    """

    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    results: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that a run sets itself.

        Raises:
            SettingsError: there is one.
        """
        for name, why in NOT_FOR_ENTRIES.items():
            if name in self.settings:
                raise SettingsError(f"{self.label}: leave {name} out: {why}")

    @property
    def label(self) -> str:
        """What tables call it: the engine, its model's name, its settings."""
        model = f"@{Path(self.model).stem}" if self.model else ""
        return self.engine + model + "".join(f":{name}={value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Outcome:
    """What one entry did with one picture.

    Attributes:
        entry: the entry.
        picture: name of the picture.
        values: name of the metric -> value, means over seeds.
        seconds: to enlarge it once; None for finished results.
        megapixels: of the result.
        settings: all settings of the engine, those with default values too.
        error: why there are no values.
        kept: whether it comes from an earlier run.
    """

    entry: Entry
    picture: str
    values: Mapping[str, float]
    seconds: float | None = None
    megapixels: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    kept: bool = False


class Player:
    """An entry, ready to give results."""

    def __init__(self, entry: Entry, machine: Mapping[str, Any]) -> None:
        """Load the engine, or list the folder; everything wrong with an entry is raised here, before any work.

        Args:
            entry: the entry.
            machine: device, dtype and memory; an engine takes what it has.

        Raises:
            EnlargerError: an unknown engine or setting, a missing model, an empty folder.
        """
        self.entry = entry
        self.upscaler: Upscaler | None = None
        self.finished: dict[str, Path] = {}
        self.settings: dict[str, Any] = {}
        self.digest = ""
        self.has_seed = False
        if entry.results is not None:
            self.finished = pictures_in(entry.results)
            return
        from enlarger.upscaler import Upscaler

        self.upscaler = Upscaler(entry.engine, entry.model, **machine_for(entry.engine, machine))
        record = self.upscaler.settings(**entry.settings)
        self.has_seed = hasattr(record, "seed")
        everything = to_json(record)
        self.settings = {name: value for name, value in everything.items() if name not in SIZE_SETTINGS}
        self.digest = self.upscaler.engine.loaded.digest
        self._warm = False

    def make(self, pair: Pair, size: Size, seed: int) -> tuple[Bytes, float | None]:
        """The result for one picture as (H, W, 3) bytes, and the seconds it took.

        Raises:
            EnlargerError: it could not be made, or a finished one is not there.
        """
        if self.upscaler is None:
            path = matching(self.finished, pair.name)
            if path is None:
                raise PictureError(f"{self.entry.results}: no result named {pair.name}", "missing")
            return read_rgb(path), None
        values = dict(self.entry.settings) | (
            {"seed": seed} if self.has_seed and "seed" not in self.entry.settings else {}
        )
        if not self._warm:
            # The first run of a network pays for threads and kernels that later ones find ready.
            self.upscaler(np.full((32, 32, 3), 128, np.uint8), **self.entry.settings)
            self._warm = True
        assert pair.source is not None
        result = self.upscaler(pair.source, size=size, **values)
        return as_bytes(_three_channels(result.pixels), pair.name), result.seconds

    def key(self, pair: Pair, seed: int) -> str:
        """Hash of everything that the result of one picture depends on; "" for finished results."""
        if self.upscaler is None:
            return ""
        assert pair.source is not None
        assert pair.reference is not None
        parts = {
            "enlarger": enlarger.__version__,
            "revision": REVISION,
            "engine": self.entry.engine,
            "weights": self.digest,
            "settings": self.settings,
            "machine": [str(self.upscaler.engine.device), str(self.upscaler.engine.dtype)],
            "source": sha256(pair.source),
            "reference": sha256(pair.reference),
            "seed": self.entry.settings.get("seed", seed),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def machine_for(engine: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of loading that an engine has; where several engines are named, each takes its own.

    Raises:
        SettingsError: no such engine.
    """
    known = rules(find(engine).facts.machine)
    return {name: value for name, value in machine.items() if name in known}


def _three_channels(pixels: NDArray[Any]) -> Pixels:
    """Grey repeated to RGB, 16 bits brought to 0..1: what `as_bytes` takes."""
    coloured: Pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return coloured / 65535 if coloured.dtype == np.uint16 else coloured


class Shelf:
    """Results and values of earlier runs, in a folder; without a folder it keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            make_folder(folder)

    def values(self, key: str) -> dict[str, Any]:
        """What is known under a key; nothing where the file is damaged."""
        if self.folder is None or not key:
            return {}
        try:
            known = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def picture(self, key: str) -> Bytes | None:
        """The result under a key."""
        if self.folder is None or not key or not (self.folder / f"{key}.png").is_file():
            return None
        try:
            return read_rgb(self.folder / f"{key}.png")
        except PictureError:
            return None

    def keep(self, key: str, values: Mapping[str, Any], picture: Bytes | None = None) -> None:
        """Keep values, and a result if there is one; a file appears whole or not at all."""
        if self.folder is None or not key:
            return
        if picture is not None:
            self._write(f"{key}.png", lambda file: Image.fromarray(picture).save(file, format="PNG", compress_level=1))
        self._write(f"{key}.json", lambda file: file.write(json.dumps(values).encode()))

    def _write(self, name: str, put: Callable[[BinaryIO], object]) -> None:
        assert self.folder is not None
        with appearing(self.folder / name, overwrite=True) as file:
            put(file)


def evaluate(
    entries: Sequence[Entry],
    task: Task,
    judge: Judge,
    *,
    seeds: int = 1,
    output: Path | None = None,
    machine: Mapping[str, Any] | None = None,
    players: Sequence[Player] | None = None,
) -> Iterator[Outcome]:
    """Run every entry on every pair; a picture that fails gives an outcome with an error and the rest goes on.

    Args:
        entries: rows of the table.
        task: the pairs.
        judge: the metrics; those it cannot compute here are left out (`Judge.unavailable` says why).
        seeds: results per picture for engines that draw noise: seeds 0 to seeds - 1.
        output: folder for results and values, from which a stopped run goes on.
        machine: device, dtype and memory, for all entries.
        players: entries that are loaded already.

    Yields:
        Outcomes, picture by picture, all entries of a picture one after the other.

    Raises:
        SettingsError: no entries, no pairs.
        EnlargerError: an entry that cannot be loaded.
    """
    if not entries:
        raise SettingsError("no engine to evaluate: give --engines, such as --engines interpolate,pocket")
    if not task.pairs:
        raise SettingsError("no pictures to evaluate on")
    ready = list(players) if players is not None else [Player(entry, machine or {}) for entry in entries]
    shelf = Shelf(output / "results" if output is not None else None)
    without = judge.unavailable(brought(seeds))
    for pair in task.pairs:
        for player in ready:
            yield _one(player, pair, task.border, judge, without, seeds, shelf)


def brought(seeds: int) -> tuple[Need, ...]:
    """What an evaluation gives to its metrics."""
    return ("reference", "source", "seeds") if seeds > 1 else ("reference", "source")


def _one(
    player: Player, pair: Pair, border: int, judge: Judge, without: Mapping[str, str], seeds: int, shelf: Shelf
) -> Outcome:
    """One entry on one pair; never raises for what is wrong with that picture."""
    try:
        return _measured(player, pair, border, judge, without, seeds, shelf)
    except Interrupted:
        raise
    except EnlargerError as error:
        return Outcome(player.entry, pair.name, {}, settings=player.settings, error=str(error))
    except Exception as error:  # a bug that one picture meets must not throw hours of others away
        text = f"internal error, {type(error).__name__}: {error}"
        return Outcome(player.entry, pair.name, {}, settings=player.settings, error=text)


def _measured(
    player: Player, pair: Pair, border: int, judge: Judge, without: Mapping[str, str], seeds: int, shelf: Shelf
) -> Outcome:
    if pair.source is None:
        raise PictureError(f"{pair.name}: no small picture (LR) of this name beside the true one", "missing")
    if pair.reference is None:
        raise PictureError(f"{pair.name}: no true picture (HR) of this name beside the small one", "missing")
    reference, source = read_rgb(pair.reference), read_rgb(pair.source)
    size = Size(*reference.shape[:2])
    _check_pair(pair, size, Size(*source.shape[:2]))
    names = [name for name in judge.metrics if name not in without]
    count = seeds if player.has_seed and "seed" not in player.entry.settings else 1
    key = player.key(pair, count)
    wanted = {name: f"{judge.metrics[name].name}, border {border}" for name in names}
    known = shelf.values(key)
    seconds: list[float] = list(known.get("seconds", []))
    if all(text in known.get("values", {}) for text in wanted.values()):
        values = {name: known["values"][text] for name, text in wanted.items()}
        return _outcome(player, pair, values, seconds, size, kept=True)

    results: list[Bytes] = []
    seconds = []
    for seed in range(count):
        single = player.key(pair, seed) + f"-{seed}" if key else ""
        made = shelf.picture(single)
        taken = shelf.values(single).get("seconds") if made is not None else None
        if made is None:
            made, taken = player.make(pair, size, seed)
            shelf.keep(single, {"seconds": taken, "picture": pair.name, "entry": player.entry.label}, made)
        results.append(made)
        if taken is not None:
            seconds.append(taken)
    values = _values(results, reference, source, border, judge, without)
    merged = {**known.get("values", {}), **{text: values[name] for name, text in wanted.items()}}
    shelf.keep(key, {"picture": pair.name, "entry": player.entry.label, "seconds": seconds, "values": merged})
    return _outcome(player, pair, values, seconds, size, kept=False)


def _values(
    results: Sequence[Bytes], reference: Bytes, source: Bytes, border: int, judge: Judge, without: Mapping[str, str]
) -> dict[str, float]:
    """Means over the seeds' results; the deviation is one number for all of them, and 0 where no noise is drawn."""
    over_seeds = [name for name, metric in judge.metrics.items() if "seeds" in metric.needs and name not in without]
    per_result = [judge.judge(Case(result, reference, source, border), [*without, *over_seeds]) for result in results]
    values = {name: float(np.mean([row[name] for row in per_result])) for name in per_result[0]}
    for name in over_seeds:
        case = Case(results[0], reference, source, border, others=results[1:])
        values[name] = judge.metrics[name].measure(case, judge.networks) if len(results) > 1 else 0.0
    return {name: values[name] for name in judge.metrics if name in values}


def _outcome(
    player: Player, pair: Pair, values: Mapping[str, float], seconds: Sequence[float], size: Size, *, kept: bool
) -> Outcome:
    mean = float(np.mean(seconds)) if seconds else None
    return Outcome(player.entry, pair.name, values, mean, size.area / 1e6, player.settings, kept=kept)


def _check_pair(pair: Pair, large: Size, small: Size) -> None:
    """Refuse a pair that cannot be one picture at two sizes.

    Raises:
        PictureError: the reference is not larger, or has another aspect ratio.
    """
    # One factor must explain both sides, each of which may have been rounded by a pixel of the small picture.
    least = max(side / (little + 1) for side, little in zip(large, small, strict=True))
    most = min(side / max(little - 1, 0.5) for side, little in zip(large, small, strict=True))
    if least > most or large.height < small.height or large.width < small.width:
        raise PictureError(
            f"{pair.name}: small picture {small}, true one {large}: they are not the same picture at two sizes",
            "bad_values",
        )
