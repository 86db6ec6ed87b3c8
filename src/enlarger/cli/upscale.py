"""`enlarger upscale`: make pictures bigger.

Everything that can be wrong with a command line is found before torch is imported: `_wish` checks options and
settings, `places.plan` the names, reading and `check_output` the picture and its result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from enlarger.canvas.geometry import target_size
from enlarger.cli import places
from enlarger.cli.options import add_settings, split, take
from enlarger.cli.progress import Reporter, duration
from enlarger.cli.say import bug, line
from enlarger.engines.catalog import Listing, listings
from enlarger.errors import EnlargerError, Interrupted, OutputError, PartialError, SettingsError
from enlarger.settings import setting, to_json
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.picture.picture import Picture
    from enlarger.upscaler import Result, Upscaler

HELP = "Enlarge pictures: files, folders, or '-' for standard input."

EXAMPLES = """\
examples:
  enlarger upscale photo.jpg                          4 times larger, beside it: photo_4x.jpg
  enlarger upscale photo.jpg -s 2.5 -o big.png        any scale from 1 to 16
  enlarger upscale photo.jpg --size 1800x512          exactly this size
  enlarger upscale photo.jpg --preset faithful        invent as little as possible
  enlarger upscale scans/ -o large/                   a whole folder; its tree is kept
  enlarger upscale photo.jpg --dry-run                say what it would do, and for how long
  cat a.png | enlarger upscale - -o - --format png    in a pipe

The result has the input's depth, transparency, profile and metadata. Its format is the input's or what -o or
--format says. Existing files are kept unless you say --overwrite.
"""


@dataclass(frozen=True)
class OutputOptions:
    """How results are written."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    format: str | None = setting(
        None, "Format of the result; default: what -o ends in, else the input's.", kind="text",
        choices=tuple(places.ENDINGS), metavar="F", group="Output",
    )  # fmt: skip
    quality: int | None = setting(
        None, "Quality of formats that lose (JPEG, WebP).", kind="int", low=1, high=100, metavar="Q", group="Output"
    )


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, checked.

    Attributes:
        listing: The engine.
        model: What -m says.
        settings: Settings of a run that were given.
        record: All settings of a run.
        machine: Settings of loading that were given.
        output: How results are written.
        overwrite: Whether they may replace files.
    """

    listing: Listing
    model: str | None
    settings: Mapping[str, Any]
    record: Any
    machine: Mapping[str, Any]
    output: OutputOptions
    overwrite: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; those of the engines come from the catalog."""
    engines = listings()
    parser.usage = "enlarger upscale INPUT... [-o OUTPUT] [-e ENGINE] [options]"
    parser.epilog = "\n".join([
        "engines:",
        *(f"  {name:<12} {listing.facts.summary}" for name, listing in engines.items()),
        "",
        EXAMPLES,
    ])  # fmt: skip
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="Pictures, folders of pictures, or '-'.")
    parser.add_argument("-o", "--output", metavar="OUTPUT", help="File, folder, or '-'; default: beside the input.")
    parser.add_argument(
        "-e", "--engine", default="pocket", metavar="ENGINE", help=f"{', '.join(engines)} (default pocket)"
    )
    parser.add_argument("-m", "--model", metavar="MODEL", help="Model file or folder (default: what ships).")
    output = add_settings(parser, OutputOptions)["Output"]
    output.add_argument("--overwrite", action="store_true", help="Replace files that exist.")
    output.add_argument("--dry-run", action="store_true", help="Say what would be done, and do nothing.")
    output.add_argument("--json", action="store_true", help="One JSON object for each picture, a line each, on stdout.")
    output.add_argument("-q", "--quiet", action="store_true", help="No progress and no messages, only errors.")


