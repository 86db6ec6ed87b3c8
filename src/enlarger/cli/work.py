"""The work of `enlarger upscale`: one picture after the other, each checked before torch is needed for it."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from enlarger.canvas.geometry import target_size
from enlarger.cli.places import Job
from enlarger.cli.progress import Reporter, duration
from enlarger.cli.say import bug, line
from enlarger.engines.catalog import Listing
from enlarger.errors import EnlargerError, Interrupted, OutputError, PartialError, PictureError
from enlarger.settings import to_json
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.picture.picture import Picture
    from enlarger.upscaler import Plan, Result, Upscaler


PROBE = 48
"""Pixels of either side of the picture that a dry run enlarges to tell the time."""

NOT_FOR_PROBE = ("scale", "size", "longest", "megapixels", "page", "max_pixels", "tile", "batch")
"""Settings that would make the probe another size, or slower than the picture's own tiles."""


SLACK = 64 << 20
"""Bytes that a piped picture may have beside 32 for each pixel that is allowed."""


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, checked.

    Attributes:
        listing: The engine.
        model: What -m says, as a path where it is one.
        settings: Settings of a run that were given.
        record: All settings of a run.
        machine: Settings of loading that were given.
        output_format: What --format says.
        quality: What --quality says.
        overwrite: Whether results may replace files.
        strip: Metadata that are left out.
    """

    listing: Listing
    model: str | None
    settings: Mapping[str, Any]
    record: Any
    machine: Mapping[str, Any]
    output_format: str | None = None
    quality: int | None = None
    overwrite: bool = False
    strip: Literal["none", "private", "all"] = "none"


class Work:
    """All jobs of a command line, one after the other, with one engine that is loaded for the first of them."""

    def __init__(
        self,
        wish: Wish,
        reporter: Reporter,
        *,
        as_json: bool = False,
        dry_run: bool = False,
        report: Path | None = None,
        debug: bool = False,
    ) -> None:
        self.wish = wish
        self.reporter = reporter
        self.as_json = as_json
        self.dry_run = dry_run
        self.report = report
        self.debug = debug
        self._records: list[dict[str, Any]] = []
        self._upscaler: Upscaler | None = None

    def all(self, jobs: Sequence[Job]) -> int:
        """Do them; a failing one does not stop the others.

        Raises:
            PartialError: Some of several failed.
            EnlargerError: The only one failed.
        """
        failed = skipped = 0
        try:
            for number, job in enumerate(jobs):
                if job.listed and job.output is not None and job.output.exists() and not self.wish.overwrite:
                    skipped += 1
                    self._tell(job, warnings=["the result is there already: not made again"])
                    continue
                try:
                    self._one(job, f"{number + 1}/{len(jobs)} {job.name}" if len(jobs) > 1 else job.name)
                except (Interrupted, KeyboardInterrupt):
                    if len(jobs) > 1:
                        self.reporter.say(f"{number - failed} of {len(jobs)} pictures are done")
                    raise
                except BrokenPipeError:
                    raise
                except Exception as error:
                    known = error if isinstance(error, EnlargerError) else bug(error)
                    self._tell(job, error=known)
                    if len(jobs) == 1:
                        raise known from error
                    failed += 1
                    self._complain(job, known)
        finally:
            self._write_report()
        if skipped:
            self.reporter.say(f"{skipped} of {len(jobs)} results were there already; --overwrite makes them again")
        if failed:
            raise PartialError(f"{failed} of {len(jobs)} pictures failed, {len(jobs) - failed} are done")
        return 0

    def _complain(self, job: Job, error: EnlargerError) -> None:
        """One picture's error, while the others go on."""
        if self.debug:
            traceback.print_exc()
        named = str(error) if job.name in str(error) else f"{job.name}: {error}"
        print(line(f"enlarger: error: {named}"), file=sys.stderr)

    def _one(self, job: Job, label: str) -> None:
        picture = self._read(job)
        size, warnings = self._check(job, picture)
        upscaler = self._loaded()
        if self.dry_run:
            self._tell_plan(job, picture, upscaler)
            return
        with self.reporter.picture(label) as watch:
            result = upscaler(picture, progress=watch, **self.wish.settings)
        self._write(job, result)
        warnings = (*result.warnings, *(warning for warning in warnings if warning not in result.warnings))
        for warning in warnings:
            self.reporter.say(f"enlarger: warning: {job.name}: {warning}")
        place = "standard output" if job.output is None else job.output
        seed = "" if result.seed is None else f", seed {result.seed}"
        self.reporter.say(f"{place}: {size}, {result.engine}{seed}, {duration(result.seconds)}")
        self._tell(job, result=result, size=size, warnings=warnings)

    def _read(self, job: Job) -> Picture:
        from enlarger.picture.read import read

        settings = self.wish.record
        source = job.source if job.source is not None else _standard_input(settings.max_pixels)
        return read(source, max_pixels=settings.max_pixels, page=settings.page)

    def _check(self, job: Job, picture: Picture) -> tuple[Size, tuple[str, ...]]:
        """The result's size and what its format loses, once it is sure that it can be written."""
        from enlarger.picture.write import check_output

        wish = self.wish
        wishes = {name: getattr(wish.record, name) for name in ("scale", "size", "longest", "megapixels")}
        if not any(wishes.values()):
            wishes["scale"] = wish.listing.facts.default_scale
        size = target_size(Size(picture.height, picture.width), **wishes)
        if job.output is None and sys.stdout.isatty() and not self.dry_run:
            raise OutputError("standard output is a terminal, which shows no picture: name a file with -o")
        path = job.output
        format = wish.output_format
        if job.makes_folder and path is not None and not path.parent.is_dir():
            if self.dry_run:  # there is no folder yet that could be looked at
                format = format or path.suffix
                path = None
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
        checked = check_output(
            path,
            format=format,
            size=size,
            depth=picture.depth,
            alpha=picture.alpha is not None,
            overwrite=wish.overwrite,
            inputs=[] if job.source is None else [job.source],
            picture=picture,
            strip=wish.strip,
        )
        return size, checked.warnings

    def _loaded(self) -> Upscaler:
        """The engine, loaded when the first picture needs it."""
        if self._upscaler is None:
            from enlarger.upscaler import Upscaler

            wish = self.wish
            self._upscaler = Upscaler(wish.listing.facts.name, wish.model, **wish.machine)
        return self._upscaler

    def _write(self, job: Job, result: Result) -> None:
        wish = self.wish
        options: dict[str, Any] = {"quality": wish.quality, "format": wish.output_format, "strip": wish.strip}
        if job.output is not None:
            result.save(job.output, overwrite=wish.overwrite, **options)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"picture.{wish.output_format}")
            result.save(file, **options)
            sys.stdout.buffer.write(file.read_bytes())
            sys.stdout.buffer.flush()

    def _write_report(self) -> None:
        """All records in one file, which appears whole."""
        if self.report is None:
            return
        part = self.report.with_name(f".{self.report.name}.{os.getpid()}.part")
        try:
            part.write_text("".join(json.dumps(record) + "\n" for record in self._records))
            os.replace(part, self.report)
        except OSError as error:
            raise OutputError(f"the report {self.report} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def _tell_plan(self, job: Job, picture: Picture, upscaler: Upscaler) -> None:
        """What a run would do, on stderr or as JSON."""
        plan = upscaler.plan(Size(picture.height, picture.width), self.wish.record)
        seconds = _seconds(upscaler, self.wish, plan)
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
        self._tell(job, plan=told, size=size)

    def _tell(
        self,
        job: Job,
        *,
        result: Result | None = None,
        size: Size | None = None,
        warnings: Sequence[str] = (),
        plan: dict[str, Any] | None = None,
        error: EnlargerError | None = None,
    ) -> None:
        """One JSON object on its own line, and for the report; all keys are always there."""
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
            "warnings": list(warnings),
            "error": None if error is None else str(error),
        }
        if plan is not None:
            record["plan"] = plan
        self._records.append(record)
        if self.as_json:
            print(json.dumps(record), flush=True)


def _seconds(upscaler: Upscaler, wish: Wish, plan: Plan) -> float:
    """About how long a run would take on this machine, from a small grey picture that is enlarged for it."""
    import numpy as np

    grey = np.full((PROBE, PROBE, 3), 0.5, dtype=np.float32)
    settings = {name: value for name, value in wish.settings.items() if name not in NOT_FOR_PROBE}
    upscaler(grey, **settings)  # the first run is slower
    seconds = upscaler(grey, **settings).seconds
    probed = upscaler.plan(Size(PROBE, PROBE), upscaler.settings(**settings)).work

    halo = 2 * (wish.listing.facts.field or 0) * wish.listing.facts.factor
    seen = [side + halo * (-(-side // plan.tile) - 1) for side in plan.canvas.native]
    return seconds * plan.work / probed * math.prod(seen) / plan.canvas.native.area


def _standard_input(max_pixels: int) -> bytes:
    """What is piped in, up to the most that a picture of so many pixels can need."""
    limit = 32 * max_pixels + SLACK
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise PictureError(f"standard input is longer than {limit:,} bytes, too long for a picture", "too_large")
    return data


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
