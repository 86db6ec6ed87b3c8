"""What a model is identified by: the SHA-256 of its weight files.

The whole file is hashed, not a sample of it: so the digest of a single file begins as the hash that A1111, Civitai and
`sha256sum` show, two models that differ in one number differ in it, and a result made again is made of the same. A file
of several GB takes seconds, so its digest is kept in the user's cache folder, by the file's place, size and time of
change; the file is hashed again when any of them is another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

SMALL = 16 << 20
"""Bytes below which hashing costs nothing that is worth a note."""

SHOWN = 16
"""Hexadecimal digits that are recorded."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; from the cache if the file has not changed since."""
    state = path.stat()
    if state.st_size < SMALL:
        return _hash(path)
    note = _note(path, state)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept = note.read_text("ascii").strip()
        if len(kept) == 64 and set(kept) <= set("0123456789abcdef"):
            return kept
    made = _hash(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f".{note.name}-{os.getpid()}")
        part.write_text(made, "ascii")
        part.replace(note)
    return made


def digest_of(files: Sequence[Path], root: Path) -> str:
    """What records hold: the first 16 digits of a file's digest, or of the digest over several files' digests.

    Args:
        files: All that the model is made of.
        root: The folder that their names are taken from.
    """
    if len(files) == 1:
        return file_digest(files[0])[:SHOWN]
    lines = sorted(f"{file_digest(file)}  {file.relative_to(root).as_posix()}" for file in files)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:SHOWN]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(path: Path, state: os.stat_result) -> Path:
    """Where a file's digest is kept."""
    from platformdirs import user_cache_path

    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ino}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return user_cache_path("enlarger") / "digests" / name
