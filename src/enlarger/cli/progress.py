"""How far the work is, on stderr: a bar on a terminal, else a line every ten seconds; never on stdout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from enlarger.cli.say import line

if TYPE_CHECKING:
    from enlarger.upscaler import Progress

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""

PATIENCE = 3.0
"""Seconds of silence after which it is said what is going on."""


class Reporter:
    """Messages and progress for people; silent when they asked for quiet.

    Args:
        quiet: Nothing but errors.
        bar: Whether a terminal shows a bar; else there is a line now and then, which may stand between others.
    """

    def __init__(self, *, quiet: bool, bar: bool) -> None:
        self._quiet = quiet
        self._bar = bar
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A message on its own line."""
        if not self._quiet:
            print(line(text), file=sys.stderr)

    def waiting(self, text: str) -> Patience:
        """A message that is shown only where what comes next takes long."""
        return Patience(text, self.say)

    def picture(self, label: str) -> Watch:
        """Watch one picture; `with` takes the bar away at the end, however it ends."""
        if self._quiet:
            return Watch()
        return _Bar(label) if self._terminal and self._bar else _Lines(label, self)


class Patience:
    """A line for those who have waited for some seconds without hearing anything.

    Args:
        text: The line; "" for none.
        say: Shows it.
    """

    def __init__(self, text: str, say: Callable[[str], None]) -> None:
        self._timer = threading.Timer(PATIENCE, lambda: say(text) if text else None)
        self._timer.daemon = True

    def start(self) -> None:
        """From now on they wait."""
        self._timer.start()

    def stop(self) -> None:
        """What they waited for is there; twice does no harm."""
        self._timer.cancel()


class Watch:
    """A callback for `Upscaler` that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take away."""

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""


class _Bar(Watch):
    """A bar on the terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> Self:
        from tqdm import tqdm

        self._bar = tqdm(
            total=1.0,
            desc=self._label,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed}{postfix}",
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, progress: Progress) -> None:
        self._bar.set_postfix_str(f"{duration(progress.left)} left", refresh=False)
        self._bar.update(progress.done / progress.total - self._bar.n)


class _Lines(Watch):
    """A line now and then."""

    def __init__(self, label: str, reporter: Reporter) -> None:
        self._label = label
        self._reporter = reporter
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last < EVERY or progress.done == progress.total:
            return
        self._last = time.monotonic()
        percent = 100 * progress.done // progress.total
        self._reporter.say(f"{self._label}: {percent:.0f} %, about {duration(progress.left)} left")


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.8 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
