"""What the tests of pictures share: the corpus beside the repository, and pictures made from formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CORPORA = Path(__file__).parents[2].parent / "shared" / "corpora"


def require_corpora() -> Path:
    if not (CORPORA / "expected.tsv").is_file():
        pytest.skip("the corpus of odd and bad pictures (../shared/corpora) is not here")
    return CORPORA


def waves(height: int, width: int, channels: int = 3, *, top: float = 1.0) -> np.ndarray:
    """A smooth picture, (height, width, channels) float32 in 0..top, different in every channel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [0.5 + 0.5 * np.sin(0.21 * (c + 1) * x + 0.13 * (c + 2) * y + c) for c in range(channels)]
    return (np.stack(planes, axis=2) * top).astype(np.float32)


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint16, seed: int = 0) -> np.ndarray:
    """Every bit used: (height, width, channels) of an integer type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
