"""A few smoke cases by a fresh process, as a shell runs the command: start-up, pipes, signals, the terminal."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.support import files, picture, process

LIGHT = """
import sys
from enlarger.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "PIL", "diffusers", "tqdm", "tifffile"} & set(sys.modules)
print("heavy:", *sorted(heavy), file=sys.stderr)
sys.exit(code)
"""

COMMAND = [sys.executable, "-m", "enlarger"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["models"], ["upscale", "--help"], ["upscal"]])
def test_what_needs_no_work_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (2 if words == ["upscal"] else 0)
    assert done.stderr.splitlines()[-1] == "heavy:"


def test_help_takes_less_than_half_a_second() -> None:
    """Processor time of the whole process: what else the machine is doing does not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_installed_command_is_there() -> None:
    script = Path(sys.executable).with_name("enlarger")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == process("--version").stdout
    assert done.returncode == 0


@pytest.mark.slow
def test_upscale_by_pocket(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    done = process("upscale", "a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a_4x.png") as result:
        assert result.size == (96, 64)


def test_in_a_pipe(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    words = ["upscale", "-", "-e", "interpolate", "-s", "2", "-o", "-", "--format", "png"]
    done = subprocess.run([*COMMAND, *words], input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG")
    assert done.stdout.endswith(b"IEND\xaeB`\x82")
    assert b"48x32" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    words = ["upscale", ".", "-e", "interpolate", "--json", "-q"]
    running = subprocess.Popen([*COMMAND, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(120) == 141
    running.stderr.close()


def slow_work(folder: Path) -> subprocess.Popen[bytes]:
    """A run that takes long, at a moment in the middle of it: when the first line of progress is out."""
    picture(folder / "a.png", size=(700, 500))
    script = (
        "import signal, sys; from enlarger.cli import progress; progress.EVERY = 0.0\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # deaf to it if started in the background
        "from enlarger.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["upscale", "a.png", "--tile", "128", "--steps", "4"]
    running = subprocess.Popen([sys.executable, "-c", script, *words], cwd=folder, stderr=subprocess.PIPE)
    assert running.stderr is not None
    assert b"% , about" in running.stderr.readline().replace(b"%,", b"% ,")
    return running


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_in_the_middle_leaves_nothing_behind(tmp_path: Path, number: int, code: int, word: str) -> None:
    running = slow_work(tmp_path)
    started = time.perf_counter()
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert time.perf_counter() - started < 30  # two seconds where nothing else runs
    last = err.decode().splitlines()[-1]
    assert last.startswith(f"enlarger: error: {word}")
    assert "Traceback" not in err.decode()
    assert files(tmp_path) == {"a.png"}


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_standard_stream_may_be_closed(tmp_path: Path, stream: int) -> None:
    picture(tmp_path / "a.png")
    words = ["upscale", "a.png", "-e", "interpolate", "-o", "b.png"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}>&-', "sh", *COMMAND, *words], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == {"a.png", "b.png"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["-o", "-", "--format", "png"], ["--json"]], ids=["picture", "json"])
def test_a_full_disk_behind_standard_output(tmp_path: Path, words: list[str]) -> None:
    picture(tmp_path / "a.png")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "upscale", "a.png", "-e", "interpolate", "-q", *words],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("enlarger: error: standard output cannot be written: no space left on device")


@pytest.mark.slow
def test_a_terminal_gets_a_bar_that_goes_away(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(150, 100))  # a second of work anywhere: the bar is drawn ten times a second
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    running = subprocess.Popen([*COMMAND, "upscale", "a.png", "--tile", "128"], cwd=tmp_path, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert running.wait(120) == 0
    text = shown.decode()
    assert "left" in text
    assert "%" in text
    assert text.rstrip().split("\r")[-1].startswith("a_4x.png: 600x400")


def test_without_a_terminal_there_is_no_bar(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    done = process("upscale", "a.png", "-e", "interpolate", cwd=tmp_path)
    assert "\r" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
