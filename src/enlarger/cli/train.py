"""`enlarger train pocket`: make pocket's weights from a folder of photographs.

Options come from `training.settings`; torch is imported only when the run begins.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from enlarger.errors import SettingsError
from enlarger.training.settings import TrainSettings

HELP = "Train a model of ours on your photographs."

EXAMPLES = """\
examples:
  enlarger train pocket --photos photos/ --out run/ --vgg vgg16.safetensors
  enlarger train pocket --photos photos/ --out run/ --vgg vgg16.safetensors --resume

Stop it with Ctrl-C: everything is saved, and --resume goes on exactly there.
The folder then holds training.pt (to go on), pocket.safetensors (to use: enlarger upscale -m) and log.txt.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for each setting."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("model", choices=["pocket"], help="what to train")
    for field in dataclasses.fields(TrainSettings):
        flag = "--" + field.name.replace("_", "-")
        text = field.metadata["help"]
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", help=text)
        elif field.default is dataclasses.MISSING:
            parser.add_argument(flag, required=True, metavar="PATH", help=text)
        else:
            metavar = "N" if field.type == "int" else "X" if field.type == "float" else "FILE"
            shown = "" if field.default is None else f" (default {field.default:g})"
            parser.add_argument(flag, metavar=metavar, help=text + shown)


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """Check what the command line says; a `SettingsError` names the option and what would be right."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TrainSettings):
        given = getattr(args, field.name)
        if given is None:
            continue
        flag = "--" + field.name.replace("_", "-")
        if field.type in ("int", "float"):
            values[field.name] = _number(flag, given, field.type == "int", *field.metadata["range"])
        else:
            values[field.name] = given if field.type == "bool" else Path(given)
    settings = TrainSettings(**values)
    if settings.crop % 8:
        raise SettingsError(f"--crop must be a multiple of 8, not {settings.crop}")
    for flag, path in (("--vgg", settings.vgg), ("--heads", settings.heads), ("--init", settings.init)):
        if path is not None and not path.is_file():
            raise SettingsError(f"{flag}: no file {path}")
    if settings.hold_out is not None and not settings.hold_out.is_file():
        raise SettingsError(f"--hold-out: no file {settings.hold_out}")
    if not settings.photos.is_dir():
        raise SettingsError(f"--photos: no folder {settings.photos}")
    checkpoint = settings.out / "training.pt"
    if settings.resume and not checkpoint.is_file():
        raise SettingsError(f"--resume: no checkpoint {checkpoint}; leave --resume out to begin")
    if not settings.resume and checkpoint.is_file():
        raise SettingsError(f"{checkpoint} exists: add --resume to go on with it, or choose another --out")
    return settings


def _number(flag: str, text: str, whole: bool, low: float, high: float | None) -> float:
    """A number within its range."""
    wanted = f"a {'whole ' if whole else ''}number " + (
        f"of at least {low}" if high is None else f"from {low} to {high}"
    )
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = float("nan")
    if not number >= low or (high is not None and number > high):
        raise SettingsError(f"{flag} must be {wanted}, not {text}")
    return number


def run(args: argparse.Namespace) -> int:
    """Train; gives the exit code: 0 when complete, 130 when stopped (everything saved)."""
    settings = settings_of(args)

    from enlarger.training.pocket import train

    return 0 if train(settings) else 130
