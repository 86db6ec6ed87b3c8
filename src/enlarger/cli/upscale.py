"""`enlarger upscale`: make pictures bigger. Its options, and what they ask for; `work` does it.

Everything that can be wrong with a command line is found before torch is imported: here options and settings,
in `batch.jobs` the names, in `batch.desk` each picture and whether its result can be written.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from enlarger.batch.jobs import FORMATS, Job, plan, suffix
from enlarger.batch.order import LOADED, Order
from enlarger.checkpoints.find import kind_of
from enlarger.cli.models import OPTIONS_OF_MODELS, check_others, locate
from enlarger.cli.options import add_settings, narrow, split, take
from enlarger.cli.parser import Parser
from enlarger.cli.progress import Reporter
from enlarger.cli.report import Reports
from enlarger.cli.work import Work
from enlarger.engines.catalog import GENERATE, find, listings
from enlarger.errors import ModelError, PictureError, SettingsError
from enlarger.picture.formats import check_quality, format_of, named
from enlarger.settings import flag, rules, setting

ENGINE = "pocket"
"""The engine when the user names none."""

WISHES = {"scale", "size", "longest", "megapixels"}
"""Settings of which one says how large the result is."""

OF_INPUT = {"page", "max_pixels"}
"""Settings that belong to an input, not to how a result was made."""

HELP = "Enlarge pictures: files, folders, or '-' for standard input."

EXAMPLES = """\
examples:
  enlarger upscale photo.jpg                          4 times larger, beside it: photo_4x.jpg
  enlarger upscale photo.jpg -s 2.5 -o big.png        any scale from 1 to 16
  enlarger upscale photo.jpg --size 1800x512          exactly this size
  enlarger upscale photo.jpg --preset faithful        invent as little as possible
  enlarger upscale scans/ -o large/                   a folder; its tree is kept, what is done stays
  enlarger upscale photo.jpg --samples 4 --report     four results, and maps of what they invent
  enlarger upscale photo.jpg --dry-run                say what it would do, and for how long
  cat a.png | enlarger upscale - -o - --format png    in a pipe

The result has the input's depth, transparency, profile and metadata. Its format is the input's or what -o or
--format says. Existing files are kept unless you say --overwrite.
"""


@dataclass(frozen=True)
class OutputOptions:
    """How results are written."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    format: str | None = setting(
        None, "Format of the result; default: what -o ends in, else the input's.", kind="text",
        choices=FORMATS, metavar="F", group="Output",
    )  # fmt: skip
    quality: int | None = setting(
        None, "Quality of formats that lose (JPEG, WebP).", kind="int", low=1, high=100, metavar="Q", group="Output"
    )


def add_arguments(parser: Parser) -> None:
    """Declare the options; those of the engines come from the catalog."""
    engines = listings()
    parser.usage = "enlarger upscale INPUT... [-o OUTPUT] [-e ENGINE] [options]"
    parser.epilog = "\n".join([
        "engines:",
        *(f"  {name:<12} {listing.facts.summary}" for name, listing in engines.items()),
        "",
        EXAMPLES,
    ])  # fmt: skip
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="Pictures, folders of pictures, or '-'.")
    parser.add_argument("-o", "--output", metavar="OUTPUT", help="File, folder, or '-' [default beside the input].")
    parser.add_argument(
        "-e", "--engine", metavar="ENGINE",
        help=f"{', '.join(engines)} [default {ENGINE}]. With --help: what that engine may be told.",
    )  # fmt: skip
    parser.add_argument("-m", "--model", metavar="MODEL", help="Model file or folder [default what ships].")
    parser.add_argument(
        "--from", dest="recorded", metavar="PICTURE", help="Engine and settings of this earlier result; options win."
    )
    output = add_settings(parser, OutputOptions)["Output"]
    parser.narrow = lambda engine: narrow(parser, engine or ENGINE)
    output.add_argument("--overwrite", action="store_true", help="Replace files that exist.")
    strip = output.add_mutually_exclusive_group()
    strip.add_argument("--no-metadata", action="store_true", help="Leave out all metadata and the recipe.")
    strip.add_argument("--strip-private", action="store_true", help="Leave out position, serial numbers and owners.")
    output.add_argument("--dry-run", action="store_true", help="Say what would be done, and do nothing.")
    output.add_argument("--json", action="store_true", help="One JSON object for each picture, a line each, on stdout.")
    output.add_argument(
        "--report", nargs="?", const="", metavar="FOLDER",
        help="Beside each result (or in --report=FOLDER) a map of where it left the input, with --samples another of "
        "what the seed decides, and the numbers in JSON.",
    )  # fmt: skip
    output.add_argument("-q", "--quiet", action="store_true", help="No progress and no messages, only errors.")


