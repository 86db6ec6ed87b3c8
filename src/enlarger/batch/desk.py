"""What all jobs of a run share, and the steps of one job: read, open, make, write."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.batch.beside import undisturbed
from enlarger.batch.claim import Claim, claim, sweep
from enlarger.batch.done import Ledger, alike, digest, is_result, recipe_of
from enlarger.batch.jobs import Job
from enlarger.batch.order import Order, Outcome
from enlarger.errors import Interrupted, OutputError
from enlarger.picture.formats import CAPACITIES
from enlarger.settings import to_json
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.engines.engine import Loaded
    from enlarger.picture.picture import Picture
    from enlarger.picture.write import OutputPlan
    from enlarger.result import Result
    from enlarger.upscaler import Callback, Upscaler

Watch = Callable[[int, Job], "AbstractContextManager[Callback]"]
"""Asked for a callback that shows how far one job is; its number counts from 1."""


@dataclass(frozen=True)
class Read:
    """A job whose input has been looked at.

    Attributes:
        job: The job.
        digest: Of the input; "" when it is no file.
        picture: None when the result seems to be there already.
    """

    job: Job
    digest: str
    picture: Picture | None


@dataclass(frozen=True)
class Opened:
    """A picture that will be enlarged, its place taken."""

    job: Job
    digest: str
    picture: Picture
    plan: OutputPlan
    claim: Claim | None

    def release(self) -> None:
        if self.claim is not None:
            self.claim.release()


class Desk:
    """What all jobs of a run share: the order, the engine once it is loaded, the places that are taken.

    Args:
        order: What is asked for.
        jobs: All jobs. Of a single picture that was named nothing is expected to be done: what is there is in its way.
        pipe_in: Gives the bytes of the job without a source.
        pipe_out: Takes the bytes of the job without an output.
        on_load: Told once what the engine was loaded from.

    Attributes:
        waits: Whether places that another run has taken are waited for.
        stop: Set when what is being written is to be given up.
    """

    def __init__(
        self,
        order: Order,
        jobs: Sequence[Job],
        pipe_in: Callable[[], bytes] | None = None,
        pipe_out: Callable[[bytes], None] | None = None,
        on_load: Callable[[Loaded], None] | None = None,
    ) -> None:
        self.order = order
        self.several = len(jobs) > 1 or any(job.listed for job in jobs)
        self.waits = False
        self.stop = threading.Event()
        self._pipe_in, self._pipe_out, self._on_load = pipe_in, pipe_out, on_load
        self._piped: bytes | None = None
        self._upscaler: Upscaler | None = None
        self._swept: set[Path] = set()
        self._claims: list[Claim] = []

    # --- in the reading thread

    def read(self, job: Job) -> Read | Outcome:
        """Look at the input and at what is there of its result; decode it if it seems to be needed."""
        try:
            summed, marked = self._digest(job)
            if job.listed and marked and job.source is not None and is_result(job.source):
                return Outcome(job, "own", warnings=("a result of Enlarger, which is no input",))
            there = self._there(job)
            if there is not None and self._alike(there, job, summed):
                return Read(job, summed, None)
            return Read(job, summed, self._decode(job))
        except Exception as error:
            return Outcome(job, "failed", error=error)

    def _digest(self, job: Job) -> tuple[str, bool]:
        if job.source is None:
            return "", False
        return digest(job.source, 32 * self.order.record.max_pixels + (64 << 20))

    def _there(self, job: Job) -> dict[str, Any] | None:
        """How the result that is there was made; None when there is none, or one that does not count."""
        if not self.several or self.order.overwrite or None in (job.source, job.output):
            return None
        assert job.output is not None
        if not os.path.lexists(job.output):
            return None
        return recipe_of(job.output)

    def _decode(self, job: Job) -> Picture:
        from enlarger.picture.read import read

        settings = self.order.record
        if job.source is None:
            assert self._pipe_in is not None
            # All samples of what is piped in are made of the one reading.
            self._piped = self._pipe_in() if self._piped is None else self._piped
            return read(self._piped, max_pixels=settings.max_pixels, page=settings.page)
        return read(job.source, max_pixels=settings.max_pixels, page=settings.page)

    # --- in the main thread

    def open(self, read: Read) -> Opened | Outcome | None:
        """Take the result's place and make sure that it can be written; None when another run has taken it."""
        job, taken = read.job, None
        try:
            if job.output is not None:
                if job.makes_folder:
                    from enlarger.picture.atomic import make_folder

                    make_folder(job.output.parent)
                self._sweep(job.output.parent)
            if job.output is not None and self.several:
                with contextlib.nullcontext() if self.waits else undisturbed():
                    taken = claim(job.output, wait=self.waits)
                    if taken is None:
                        return None
                    self._claims.append(taken)
            there = self._there(job)  # once more: now nobody else is making it
            if there is not None and self._is_done(there, job, read.digest):
                return self._there_already(job, there, taken)
            picture = read.picture or self._decode(job)
            replaces = self._replaces(job, there, read.digest)
            plan = self._check(job, picture, job.output, self.order.output_format, replaces=replaces)
            return Opened(job, read.digest, picture, plan, taken)
        except Exception as error:
            if taken is not None:
                taken.release()
            return Outcome(job, "failed", error=error)

    def _sweep(self, folder: Path) -> None:
        if folder not in self._swept:
            self._swept.add(folder)
            sweep(folder)

    def _alike(self, there: Mapping[str, Any], job: Job, summed: str, *, model: str | None = None) -> bool:
        """Whether a result is what would be made; with None for the model's digest, whatever the model was."""
        wanted = self.recipe(job, summed) | ({} if model is None else {"digest": model})
        return alike(there, wanted, but=() if model is not None else ("digest",), seed=not self.order.any_seed)

    def _is_done(self, there: Mapping[str, Any], job: Job, summed: str) -> bool:
        loaded = self.load().engine.loaded.digest
        return self._alike(there, job, summed) and self._alike(there, job, summed, model=loaded)

    def _there_already(self, job: Job, there: Mapping[str, Any], taken: Claim | None) -> Outcome:
        if taken is not None:
            taken.release()
        settings = there["settings"]
        told = ("the result is there already: not made again",)
        model = str(there.get("model") or "")
        return Outcome(job, "there", model=model, settings=settings, seed=settings.get("seed"), warnings=told)

    def _replaces(self, job: Job, there: Mapping[str, Any] | None, summed: str) -> bool:
        """Whether the result that is there is an earlier one of the same picture, which the new one may replace.

        Raises:
            OutputError: It was made from another picture.
        """
        if self.order.overwrite or there is None:
            return self.order.overwrite
        assert job.output is not None
        assert job.source is not None
        same = there.get("input") == summed
        if not same and os.stat(job.source).st_mtime_ns <= os.stat(job.output).st_mtime_ns:
            raise OutputError(
                f"{job.output} was made from another picture, of the same name; choose another folder or allow it with "
                "--overwrite"
            )
        return True

    def _check(
        self, job: Job, picture: Picture, path: Path | None, format: str | None, *, replaces: bool
    ) -> OutputPlan:
        from enlarger.picture.write import check_output

        return check_output(
            path,
            format=format,
            size=self.order.target(Size(picture.height, picture.width)),
            depth=picture.depth,
            alpha=picture.alpha is not None,
            overwrite=replaces,
            inputs=[] if job.source is None else [job.source],
            picture=picture,
            strip=self.order.strip,
        )

    def rehearse(self, read: Read) -> tuple[Picture, OutputPlan] | Outcome:
        """What `open` would give, with nothing made or taken."""
        job, format = read.job, self.order.output_format
        there = self._there(job)
        if there is not None and self._is_done(there, job, read.digest):
            return self._there_already(job, there, None)
        picture = read.picture or self._decode(job)
        replaces = self._replaces(job, there, read.digest)
        if job.makes_folder and job.output is not None and not job.output.parent.is_dir():
            # There is no folder yet that could be looked at.
            return picture, self._check(job, picture, None, format or job.output.suffix, replaces=replaces)
        return picture, self._check(job, picture, job.output, format, replaces=replaces)

    def load(self) -> Upscaler:
        """The engine, loaded when the first picture needs it."""
        if self._upscaler is None:
            from enlarger.upscaler import Upscaler

            order = self.order
            self._upscaler = Upscaler(order.listing.facts.name, order.model, **order.machine)
            if self._on_load is not None:
                self._on_load(self._upscaler.engine.loaded)
        return self._upscaler

    def make(self, picture: Opened, watch: Watch, number: int) -> Result | Outcome:
        """Enlarge it."""
        try:
            with watch(number, picture.job) as callback:
                wanted = {**self.order.settings, **_sample(picture.job)}
                return self.load()(picture.picture, progress=callback, **wanted)
        except Interrupted:
            raise
        except Exception as error:
            picture.release()
            return Outcome(picture.job, "failed", error=error)

    def recipe(self, job: Job, summed: str) -> dict[str, Any]:
        """What a result's recipe will hold, but for the model."""
        order = self.order
        own = {"engine": order.listing.facts.name, "settings": to_json(order.record) | _sample(job)}
        return own | order.beside() | ({"input": summed} if summed else {})

    # --- in the writing thread

    def write(self, picture: Opened, result: Result) -> Outcome:
        """Write it."""
        from enlarger.picture.write import encode, write

        job, order, plan = picture.job, self.order, picture.plan
        recipe = result.record() | self.recipe(job, picture.digest)
        try:
            options: dict[str, Any] = {"record": recipe, "quality": order.quality, "strip": order.strip}
            if job.output is None:
                assert self._pipe_out is not None
                self._pipe_out(encode(plan, result.pixels, result.alpha, picture.picture, **options))
            else:
                bare = order.strip == "all" or not CAPACITIES[plan.format].recipe
                noted = self._noted(job.output, recipe) if bare and self.several else None
                write(
                    plan, result.pixels, result.alpha, picture.picture,
                    stopped=self.stop.is_set, sealed=noted, **options,
                )  # fmt: skip
        except (Interrupted, BrokenPipeError):
            raise
        except Exception as error:
            return Outcome(job, "failed", error=error)
        finally:
            picture.release()
        warnings = (*result.warnings, *(warning for warning in plan.warnings if warning not in result.warnings))
        return Outcome(
            job, "made", result.size, result.model, dict(result.settings), result.seed, result.seconds, warnings
        )

    def _noted(self, output: Path, recipe: Mapping[str, Any]) -> Callable[[Path], None]:
        return lambda part: Ledger(output.parent).add(output.name, part, recipe)

    def release(self) -> None:
        """Give back all places."""
        for taken in self._claims:
            taken.release()


def _sample(job: Job) -> dict[str, int]:
    """The setting that makes one of several samples."""
    return {} if job.sample is None else {"sample": job.sample}
