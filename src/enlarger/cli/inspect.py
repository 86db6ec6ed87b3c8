"""`enlarger inspect`: what a model is, by its content, and which engine takes it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from enlarger.engines.catalog import listings
from enlarger.errors import ModelError

if TYPE_CHECKING:
    from enlarger.checkpoints.open import Checkpoint
    from enlarger.checkpoints.tensors import LazyTensor

HELP = "Say what a model is: its kind, parts, numbers and licence."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="File, folder, hub id, or name in a models folder.")
    parser.add_argument("--models-dir", metavar="FOLDER", help="Where models are found by name (also ENLARGER_MODELS).")
    parser.add_argument("--check", action="store_true", help="Read every number and refuse those that are not finite.")
    parser.add_argument("--json", action="store_true", help="One JSON object for each model, on its own line.")


def run(args: argparse.Namespace) -> int:
    """Look at each model and tell."""
    from enlarger.checkpoints.convert import broken
    from enlarger.checkpoints.open import look_at

    for number, model in enumerate(args.models):
        checkpoint = look_at(model, models_dirs=[args.models_dir] if args.models_dir else [])
        report = describe(checkpoint)
        if args.json:
            print(json.dumps(report))
        else:
            print("\n".join([*([""] if number else []), *tell(report)]))
        if args.check and (names := broken(checkpoint.everything())):
            raise ModelError(f"{checkpoint.name} is damaged: not finite: {names}; fetch it again")
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is known of a model without reading its numbers, as plain values."""
    from enlarger.checkpoints.families import FAMILIES

    everything = checkpoint.everything()
    parts = {name: _inventory(read()) for name, read in checkpoint.parts.items()}
    told = "unet" in parts and not checkpoint.family.startswith("stablesr")  # whose schedule is its engine's matter
    scheduler = checkpoint.configs.find("scheduler") if told else None
    return {
        "name": checkpoint.name,
        "family": checkpoint.family,
        "what": FAMILIES[checkpoint.family].words,
        "layout": checkpoint.layout,
        "format": everything.kind,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "digest": checkpoint.digest,
        "licence": checkpoint.licence,
        "limits": list(FAMILIES[checkpoint.family].limits),
        "parts": parts,
        "all": _inventory(everything),
        "prediction": None if scheduler is None else scheduler.get("prediction_type", "epsilon"),
        "engines": engines_for(checkpoint.family),
        "use": FAMILIES[checkpoint.family].use,
        "notes": list(checkpoint.notes),
    }


def engines_for(family: str) -> list[str]:
    """Engines that such a model can be given to."""
    return [name for name, listing in listings().items() if family in listing.facts.families]


def _inventory(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    kinds = Counter[str]()
    for tensor in tensors.values():
        kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.count
    return {"tensors": len(tensors), "parameters": sum(kinds.values()), "dtypes": dict(kinds.most_common())}


def tell(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    layout = {"folder": "a folder", "file": "one file", "hub": "from the hub"}[report["layout"]]
    how = {"safetensors": "safetensors", "pickle": "a PyTorch pickle"}.get(report["format"], "safetensors and pickles")
    engines = ", ".join(report["engines"])
    lines = [
        report["name"],
        f"  {'kind':<16} {report['what']}" + (f" ({report['family']})" if report["family"] else ""),
        f"  {'layout':<16} {layout}, {how}, {report['bytes'] / 1e6:,.1f} MB",
        f"  {'licence':<16} {report['licence'] or 'not known: see where it is from'}",
        f"  {'digest':<16} {report['digest']}",
    ]
    lines += [
        f"  {'its makers say' if not number else '':<16} {limit}" for number, limit in enumerate(report["limits"])
    ]
    if report["prediction"]:
        lines.append(f"  {'predicts':<16} {report['prediction']}")
    lines += [f"  {name:<16} {_counted(part)}" for name, part in report["parts"].items()]
    inside = sum(part["tensors"] for part in report["parts"].values())
    if inside != report["all"]["tensors"] or not report["parts"]:
        lines.append(f"  {'all tensors':<16} {_counted(report['all'])}")
    lines.append(f"  {'engines':<16} {engines or 'none takes it as its model'}")
    if not engines and report["use"]:
        lines[-1] += f"; it goes with {report['use']}"
    return [*lines, *(f"  note: {note}" for note in report["notes"])]


def _counted(part: Mapping[str, Any]) -> str:
    kinds = ", ".join(part["dtypes"])
    return f"{part['parameters']:,} parameters in {part['tensors']:,} tensors, {kinds or 'empty'}"