def run(args: argparse.Namespace) -> int:
    """Enlarge; gives the exit code."""
    order = ordered(args)

    def planned() -> list[Job]:
        ending = suffix(order.settings, order.default_scale or order.listing.facts.default_scale)
        return plan(args.inputs, args.output, order.output_format, ending, _samples(order.record))

    jobs = planned()
    if args.json and jobs[0].output is None:
        raise SettingsError("--json and the picture cannot both go to standard output: name a file with -o")
    if args.settings.get("quality") is not None:
        word = order.output_format
        check_quality(named(word) if word else format_of(job.output.name if job.output else "") for job in jobs)
    own = _own_scale(order)
    if own is not None:
        order = replace(order, default_scale=own)
        jobs = planned()
    reporter = Reporter(quiet=args.quiet, bar=not args.json)
    reports = None if args.report is None else Reports(jobs, order, args.report, overwrite=args.overwrite)
    return Work(order, reporter, as_json=args.json, dry_run=args.dry_run, reports=reports, debug=args.debug).all(jobs)


def _own_scale(order: Order) -> float | None:
    """How much a network that the user brings enlarges, where nobody says how much; None where that is known before.

    Raises:
        ModelError: It cannot be opened.
    """
    facts = order.listing.facts
    asked = any(getattr(order.record, name) is not None for name in WISHES)
    if asked or not facts.needs_model or facts.grid > 1 or facts.at_target:
        return None
    from enlarger.upscaler import Upscaler

    return Upscaler(facts.name, order.model, **order.machine).facts.default_scale


def _samples(record: Any) -> int:
    """How many results each picture gets."""
    return 1 if getattr(record, "sample", None) is not None else int(getattr(record, "samples", 1))


def ordered(args: argparse.Namespace) -> Order:
    """What the options ask for, checked; no torch is imported for that."""
    given = dict(args.settings)
    output: OutputOptions = take(OutputOptions, given)
    quality, private = output.quality, args.strip_private
    engine, earlier = args.engine or ENGINE, None
    if args.recorded is not None:
        earlier = _record(args.recorded)
        engine, given, written = _recorded(args.recorded, earlier, args.engine, given)
        quality = quality or written.get("quality")
        private = private or written.get("strip") == "private"
    model, folder = args.model, given.get("models_dir")
    if (model or earlier) and "models_dir" not in rules(find(engine).facts.machine):
        given.pop("models_dir", None)  # where the model's own name is looked up: for every engine that takes one
    listing, settings, record, machine = split(engine, given)
    # What ships bears its engine's name; any other model was the user's own.
    if earlier and engine == earlier.get("engine") and (earlier.get("model") or engine) != engine:
        model = _recorded_model(args.recorded, earlier, model, machine, listing.facts.machine, folder)
    if listing.facts.needs_model and model is None:
        raise ModelError(f"engine {engine} needs a model: name its file or folder with -m")
    if model is not None:
        kinds = {kind_of(family) for family in listing.facts.families}
        model = locate(model, folder, by_hub=listing.facts.extra == "diffusers", kinds=kinds)
    check_others(machine, folder)
    check_pictures(record)
    return Order(
        listing,
        model,
        settings,
        record,
        machine,
        output_format=output.format,
        quality=quality,
        overwrite=args.overwrite,
        strip="all" if args.no_metadata else "private" if private else "none",
        any_seed=str(given.get("seed", "")).strip().lower() == "random",
        recorded=_of_record(earlier) if earlier and engine == earlier.get("engine") else ("", ""),
    )


