"""`enlarger compare`: one picture by several engines on one sheet, with crops where they differ most.

The sheet is a picture, or a page that holds all pictures whole and needs no other file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.cli.options import add_machine, machine_of
from enlarger.cli.say import line
from enlarger.errors import EnlargerError, Interrupted, OutputError, PartialError, PictureError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enlarger.evaluation.evaluate import Entry
    from enlarger.evaluation.pixels import Bytes
    from enlarger.evaluation.sheet import Column

HELP = "Enlarge one picture with several engines and show them on one sheet."

EXAMPLES = """\
examples:
  enlarger compare photo.jpg --engines interpolate,pocket -o sheet.png
  enlarger compare photo.jpg --engines pocket:steps=1,pocket:steps=4,gan@RealESRGAN_x4plus.safetensors -o sheet.png
  enlarger compare small.png --engines interpolate,pocket --reference large.png -o sheet.png
  enlarger compare photo.jpg --engines interpolate,pocket -o sheet.html      a page with all results whole

An engine may be followed by @MODEL and by :SETTING=VALUE. The crops show the places where the results differ most.
"""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "enlarger compare INPUT --engines A,B,... -o sheet.png [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("input", metavar="INPUT", help="The picture.")
    parser.add_argument("--engines", default="", metavar="A,B", help="Engines, each with @MODEL and :SETTING=VALUE.")
    parser.add_argument("-o", "--output", metavar="FILE", help="The sheet: .png, .jpg, .webp or .html.")
    parser.add_argument("-s", "--scale", default="4", metavar="F", help="Output pixels per input pixel [4].")
    parser.add_argument("--reference", metavar="FILE", help="The true large picture: one more column, and metrics.")
    parser.add_argument("--page", default="1", metavar="N", help="Page or frame of the picture, counted from 1 [1].")
    parser.add_argument("--places", default="3", metavar="N", help="Places that are shown enlarged [3].")
    parser.add_argument("--crop", default="96", metavar="N", help="Side of a place in result pixels [96].")
    parser.add_argument("--zoom", default="3", metavar="N", help="Times that a place is enlarged [3].")
    parser.add_argument("--overwrite", action="store_true", help="Replace the sheet if it is there.")
    parser.add_argument("--json", action="store_true", help="One JSON object per engine, on its own line.")
    parser.add_argument("--quiet", action="store_true", help="Say nothing but errors.")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Make the sheet; 7 when some engines failed."""
    from enlarger.cli.evaluate import parse_entries

    if not args.engines.strip(" ,"):
        raise SettingsError(
            "compare needs --engines A,B: what to compare, such as --engines interpolate,pocket (enlarger models lists "
            "them)"
        )
    entries = parse_entries(args.engines, ())
    machine = machine_of([entry.engine for entry in entries], args.settings)
    args.page = _number(args.page, "--page", 1, 1_000_000)
    target = _target(args)
    count, side, zoom = (_number(getattr(args, name), f"--{name}", *limits) for name, *limits in
                         (("places", 1, 20), ("crop", 8, 2048), ("zoom", 1, 16)))  # fmt: skip
    size = _size(args)
    results: list[tuple[Entry, Bytes, float]] = []
    failed, told = 0, set[str]()
    for entry in entries:
        if not args.quiet:
            print(line(f"{entry.label} ..."), file=sys.stderr)
        try:
            pixels, seconds, warnings = _enlarged(entry, args, machine, size)
            results.append((entry, pixels, seconds))
            for warning in warnings:
                if warning not in told and not args.quiet:
                    print(line(f"enlarger: warning: {args.input}: {warning}"), file=sys.stderr)
            told.update(warnings)
        except Interrupted:
            raise
        except EnlargerError as error:
            if len(entries) == 1:
                raise
            failed += 1
            print(line(f"enlarger: error: {entry.label}: {error}"), file=sys.stderr)
    if not results:
        raise PartialError("none of the engines could enlarge this picture")
    rows = [_row(entry, pixels, seconds, args) for entry, pixels, seconds in results]
    made = _save(target, args, results, rows, count, side, zoom)
    for row in rows:
        if args.json:
            print(json.dumps(row))
        else:
            values = ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items())
            print(line(f"{row['label']}: {row['seconds']:.2f} s, {values}"))
    if not args.quiet:
        print(line(f"{target}: {made}"), file=sys.stderr)
    if failed:
        raise PartialError(f"{failed} of {len(entries)} engines failed; the sheet shows the others")
    return 0


def _enlarged(
    entry: Entry, args: argparse.Namespace, machine: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Bytes, float, tuple[str, ...]]:
    """The result as bytes, the seconds it took, and what there was to tell."""
    import numpy as np

    from enlarger.evaluation.evaluate import machine_for
    from enlarger.evaluation.pixels import as_bytes
    from enlarger.size import Size
    from enlarger.upscaler import Upscaler

    upscaler = Upscaler(entry.engine, entry.model, **machine_for(entry.engine, machine))
    result = upscaler(args.input, size=Size(*size), page=args.page, **entry.settings)
    warnings = result.warnings
    if result.alpha is not None:
        warnings += ("a sheet shows no transparency: what lies under it is seen",)
    pixels = np.repeat(result.pixels, 3, axis=2) if result.pixels.shape[2] == 1 else result.pixels
    return as_bytes(pixels / 65535 if pixels.dtype == np.uint16 else pixels), result.seconds, warnings


