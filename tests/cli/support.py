"""What the command's tests share: how a call ended, small pictures, fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Called:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error, which must be one line and no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("enlarger: error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert self.err.endswith(lines[0] + "\n"), self.err
        return lines[0].removeprefix("enlarger: error: ")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def picture(path: str | Path, size: tuple[int, int] = (24, 16), seed: int = 0, **options: Any) -> Path:
    """A small photograph-like picture, (width, height) in pixels, written by Pillow."""
    noise = np.random.default_rng(seed).normal(128, 40, (size[1], size[0], 3))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def files(folder: Path) -> set[str]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def process(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process, as a shell would."""
    command = [sys.executable, "-m", "enlarger", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
