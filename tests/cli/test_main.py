"""The command itself: help, version, unknown commands, exit codes, signals, pipes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import enlarger
from enlarger.cli import main as cli
from enlarger.errors import (
    EnlargerError,
    Interrupted,
    ModelError,
    OutputError,
    PartialError,
    PictureError,
    ResourceError,
    SettingsError,
)
from tests.cli.support import Called

Call = Callable[..., Called]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Puts a command called `models` in place whose work is the test's."""

    def install(work: Callable[[], int]) -> None:
        made = SimpleNamespace(HELP="x", add_arguments=lambda parser: None, run=lambda args: work())
        monkeypatch.setattr(cli, "_command", lambda name: made)

    return install


def test_help_names_every_command_and_exits_well(call: Call) -> None:
    for words in (["--help"], ["-h"]):
        done = call(*words)
        assert done.code == 0
        assert done.err == ""
        for name in cli.COMMANDS:
            assert f"  {name} " in done.out
        assert "enlarger upscale photo.jpg" in done.out


def test_every_command_has_a_help_line_and_help(call: Call) -> None:
    assert {"upscale", "models", "doctor"} <= set(cli.COMMANDS)
    for name in cli.COMMANDS:
        done = call(name, "--help")
        assert done.code == 0, done.err
        assert done.out.startswith(f"usage: enlarger {name}")
        help_line = cli._command(name).HELP
        assert help_line.endswith(".")
        assert "\n" not in help_line
        assert len(help_line) < 90


def test_no_command_shows_help_and_is_wrong(call: Call) -> None:
    done = call()
    assert done.code == 2
    assert done.out == ""
    assert "usage: enlarger COMMAND" in done.err


def test_version(call: Call) -> None:
    for words in (["--version"], ["-V"]):
        done = call(*words)
        assert (done.code, done.out) == (0, f"enlarger {enlarger.__version__}\n")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["upscael"], "did you mean upscale?"),
        (["photo.jpg"], "did you mean enlarger upscale photo.jpg?"),
        (["wibble"], "there are upscale"),
        (["--scale", "2", "a.png"], "--scale stands before any command"),
        (["--versoin"], "--versoin stands before any command"),
        (["models", "extra"], "'extra' is one word too many"),
        (["models", "--jsn"], "did you mean --json?"),
    ],
)
def test_what_is_no_command_is_refused_with_a_hint(call: Call, words: list[str], remedy: str) -> None:
    done = call(*words)
    assert done.code == 2
    assert remedy in done.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("s"), 2), (PictureError("s"), 3), (ModelError("s"), 4), (OutputError("s"), 5),
        (ResourceError("s"), 6), (PartialError("s"), 7), (Interrupted("s"), 130), (EnlargerError("s"), 1),
    ],
)  # fmt: skip
def test_an_error_is_its_exit_code_and_its_line(
    call: Call, command: Callable[..., None], error: EnlargerError, code: int
) -> None:
    def work() -> int:
        raise error

    command(work)
    done = call("models")
    assert (done.code, done.err) == (code, "enlarger: error: s\n")


def test_a_bug_is_one_line_and_the_traceback_is_for_debug(call: Call, command: Callable[..., None]) -> None:
    def work() -> int:
        raise KeyError("two\nlines")

    command(work)
    done = call("models")
    assert done.code == 1
    assert "a bug in Enlarger" in done.error
    assert "KeyError" in done.error
    assert "--debug" in done.error
    debug = call("models", "--debug")
    assert debug.code == 1
    assert "Traceback" in debug.err
    assert "in work" in debug.err


def test_what_cannot_be_printed_is_escaped(call: Call, command: Callable[..., None]) -> None:
    def work() -> int:
        raise PictureError("a\x1b[31m\udcff.png is\nwrong")

    command(work)
    assert call("models").error == r"a\x1b[31m\udcff.png is\nwrong"


def test_ctrl_c_is_130_and_sigterm_143(
    call: Call, command: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    # What a shell starts in the background is born deaf to Ctrl-C, these tests too.
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, at_start))

    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)
        return 0

    command(interrupted)
    done = call("models")
    assert done.code == 130
    assert "interrupted" in done.error

    cleaned = []

    def terminated() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(10)
        except Exception as error:  # as torch does while it loads weights
            raise RuntimeError("the weights do not fit") from error
        finally:
            cleaned.append(True)
        return 0

    command(terminated)
    before = signal.getsignal(signal.SIGTERM)
    done = call("models")
    assert done.code == 143
    assert "terminated" in done.error
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_runs_outside_the_main_thread(command: Callable[..., None]) -> None:
    command(lambda: 5)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["models"])))
    thread.start()
    thread.join()
    assert codes == [5]


def test_a_reader_that_left_is_no_error(call: Call, command: Callable[..., None]) -> None:
    def work() -> int:
        raise BrokenPipeError

    command(work)
    done = call("models")
    assert (done.code, done.err) == (141, "")


def test_arguments_come_from_the_command_line_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["enlarger", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("enlarger ")
