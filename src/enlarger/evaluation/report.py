"""Outcomes as records, tables, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enlarger.evaluation.evaluate import Entry, Outcome
from enlarger.evaluation.metrics import Judge
from enlarger.evaluation.statistics import Estimate, difference, estimate

DIGITS = {"dB": 2, "shift": 2, "deviation": 2, "NIQE": 2}
"""Decimals by a word of the metric's title; 4 else."""


@dataclass(frozen=True)
class Row:
    """One entry in one metric.

    Attributes:
        entry: the entry.
        settings: all its settings.
        metric: name as it was asked for.
        estimate: mean and interval over the pictures that all entries finished.
        gain: mean of the differences to the first entry and its interval; None for the first.
        seconds_per_megapixel: of output, over the same pictures; None for finished results.
    """

    entry: Entry
    settings: Mapping[str, Any]
    metric: str
    estimate: Estimate
    gain: Estimate | None
    seconds_per_megapixel: float | None


def rows(outcomes: Sequence[Outcome], judge: Judge) -> list[Row]:
    """Means over the pictures that every entry finished, so that all rows speak of the same pictures."""
    entries = list(dict.fromkeys(id(outcome.entry) for outcome in outcomes))
    by_entry = {key: [o for o in outcomes if id(o.entry) == key] for key in entries}
    made: list[Row] = []
    for metric in judge.metrics:
        values = {
            key: {o.picture: o.values[metric] for o in of_entry if metric in o.values}
            for key, of_entry in by_entry.items()
        }
        common = [o.picture for o in by_entry[entries[0]] if all(o.picture in of for of in values.values())]
        if not common:
            continue
        first = [values[entries[0]][picture] for picture in common]
        for key in entries:
            mine = [values[key][picture] for picture in common]
            finished = [o for o in by_entry[key] if o.picture in set(common) and o.seconds is not None]
            pixels = sum(o.megapixels for o in finished)
            made.append(
                Row(
                    by_entry[key][0].entry,
                    by_entry[key][0].settings,
                    metric,
                    estimate(mine),
                    None if key == entries[0] else difference(mine, first),
                    sum(o.seconds or 0.0 for o in finished) / pixels if pixels else None,
                )
            )
    return made


def record(protocol: str, row: Row) -> dict[str, Any]:
    """A row as plain values, one line of `--json`."""
    given = row.estimate
    return {
        "protocol": protocol,
        "engine": row.entry.engine,
        "model": row.entry.model and row.entry.model.replace("\\", "/").rsplit("/", 1)[-1],
        "settings": dict(row.settings),
        "metric": row.metric,
        "mean": given.mean,
        "low": given.low,
        "high": given.high,
        "pictures": given.pictures,
        "seconds_per_megapixel": row.seconds_per_megapixel,
        "label": row.entry.label,
        "gain": row.gain and {"mean": row.gain.mean, "low": row.gain.low, "high": row.gain.high},
    }


def _digits(judge: Judge, metric: str) -> int:
    title = judge.metrics[metric].title
    return next((digits for word, digits in DIGITS.items() if word in title), 4)


def _labels(table: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.entry.label for row in table))


def text(table: Sequence[Row], judge: Judge) -> str:
    """A table for the terminal: an entry a line, a metric a column, 95 % intervals in brackets."""
    metrics = [metric for metric in judge.metrics if any(row.metric == metric for row in table)]
    lines = [["engine", *(judge.metrics[metric].title for metric in metrics), "s/MP"]]
    for label in _labels(table):
        mine = {row.metric: row for row in table if row.entry.label == label}
        cells = []
        for metric in metrics:
            digits, got = _digits(judge, metric), mine[metric].estimate
            cells.append(f"{got.mean:.{digits}f} [{got.low:.{digits}f}, {got.high:.{digits}f}]")
        speed = next(iter(mine.values())).seconds_per_megapixel
        lines.append([label, *cells, "-" if speed is None else f"{speed:.2f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(table: Sequence[Row], judge: Judge, protocol: str, remarks: Iterable[str], command: str) -> str:
    """Tables for a document: means with intervals, then differences to the first entry, then the definitions."""
    metrics = [metric for metric in judge.metrics if any(row.metric == metric for row in table)]
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    heads = [judge.metrics[metric].title + arrows[judge.metrics[metric].better] for metric in metrics]
    labels = _labels(table)
    counts = sorted({row.estimate.pictures for row in table})
    lines = [
        f"### {protocol}, {' or '.join(map(str, counts))} pictures",
        "",
        f"Made by `{command}`. Means over pictures with 95 % bootstrap intervals.",
        *(f"Note: {remark}." for remark in remarks),
        "",
        "| engine | " + " | ".join(heads) + " | s/MP |",
        "| --- |" + " ---: |" * (len(heads) + 1),
    ]
    for label in labels:
        mine = {row.metric: row for row in table if row.entry.label == label}
        cells = [_with_interval(mine[metric].estimate, _digits(judge, metric)) for metric in metrics]
        speed = next(iter(mine.values())).seconds_per_megapixel
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {'-' if speed is None else f'{speed:.2f}'} |")
    if len(labels) > 1:
        lines += [
            "",
            f"Differences to {labels[0]}, paired by picture; bold where the interval leaves out 0:",
            "",
            "| engine | " + " | ".join(heads) + " |",
            "| --- |" + " ---: |" * len(heads),
        ]
        for label in labels[1:]:
            mine = {row.metric: row for row in table if row.entry.label == label}
            cells = []
            for metric in metrics:
                gain = mine[metric].gain
                assert gain is not None
                cell = _with_interval(gain, _digits(judge, metric), sign="+")
                cells.append(f"**{cell}**" if gain.low > 0 or gain.high < 0 else cell)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", *(f"* {judge.metrics[name].title}: {judge.metrics[name].definition}." for name in metrics), ""]
    return "\n".join(lines)


def _with_interval(given: Estimate, digits: int, sign: str = "") -> str:
    return f"{given.mean:{sign}.{digits}f} [{given.low:{sign}.{digits}f}, {given.high:{sign}.{digits}f}]"


def comma_separated(protocol: str, outcomes: Iterable[Outcome]) -> str:
    """Every single value: one line per picture, entry and metric; failures have their error in the last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "picture", "engine", "metric", "value", "seconds", "megapixels", "error"])
    for outcome in outcomes:
        seconds = "" if outcome.seconds is None else f"{outcome.seconds:.4f}"
        common = [seconds, f"{outcome.megapixels:.6f}"]
        if outcome.error:
            writer.writerow([protocol, outcome.picture, outcome.entry.label, "", "", *common, outcome.error])
        for metric, value in outcome.values.items():
            writer.writerow([protocol, outcome.picture, outcome.entry.label, metric, repr(value), *common, ""])
    return out.getvalue()