def run(args: argparse.Namespace) -> int:
    """Enlarge; gives the exit code."""
    wish = _wish(args)
    ending = places.suffix(wish.settings, wish.listing.facts.default_scale)
    jobs = places.plan(args.inputs, args.output, wish.output.format, ending, overwrite=args.overwrite)
    if args.json and jobs[0].output is None:
        raise SettingsError("--json and the picture cannot both go to standard output: name a file with -o")
    reporter = Reporter(quiet=args.quiet, bar=not args.json)
    seed = wish.settings.get("seed")
    if str(args.settings.get("seed", "")).strip().lower() == "random":
        reporter.say(f"seed {seed}")
    work = _Work(wish, reporter, as_json=args.json, dry_run=args.dry_run, debug=args.debug)
    return work.all(jobs)


def _wish(args: argparse.Namespace) -> Wish:
    """Check options and settings; no torch is imported for that."""
    given = dict(args.settings)
    output: OutputOptions = take(OutputOptions, given)
    listing, settings, record, machine = split(args.engine, given)
    if listing.facts.needs_model and args.model is None:
        raise SettingsError(f"engine {args.engine} needs a model: name its file or folder with -m")
    return Wish(listing, args.model, settings, record, machine, output, args.overwrite)


class _Work:
    """All jobs of a command line, one after the other, with one engine that is loaded for the first of them."""

    def __init__(self, wish: Wish, reporter: Reporter, *, as_json: bool, dry_run: bool, debug: bool) -> None:
        self.wish = wish
        self.reporter = reporter
        self.as_json = as_json
        self.dry_run = dry_run
        self.debug = debug
        self._upscaler: Upscaler | None = None

    def all(self, jobs: Sequence[places.Job]) -> int:
        """Do them; a failing one does not stop the others."""
        failed = 0
        for number, job in enumerate(jobs):
            try:
                self._one(job, f"{number + 1}/{len(jobs)} {job.name}" if len(jobs) > 1 else job.name)
            except (Interrupted, KeyboardInterrupt) as stop:
                if len(jobs) > 1:
                    self.reporter.say(f"{number - failed} of {len(jobs)} pictures are done")
                raise stop
            except Exception as error:
                known = self._failed(job, error)
                if len(jobs) == 1:
                    raise known from error
                failed += 1
                if self.debug:
                    traceback.print_exc()
                print(line(f"enlarger: error: {known}"), file=sys.stderr)
        if failed:
            raise PartialError(f"{failed} of {len(jobs)} pictures failed, {len(jobs) - failed} are done")
        return 0

    def _one(self, job: places.Job, label: str) -> None:
        if job.error is not None:
            raise job.error
        picture = self._read(job)
        target = self._check(job, picture)
        upscaler = self._loaded()
        if self.dry_run:
            self._tell_plan(job, picture, upscaler)
            return
        with self.reporter.picture(label) as watch:
            result = upscaler(picture, progress=watch, **self.wish.settings)
        self._write(job, result)
        for warning in result.warnings:
            self.reporter.say(f"enlarger: warning: {job.name}: {warning}")
        place = "standard output" if job.output is None else job.output
        seed = "" if result.seed is None else f", seed {result.seed}"
        self.reporter.say(f"{place}: {target}, {result.engine}{seed}, {duration(result.seconds)}")
        self._emit(job, result=result)

    def _read(self, job: places.Job) -> Picture:
        from enlarger.picture.read import read

        settings = self.wish.record
        return read(
            sys.stdin.buffer if job.source is None else job.source, max_pixels=settings.max_pixels, page=settings.page
        )

    def _check(self, job: places.Job, picture: Picture) -> Size:
        """The result's size, once it is sure that it can be written."""
        from enlarger.picture.write import check_output

        settings, facts = self.wish.record, self.wish.listing.facts
        wishes = {name: getattr(settings, name) for name in ("scale", "size", "longest", "megapixels")}
        if not any(wishes.values()):
            wishes["scale"] = facts.default_scale
        size = target_size(Size(picture.height, picture.width), **wishes)
        output = self.wish.output
        if job.output is None and sys.stdout.isatty() and not self.dry_run:
            raise OutputError("standard output is a terminal, which shows no picture: name a file with -o")
        check_output(
            job.output or f"picture.{output.format}",
            format=output.format,
            size=size,
            depth=picture.depth,
            alpha=picture.alpha is not None,
            overwrite=self.wish.overwrite or job.output is None,
        )
        return size

    def _loaded(self) -> Upscaler:
        """The engine, loaded when the first picture needs it."""
        if self._upscaler is None:
            from enlarger.upscaler import Upscaler

            wish = self.wish
            self._upscaler = Upscaler(wish.listing.facts.name, wish.model, **wish.machine)
        return self._upscaler

    def _write(self, job: places.Job, result: Result) -> None:
        output = self.wish.output
        if job.output is not None:
            result.save(job.output, overwrite=self.wish.overwrite, format=output.format, quality=output.quality)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"picture.{output.format}")
            result.save(file, quality=output.quality)
            sys.stdout.buffer.write(file.read_bytes())
            sys.stdout.buffer.flush()

    def _tell_plan(self, job: places.Job, picture: Picture, upscaler: Upscaler) -> None:
        """What a run would do, on stderr or as JSON."""
        plan = upscaler.plan(Size(picture.height, picture.width), self.wish.record)
        seconds = plan.work * _seconds_per_pixel(upscaler, self.wish)
        told = {
            "passes": len(plan.canvas.passes),
            "steps": plan.steps,
            "tile": plan.tile,
            "tiles": plan.tiles,
            "batch": plan.batch,
            "seconds": round(seconds, 2),
            "memory_bytes": plan.memory,
        }
        size = plan.canvas.target
        steps = f"{counted(plan.steps, 'step')}, " if plan.steps else ""
        self.reporter.say(
            f"{job.name}, {plan.canvas.source}, would become {job.output or 'standard output'}, {size}: "
            f"{counted(len(plan.canvas.passes), 'pass')}, {steps}{counted(plan.tiles, 'tile')} of {plan.tile} pixels, "
            f"about {duration(seconds)} and {plan.memory / 1e9:.1f} GB"
        )
        self._emit(job, plan=told, size=size)

    def _failed(self, job: places.Job, error: Exception) -> EnlargerError:
        """Tell a picture's failure in JSON; gives the error that people see."""
        known = error if isinstance(error, EnlargerError) else bug(error)
        self._emit(job, error=known)
        return known

    def _emit(
        self,
        job: places.Job,
        *,
        result: Result | None = None,
        plan: dict[str, Any] | None = None,
        size: Size | None = None,
        error: EnlargerError | None = None,
    ) -> None:
        """One JSON object on its own line; all keys are always there."""
        if not self.as_json:
            return
        size = result.size if result else size
        record: dict[str, Any] = {
            "input": "-" if job.source is None else str(job.source),
            "output": "-" if job.output is None else str(job.output),
            "width": size.width if size else None,
            "height": size.height if size else None,
            "engine": self.wish.listing.facts.name,
            "model": result.model if result else self.wish.model or "",
            "settings": dict(result.settings) if result else to_json(self.wish.record),
            "seed": result.seed if result else getattr(self.wish.record, "seed", None),
            "seconds": round(result.seconds, 3) if result else None,
            "peak_memory_bytes": peak_memory(),
            "warnings": list(result.warnings) if result else [],
            "error": None if error is None else {"message": str(error), "exit_code": error.exit_code},
        }
        if plan is not None:
            record["plan"] = plan
        print(json.dumps(record), flush=True)


def _seconds_per_pixel(upscaler: Upscaler, wish: Wish) -> float:
    """Seconds for each output pixel and step on this machine, measured on a small grey picture."""
    import numpy as np

    grey = np.full((64, 64, 3), 0.5, dtype=np.float32)
    left_out = ("size", "longest", "megapixels", "page")
    settings = {name: value for name, value in wish.settings.items() if name not in left_out}
    settings["scale"] = wish.listing.facts.default_scale
    upscaler(grey, **settings)  # the first run is slower
    seconds = upscaler(grey, **settings).seconds
    return seconds / upscaler.plan(Size(64, 64), upscaler.settings(**settings)).work


def counted(number: int, word: str) -> str:
    """1 pass, 2 passes, 3 tiles."""
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")


def peak_memory() -> int | None:
    """The most bytes that this process has held so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
