"""What the tests of runs share: folders of small pictures, an order, a run and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enlarger.batch.jobs import Job, plan, suffix
from enlarger.batch.order import Order, Outcome
from enlarger.batch.run import run
from enlarger.engines.catalog import find
from enlarger.settings import build


def order(engine: str = "interpolate", *, machine: dict[str, Any] | None = None, **given: Any) -> Order:
    """An order for x2, as the command makes it; what is no setting of the engine is the order's own."""
    own = {name: given.pop(name) for name in list(given) if name in Order.__dataclass_fields__}
    settings = {"scale": 2.0, **given}
    listing = find(engine)
    record = build(listing.facts.settings, settings, owner=engine)
    return Order(listing, None, settings, record, machine or {}, **own)


def jobs(*inputs: str | Path, to: str | Path | None = None, format: str | None = None) -> list[Job]:
    """What the command would make of its words."""
    return plan([str(word) for word in inputs], None if to is None else str(to), format, suffix({"scale": 2.0}, 4))


def done(what: Sequence[Job], wanted: Order | None = None, **options: Any) -> list[Outcome]:
    """A run to its end."""
    return list(run(what, wanted or order(), **options))


def states(outcomes: Sequence[Outcome]) -> list[str]:
    """How each job ended, with what went wrong."""
    return [outcome.state if outcome.error is None else f"failed: {outcome.error}" for outcome in outcomes]


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raising(error: BaseException, when: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
    """A function that raises, or gives None."""

    def function(*_: object, **__: object) -> None:
        if when():
            raise error

    return function
