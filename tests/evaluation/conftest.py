"""Pictures made by arithmetic alone, so that stored reference values hold on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SHARED = Path(__file__).parents[2].parent / "shared"


def truth(height: int, width: int) -> Bytes:
    """Smooth waves, an edge, and a texture of integer hashes; (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    hashed = ((x * 73856093) ^ (y * 19349663)) % 61
    waves = 60 * np.sin(x / 7) + 40 * np.cos(y / 5)
    edge = np.where(x + 2 * y > width, 40, 0)
    channels = [120 + waves + hashed - 30, 110 + edge + hashed / 2, 130 - waves / 2 + edge]
    return np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8)


def worse(picture: Bytes) -> Bytes:
    """The picture blurred by a box of 3x3, one channel brighter by 3 levels: mean taken with integers."""
    padded = np.pad(picture.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    total = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    return np.clip(np.asarray(total) // 9 + np.array([3, 0, 0]), 0, 255).astype(np.uint8)


@pytest.fixture
def reference() -> Bytes:
    return truth(72, 90)


@pytest.fixture
def result(reference: Bytes) -> Bytes:
    return worse(reference)


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The benchmark pictures beside the repository."""
    folder = SHARED / "benchmarks"
    if not folder.is_dir():
        pytest.skip("the benchmark pictures are not beside the repository (../shared/benchmarks)")
    return folder


@pytest.fixture(scope="session")
def vgg_files() -> list[Path]:
    """Two files that together are VGG16."""
    files = [SHARED / "weights" / f"vgg16_{part}_fp16.safetensors" for part in ("to_relu4_3", "conv5")]
    if not all(path.is_file() for path in files):
        pytest.skip("VGG16 is not beside the repository (../shared/weights)")
    return files


@pytest.fixture
def pictures():
    """The two makers, for tests that need another size."""
    return truth, worse
