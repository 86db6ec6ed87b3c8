"""A task beside the main work: the next picture is read and the last one written while one is computed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A few lines that belong together: a signal that comes meanwhile is handled after them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[tuple[int, FrameType | None]] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda *words: late.append(words)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came, frame in late[:1]:
            meant = before[signal.Signals(came)]
            assert callable(meant)
            meant(came, frame)


class Beside(Generic[T]):
    """A task in a thread of its own; whatever it raises is raised where its result is asked for.

    Threads of a pool would be waited for at the interpreter's end; these are left behind when the user interrupts.

    Args:
        task: What to do.
        apart: False: not in a thread but when `result` is called, one after the other.
    """

    def __init__(self, task: Callable[[], T], *, apart: bool = True) -> None:
        self._task: Callable[[], T] | None = task
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()  # not the thread's `join`: interrupted, Python 3.11 takes the thread for ended
        self._apart = apart
        if apart:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        assert self._task is not None
        try:
            self._value = self._task()
        except BaseException as error:
            self._error = error
        self._task = None  # what it holds, a whole picture perhaps, is not held longer than needed
        self._done.set()

    def finished(self, patience: float = 0.0) -> bool:
        """Whether the result is there, or comes within some seconds."""
        return self._done.wait(patience if self._apart else 0.0)

    def wait(self) -> None:
        """Wait until the result is there."""
        if not self._apart and not self._done.is_set():
            self._run()
        self._done.wait()

    def result(self) -> T:
        """What the task gives, waited for."""
        self.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._value)
