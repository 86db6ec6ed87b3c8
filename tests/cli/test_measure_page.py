"""Every command of docs/measure.md runs, in its order, on tiny data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from enlarger.cli.main import main
from enlarger.evaluation.metrics import ALIASES, METRICS
from enlarger.networks.rrdb import RRDBNet, RRDBShape

PAGE = (Path(__file__).parents[2] / "docs" / "measure.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with everything that the page names."""
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    for folder, size in (("benchmarks/Set14/HR", (64, 48)), ("benchmarks/Set14/LRx4", (16, 12)), ("photos", (64, 48))):
        Path(folder).mkdir(parents=True)
        picture.resize(size, Image.Resampling.BICUBIC).save(f"{folder}/a.png")
    Path("results/theirs").mkdir(parents=True)
    picture.resize((64, 48)).save("results/theirs/a_4x.png")
    picture.save("photo.jpg")
    with torch.no_grad():
        save_file(RRDBNet(RRDBShape(8, 4, 1)).state_dict(), "realesrgan-x4plus.safetensors")
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(desk, capsys):
    ours = [command for command in COMMANDS if command.startswith("enlarger ") and "import-ncnn" not in command]
    assert len(ours) >= 9
    for command in ours:
        assert main(shlex.split(command)[1:]) == 0, f"{command}: {capsys.readouterr().err}"
    for made in ("sheet.png", "big.png", "small/a.png", "pairs/HR/a.png", "pairs/LRx4/a.png", "numbers/table.md"):
        assert Path(made).is_file(), made


def test_the_table_names_every_metric_that_evaluate_can_compute():
    named = set(re.findall(r"`([a-z-]+)`", PAGE.split("## The metrics")[1].split("\n\nRead")[0]))
    # Borders of tiles are known to those who write engines, not to `evaluate`.
    assert set(METRICS) - {"seam"} <= {ALIASES.get(name, name) for name in named} | named
