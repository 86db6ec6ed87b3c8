"""Measuring a folder of finished results against a folder of true pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from enlarger.errors import EnlargerError, PictureError, SettingsError
from enlarger.evaluation.metrics import Case, Judge
from enlarger.evaluation.pixels import Bytes, as_bytes

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their name without suffix, sorted; other files are left alone.

    Raises:
        SettingsError: no such folder, no picture in it, or two pictures of one name.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise SettingsError(f"{folder}: two pictures of one name, {found[path.stem].name} and {path.name}")
            found[path.stem] = path
    if not found:
        raise SettingsError(f"{folder}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    return found


def read_rgb(path: Path) -> Bytes:
    """A picture file as (H, W, 3) bytes, its values as they are stored: grey is repeated, alpha and profiles ignored.

    Benchmarks compare stored values; converting profiles would measure the conversion. An orientation is applied, 16
    bits and floats in 0..1 are rounded to bytes.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        with Image.open(path) as stored:
            picture = ImageOps.exif_transpose(stored)
            if picture.mode.startswith(("I", "F")):
                return _from_deep_grey(picture, path)
            return np.asarray(picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: {error}", "too_large") from error
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file", "missing") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise PictureError(
            f"{path}: cannot be read as a picture ({type(error).__name__}: {error})", "corrupt"
        ) from error


def _from_deep_grey(picture: Image.Image, path: Path) -> Bytes:
    """Grey of 16 bits or floats; Pillow's own conversion would clip it."""
    values = np.asarray(picture)
    if values.dtype.kind in "iu":
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(
                f"{path}: whole numbers outside 0..65535 are no picture that can be measured", "bad_values"
            )
        values = values / 65535
    return as_bytes(np.repeat(values[..., None].astype(np.float64), 3, axis=2), str(path))


def matching(names: dict[str, Path], name: str) -> Path | None:
    """The picture of that name, or the only one that adds an ending as programs do ("_4x", "_x4", "_out")."""
    if name in names:
        return names[name]
    pattern = re.compile(re.escape(name) + r"(x\d+|[_-](x?\d+(\.\d+)?x?|[a-z][a-z0-9]*))", re.IGNORECASE)
    longer = [path for stem, path in names.items() if pattern.fullmatch(stem)]
    return longer[0] if len(longer) == 1 else None


@dataclass(frozen=True)
class Measured:
    """One picture's values, or why there are none."""

    name: str
    values: dict[str, float]
    error: str | None = None


def measure_folder(
    judge: Judge,
    results: Path,
    references: Path,
    *,
    border: int = 4,
    sources: Path | None = None,
    without: frozenset[str] = frozenset(),
) -> Iterator[Measured]:
    """Judge every picture of `references` whose result is in `results`; one that fails does not end the run.

    Args:
        judge: the metrics.
        results: folder of finished pictures, named as the references or with an ending such as `_4x`.
        references: folder of true pictures.
        border: pixels left out on each side (4 for the classic x4 sets, 0 for RealSR).
        sources: folder of the inputs, for the metrics that need them.
        without: metrics to leave out.

    Raises:
        SettingsError: a folder that is missing or empty.
    """
    made, true = pictures_in(results), pictures_in(references)
    small = pictures_in(sources) if sources else {}
    for name, path in true.items():
        try:
            result = matching(made, name)
            if result is None:
                raise PictureError(f"{results}: no result named {name}", "missing")
            source = matching(small, name)
            case = Case(read_rgb(result), read_rgb(path), read_rgb(source) if source else None, border)
            yield Measured(name, judge.judge(case, without))
        except EnlargerError as error:
            yield Measured(name, {}, str(error))
