"""Text that can be shown: whatever a file name or a message holds."""

from __future__ import annotations

from enlarger.errors import EnlargerError


def line(text: str) -> str:
    """One line that any terminal can print: control characters and undecodable bytes are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def bug(error: Exception) -> EnlargerError:
    """The one line for an error that nobody foresaw; `--debug` shows the rest."""
    text = " ".join(str(error).split())[:300]
    return EnlargerError(f"a bug in Enlarger, please report it: {type(error).__name__}: {text} (--debug shows where)")
