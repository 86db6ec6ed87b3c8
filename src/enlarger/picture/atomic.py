"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from enlarger.errors import EnlargerError, Interrupted, OutputError
from enlarger.picture.read import shown

_counter = itertools.count()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Stoppable(io.FileIO):
    """A file that is given up when its writer is told to stop."""

    def __init__(self, descriptor: int, stopped: Callable[[], bool] | None) -> None:
        super().__init__(descriptor, "wb")
        self._stopped = stopped

    def write(self, data: Any, /) -> int:
        if self._stopped is not None and self._stopped():
            raise Interrupted("interrupted; nothing partial was left behind")
        return super().write(data)


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it; one that is there is left as it is.

    Raises:
        OutputError: It cannot be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = reason(error)
        raise OutputError(f"the folder {shown(folder)} cannot be made: {why}; choose another place") from error


@contextlib.contextmanager
def appearing(
    path: Path,
    overwrite: bool,
    stopped: Callable[[], bool] | None = None,
    sealed: Callable[[Path], None] | None = None,
) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its name at the end, or goes on any error or interrupt."""
    part = path.with_name(f".{path.name[:40]}.enlarger-{os.getpid()}-{next(_counter)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written: {reason(error)}; choose another place") from error
    try:
        with io.BufferedWriter(_Stoppable(descriptor, stopped)) as stream:
            yield stream
        if sealed is not None:
            sealed(part)
        _settle(part, path, overwrite)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, (EnlargerError, KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise _failure(path, error) from error


def _failure(path: Path, error: BaseException) -> BaseException:
    """Gives the error for what went wrong while writing; what is no fault of the disk is a bug and stays as it is."""
    if isinstance(error, OSError):
        if error.errno in _FULL:
            what = "the disk is full or a limit is reached; make room or choose another place"
            return OutputError(f"{shown(path)} cannot be written: {what}")
        return OutputError(f"{shown(path)} cannot be written: {reason(error)}; choose another place")
    return error


def reason(error: OSError) -> str:
    """Gives what the system says, to stand inside a line."""
    return (error.strerror or "the encoder failed").lower()


def _settle(part: Path, path: Path, overwrite: bool) -> None:
    """Gives the finished file its name; without `overwrite` never over a file that appeared meanwhile."""
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise OutputError(
            f"{shown(path)} has appeared meanwhile; choose another name or allow it with --overwrite"
        ) from error
    except OSError:  # a file system without hard links
        if path.exists():
            raise OutputError(
                f"{shown(path)} has appeared meanwhile; choose another name or allow it with --overwrite"
            ) from None
        os.replace(part, path)
        return
    part.unlink()


def stale_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Gives the temporary files in a folder whose process is gone (a kill -9), for the next run to remove."""
    stale = []
    for part in Path(folder).glob(".*.enlarger-*.part"):
        number = part.name.rsplit(".enlarger-", 1)[-1].split("-", 1)[0]
        if number.isdigit() and not _alive(int(number)):
            stale.append(part)
    return sorted(stale)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
