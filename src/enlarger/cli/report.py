"""`--report`: what a result invented, shown on maps and told in numbers, beside each picture's results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.batch.jobs import Job
from enlarger.batch.order import Order, Outcome
from enlarger.errors import OutputError, SettingsError
from enlarger.picture.formats import CAPACITIES, format_of
from enlarger.settings import to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENDINGS = (".consistency.png", ".deviation.png", ".report.json")
"""What the files of a report are called, after the result's name without its ending."""


class Reports:
    """The reports of a run: each picture's is written when the last of its results is there.

    Args:
        jobs: All jobs of the run.
        order: What is asked for.
        folder: Where the reports go; "" for beside the results.
        overwrite: Whether files that are there may be replaced; earlier reports always are.

    Raises:
        SettingsError: A picture without a name.
        OutputError: A report would take another file's place, or the folder is not there.
    """

    def __init__(self, jobs: Sequence[Job], order: Order, folder: str, *, overwrite: bool = False) -> None:
        self.order = order
        self._waiting: dict[Path, list[Job]] = {}
        self._ended: dict[Path, list[Outcome]] = {}
        if folder and not Path(folder).is_dir():
            raise OutputError(f"the folder {folder} of --report does not exist; make it first")
        self._folder = Path(folder) if folder else None
        for job in jobs:
            if job.source is None or job.output is None:
                raise SettingsError("--report needs an input and a result that are files: what is piped is gone")
            self._waiting.setdefault(self._stem(job), []).append(job)
        for place in {stem.parent for stem in self._waiting}:
            if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
                raise OutputError(f"the folder {place} of --report cannot be written to; choose another")
        pictures = {path.resolve() for job in jobs for path in (job.source, job.output) if path is not None}
        for stem, group in self._waiting.items():
            if len({job.source for job in group}) > 1:
                raise OutputError(f"two pictures would have the report {stem}{ENDINGS[-1]}: report them apart")
            for path in (stem.with_name(stem.name + ending) for ending in ENDINGS):
                if path.resolve() in pictures:
                    raise OutputError(f"{path} of --report is a picture of this run; choose another folder")
                if path.is_dir() or (path.exists() and not overwrite and not _is_report(path)):
                    raise OutputError(f"{path} of --report exists already; --overwrite replaces a file")

    def _stem(self, job: Job) -> Path:
        """The report's path without its endings."""
        whole = job.whole
        assert whole is not None
        # Only an ending that is a picture's: the name may have other dots.
        name = whole.stem if format_of(whole.name) in CAPACITIES else whole.name
        return (self._folder or whole.parent) / name

    def note(self, outcome: Outcome) -> Iterator[str]:
        """Take in what became of a job; a line to tell for the report that is complete with it.

        Raises:
            EnlargerError: The report could not be made.
        """
        stem = self._stem(outcome.job)
        ended = self._ended.setdefault(stem, [])
        ended.append(outcome)
        if len(ended) < len(self._waiting[stem]):
            return
        results = [one for one in self._ended.pop(stem) if one.state in ("made", "there")]
        if results:
            yield self._write(stem, results)

    def _write(self, stem: Path, results: Sequence[Outcome]) -> str:
        from enlarger.evaluation.maps import faithfulness, write_maps
        from enlarger.picture.atomic import appearing
        from enlarger.picture.read import read_rgb

        first, order = results[0], self.order
        assert first.job.source is not None
        source = read_rgb(first.job.source, page=order.record.page, max_pixels=order.record.max_pixels)
        numbers, maps = faithfulness((self._result(one) for one in results), source)
        written = write_maps(maps, stem.with_name(stem.name + ".png"), overwrite=True)
        report: dict[str, Any] = {
            "input": first.job.source.name,
            "results": [one.job.output.name for one in results if one.job.output is not None],
            "engine": order.listing.facts.name,
            "settings": dict(first.settings) or to_json(order.record),
            **numbers,
            "maps": {path.suffixes[-2].removeprefix("."): path.name for path in written},
        }
        with appearing(stem.with_name(stem.name + ENDINGS[-1]), overwrite=True) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        told = f"made small again {numbers['consistency']:.1f} dB, at worst {numbers['worst']:.1f} levels of 255 off"
        if "deviation" in numbers:
            told += f"; {len(results)} samples differ by {numbers['deviation']:.1f} levels"
        return f"{stem.with_name(stem.name + ENDINGS[-1])}: {told}"

    @staticmethod
    def _result(outcome: Outcome) -> NDArray[np.uint8]:
        """A result as its file holds it: what somebody who opens it sees."""
        from enlarger.picture.read import read_rgb

        return read_rgb(outcome.job.output, max_pixels=1 << 40)


def _is_report(path: Path) -> bool:
    """Whether a file is a part of an earlier report."""
    if path.suffix == ".png":
        from enlarger.batch.done import is_result

        return is_result(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"results", "maps"} <= set(found)
