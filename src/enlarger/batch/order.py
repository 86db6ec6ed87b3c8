"""What is asked for and what became of it: the two ends of a run, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from enlarger.batch.jobs import Job
from enlarger.canvas.geometry import target_size
from enlarger.engines.catalog import Listing
from enlarger.size import Size

State = Literal["made", "there", "own", "failed", "planned"]
"""made: enlarged now. there: done by an earlier run. own: a result of ours, which is no input. planned: a rehearsal."""


LOADED = ("dtype", "prediction")
"""Settings of loading that change the result: a recipe holds them where they were given."""


@dataclass(frozen=True)
class Order:
    """What is asked for, checked; the same for all pictures of a run.

    Attributes:
        listing: The engine.
        model: Its model, as `Upscaler` takes it.
        settings: Settings of a run that were given.
        record: All settings of a run.
        machine: Settings of loading that were given.
        output_format: Format of the results; None: what their names say.
        quality: 1..100 for formats that lose; None: the format's own.
        overwrite: Whether results may replace files that are none of ours, and are made again though they are done.
        strip: Metadata that are left out.
        any_seed: Whether the seed was drawn: then results of other seeds are as good.
        default_scale: The enlargement where no size is asked for; None: the engine's.
        recorded: Name and digest of the model that the settings were recorded with; "" where they were not.
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
    any_seed: bool = False
    default_scale: float | None = None
    recorded: tuple[str, str] = ("", "")

    def target(self, source: Size) -> Size:
        """The result's size.

        Raises:
            SettingsError: It is not possible, or a setting names a place that the result does not have.
        """
        wishes = {name: getattr(self.record, name) for name in ("scale", "size", "longest", "megapixels")}
        if not any(wishes.values()):
            wishes["scale"] = self.default_scale or self.listing.facts.default_scale
        target = target_size(source, **wishes)
        self.record.fits(target)
        return target

    def beside(self) -> dict[str, Any]:
        """What a recipe holds beside the engine's settings: how it was loaded and written, where that was said."""
        said = {name: self.machine.get(name) for name in LOADED}
        output = {"quality": self.quality, "strip": None if self.strip == "none" else self.strip}
        said |= {"output": {name: value for name, value in output.items() if value is not None} or None}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """How one job ended; small, so that those of a long run can be kept.

    Attributes:
        job: The job.
        state: See `State`.
        size: The result's.
        model: The model's name.
        settings: All settings; those of the earlier run where the result was there.
        seed: The seed, None for engines without noise.
        seconds: From reading to the finished pixels; None where nothing was computed.
        warnings: What there was to tell.
        error: Why it failed; an `EnlargerError`, or anything else for a bug.
        plan: What a rehearsal found.
    """

    job: Job
    state: State
    size: Size | None = None
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    error: Exception | None = None
    plan: Mapping[str, Any] | None = None
