"""`enlarger generate`: a picture of a prompt, and straight on into any engine.

Everything that can be wrong with a command line is found before torch is imported, as for `upscale`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.cli.models import check_others, locate
from enlarger.cli.options import add_records, add_settings, split, take
from enlarger.cli.parser import Parser, Stop, parse
from enlarger.cli.progress import Reporter, duration
from enlarger.cli.upscale import OutputOptions, check_pictures
from enlarger.cli.work import peak_memory, standard_output
from enlarger.engines.catalog import GENERATE, Listing, listings, setting_names
from enlarger.engines.settings import ControlMachine, GenerateSettings
from enlarger.errors import ModelError, OutputError, SettingsError
from enlarger.settings import build, rules
from enlarger.size import Size

if TYPE_CHECKING:
    from enlarger.generator import Generator
    from enlarger.picture.picture import Picture
    from enlarger.picture.write import OutputPlan
    from enlarger.result import Result
    from enlarger.upscaler import Upscaler

HELP = "Make a picture of a prompt, small, and straight on into any engine."

FOLLOWING = "--upscale"
"""All words after it are an engine and what it is told."""

EXAMPLES = """\
examples:
  enlarger generate "a lighthouse at dusk" -m sd15.safetensors -o small.png --width 256 --height 256
  enlarger generate "a lighthouse" -m sd15.safetensors -o big.png --steps 30 --upscale img2img -s 2 --strength 0.3
  enlarger generate "a lighthouse" -m sd15.safetensors -o big.png --upscale pocket
  enlarger generate "a cat" -m sd15.safetensors --control canny.safetensors --control-image dog.jpg \\
    --control-map canny -o cat.png

