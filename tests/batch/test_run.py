"""A run: the tree kept, faults told, the same bytes whether its steps overlap or not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.batch import run as running
from enlarger.batch.beside import undisturbed
from enlarger.batch.jobs import Job
from enlarger.batch.run import run
from enlarger.errors import EnlargerError, Interrupted, ModelError
from enlarger.picture import write as writing
from enlarger.upscaler import Progress, Upscaler
from tests.batch.support import content, done, jobs, order, states
from tests.cli.support import files, picture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five small pictures in a tree."""
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.webp", "sub/deep/d.tif", "sub/e.png")):
        picture(tmp_path / "in" / name, size=(20 + number, 16), seed=number)
    return tmp_path / "in"


def test_the_tree_is_kept_and_the_order_is_that_of_the_jobs(pictures: Path, tmp_path: Path) -> None:
    what = jobs(pictures, to=tmp_path / "out")
    outcomes = done(what)
    assert [outcome.job for outcome in outcomes] == what
    assert states(outcomes) == ["made"] * 5
    assert [str(job.output.relative_to(tmp_path / "out")) for job in what if job.output] == [
        "a_2x.png", "b_2x.jpg", "sub/c_2x.webp", "sub/e_2x.png", "sub/deep/d_2x.tif",
    ]  # fmt: skip
    assert files(tmp_path / "out") == {str(job.output.relative_to(tmp_path / "out")) for job in what if job.output}
    assert [outcome.size for outcome in outcomes] == [(32, 40), (32, 42), (32, 44), (32, 48), (32, 46)]


@pytest.mark.parametrize("engine", ["interpolate", pytest.param("pocket", marks=pytest.mark.slow)])
def test_overlap_changes_no_byte(pictures: Path, tmp_path: Path, engine: str) -> None:
    wanted = order(engine)
    done(jobs(pictures, to=tmp_path / "one"), wanted, overlap=False)
    done(jobs(pictures, to=tmp_path / "two"), wanted, overlap=True)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) == 5


