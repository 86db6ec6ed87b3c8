"""A rehearsal: what a run would do and for how long, with nothing written."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from enlarger.batch.desk import Desk
from enlarger.batch.jobs import Job
from enlarger.batch.order import Order, Outcome
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.engines.engine import Loaded
    from enlarger.planning import Plan
    from enlarger.upscaler import Upscaler

PROBE = 48
"""Pixels of either side of the picture that is enlarged to tell the time."""

PROBED_STEPS = 2
"""Denoising steps of the probe, at most."""

SLOW = 5.0
"""Seconds of a probe that is not worth repeating."""

NOT_FOR_PROBE = (
    "scale", "size", "longest", "megapixels", "page", "max_pixels", "tile", "batch", "samples", "sample", "region",
)  # fmt: skip
"""Settings that would make the probe another size or slower than the picture's own tiles, or that name places in it."""


def rehearse(
    jobs: Sequence[Job], order: Order, *, on_load: Callable[[Loaded], None] | None = None
) -> Generator[Outcome, None, None]:
    """What `run` would do with each job: state "planned", or what is wrong with it already now.

    Args:
        jobs: From `jobs.plan`.
        order: What is asked for.
        on_load: See `run`.

    Raises:
        ModelError, ResourceError: The engine cannot be loaded.
    """
    desk = Desk(order, jobs, on_load=on_load)
    for job in jobs:
        read = desk.read(job)
        if isinstance(read, Outcome):
            yield read
            continue
        if read.picture is None:
            desk.load()
        try:
            found = desk.rehearse(read)
        except Exception as error:
            yield Outcome(job, "failed", error=error)
            continue
        if isinstance(found, Outcome):
            yield found
            continue
        upscaler = desk.load()
        try:
            picture, _ = found
            plan = upscaler.plan(Size(picture.height, picture.width), order.record)
            report = told(plan, seconds(upscaler, order, plan))
            yield Outcome(job, "planned", plan.canvas.target, warnings=plan.warnings, plan=report)
        except Exception as error:
            yield Outcome(job, "failed", error=error)


def told(plan: Plan, seconds: float) -> dict[str, object]:
    """A plan in plain values, as `--json` gives it."""
    return {
        "source": str(plan.canvas.source),
        "passes": len(plan.canvas.passes),
        "steps": plan.steps,
        "tile": plan.tile,
        "tiles": plan.tiles,
        "batch": plan.batch,
        "seconds": round(seconds, 2),
        "memory_bytes": plan.memory,
    }


def seconds(upscaler: Upscaler, order: Order, plan: Plan) -> float:
    """About how long a run would take on this machine, from a small grey picture that is enlarged for it."""
    import numpy as np

    grey = np.full((PROBE, PROBE, 3), 0.5, dtype=np.float32)
    settings = {name: value for name, value in order.settings.items() if name not in NOT_FOR_PROBE}
    if getattr(order.record, "steps", 0) > PROBED_STEPS:
        settings["steps"] = PROBED_STEPS
    seconds = upscaler(grey, **settings).seconds
    if seconds < SLOW:  # then the first run was slow for reasons of its own
        seconds = upscaler(grey, **settings).seconds
    probed = upscaler.plan(Size(PROBE, PROBE), upscaler.settings(**settings)).work

    facts = order.listing.facts
    halo = 2 * (facts.field or 0) * facts.factor
    seen = [side + halo * (-(-side // plan.tile) - 1) for side in plan.canvas.native]
    return seconds * plan.work / probed * math.prod(seen) / plan.canvas.native.area
