"""The command `enlarger`: finds the subcommand, turns errors into one line and an exit code.

A subcommand is a module of this folder, named in `COMMANDS`, with

    HELP: str                                   one line for `enlarger --help`
    FOLLOWING: str                              if it has it: the option after which all words are another command's
    add_arguments(parser) -> None               its options
    run(args) -> int                            its work; the exit code

Nothing that `enlarger --help` reaches imports torch, numpy or Pillow: commands import their work in `run`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from enlarger import __version__
from enlarger.cli.parser import Parser, Stop, parse
from enlarger.cli.say import bug, line
from enlarger.errors import EnlargerError, Interrupted, SettingsError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

COMMANDS = ("upscale", "generate", "compare", "evaluate", "degrade", "train", "models", "inspect", "doctor")
"""The subcommands, in the order of `enlarger --help`; each is a module of this folder."""

EXIT_CODES = """\
exit codes: 0 all done, 1 a bug in Enlarger, 2 wrong options, 3 the input picture, 4 a model or an extra that is
missing, 5 the output, 6 memory or device, 7 some of several pictures failed, 130 interrupted, 143 terminated
"""


class Command(Protocol):
    """A module of this folder that is a subcommand."""

    HELP: str

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare its options."""

    def run(self, args: Namespace) -> int:
        """Do it; gives the exit code."""


class Terminated(KeyboardInterrupt):
    """Stopped by SIGTERM: no `Exception`, which torch and others would take for an error in their own work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code and never raises for what a user can cause."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _termination_raises():
            code = run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        return _quiet_broken_pipe()
    except KeyboardInterrupt as stop:
        word, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", Interrupted.exit_code)
        _report(Interrupted(f"{word}; nothing partial was left behind"), debug)
        return code
    except EnlargerError as error:
        return _report(error, debug)
    except Exception as error:
        return _report(bug(error), debug)


def run(arguments: list[str]) -> int:
    """Find the subcommand and run it; raises `EnlargerError` for what is wrong."""
    if not arguments or arguments[0].startswith("-"):
        return _run_bare(arguments)
    name, *rest = arguments
    command = _command(name)
    following: list[str] | None = None
    word = getattr(command, "FOLLOWING", None)
    if word in rest:
        place = rest.index(word)
        rest, following = rest[:place], rest[place + 1 :]
    parser = Parser(prog=f"enlarger {name}", description=command.HELP)
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="Show where an error came from.")
    try:
        args = parse(parser, rest)
    except Stop as stop:
        return stop.code
    args.following = following
    return command.run(args)


def _command(name: str) -> Command:
    if name in COMMANDS:
        return cast("Command", importlib.import_module(f"enlarger.cli.{name}"))
    if os.path.exists(name) or "." in name:
        raise SettingsError(f"no command is called {name!r}: did you mean enlarger upscale {name}?")
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SettingsError(f"no command is called {name!r}: {hint}there are {', '.join(COMMANDS)}")


def _run_bare(arguments: list[str]) -> int:
    """`enlarger` without a subcommand: help, version, or what is wrong."""
    parser = Parser(
        prog="enlarger",
        usage="enlarger COMMAND [options]",
        description="Makes pictures bigger with diffusion models.",
        epilog=f"Start with: enlarger upscale photo.jpg\n'enlarger COMMAND --help' tells more.\n\n{EXIT_CODES}",
    )
    parser.add_argument("-V", "--version", action="version", version=f"enlarger {__version__}")
    parser.add_argument("--debug", action="store_true", help="Show where an error came from.")
    commands = parser.add_argument_group("commands")
    for name in COMMANDS:
        commands.add_argument(name, help=_command(name).HELP, nargs="?")
    if not arguments:
        parser.print_help(sys.stderr)
        return SettingsError.exit_code
    if arguments[0] in ("-h", "--help", "-V", "--version"):
        try:
            parser.parse_args(arguments[:1])
        except Stop as stop:
            return stop.code
    raise SettingsError(f"{arguments[0]} stands before any command: write it after, as in enlarger upscale photo.jpg")


def _report(error: EnlargerError, debug: bool) -> int:
    """Print the one line that an error is; the traceback only when asked for."""
    if debug:
        traceback.print_exc()
    print(line(f"enlarger: error: {error}"), file=sys.stderr)
    return error.exit_code


@contextmanager
def _termination_raises() -> Iterator[None]:
    """While this lasts, SIGTERM raises `Terminated`, so that cleaning up happens as after Ctrl-C."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: whoever runs us there takes care of signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_streams() -> None:
    """Whoever starts us may have closed a standard stream, as some services do: then it is empty, or nobody listens."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _quiet_broken_pipe() -> int:
    """Whoever read our output has left: no message, and none from the interpreter's own last flush."""
    with suppress(OSError, ValueError):  # stdout is no real file in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