All options after --upscale ENGINE are that engine's (enlarger upscale --help), its model after -m. img2img goes on with
the model that is loaded, controlnet with its ControlNets, and both with the prompt, unless they are told otherwise.
"""

OWN_WAYS = ("prompt", "sample", "max_pixels")
"""Settings that are no flags here: the prompt stands alone, and samples are files of their own."""


@dataclass(frozen=True)
class Stage:
    """What follows: an engine, checked.

    Attributes:
        listing: The engine.
        model: Its model; None for what ships, or for the one that is loaded already.
        settings: Settings of a run.
        machine: Settings of loading.
        shared: Whether it goes on with the model that is loaded.
    """

    listing: Listing
    model: str | None
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    shared: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "enlarger generate PROMPT -o OUTPUT -m MODEL [options] [--upscale ENGINE [its options]]"
    parser.epilog = EXAMPLES
    parser.add_argument("prompt", metavar="PROMPT", help="What the picture shows, in words; (word:1.3) weighs more.")
    parser.add_argument("-o", "--output", metavar="OUTPUT", help="The file, or '-' for standard output.")
    parser.add_argument("-m", "--model", metavar="MODEL", help="A Stable Diffusion 1.x, 2.x or XL model.")
    output = add_records(parser, GenerateSettings, ControlMachine, OutputOptions, but=OWN_WAYS)["Output"]
    output.add_argument("--upscale", metavar="ENGINE ...", help="Enlarge it at once; all that follows is the engine's.")
    output.add_argument("--overwrite", action="store_true", help="Replace files that exist.")
    output.add_argument("--no-metadata", action="store_true", help="Leave out the recipe.")
    output.add_argument("--dry-run", action="store_true", help="Check everything, say what would be made, and stop.")
    output.add_argument("--json", action="store_true", help="One JSON object for each picture, a line each, on stdout.")
    output.add_argument("-q", "--quiet", action="store_true", help="No progress and no messages, only errors.")


def run(args: argparse.Namespace) -> int:
    """Make the pictures; gives the exit code."""
    if args.upscale is not None:
        raise SettingsError(f"write it as two words: --upscale {args.upscale}, and the engine's options after them")
    given = dict(args.settings)
    output: OutputOptions = take(OutputOptions, given)
    machine = {name: given.pop(name) for name in list(given) if name in rules(ControlMachine)}
    settings = build(GenerateSettings, {**given, "prompt": args.prompt}, owner="generate", known=setting_names())
    if settings.width and settings.height:
        settings.fits(Size(settings.height, settings.width))
    loading = build(ControlMachine, machine, owner="generate")
    following = None if args.following is None else _stage(args.following, settings, loading)
    if args.model is None:
        raise ModelError("generate needs a model: name a Stable Diffusion file or folder with -m")
    model = locate(args.model, loading.models_dir, by_hub=True)
    check_others(machine, loading.models_dir)
    check_pictures(settings)
    if args.output is None:
        raise SettingsError("generate needs a place for the picture: name a file with -o")
    paths = _paths(args.output, settings.samples)
    if args.json and paths[0] is None:
        raise SettingsError("--json and the picture cannot both go to standard output: name a file with -o")
    if paths[0] is None and sys.stdout.isatty():
        raise OutputError("standard output is a terminal, which shows no picture: name a file with -o")
    writing = {"format": output.format, "overwrite": args.overwrite, "strip": "all" if args.no_metadata else "none"}
    for path in paths:
        _output(path, (1, 1), settings.depth, writing)
    reporter = Reporter(quiet=args.quiet, bar=not args.json)
    if args.dry_run:
        sides = " x ".join(str(side or "the model's") for side in (settings.width, settings.height))
        then = "" if following is None else f", then {following.listing.facts.name}"
        for path in paths:
            reporter.say(f"{path or 'standard output'} would be made: {sides} pixels{then}")
        return 0

    from enlarger.generator import Generator

    values = {name: getattr(settings, name) for name in given}  # a seed that was drawn, above all
    patience = reporter.waiting(f"enlarger: loading the model {Path(model).name} ...")
    patience.start()
    try:
        generator = Generator(model, **machine)
        upscaler = None if following is None else _upscaler(following, generator)
    finally:
        patience.stop()
    told: set[str] = set()
    for number, path in enumerate(paths, start=1):
        label = "picture" if len(paths) == 1 else f"{number}/{len(paths)} picture"
        more = {"sample": number} if settings.samples > 1 else {}
        depth = 32 if upscaler else settings.depth
        with reporter.picture(label) as watch:
            made = generator(args.prompt, progress=watch, **{**values, **more, "depth": depth})
        result, source = made, made.source
        if upscaler is not None and following is not None:
            source = _as_picture(made, settings.depth)
            with reporter.picture(f"{label}, larger") as watch:
                result = upscaler(source, progress=watch, **following.settings)
        # The size is only now known where the model says it.
        plan = _output(path, result.size, settings.depth, {**writing, "overwrite": True})
        _write(path, plan, result, source, _recipe(made, result), output.quality, writing["strip"])
        _tell(path, made, result, plan.warnings, reporter, told, as_json=args.json)
    return 0


def _stage(words: list[str], settings: GenerateSettings, loading: ControlMachine) -> Stage:
    """What the words after --upscale ask for."""
    if not words or words[0].startswith("-"):
        raise SettingsError(f"--upscale needs an engine: one of {', '.join(listings())}")
    engine, *rest = words
    parser = Parser(prog="enlarger generate ... --upscale ENGINE", usage="enlarger upscale --help tells the options")
    parser.add_argument("-m", "--model", metavar="MODEL")
    add_settings(parser)
    try:
        args = parse(parser, rest)
    except Stop:
        raise SettingsError(
            "--help stands before --upscale; enlarger upscale --help tells the engine's options"
        ) from None
    known = rules(listings()[engine].facts.settings) if engine in listings() else {}
    inherited: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("prompt", "negative_prompt", "quality_words", "seed")
        if name in known and getattr(settings, name) not in (None, "")
    }
    listing, run_settings, record, machine = split(engine, {**inherited, **args.settings})
    shared = args.model is None and engine in ("img2img", "controlnet")
    if engine == "controlnet" and shared and not loading.control:
        raise ModelError("controlnet needs a ControlNet: name it with --control, before --upscale")
    if shared and machine:
        raise SettingsError(
            f"{engine} goes on with the model that is loaded: what concerns loading stands before --upscale, "
            "or name another model with -m after it"
        )
    if listing.facts.needs_model and args.model is None and not shared:
        raise ModelError(f"engine {engine} needs a model: name its file or folder with -m after --upscale {engine}")
    model, folder = args.model, machine.get("models_dir") or loading.models_dir
    if model is not None:
        model = locate(model, folder, by_hub=listing.facts.extra == "diffusers")
    check_others(machine, folder)
    check_pictures(record)
    return Stage(listing, model, run_settings, machine, shared)


def _upscaler(stage: Stage, generator: Generator) -> Upscaler:
    """The engine that follows, on the model that is loaded where it can be."""
    from enlarger.upscaler import Upscaler

    name = stage.listing.facts.name
    shared = generator.share(name) if stage.shared else None
    return shared or Upscaler(name, stage.model, **stage.machine)


def _paths(output: str, samples: int) -> list[Path | None]:
    """Where the pictures go: with several samples, a number before the ending."""
    if output == "-":
        if samples > 1:
            raise SettingsError("several samples cannot go to standard output: name a file with -o")
        return [None]
    path = Path(output)
    if samples == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, samples + 1)]


def _output(path: Path | None, size: tuple[int, int], depth: int, writing: Mapping[str, Any]) -> OutputPlan:
    from enlarger.picture.write import check_output

    return check_output(path, size=size, depth=depth, **writing)


def _as_picture(made: Result, depth: int) -> Picture:
    """What was made, unrounded, as an input of the depth that was asked for."""
    from enlarger.picture.read import read

    return dataclasses.replace(read(made.pixels), depth=depth)


def _recipe(made: Result, result: Result) -> dict[str, Any]:
    """How the picture was made; that the command made it says that it is no enlarged picture of the user's."""
    if result is made:
        return {**made.record(), "command": "generate"}
    return {**result.record(), "command": "generate", "generated": made.record()}


