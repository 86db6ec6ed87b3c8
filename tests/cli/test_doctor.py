"""`enlarger doctor`: tells what is wrong, most of all where things are broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import enlarger
from enlarger.engines.catalog import listings
from tests.cli.support import Called

Call = Callable[..., Called]

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from enlarger.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""


def test_it_tries_every_engine_and_names_what_is_there(call: Call) -> None:
    done = call("doctor", "--json")
    assert done.code == 0
    report = done.records[0]
    assert report["enlarger"] == enlarger.__version__
    assert report["packages"]["torch"].startswith("2.")
    assert set(report["engines"]) == set(listings())
    assert report["engines"]["pocket"]["works"] is True
    assert report["engines"]["interpolate"]["works"] is True
    assert report["devices"][0]["device"] == "cpu"
    assert report["free_memory_bytes"] > 1e8
    assert report["threads"] >= 1
    assert report["problems"] == []


def test_people_get_lines(call: Call) -> None:
    done = call("doctor")
    assert done.code == 0
    for part in ("torch", "memory", "pocket", "works", "no problems found"):
        assert part in done.out


def without(tmp_path: Path, **modules: str) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """Run doctor where some packages are replaced by broken ones."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done, json.loads(done.stdout)


def test_without_torch_it_still_answers(tmp_path: Path) -> None:
    done, report = without(tmp_path, torch="raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    assert done.returncode == 4, done.stderr
    assert done.stderr == ""
    assert report["devices"] == []
    problems = report["problems"]
    assert isinstance(problems, list)
    assert any("torch cannot be imported" in problem and "libtorch_cpu.so" in problem for problem in problems)


@pytest.mark.slow
def test_a_broken_torchvision_is_told_with_the_remedy(tmp_path: Path) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    done, report = without(tmp_path, torchvision=broken)
    assert done.returncode == 0, done.stderr
    problems = report["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 1
    assert "torchvision::nms" in problems[0]
    assert "pip uninstall torchvision" in problems[0]
