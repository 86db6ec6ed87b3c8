"""Damage that decoders pass over: found where it is, and never where it is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from enlarger.picture.suspicion import bmp_runs_are_broken, jpeg_scan_is_broken


def jpeg(height: int, width: int, seed: int, block: int = 1, **options: object) -> bytes:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (-(-height // block), -(-width // block), 3), dtype=np.uint8)
    samples = small.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    stream = io.BytesIO()
    Image.fromarray(samples).save(stream, "JPEG", **options)
    return stream.getvalue()


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(0, 99), st.sampled_from([1, 16]), st.integers(1, 100),
    st.sampled_from([0, 1, 2]), st.integers(0, 4), st.booleans(), st.booleans(),
)  # fmt: skip
def test_no_whole_jpeg_is_suspected(
    height: int, width: int, seed: int, block: int, quality: int, chroma: int, restart: int, optimize: bool, grey: bool
) -> None:
    data = jpeg(
        height,
        width,
        seed,
        block,
        quality=quality,
        subsampling=chroma,
        restart_marker_blocks=restart,
        optimize=optimize,
    )
    if grey:
        with Image.open(io.BytesIO(data)) as image:
            stream = io.BytesIO()
            image.convert("L").save(stream, "JPEG", quality=quality)
            data = stream.getvalue()
    assert not jpeg_scan_is_broken(data)


@pytest.mark.parametrize("seed", range(8))
def test_a_scan_of_noise_is_found(seed: int) -> None:
    data = jpeg(200, 200, seed, quality=60)
    start = data.index(b"\xff\xda") + 14
    random = np.random.default_rng(seed).integers(0, 255, len(data) - start - 2, dtype=np.uint8).tobytes()
    assert jpeg_scan_is_broken(data[:start] + random + data[-2:])


def test_progressive_and_photographs_are_not_suspected(good: Path) -> None:
    for path in [*good.glob("*.jpg"), *good.glob("*.mpo")]:
        assert not jpeg_scan_is_broken(path.read_bytes()), path.name
    for path in sorted((good.parents[1] / "photos").rglob("*.jpg"))[:20]:
        assert not jpeg_scan_is_broken(path.read_bytes()), path.name


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_failing(data: bytes) -> None:
    jpeg_scan_is_broken(b"\xff\xd8" + data)
    bmp_runs_are_broken(b"BM" + data)


def test_bmp_runs(good: Path) -> None:
    for path in good.glob("*.bmp"):
        assert not bmp_runs_are_broken(path.read_bytes()), path.name
    data = bytearray((good / "pal8rle.bmp").read_bytes())
    start = int.from_bytes(data[10:14], "little")
    data[start : start + 2] = bytes([255, 1])
    assert bmp_runs_are_broken(bytes(data))
    assert bmp_runs_are_broken((good.parent / "bad" / "badrle.bmp").read_bytes())
