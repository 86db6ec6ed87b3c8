"""`enlarger degrade`: make small, bad pictures from large, good ones, for training and for tests."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.cli.say import line
from enlarger.errors import EnlargerError, OutputError, PartialError, SettingsError

if TYPE_CHECKING:
    from enlarger.evaluation.pixels import Bytes

HELP = "Make pictures small and bad, as benchmarks and training recipes do."

EXAMPLES = """\
examples:
  enlarger degrade photos/ -o small --recipe bicubic            a quarter of each side, MATLAB's bicubic
  enlarger degrade photos/ -o pairs --recipe realesrgan --pairs  pairs/HR and pairs/LRx4, ready for enlarger evaluate
  enlarger degrade a.png b.png -o out --recipe stablesr --size 128x128 --seed 7

A picture's degradation depends on its content, its name and --seed, not on the other pictures of the run.
"""

RECIPES = ("bicubic", "realesrgan", "stablesr")
FACTOR = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "enlarger degrade INPUT... -o DIR --recipe bicubic|realesrgan|stablesr [--size WxH] [--seed N]"
    parser.epilog = EXAMPLES
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="Pictures, or folders of pictures.")
    parser.add_argument("-o", "--output", metavar="DIR", help="Folder for the small pictures, as PNG.")
    parser.add_argument("--recipe", default="bicubic", help="bicubic, realesrgan or stablesr [bicubic].")
    parser.add_argument("--size", metavar="WxH", help="Size of the small pictures [a quarter of each side].")
    parser.add_argument("--seed", default="0", metavar="N", help="Where the randomness comes from [0].")
    parser.add_argument(
        "--pairs", action="store_true", help="Write DIR/LRx4, and DIR/HR: the part they were made from."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace files that are there.")
    parser.add_argument("--quiet", action="store_true", help="Say nothing but errors.")


def run(args: argparse.Namespace) -> int:
    """Make them; 7 when some failed."""
    if args.recipe not in RECIPES:
        raise SettingsError(f"--recipe {args.recipe!r} is not one of {', '.join(RECIPES)}")
    if not args.output:
        raise SettingsError("degrade needs -o DIR: a folder for the small pictures")
    if not re.fullmatch(r"\d{1,18}", args.seed):
        raise SettingsError(f"--seed {args.seed!r} is not a whole number from 0")
    size = _size(args.size)
    if size and args.pairs:
        raise SettingsError("give --size or --pairs, not both: pairs are a quarter of each side")
    paths = _inputs(args.inputs)
    folder = Path(args.output)
    small_folder = folder / "LRx4" if args.pairs else folder
    targets = [(path, small_folder / f"{path.stem}.png", folder / "HR" / f"{path.stem}.png") for path in paths]
    _check_targets(targets, args)

    failed = 0
    for path, small_target, large_target in targets:
        try:
            small, large, cut, warnings = _degraded(path, args.recipe, int(args.seed), size)
            _save(small, small_target)
            if args.pairs:
                _save(large, large_target)
        except OutputError:
            raise
        except EnlargerError as error:
            if len(targets) == 1:
                raise
            failed += 1
            told = error if str(path) in str(error) else f"{path}: {error}"
            print(line(f"enlarger: error: {told}"), file=sys.stderr)
            continue
        if not args.quiet:
            for warning in warnings:
                print(line(f"enlarger: warning: {path}: {warning}"), file=sys.stderr)
            note = f" (of {large.shape[1]}x{large.shape[0]}, {cut})" if cut else ""
            print(line(f"{small_target}: {small.shape[1]}x{small.shape[0]}{note}"), file=sys.stderr)
    if failed == len(targets):
        raise PartialError("none of the pictures could be degraded")
    if failed:
        raise PartialError(f"{failed} of {len(targets)} pictures failed, the others are done")
    return 0


def _degraded(
    path: Path, recipe: str, seed: int, size: tuple[int, int] | None
) -> tuple[Bytes, Bytes, str, tuple[str, ...]]:
    """The small picture, what it was made from, what was cut away, in words, and what else was lost."""
    import hashlib

    import numpy as np
    import torch

    from enlarger.picture.degrade import degrade
    from enlarger.picture.read import read, read_rgb

    picture = read(path)
    warnings = [warning.partition(", --page")[0] for warning in picture.warnings]  # an option that is not here
    if picture.alpha is not None:
        warnings.append("transparency left out: what is made small is opaque")
    if picture.depth > 8:
        warnings.append("reduced to 8 bit, as benchmarks are")
    large = read_rgb(picture)
    height, width = large.shape[:2]
    cut = ""
    if size is None:
        if min(height, width) < FACTOR:
            from enlarger.errors import PictureError

            raise PictureError(f"{path}: {width}x{height} is smaller than {FACTOR} pixels; there is no quarter of it")
        # Benchmarks cut the sides to multiples of the factor, so that pairs lie exactly on each other.
        large = np.ascontiguousarray(large[: height // FACTOR * FACTOR, : width // FACTOR * FACTOR])
        if large.shape[:2] != (height, width):
            cut = f"the last {height - large.shape[0]} rows and {width - large.shape[1]} columns cut"
    # Each picture has randomness of its own, the same in whatever company it is degraded.
    own = int.from_bytes(hashlib.sha256(f"{seed} {path.name}".encode()).digest()[:7], "big")
    tensor = torch.from_numpy(large.copy()).permute(2, 0, 1)[None].float() / 255
    small = degrade(tensor, recipe, [own], size)[0].permute(1, 2, 0)
    return (small * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8).numpy(), large, cut, tuple(warnings)


def _save(pixels: Bytes, target: Path) -> None:
    from PIL import Image

    from enlarger.picture.atomic import appearing, make_folder

    make_folder(target.parent)
    with appearing(target, overwrite=True) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def _check_targets(targets: list[tuple[Path, Path, Path]], args: argparse.Namespace) -> None:
    """Find every collision before anything is written.

    Raises:
        OutputError: two inputs of one name, a target that is there, or one that is an input.
    """
    seen: dict[Path, Path] = {}
    inputs = {path.resolve() for path, _, _ in targets}
    for path, *written in targets:
        for target in written if args.pairs else written[:1]:
            if target in seen:
                raise OutputError(f"{path} and {seen[target]} would both become {target}; degrade them apart")
            seen[target] = path
            if target.resolve() in inputs:
                raise OutputError(f"{target} is an input; choose another folder with -o")
            if target.exists() and not args.overwrite:
                raise OutputError(f"{target} is there already; say --overwrite to replace it")


def _inputs(words: list[str]) -> list[Path]:
    from enlarger.evaluation.folders import pictures_in

    paths: list[Path] = []
    for word in words:
        path = Path(word)
        paths += pictures_in(path).values() if path.is_dir() else [path]
    return paths


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from WxH."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text)
    if not found or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise SettingsError(f"--size {text!r} is not a size such as 128x128")
    return int(found[2]), int(found[1])