def _write(
    path: Path | None,
    plan: OutputPlan,
    result: Result,
    source: Picture,
    recipe: Mapping[str, Any],
    quality: int | None,
    strip: Any,
) -> None:
    from enlarger.picture.write import encode, write

    options: dict[str, Any] = {"record": recipe, "quality": quality, "strip": strip}
    if path is not None:
        write(plan, result.pixels, result.alpha, source, **options)
        return
    data = encode(plan, result.pixels, result.alpha, source, **options)
    with standard_output():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _tell(
    path: Path | None,
    made: Result,
    result: Result,
    lost: tuple[str, ...],
    reporter: Reporter,
    told: set[str],
    *,
    as_json: bool,
) -> None:
    """What became of a picture, for people and as JSON; a warning that was told is not told again."""
    place = "standard output" if path is None else path
    warnings = tuple(dict.fromkeys((*made.warnings, *(() if result is made else result.warnings), *lost)))
    for warning in warnings:
        if warning not in told:
            reporter.say(f"enlarger: warning: {warning}")
    told.update(warnings)
    seconds = made.seconds + (0 if result is made else result.seconds)
    by = GENERATE.name if result is made else f"{GENERATE.name} and {result.engine}"
    reporter.say(f"{place}: {result.size}, {by}, seed {made.seed}, {duration(seconds)}")
    if not as_json:
        return
    record = {
        "input": None,
        "output": "-" if path is None else str(path),
        "width": result.size.width,
        "height": result.size.height,
        "engine": result.engine,
        "model": result.model,
        "settings": dict(result.settings),
        "seed": made.seed,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "warnings": list(warnings),
        "error": None,
    }
    if result is not made:
        record["generated"] = made.record()
    with standard_output():
        print(json.dumps(record), flush=True)
