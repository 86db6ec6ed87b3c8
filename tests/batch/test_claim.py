"""Two runs on one folder share the work; what a killed run has left goes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from enlarger.batch.claim import claim, sweep
from tests.batch.support import content, done, jobs, order, states
from tests.cli.support import files, picture, process

HOLDER = """
import sys
from pathlib import Path
from enlarger.batch.claim import claim
held = claim(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
held.release()
"""


def holder(output: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the claim to a result until its stdin ends."""
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"held\n"
    return running


def let_go(running: subprocess.Popen[bytes]) -> None:
    running.communicate(timeout=20)


def dead() -> int:
    """The number of a process that has ended."""
    running = subprocess.Popen([sys.executable, "-c", ""])
    running.wait(20)
    return running.pid


def test_a_claim_is_held_by_one_until_it_is_given_back(tmp_path: Path) -> None:
    first = claim(tmp_path / "a.png")
    assert first is not None
    assert claim(tmp_path / "a.png") is None
    other = claim(tmp_path / "b.png")
    assert other is not None
    first.release()
    first.release()
    again = claim(tmp_path / "a.png")
    assert again is not None
    again.release()
    other.release()
    assert files(tmp_path) == set()


def test_a_claim_is_waited_for(tmp_path: Path) -> None:
    first = claim(tmp_path / "a.png")
    assert first is not None
    threading.Timer(0.2, first.release).start()
    second = claim(tmp_path / "a.png", wait=True)
    assert second is not None
    assert claim(tmp_path / "a.png") is None, "the file that was removed meanwhile is not the lock"
    second.release()
    assert files(tmp_path) == set()


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    running = holder(tmp_path / "a.png")
    assert claim(tmp_path / "a.png") is None
    running.kill()
    let_go(running)
    second = claim(tmp_path / "a.png")
    assert second is not None
    second.release()
    assert files(tmp_path) == set()


def test_without_locks_the_work_is_done_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    picture(tmp_path / "in/a.png")
    assert states(done(jobs(tmp_path / "in", to=tmp_path / "out"))) == ["made"]
    assert files(tmp_path / "out") == {"a_2x.png"}


def test_what_killed_runs_have_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / f".a.png.enlarger-{dead()}-0.part").write_text("half")
    mine = tmp_path / f".b.png.enlarger-{os.getpid()}-0.part"
    mine.write_text("half")
    (tmp_path / ".enlarger-0123456789abcdef.lock").touch()
    held = claim(tmp_path / "c.png")
    assert held is not None
    (tmp_path / ".hidden.part").touch()
    before = files(tmp_path)
    sweep(tmp_path)
    gone = {name for name in before if name.startswith((".a.png", ".enlarger-01"))}
    assert len(gone) == 2
    assert files(tmp_path) == before - gone
    held.release()


def test_a_run_cleans_the_folders_that_it_writes_to_a_run_of_one_picture_too(tmp_path: Path) -> None:
    picture(tmp_path / "in/sub/a.png")
    (tmp_path / "out/sub").mkdir(parents=True)
    left = [tmp_path / name / f".x.enlarger-{dead()}-0.part" for name in ("out/sub", "in/sub")]
    for part in left:
        part.touch()
    done(jobs(tmp_path / "in", to=tmp_path / "out"))
    assert [part.exists() for part in left] == [False, True]
    done(jobs(tmp_path / "in/sub/a.png"))
    assert [part.exists() for part in left] == [False, False]


def test_a_picture_that_another_run_is_making_is_left_to_it_and_waited_for(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", seed=number)
    what = jobs(tmp_path / "in", to=tmp_path / "out")
    done(what)
    ready = (tmp_path / "out/0_2x.png").read_bytes()
    for name in files(tmp_path / "out"):
        (tmp_path / "out" / name).unlink()
    running = holder(tmp_path / "out/0_2x.png")

    def finish() -> None:
        (tmp_path / "out/0_2x.png").write_bytes(ready)
        let_go(running)

    threading.Timer(0.5, finish).start()
    outcomes = done(what)
    assert [(Path(outcome.job.name).name, outcome.state) for outcome in outcomes] == [
        ("1.png", "made"), ("2.png", "made"), ("0.png", "there"),
    ]  # fmt: skip
    assert files(tmp_path / "out") == {"0_2x.png", "1_2x.png", "2_2x.png"}


def test_a_picture_whose_other_run_is_killed_is_made(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"in/{number}.png", seed=number)
    (tmp_path / "out").mkdir()
    running = holder(tmp_path / "out/0_2x.png")
    threading.Timer(0.5, running.kill).start()
    outcomes = done(jobs(tmp_path / "in", to=tmp_path / "out"))
    let_go(running)
    assert states(outcomes) == ["made", "made"]
    assert files(tmp_path / "out") == {"0_2x.png", "1_2x.png"}


@pytest.mark.slow
@pytest.mark.parametrize("strip", [[], ["--no-metadata"]])
def test_two_runs_at_once_make_every_picture_once(tmp_path: Path, strip: list[str]) -> None:
    for number in range(12):
        picture(tmp_path / f"in/{number:02}.png", seed=number)
    words = ["upscale", "in", "-o", "out", "-e", "interpolate", "-s", "2", "--json", *strip]
    command = [sys.executable, "-m", "enlarger", *words]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [running.communicate(timeout=120) for running in runs]
    assert [running.returncode for running in runs] == [0, 0], ends
    made = sum(line.count('"seconds": 0') for out, _ in ends for line in out.splitlines())
    assert made == 12, "each by one run"
    done(jobs(tmp_path / "in", to=tmp_path / "one"), order(strip="all" if strip else "none"))
    ours = {name: data for name, data in content(tmp_path / "out").items() if name.endswith(".png")}
    assert ours == {name: data for name, data in content(tmp_path / "one").items() if name.endswith(".png")}
    assert process(*words, cwd=tmp_path).stdout.count('"seconds": null') == 12