def check_pictures(settings: Any) -> None:
    """Make sure, before a model is read, that the pictures beside the input are there.

    Raises:
        PictureError: One is not.
    """
    for name, rule in rules(type(settings)).items():
        value = getattr(settings, name) if rule.kind == "file" else None
        for path in (value,) if isinstance(value, str) else value or ():
            if not os.path.exists(path):
                raise PictureError(f"{path} ({flag(name)}) does not exist; check the name and the folder", "missing")


def _record(picture: str) -> dict[str, Any]:
    """How an earlier result was made."""
    from enlarger.picture.write import read_record

    record = read_record(picture)
    if record is None or not isinstance(record.get("settings"), dict):
        raise PictureError(f"{picture} holds no settings of Enlarger; --from needs a result of it", "missing")
    return record


def _of_record(record: Mapping[str, Any]) -> tuple[str, str]:
    """Name and digest of the model that made an earlier result; a foreign picture may say anything."""
    return str(record.get("model") or "")[:200], str(record.get("digest") or "")[:64]


def _recorded_model(
    picture: str, record: Mapping[str, Any], model: str | None, machine: Mapping[str, Any], takes: type, folder: Any
) -> str | None:
    """The model of an earlier result where none is named now: found by name and digest in the folders for models.

    Args:
        picture: The earlier result.
        record: How it was made.
        model: What -m says.
        machine: Settings of loading that were given.
        takes: The record of all that the engine's loading may be told.
        folder: What --models-dir says.

    Raises:
        ModelError: It is not there, or was one of several that are not all named again; says all names.
    """
    from enlarger.checkpoints.find import model_folders
    from enlarger.checkpoints.open import recorded

    name, digest = _of_record(record)
    options = [option for option in OPTIONS_OF_MODELS if option in rules(takes)]
    beside = sum(1 if isinstance(machine.get(option), str) else len(machine.get(option, ())) for option in options)
    if options and name.count(" + ") > beside:
        raise ModelError(
            f"{picture} was made with the models {name} (digest of all {digest}): name each again, the first with "
            f"-m FILE, the others with {', '.join(map(flag, options))}"
        )
    if model is not None or not name:
        return model
    places = model_folders([] if folder is None else [folder])
    found = None if beside else recorded(name, digest, places)
    if found is not None:
        return str(found)
    where = "" if beside else f", which is not in {', '.join(map(str, places))}"
    raise ModelError(f"{picture} was made with the model {name} (digest {digest}){where}: name it with -m FILE")


def _recorded(
    picture: str, record: Mapping[str, Any], engine: str | None, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
    """Engine and settings that made an earlier result, under those given now; and how it was written."""
    earlier = {name: value for name, value in record["settings"].items() if value is not None and name not in OF_INPUT}
    made_by = str(record.get("engine"))
    if made_by == GENERATE.name:
        raise SettingsError(f"{picture} was made of words by enlarger generate: its settings enlarge nothing")
    if engine not in (None, made_by) and set(earlier) - set(rules(find(engine).facts.settings)):
        raise SettingsError(
            f"{picture} was made with {made_by}, whose settings are not {engine}'s: leave out -e or --from"
        )
    if WISHES & set(given):
        earlier = {name: value for name, value in earlier.items() if name not in WISHES}
    if "samples" in given:
        earlier.pop("sample", None)
    if "preset" in given:
        within = {name for values in find(engine or made_by).facts.settings.presets.values() for name in values}
        earlier = {name: value for name, value in earlier.items() if name not in within}
    for name, rule in rules(find(engine or made_by).facts.settings).items():
        if rule.kind == "file" and earlier.get(name) and name not in given:
            files = earlier[name] if isinstance(earlier[name], list) else [earlier[name]]
            raise SettingsError(f"{picture} was made with {', '.join(files)}: name it again with {flag(name)}")
    loading = rules(find(engine or made_by).facts.machine)
    earlier |= {name: str(record[name]) for name in LOADED if name in record and name in loading}
    written = record.get("output")
    return engine or made_by, {**earlier, **given}, written if isinstance(written, dict) else {}
