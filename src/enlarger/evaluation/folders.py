"""Folders of pictures, and which picture of one belongs to which of another."""

from __future__ import annotations

import re
from pathlib import Path

from enlarger.errors import SettingsError

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


def matching(names: dict[str, Path], name: str) -> Path | None:
    """The picture of that name, or the only one that adds an ending as programs do ("_4x", "_x4", "_out")."""
    if name in names:
        return names[name]
    pattern = re.compile(re.escape(name) + r"(x\d+|[_-](x?\d+(\.\d+)?x?|[a-z][a-z0-9]*))", re.IGNORECASE)
    longer = [path for stem, path in names.items() if pattern.fullmatch(stem)]
    return longer[0] if len(longer) == 1 else None
