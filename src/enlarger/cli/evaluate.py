"""`enlarger evaluate`: engines and settings measured on a benchmark or on pairs of the user's."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.cli.options import add_machine, machine_of
from enlarger.cli.say import line
from enlarger.errors import ModelError, OutputError, PartialError, SettingsError

if TYPE_CHECKING:
    from enlarger.evaluation.evaluate import Entry, Outcome
    from enlarger.evaluation.metrics import Judge
    from enlarger.evaluation.protocols import Task

HELP = "Measure engines on a benchmark: PSNR, SSIM, LPIPS and more, with intervals."

EXAMPLES = """\
examples:
  enlarger evaluate --protocol set14 --data benchmarks --engines interpolate,pocket --metrics psnr-y,lpips
  enlarger evaluate --pairs HR LR --engines pocket:steps=1,pocket:steps=4 -o numbers
  enlarger evaluate --protocol set5 --data benchmarks --engines pocket,gan@RealESRGAN_x4plus.safetensors
  enlarger evaluate --protocol realsr --data benchmarks --results theirs=osediff --metrics dists --vgg vgg16.pth

An engine may be followed by @MODEL and by :SETTING=VALUE, as often as wanted. The folder of -o gets values.csv,
table.md, records.jsonl and every result; the same command again goes on where it was stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = (
        "enlarger evaluate (--protocol NAME --data DIR | --pairs HR LR) --engines A,B --metrics M,N [options]"
    )
    parser.epilog = EXAMPLES
    parser.add_argument("--protocol", metavar="NAME", help="set5, set14, bsd100, urban100 or realsr.")
    parser.add_argument("--data", metavar="DIR", help="Folder that holds the protocol's folder (HR/ and LRx4/ in it).")
    parser.add_argument("--pairs", nargs=2, metavar=("HR", "LR"), help="Two folders of your own instead.")
    parser.add_argument("--engines", default="", metavar="A,B", help="Engines, each with @MODEL and :SETTING=VALUE.")
    parser.add_argument(
        "--results", action="append", default=[], metavar="NAME=DIR",
        help="A folder of finished pictures as one more row; may be repeated.",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", default="psnr-y,ssim-y,lpips", metavar="M,N", help="Metrics [psnr-y,ssim-y,lpips]; see --list."
    )
    parser.add_argument("--list", action="store_true", help="List the metrics with their definitions, and stop.")
    parser.add_argument(
        "--vgg", action="append", default=[], metavar="FILE",
        help="A file of VGG16, for lpips-vgg and dists; repeat it if several files hold it.",
    )  # fmt: skip
    parser.add_argument(
        "--border", metavar="N", help="Pixels left out on each side [what the protocol says; pairs: 4]."
    )
    parser.add_argument("--seeds", default="1", metavar="N", help="Results per picture, seeds 0 to N-1 [1].")
    parser.add_argument("--limit", metavar="N", help="Only the first N pictures.")
    parser.add_argument("-o", "--output", metavar="DIR", help="Folder for tables, values and results.")
    parser.add_argument("--json", action="store_true", help="One JSON object per engine and metric, on its own line.")
    parser.add_argument("--quiet", action="store_true", help="No progress.")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write the tables; 7 when some pictures failed."""
    from enlarger.evaluation.evaluate import Player, brought, evaluate
    from enlarger.evaluation.metrics import METRICS, Judge

    if args.list:
        for metric in METRICS.values():
            better = f"{metric.better} is better" if metric.better else "neither direction is better"
            print(f"{metric.name:<13} {metric.definition}.\n{'':<13} {metric.range}; {better}. {metric.source}")
        return 0
    entries = parse_entries(args.engines, args.results)
    machine = machine_of([entry.engine for entry in entries if entry.results is None], args.settings)
    judge = Judge([name for name in args.metrics.split(",") if name.strip()], [Path(path) for path in args.vgg])
    seeds = _number(args.seeds, "--seeds", 1)
    task = _task(args)
    missing = judge.unavailable(brought(seeds))
    if len(missing) == len(judge.metrics):
        raise SettingsError(f"none of the metrics can be computed: {'; '.join(dict.fromkeys(missing.values()))}")
    for name, reason in missing.items():
        _say(f"enlarger: warning: {name} is unavailable: {reason}")
    output = Path(args.output) if args.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; -o of evaluate names a folder")

    players = [Player(entry, machine) for entry in entries]
    notes = [note for player in players if player.upscaler for note in player.upscaler.engine.loaded.notes]
    if not args.quiet:
        for note in dict.fromkeys(notes):
            _say(f"enlarger: note: {note}")
    outcomes: list[Outcome] = []
    started = time.monotonic()
    total = len(task.pairs) * len(entries)
    for outcome in evaluate(entries, task, judge, seeds=seeds, output=output, players=players):
        outcomes.append(outcome)
        if outcome.error:
            _say(f"enlarger: error: {outcome.picture}, {outcome.entry.label}: {outcome.error}")
        elif not args.quiet:
            values = ", ".join(f"{name} {value:.4f}" for name, value in outcome.values.items())
            left = (time.monotonic() - started) / len(outcomes) * (total - len(outcomes))
            kept = " (kept)" if outcome.kept else ""
            _say(
                f"[{len(outcomes)}/{total}, {left:.0f} s left] {outcome.picture}, {outcome.entry.label}: {values}{kept}"
            )
    return _report(args, task, judge, outcomes, missing, output)


def parse_entries(engines: str, results: Sequence[str]) -> list[Entry]:
    """Entries from `--engines` and `--results`; values are read as the engine's own settings are.

    Raises:
        SettingsError: nothing given, or a part that cannot be read.
        ModelError: a model that is nowhere.
    """
    from enlarger.cli.models import locate
    from enlarger.engines.catalog import find, setting_names
    from enlarger.evaluation.evaluate import Entry
    from enlarger.evaluation.folders import pictures_in
    from enlarger.settings import build, rules

    entries = []
    for word in (part.strip() for part in engines.split(",")):
        if not word:
            continue
        # A colon may stand in a model's path, so only ":name=" begins a setting.
        head, *given = re.split(r":(?=[A-Za-z_-]+=)", word)
        name, _, model = head.partition("@")
        facts = find(name).facts
        values: dict[str, Any] = {}
        for setting in given:
            key, _, text = setting.partition("=")
            values[key.replace("-", "_")] = text
        if facts.needs_model and not model:
            raise ModelError(f"engine {name} needs a model: write {name}@FILE")
        record = build(facts.settings, values, owner=f"engine {name}", known=setting_names())
        values = {key: getattr(record, key) for key in values if key in rules(facts.settings)}
        entries.append(Entry(name, values, locate(model, None, by_hub=True) if model else None))
    for word in results:
        name, equals, folder = word.partition("=")
        if not equals or not name or not folder:
            raise SettingsError(f"--results {word!r} is not NAME=DIR, such as theirs=results/set14")
        pictures_in(Path(folder))
        entries.append(Entry(name, results=Path(folder)))
    if not entries:
        raise SettingsError(
            "nothing to measure: give --engines, such as --engines interpolate,pocket (enlarger models lists them), or "
            "--results NAME=DIR"
        )
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SettingsError(f"{twice[0]} is given twice")
    return entries


def _task(args: argparse.Namespace) -> Task:
    """The pictures that the options name."""
    import dataclasses

    from enlarger.evaluation.protocols import of_folders, of_protocol

    if bool(args.protocol) == bool(args.pairs):
        raise SettingsError("give either --protocol NAME with --data DIR, or --pairs HR LR")
    if args.protocol and not args.data:
        raise SettingsError("--protocol needs --data DIR: the folder that holds the benchmark's files")
    task = (
        of_protocol(args.protocol, Path(args.data))
        if args.protocol
        else of_folders(Path(args.pairs[0]), Path(args.pairs[1]))
    )
    if args.border is not None:
        task = dataclasses.replace(task, border=_number(args.border, "--border", 0))
    if args.limit is not None:
        limit = _number(args.limit, "--limit", 1)
        if limit < len(task.pairs):
            remark = f"only the first {limit} of {len(task.pairs)} pictures"
            task = dataclasses.replace(task, pairs=task.pairs[:limit], remarks=(*task.remarks, remark))
    return task


def _report(
    args: argparse.Namespace,
    task: Task,
    judge: Judge,
    outcomes: list[Outcome],
    missing: dict[str, str],
    output: Path | None,
) -> int:
    from enlarger.evaluation import report

    table = report.rows(outcomes, judge)
    records = [report.record(task.name, row) for row in table]
    # No mean is given for what could not be computed, but it is not passed over in silence either.
    records += [{"protocol": task.name, "metric": name, "mean": None, "error": why} for name, why in missing.items()]
    if output is not None:
        command = shlex.join(["enlarger", *sys.argv[1:]])
        contents = {
            "values.csv": report.comma_separated(task.name, outcomes),
            "table.md": report.markdown(table, judge, task.name, task.remarks, command) if table else "",
            "records.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        }
        try:
            output.mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                (output / name).write_text(text, "utf-8")
        except OSError as error:
            raise OutputError(f"{output}: tables cannot be written ({error.strerror})") from error
    if args.json:
        for record in records:
            print(json.dumps(record))
    elif table:
        print(report.text(table, judge))
        for remark in task.remarks:
            print(f"note: {remark}")
    failed = sorted({outcome.picture for outcome in outcomes if outcome.error})
    if not table:
        raise PartialError(f"no picture could be measured; the first reason: {outcomes[0].error}")
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(task.pairs)} pictures failed; the means leave them out for all engines"
        )
    return 0


def _number(text: str, option: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise SettingsError(f"{option} {text!r} is not a whole number from {least}")
    return int(text)


def _say(text: str) -> None:
    print(line(text), file=sys.stderr)
