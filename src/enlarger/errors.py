"""What can go wrong, and the exit code that says so.

    EnlargerError            1   a bug in Enlarger, or a base class to catch everything below
      SettingsError          2   wrong options or settings; nothing to do
      PictureError           3   the input picture cannot be read or used
      ModelError             4   a model (or an engine's extra) is missing, wrong or refused
      OutputError            5   the output cannot be written
      ResourceError          6   not enough memory, or no such device
      PartialError           7   several inputs, and some of them failed
      Interrupted          130   stopped by the user (143 when terminated)

A message is one line: what was found, what would be right, what to do. It never names a
file's content, and it is shown as it stands: `enlarger: error: MESSAGE`.
"""

from __future__ import annotations


class EnlargerError(Exception):
    """Base of every error that Enlarger raises on purpose."""

    exit_code = 1


class SettingsError(EnlargerError, ValueError):
    """Options or settings that are unknown, out of range, contradicting or not for this engine."""

    exit_code = 2


class PictureError(EnlargerError):
    """An input picture that cannot be read or used; `kind` is a stable word for programs.

    Kinds: empty, not_a_picture, unsupported_format, needs_extra, truncated, corrupt, too_large,
    bad_values, missing.
    """

    exit_code = 3

    def __init__(self, message: str, kind: str = "not_a_picture") -> None:
        super().__init__(message)
        self.kind = kind


class ModelError(EnlargerError):
    """A model that is missing, incomplete, of the wrong kind or unsafe, or an extra not installed."""

    exit_code = 4


class OutputError(EnlargerError):
    """A result that cannot be written where, or as what, was asked."""

    exit_code = 5


class ResourceError(EnlargerError):
    """Not enough memory for the smallest tile, or a device that is not there."""

    exit_code = 6


class PartialError(EnlargerError):
    """Some of several inputs failed; the others are done."""

    exit_code = 7


class Interrupted(EnlargerError):
    """The user stopped the work; nothing partial was left behind."""

    exit_code = 130