def recorded(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> list[tuple[str, float, float]]:
    """The times of every reading, computing and writing, each made to last."""
    from enlarger.batch.desk import Desk

    spans: list[tuple[str, float, float]] = []

    def lasting(name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **options: Any) -> Any:
            started = time.monotonic()
            time.sleep(seconds)
            result = right(*words, **options)
            spans.append((name, started, time.monotonic()))
            return result

        return step

    for name in ("read", "make", "write"):
        monkeypatch.setattr(Desk, name, lasting(name, getattr(Desk, name)))
    return spans


def overlaps(spans: list[tuple[str, float, float]]) -> set[frozenset[str]]:
    pairs = [(one, other) for one in spans for other in spans if one[1] < other[1] < one[2]]
    return {frozenset((one[0], other[0])) for one, other in pairs}


def test_reading_computing_and_writing_overlap(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded(monkeypatch)
    done(jobs(pictures, to=tmp_path / "out"))
    assert {frozenset(("make", "read")), frozenset(("make", "write"))} <= overlaps(spans)
    assert not {frozenset(("read",)), frozenset(("write",)), frozenset(("make",))} & overlaps(spans), "two at a time"


@pytest.mark.parametrize("how", ["overlap", "LARGE"])
def test_one_by_one_nothing_overlaps_and_so_it_is_with_large_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    spans = recorded(monkeypatch, 0.02)
    if how == "LARGE":
        monkeypatch.setattr(running, "LARGE", 100)
    done(jobs(pictures, to=tmp_path / "out"), overlap=how != "overlap")
    assert not overlaps(spans)
    assert len(spans) == 15


def test_no_more_than_three_pictures_are_held(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read ahead, one computed, one written."""
    import gc
    import weakref

    from enlarger.picture.picture import Picture

    alive: list[weakref.ref[Picture]] = []
    most = []
    right = Picture.__init__

    def counting(self: Picture, *words: Any, **options: Any) -> None:
        right(self, *words, **options)
        gc.collect()
        alive.append(weakref.ref(self))
        most.append(sum(one() is not None for one in alive))

    monkeypatch.setattr(Picture, "__init__", counting)
    for number in range(8):
        picture(pictures / f"{number}.png")
    assert states(done(jobs(pictures, to=tmp_path / "out"))) == ["made"] * 13
    assert max(most) <= 3


def test_a_failing_picture_stops_no_other(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a0.png").write_text("no picture")
    (pictures / "b0.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    what = jobs(pictures, to=tmp_path / "out")
    (pictures / "sub/e.png").unlink()  # gone since the listing
    outcomes = done(what)
    assert [outcome.state for outcome in outcomes] == ["made", "failed", "made", "failed", "made", "failed", "made"]
    assert all(isinstance(outcome.error, EnlargerError) for outcome in outcomes if outcome.state == "failed")
    assert files(tmp_path / "out") == {"a_2x.png", "b_2x.jpg", "sub/c_2x.webp", "sub/deep/d_2x.tif"}


@pytest.mark.parametrize("step", ["compute", "write"])
def test_a_bug_with_one_picture_stops_no_other(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place, name = (Upscaler, "__call__") if step == "compute" else (writing, "_encode")
    right, calls = getattr(place, name), []

    def wrong(*words: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("by zero")
        return right(*words, **options)

    monkeypatch.setattr(place, name, wrong)
    outcomes = done(jobs(pictures, to=tmp_path / "out"))
    assert [outcome.state for outcome in outcomes] == ["made", "failed", "made", "made", "made"]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert len(files(tmp_path / "out")) == 4, "no temporary file and no lock is left"


def test_a_full_disk_fails_the_picture_and_leaves_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: Any, *_: object) -> None:
        stream.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_encode", full)
    outcomes = done(jobs(pictures, to=tmp_path / "out"))
    assert all("the disk is full" in state for state in states(outcomes))
    assert files(tmp_path / "out") == set()


def test_an_engine_that_cannot_be_loaded_ends_the_run_once(pictures: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    wanted = replace(order("pocket"), model=str(tmp_path / "nowhere.safetensors"))
    outcomes: list[str] = []
    (pictures / "a.png").write_text("broken: told before the engine is needed")
    with pytest.raises(ModelError):
        for outcome in run(jobs(pictures, to=tmp_path / "out"), wanted):
            outcomes.append(outcome.state)
    assert outcomes == ["failed"]
    assert files(tmp_path / "out") == set()


def test_progress_is_told_for_each_picture(pictures: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []

    @contextmanager
    def watch(number: int, job: Job) -> Iterator[Callable[[Progress], None]]:
        yield lambda progress: seen.append((number, Path(job.name).name))

    done(jobs(pictures, to=tmp_path / "out"), watch=watch)
    assert list(dict.fromkeys(seen)) == [(1, "a.png"), (2, "b.jpg"), (3, "c.webp"), (4, "e.png"), (5, "d.tif")]


def test_cancelling_in_a_picture_finishes_the_one_before(pictures: Path, tmp_path: Path) -> None:
    @contextmanager
    def watch(number: int, job: Job) -> Iterator[Callable[[Progress], bool]]:
        yield lambda progress: number < 3

    outcomes: list[str] = []
    with pytest.raises(Interrupted):
        for outcome in run(jobs(pictures, to=tmp_path / "out"), order(), watch=watch):
            outcomes.append(outcome.state)
    assert outcomes == ["made", "made"]
    assert files(tmp_path / "out") == {"a_2x.png", "b_2x.jpg"}


def slow_writing(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The second picture's writing has begun; it goes on in small pieces until it may end."""
    right, begun, may_end, calls = writing._encode, threading.Event(), threading.Event(), []

    def slow(stream: Any, *rest: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            begun.set()
            while not may_end.wait(0.01):
                stream.write(b"")
                stream.flush()
                stream.raw.write(b"x")
            stream.seek(0)
            stream.truncate()
        right(stream, *rest)

    monkeypatch.setattr(writing, "_encode", slow)
    return begun, may_end


def interrupted_run(pictures: Path, out: Path, begun: threading.Event, twice: Callable[[], None]) -> list[str]:
    """The run's third picture is interrupted while the second is written, then `twice` happens."""
    outcomes: list[str] = []

    @contextmanager
    def watch(number: int, job: Job) -> Iterator[Callable[[Progress], None]]:
        if number == 3:
            assert begun.wait(10)
            twice()
            raise KeyboardInterrupt
        yield lambda progress: None

    with pytest.raises(KeyboardInterrupt):
        for outcome in run(jobs(pictures, to=out), order(), watch=watch):
            outcomes.append(outcome.state)
    return outcomes


def test_an_interruption_lets_the_picture_in_hand_be_written(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = slow_writing(monkeypatch)
    release = threading.Timer(0.3, may_end.set)
    assert interrupted_run(pictures, tmp_path / "out", begun, release.start) == ["made", "made"]
    assert files(tmp_path / "out") == {"a_2x.png", "b_2x.jpg"}
    assert np.asarray(Image.open(tmp_path / "out/b_2x.jpg")).shape == (32, 42, 3)


def test_a_second_interruption_gives_it_up_at_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background is deaf to it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, at_start))
    begun, _ = slow_writing(monkeypatch)
    second = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    started = time.monotonic()
    assert interrupted_run(pictures, tmp_path / "out", begun, second.start) == ["made"]
    assert time.monotonic() - started < 5
    assert files(tmp_path / "out") == {"a_2x.png"}, "the temporary file and the lock are gone"


def test_a_caller_that_leaves_early_loses_no_picture_that_is_being_written(pictures: Path, tmp_path: Path) -> None:
    outcomes = run(jobs(pictures, to=tmp_path / "out"), order())
    assert next(outcomes).state == "made"
    outcomes.close()
    left = files(tmp_path / "out")
    assert {"a_2x.png"} <= left <= {"a_2x.png", "b_2x.jpg"}


def test_a_caller_that_is_interrupted_itself_hears_of_what_is_finished(pictures: Path, tmp_path: Path) -> None:
    outcomes = run(jobs(pictures, to=tmp_path / "out"), order())
    told = [next(outcomes).state, next(outcomes).state]
    with pytest.raises(KeyboardInterrupt):
        told.append(outcomes.throw(KeyboardInterrupt()).state)
        outcomes.send(None)
    assert files(tmp_path / "out") == {"a_2x.png", "b_2x.jpg", "sub/c_2x.webp"} or len(told) == 2
    assert len(files(tmp_path / "out")) == len(told)


def test_a_signal_between_lines_that_belong_together_comes_after_them(request: pytest.FixtureRequest) -> None:
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, at_start))
    reached = False
    with pytest.raises(KeyboardInterrupt), undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.1)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
