"""What is done: a result says itself what it was made from and how, so that a second run need not make it again.

The recipe in the picture holds a digest of the input's bytes and all settings. Results that hold none (`--no-metadata`,
and formats without a place for it) stand in a small ledger beside them instead, by a digest of their own bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enlarger.errors import PictureError
from enlarger.picture.recipe import from_json, to_json
from enlarger.picture.write import read_record

LEDGER = ".enlarger-done.jsonl"
"""The ledger's name, in the folder of the results."""

DIGITS = 32
"""Hexadecimal digits of a SHA-256 that are kept: 128 bits."""

MARK = b"enlarger"
"""What stands in plain letters in every file that holds a recipe."""

NOT_COMPARED = ("version", "model")
"""Entries of a recipe that are not looked at: a newer version leaves finished work alone, and a model is known by its
digest."""


def digest(path: Path, limit: int) -> tuple[str, bool]:
    """A digest of a file's bytes, and whether they may hold a recipe; "" of what is no file or too long to be read.

    Args:
        path: The file.
        limit: Bytes beyond which nothing is read; the reader refuses such a file.
    """
    try:
        if not path.is_file() or path.stat().st_size > limit:
            return "", False
        found, before, summed = False, b"", hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                summed.update(piece)
                found = found or MARK in before + piece
                before = piece[-len(MARK) :]
    except (OSError, ValueError):
        return "", False
    return summed.hexdigest()[:DIGITS], found


def is_result(path: Path) -> bool:
    """Whether a file is an enlarged picture of ours; a picture that `generate` made is not."""
    record = _stored(path)
    return record is not None and "generate" not in (record.get("engine"), record.get("command"))


def recipe_of(output: Path) -> dict[str, Any] | None:
    """How a result that is there was made, None when it is none of ours."""
    stored = _stored(output)
    return stored if stored is not None else Ledger(output.parent).find(output)


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        record = read_record(path)
    except PictureError:  # no picture, or a damaged one
        return None
    return record if record is not None and "engine" in record and isinstance(record.get("settings"), dict) else None


def alike(one: Mapping[str, Any], other: Mapping[str, Any], *, but: tuple[str, ...] = (), seed: bool = True) -> bool:
    """Whether two recipes give the same bytes.

    Args:
        one: A recipe.
        other: Another.
        but: Entries that are not looked at.
        seed: Whether their seeds must agree.
    """
    left, right = (_deciding(recipe, {*NOT_COMPARED, *but}, seed) for recipe in (one, other))
    return left == right


def _deciding(recipe: Mapping[str, Any], without: set[str], seed: bool) -> str:
    kept = {key: value for key, value in recipe.items() if key not in without}
    unseen = {"max_pixels"} if seed else {"max_pixels", "seed"}
    kept["settings"] = {key: value for key, value in dict(recipe["settings"]).items() if key not in unseen}
    return to_json(kept)


class Ledger:
    """Results of one folder that cannot hold their recipe, a line each: name, digest of the file, recipe.

    A line is written before the result takes its name, so that a kill between the two loses nothing; a line without a
    result says nothing, and a file whose bytes are others than the line's is no result of ours any more.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER

    def add(self, name: str, file: Path, recipe: Mapping[str, Any]) -> None:
        """Note a result.

        Args:
            name: What it will be called.
            file: Where its bytes are now.
            recipe: How it was made.
        """
        summed, _ = digest(file, 1 << 62)
        entry = json.dumps({"name": name, "sha256": summed, "recipe": dict(recipe)}, default=str)
        # One write at the file's end: two runs do not mix their lines. The first line break ends what a kill has cut.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, f"\n{entry}\n".encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)

    def find(self, output: Path) -> dict[str, Any] | None:
        """The recipe of a result that is there and is still what was written."""
        with contextlib.suppress(OSError):
            lines = self._file.read_text("utf-8", "surrogateescape").splitlines()
            entries = [entry for line in lines if (entry := from_json(line)) and entry.get("name") == output.name]
            if entries:
                summed, _ = digest(output, 1 << 62)
                for entry in reversed(entries):
                    if entry.get("sha256") == summed and isinstance(entry.get("recipe"), dict):
                        return dict(entry["recipe"])
        return None
