"""Two runs on one folder: who makes which result, and what an earlier run that was killed has left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from enlarger.batch.beside import undisturbed
from enlarger.picture.write import stale_parts

if sys.platform != "win32":
    import fcntl

LOCK = ".enlarger-*.lock"
"""What locks are called."""


class Claim:
    """The right to make one result, held until `release`.

    It is a lock that the system itself takes back from a process that dies, so none is ever stale and no number of a
    process need be trusted. It only saves work: where the file system has no locks two runs may make the same picture,
    and the rename that replaces nothing decides.
    """

    def __init__(self, file: Path, descriptor: int | None) -> None:
        self._file = file
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back; twice does no harm."""
        if self._descriptor is None:
            return
        with undisturbed():
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # removed while held: who waits for it sees that, and makes a new one
                os.unlink(self._file)
            os.close(descriptor)


def claim(output: Path, *, wait: bool = False) -> Claim | None:
    """The right to make a result; None when another run is making it.

    Args:
        output: The result's path; its folder is there.
        wait: Whether to wait until the other run has ended with it.
    """
    word = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    return _hold(output.with_name(LOCK.replace("*", word)), wait=wait)


def _hold(file: Path, *, wait: bool) -> Claim | None:
    if sys.platform == "win32":  # both runs make the picture, and the first to finish gives it its name
        return Claim(file, None)
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # a folder that cannot be written to: the check of the output says so better
            return Claim(file, None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # no locks on this file system
            with contextlib.suppress(OSError):
                os.unlink(file)
            os.close(descriptor)
            return Claim(file, None)
        except BaseException:  # interrupted while waiting
            os.close(descriptor)
            raise
        if _is_still(file, descriptor):
            return Claim(file, descriptor)
        os.close(descriptor)  # whoever had it has removed it: the next one makes a new file


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove what runs that were killed have left in a folder: temporary files and locks that nobody holds."""
    with contextlib.suppress(OSError):
        for part in stale_parts(folder):
            part.unlink(missing_ok=True)
        for file in folder.glob(LOCK):
            left = _hold(file, wait=False)
            if left is not None:
                left.release()
