"""The run: every job's way, the next picture read and the last one written while one is computed.

    for outcome in run(jobs, order):
        print(outcome.job.name, outcome.state)

A failing picture is an outcome like others. What is done already (see `done.py`) is not done again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from enlarger.batch.beside import Beside, undisturbed
from enlarger.batch.desk import Desk, Read, Watch
from enlarger.batch.jobs import Job
from enlarger.batch.order import Order, Outcome
from enlarger.errors import Interrupted

if TYPE_CHECKING:
    from enlarger.engines.engine import Loaded
    from enlarger.upscaler import Callback

LARGE = 64_000_000
"""Pixels of a result beyond which pictures are worked on one by one: two at once might not fit the memory."""

PATIENCE = 0.02
"""Share of a picture's computing time that its writing is waited for, so that those who wait long hear of it soon."""

FAREWELL = 60.0
"""Seconds that a picture which is being written is waited for at the end."""


@contextlib.contextmanager
def unwatched(number: int, job: Job) -> Iterator[Callback]:
    """A `Watch` that shows nothing."""
    yield lambda progress: None


def run(
    jobs: Sequence[Job],
    order: Order,
    *,
    watch: Watch = unwatched,
    pipe_in: Callable[[], bytes] | None = None,
    pipe_out: Callable[[bytes], None] | None = None,
    on_load: Callable[[Loaded], None] | None = None,
    overlap: bool = True,
) -> Generator[Outcome, None, None]:
    """Do the jobs; each one's outcome comes when it is sure, in their order, those that another run was making last.

    A picture's outcome may come while the next one is computed. An interruption (KeyboardInterrupt, or what a signal
    handler raises) ends it: the picture that is being written is finished and told first, unless it is interrupted
    again. A caller that is interrupted itself can throw that into the generator, to the same end.

    Args:
        jobs: From `jobs.plan`.
        order: What is asked for.
        watch: Shows how far one picture is.
        pipe_in: Gives the bytes of the job without a source.
        pipe_out: Takes the bytes of the job without an output.
        on_load: Told what the engine was loaded from, once and before it computes.
        overlap: Whether the next picture is read and the last one written while one is computed. The results are the
            same.

    Raises:
        ModelError, ResourceError: The engine cannot be loaded.
    """
    desk = Desk(order, jobs, pipe_in, pipe_out, on_load)
    apart = overlap and len(jobs) > 1
    queue, put_off = deque(enumerate(jobs, 1)), deque[tuple[int, Job]]()
    ahead: Beside[Read | Outcome] | None = None
    pending: deque[Beside[Outcome] | Outcome] = deque()

    def read_on() -> Beside[Read | Outcome] | None:
        if not queue:
            return None
        job = queue[0][1]
        return Beside(lambda: desk.read(job), apart=apart)

    try:
        while queue or put_off:
            if not queue:
                queue, put_off, desk.waits = put_off, queue, True
            ahead = ahead or read_on()
            assert ahead is not None
            read, (number, job), ahead = ahead.result(), queue.popleft(), None
            if isinstance(read, Read) and read.picture is None:
                desk.load()  # its digest says whether the result that is there is what would be made
            opened = desk.open(read) if isinstance(read, Read) else read
            del read
            if opened is None:
                put_off.append((number, job))
                continue
            if isinstance(opened, Outcome):
                pending.append(opened)
                yield from _told(pending)
                continue
            desk.load()
            small = opened.plan.size[0] * opened.plan.size[1] <= LARGE
            if small:
                ahead = read_on()
            else:
                yield from _told(pending, wait=True)
            result = desk.make(opened, watch, number)
            if isinstance(result, Outcome):
                pending.append(result)
                continue
            yield from _told(pending, wait=True)
            patience = PATIENCE * result.seconds
            with undisturbed():
                writing = Beside(partial(desk.write, opened, result), apart=apart and small)
                pending.append(writing)
            del opened, result
            if not (apart and small) or writing.finished(patience):
                yield from _told(pending, wait=True)
        yield from _told(pending, wait=True)
    except (Exception, KeyboardInterrupt):
        try:
            yield from _told(pending, wait=True)
        except (Interrupted, KeyboardInterrupt):
            desk.stop.set()
            raise
        raise
    finally:
        _part(pending, desk.stop)
        desk.release()


def _told(pending: deque[Beside[Outcome] | Outcome], *, wait: bool = False) -> Iterator[Outcome]:
    """The outcomes that are sure, in order; with `wait` also those that are not yet."""
    while pending:
        first = pending[0]
        if isinstance(first, Beside):
            if not wait and not first.finished():
                return
            first.wait()  # where most interruptions come: it is told after them
        pending.popleft()
        yield first.result() if isinstance(first, Beside) else first


def _part(pending: deque[Beside[Outcome] | Outcome], stop: threading.Event) -> None:
    """Wait for what is being written; when interrupted even now, it is given up and its temporary file goes."""
    writing = [one for one in pending if isinstance(one, Beside)]
    try:
        for one in writing:
            one.finished(FAREWELL)
    except (Interrupted, KeyboardInterrupt):
        stop.set()
        for one in writing:
            one.finished(FAREWELL)
        raise
