"""The work of `enlarger upscale`, told: what the run over the pictures (`enlarger.batch`) gives becomes lines."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.batch.jobs import Job
from enlarger.batch.order import Order, Outcome
from enlarger.cli.progress import Reporter, Watch, duration
from enlarger.cli.report import Reports
from enlarger.cli.say import bug, line
from enlarger.errors import EnlargerError, Interrupted, OutputError, PartialError, PictureError
from enlarger.settings import to_json

if TYPE_CHECKING:
    from enlarger.engines.engine import Loaded

SLACK = 64 << 20
"""Bytes that a piped picture may have beside 32 for each pixel that is allowed."""


class Work:
    """All jobs of a command line: each outcome is told as it comes, and all of them at the end."""

    def __init__(
        self,
        order: Order,
        reporter: Reporter,
        *,
        as_json: bool = False,
        dry_run: bool = False,
        reports: Reports | None = None,
        debug: bool = False,
    ) -> None:
        self.order = order
        self.reporter = reporter
        self.as_json = as_json
        self.dry_run = dry_run
        self.reports = reports
        self.debug = debug
        self._alone = False
        self._warned: tuple[str, tuple[str, ...]] = ("", ())
        self._notes: tuple[str, ...] = ()
        model = Path(order.model or "").name
        self._patience = reporter.waiting(f"enlarger: loading the model {model} ..." if model else "")

    def all(self, jobs: Sequence[Job]) -> int:
        """Do them; a failing one does not stop the others.

        Raises:
            PartialError: Some of several failed.
            EnlargerError: The only one failed, or nothing was there to do.
        """
        from enlarger.batch.rehearsal import rehearse
        from enlarger.batch.run import run

        if jobs[0].output is None and sys.stdout.isatty() and not self.dry_run:
            raise OutputError("standard output is a terminal, which shows no picture: name a file with -o")

        def watch(number: int, job: Job) -> Watch:
            return self.reporter.picture(f"{number}/{len(jobs)} {job.name}" if len(jobs) > 1 else job.name)

        self._alone = len({job.source for job in jobs}) == 1
        counts: Counter[str] = Counter()
        outcomes = (
            rehearse(jobs, self.order, on_load=self._loaded)
            if self.dry_run
            else run(jobs, self.order, watch=watch, pipe_in=self._piped_in, pipe_out=_pipe_out, on_load=self._loaded)
        )
        self._patience.start()
        try:
            for outcome in outcomes:
                counts[outcome.state] += 1
                self._tell(outcome)
                if outcome.error is not None:
                    self._complain(outcome.job, outcome.error)
                counts["reports"] += self._report(outcome)
        except (Interrupted, KeyboardInterrupt) as stop:
            for outcome in _rest(outcomes, stop):
                counts[outcome.state] += 1
                self._tell(outcome)
            if len(jobs) > 1:
                self.reporter.say(f"{counts['made'] + counts['there']} of {len(jobs)} pictures are done")
            raise
        finally:
            self._patience.stop()
        return self._summary(counts, len(jobs))

    def _summary(self, counts: Counter[str], total: int) -> int:
        """The last line of a run over several pictures, and its code."""
        if counts["there"]:
            self.reporter.say(f"{counts['there']} of {total} results were there already; --overwrite makes them again")
        if counts["own"] == total:
            raise PictureError("all pictures are results of Enlarger; name them one by one to enlarge them", "missing")
        if counts["own"]:
            self.reporter.say(f"{counts['own']} results of Enlarger were left alone; name them to enlarge them")
        if counts["failed"]:
            done = counts["made"] + counts["there"]
            are = "is" if done == 1 else "are"
            raise PartialError(f"{counts['failed']} of {total} pictures failed, {done} {are} done")
        if counts["reports"]:
            raise PartialError(f"{counts['reports']} reports could not be written; all pictures are done")
        if total > 1 and not self.dry_run:
            self.reporter.say(f"{counted(counts['made'], 'picture')} enlarged")
        return 0

    def _complain(self, job: Job, error: Exception) -> None:
        """One picture's error, while the others go on; that of the only one is the command's."""
        known = error if isinstance(error, EnlargerError) else bug(error)
        if self._alone:
            raise known from error
        if self.debug:
            traceback.print_exception(error)
        name = job.name
        print(line(f"enlarger: error: {known if name in str(known) else f'{name}: {known}'}"), file=sys.stderr)

    def _report(self, outcome: Outcome) -> bool:
        """Write the report of a picture whose last result this is; gives whether that failed."""
        if self.reports is None or self.dry_run:
            return False
        try:
            for told in self.reports.note(outcome):
                self.reporter.say(told)
        except Exception as error:
            self._complain(outcome.job, error)
            return True
        return False

    def _loaded(self, loaded: Loaded) -> None:
        """What there is to say of the model, before the work and not again with every picture."""
        self._patience.stop()
        self._notes = loaded.notes
        name, digest = self.order.recorded
        if digest and digest != loaded.digest:
            self.reporter.say(
                f"enlarger: note: the settings were recorded with the model {name} ({digest}), and {loaded.model} "
                f"({loaded.digest}) is another: results differ"
            )
        for note in loaded.notes:
            self.reporter.say(f"enlarger: note: {note}")

    def _tell(self, outcome: Outcome) -> None:
        """What became of a picture: for people, or as JSON."""
        job, place = outcome.job, outcome.job.output or "standard output"
        if outcome.state in ("made", "planned"):
            told = self._warned[1] if self._warned[0] == job.name else ()  # samples of one picture share them
            self._warned = (job.name, outcome.warnings)
            for warning in outcome.warnings:
                if warning not in (*told, *self._notes):
                    self.reporter.say(f"enlarger: warning: {job.name}: {warning}")
        if outcome.state == "made":
            seed = "" if outcome.seed is None else f", seed {outcome.seed}"
            engine = self.order.listing.facts.name
            self.reporter.say(f"{place}: {outcome.size}, {engine}{seed}, {duration(outcome.seconds or 0)}")
        elif outcome.state == "planned":
            plan = outcome.plan or {}
            steps = f"{counted(plan['steps'], 'step')}, " if plan["steps"] else ""
            self.reporter.say(
                f"{job.name}, {plan['source']}, would become {place}, {outcome.size}: "
                f"{counted(plan['passes'], 'pass')}, {steps}{counted(plan['tiles'], 'tile')} of {plan['tile']} pixels, "
                f"about {duration(plan['seconds'])} and {plan['memory_bytes'] / 1e9:.1f} GB"
            )
        self._record(outcome)

    def _record(self, outcome: Outcome) -> None:
        """One JSON object on its own line; all keys are always there."""
        if not self.as_json:
            return
        job, size, error = outcome.job, outcome.size, outcome.error
        record: dict[str, Any] = {
            "input": "-" if job.source is None else str(job.source),
            "output": "-" if job.output is None else str(job.output),
            "width": size.width if size else None,
            "height": size.height if size else None,
            "engine": self.order.listing.facts.name,
            "model": outcome.model or self.order.model or "",
            "settings": dict(outcome.settings) or to_json(self.order.record),
            "sample": job.sample,
            "seed": outcome.seed if outcome.settings else getattr(self.order.record, "seed", None),
            "seconds": None if outcome.seconds is None else round(outcome.seconds, 3),
            "peak_memory_bytes": peak_memory(),
            "warnings": list(outcome.warnings),
            "error": None if error is None else str(error if isinstance(error, EnlargerError) else bug(error)),
        }
        if outcome.plan is not None:
            record["plan"] = {name: value for name, value in outcome.plan.items() if name != "source"}
        with standard_output():
            print(json.dumps(record), flush=True)

    def _piped_in(self) -> bytes:
        """What is piped in, up to the most that a picture of so many pixels can need."""
        limit = 32 * self.order.record.max_pixels + SLACK
        data = sys.stdin.buffer.read(limit + 1)
        if len(data) > limit:
            raise PictureError(f"standard input is longer than {limit:,} bytes, too long for a picture", "too_large")
        return data


def _rest(outcomes: Generator[Outcome, None, None], stop: BaseException) -> Iterator[Outcome]:
    """What is done still when the telling was interrupted; nothing when the run itself was."""
    with suppress(Interrupted, KeyboardInterrupt, StopIteration):
        outcome = outcomes.throw(stop)
        while True:
            yield outcome
            outcome = next(outcomes)


def _pipe_out(data: bytes) -> None:
    with standard_output():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def standard_output() -> Iterator[None]:
    """What goes wrong there is like any output's; that the reader has left is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise OutputError(f"standard output cannot be written: {reason}; make room or name a file with -o") from error


def counted(number: int, word: str) -> str:
    """1 pass, 2 passes, 3 tiles."""
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")


def peak_memory() -> int | None:
    """The most bytes that this process has held so far; None where the system does not tell."""
    try:
        # Linux's ru_maxrss remembers the process that this one was forked from; this number does not.
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
