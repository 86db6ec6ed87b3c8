"""SIGKILL at any moment: started again until it ends, the run leaves the same bytes as one that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image

from tests.cli.support import files, process

CHILD = """
import os, signal, sys
import torch, enlarger.upscaler  # what takes long to load, before any work
from enlarger.cli.main import main
for words in sys.stdin:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf to it if started in the background
        sys.stderr = open(sys.argv[1], "w")
        code = main(words.split())
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Runs:
    """Runs of the command, each a process of its own that is forked from one which has loaded torch already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parent = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder / "stderr")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.parent.communicate(timeout=60)

    def start(self, words: str) -> int:
        """Begin a run; gives the number of its process."""
        assert self.parent.stdin is not None
        self.parent.stdin.write(words + "\n")
        self.parent.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """How it ended: the exit code, or minus the signal."""
        return int(self._line())

    def _line(self) -> str:
        assert self.parent.stdout is not None
        return self.parent.stdout.readline()


def pictures(folder: Path, count: int, broken: int) -> None:
    """Small pictures in a tree and in several formats, some of them broken."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:03}.{('png', 'jpg', 'webp', 'bmp')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(0, 256, (20 + number % 9, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        if number % (count // broken) == 3:
            path.write_bytes(path.read_bytes()[: 60 + number])


@pytest.mark.parametrize(("count", "broken", "kills"), [(40, 3, 3), pytest.param(200, 5, 10, marks=pytest.mark.slow)])
def test_killed_and_started_again_until_done_gives_the_same_bytes(
    tmp_path: Path, count: int, broken: int, kills: int
) -> None:
    pictures(tmp_path / "in", count, broken)
    words = "upscale in -o {} -e interpolate -s 3"
    random = np.random.default_rng(int.from_bytes(os.urandom(4)))
    killed = 0
    with Runs(tmp_path) as runs:
        runs.start(words.format("undisturbed"))
        started = time.monotonic()
        assert runs.end() == 7, (tmp_path / "stderr").read_text()
        whole = time.monotonic() - started
        expected = results(tmp_path / "undisturbed")
        assert len(expected) == count - broken
        for _ in range(20 * kills):
            if killed == kills:
                break
            child = runs.start(words.format("out"))
            time.sleep(random.uniform(0, 1.6 * whole / kills))
            os.kill(child, signal.SIGKILL)
            code = runs.end()
            killed += code == -signal.SIGKILL
            made = results(tmp_path / "out")
            assert made.items() <= expected.items(), "every result that is there is whole"
            if code == 7:  # it was done before the signal came: begin anew with some of it
                for name in list(made)[:: 1 + int(random.integers(3))]:
                    (tmp_path / "out" / name).unlink()
        assert killed == kills
        runs.start(words.format("out"))
        assert runs.end() == 7
    told = (tmp_path / "stderr").read_text()
    assert f"{broken} of {count} pictures failed, {count - broken} are done" in told
    assert results(tmp_path / "out") == expected
    left = {name for name in files(tmp_path / "out") if ".part" in name or ".lock" in name}
    assert left == set()


def results(folder: Path) -> dict[str, bytes]:
    """All results that are there, whatever is hidden beside them."""
    return {name: (folder / name).read_bytes() for name in files(folder) if not Path(name).name.startswith(".")}


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_run_and_finished_pictures_stay(tmp_path: Path, number: int, code: int, word: str) -> None:
    pictures(tmp_path / "in", 30, 1)
    expected = tmp_path / "expected"
    with Runs(tmp_path) as runs:
        runs.start(f"upscale in -o {expected} -e interpolate -s 3")
        assert runs.end() == 7
        child = runs.start("upscale in -o out -e interpolate -s 3")
        while len(results(tmp_path / "out")) < 5:
            time.sleep(0.001)
        os.kill(child, number)
        sent = time.monotonic()
        assert runs.end() == code
        assert time.monotonic() - sent < 10
    told = (tmp_path / "stderr").read_text().splitlines()
    assert told[-1] == f"enlarger: error: {word}; nothing partial was left behind"
    assert "of 30 pictures are done" in told[-2]
    left = files(tmp_path / "out")
    done = {name for name in left if not Path(name).name.startswith(".")}
    assert {name for name in left - done if "done.jsonl" not in name} == set()
    assert int(told[-2].split()[0]) in (len(done) - 1, len(done)), "one may have come between two lines of the program"
    assert results(tmp_path / "out").items() <= results(expected).items()


def test_an_address_is_refused_with_the_way_out(tmp_path: Path) -> None:
    done = process("upscale", "https://example.org/a.png", "-e", "interpolate", cwd=tmp_path)
    assert done.returncode == 3
    assert "download it first" in done.stderr