def _row(entry: Entry, pixels: Bytes, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """What is known of one result, as plain values."""
    from enlarger.evaluation.fidelity import colour_shift, consistency

    source = _read(args.input, args.page)
    values: dict[str, float] = {
        "consistency": consistency(pixels, source),
        "colour-shift": colour_shift(pixels, source),
    }
    if args.reference:
        from enlarger.evaluation.metrics import Case, Judge

        case = Case(pixels, _read(args.reference), source)
        values = {**Judge(["psnr-y", "ssim-y", "lpips"]).judge(case), **values}
    return {"engine": entry.engine, "label": entry.label, "settings": dict(entry.settings), "seconds": seconds,
            "width": pixels.shape[1], "height": pixels.shape[0], "values": values}  # fmt: skip


def _save(
    target: Path,
    args: argparse.Namespace,
    results: list[tuple[Entry, Bytes, float]],
    rows: list[dict[str, Any]],
    count: int,
    side: int,
    zoom: int,
) -> str:
    """Make the sheet and write it; gives what to tell of it."""
    from enlarger.evaluation.page import page
    from enlarger.evaluation.sheet import disagreement, draw, places
    from enlarger.picture.atomic import appearing

    columns = _columns(results, rows, args)
    made = [pixels for _, pixels, _ in results]
    # With one engine there is nothing to differ from but what the input shows.
    spots = places(disagreement(made if len(made) > 1 else [*made, columns[0].pixels]), side, count)
    if target.suffix.lower() == ".html":
        text = page(Path(args.input).name, columns, spots, side, zoom)
        with appearing(target, overwrite=True) as file:
            file.write(text.encode())
        return f"a page of {len(columns)} pictures"
    sheet = draw(made[-1], columns, spots, side, zoom)
    kind = {".png": "PNG", ".webp": "WEBP"}.get(target.suffix.lower(), "JPEG")
    with appearing(target, overwrite=True) as file:
        sheet.save(file, format=kind, quality=92)
    return f"{sheet.width}x{sheet.height}"


def _columns(
    results: list[tuple[Entry, Bytes, float]], rows: list[dict[str, Any]], args: argparse.Namespace
) -> list[Column]:
    """The input, every result, and the truth if it is known; all of one size."""
    from enlarger.evaluation.sheet import Column

    height, width = results[0][1].shape[:2]
    source = _read(args.input, args.page)
    columns = [Column(f"input\n{source.shape[1]}x{source.shape[0]}", _repeated(source, height, width))]
    columns += [
        Column(f"{entry.label}\n{_brief(row['values'])}, {seconds:.1f} s", pixels)
        for (entry, pixels, seconds), row in zip(results, rows, strict=True)
    ]
    if args.reference:
        columns.append(Column(f"reference\n{width}x{height}", _read(args.reference)))
    return columns


def _brief(values: Mapping[str, float]) -> str:
    if "lpips" in values:
        return f"{values['psnr-y']:.1f} dB, LPIPS {values['lpips']:.3f}"
    return f"LR {values['consistency']:.1f} dB"


def _repeated(source: Bytes, height: int, width: int) -> Bytes:
    """The input at the results' size, each pixel repeated: what there was."""
    import numpy as np

    rows = np.arange(height) * source.shape[0] // height
    columns = np.arange(width) * source.shape[1] // width
    return np.asarray(source[rows][:, columns])


def _read(path: str, page: int = 1) -> Bytes:
    """A picture in the orientation and colours that engines see."""
    from enlarger.picture.read import read_rgb

    return read_rgb(path, page=page)


def _size(args: argparse.Namespace) -> tuple[int, int]:
    """(height, width) of the results."""
    try:
        scale = float(args.scale)
    except ValueError:
        scale = 0.0
    if not 1 <= scale <= 16:
        raise SettingsError(f"--scale {args.scale!r} is not a number from 1 to 16")
    height, width = _read(args.input, args.page).shape[:2]
    if not args.reference:
        return int(height * scale + 0.5), int(width * scale + 0.5)
    size = _read(args.reference).shape[:2]
    if not (height <= size[0] <= 16 * height and width <= size[1] <= 16 * width):
        raise PictureError(
            f"the reference is {size[1]}x{size[0]} and the input {width}x{height}: it must be 1 to 16 times as large"
        )
    return size[0], size[1]


def _target(args: argparse.Namespace) -> Path:
    if not args.output:
        raise SettingsError("compare needs -o FILE: the sheet, such as -o sheet.png")
    target = Path(args.output)
    if target.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{target}: a sheet ends in {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist; make it first")
    for picture in filter(None, (args.input, args.reference)):
        if target.exists() and os.path.exists(picture) and target.samefile(picture):
            raise OutputError(f"{target} is an input; choose another name")
    if target.exists() and not args.overwrite:
        raise OutputError(f"{target} exists already; --overwrite replaces it")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {target.parent} cannot be written to; choose another with -o")
    return target


def _number(text: str, option: str, least: int, most: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
        raise SettingsError(f"{option} {text!r} is not a whole number from {least} to {most}")
    return int(text)
