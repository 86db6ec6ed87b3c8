"""Any bytes, and any good file cut or changed, give a picture or an error of ours: nothing else, in bounded time."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enlarger.errors import EnlargerError
from enlarger.picture.picture import Picture
from enlarger.picture.read import read
from enlarger.picture.sniff import EXTENSIONS
from enlarger.picture.write import check_output, encode, read_record
from tests.picture.support import CORPORA, waves

STARTS = (
    b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0\x11\x08",
    b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8X", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", b"GIF89a", b"BM", b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", b"P1 ", b"P3\n",
    b"P5\n2 2\n65535\n", b"P6 2 2 255\n", b"PF\n2 2\n-1\n", b"Pf 3 3 ", b"qoif", b"\0\0\0\x1cftypavif",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\x02" + bytes(9), b"P7\n", b"{", b"<svg",
)  # fmt: skip


def outcome(data: bytes) -> Picture | EnlargerError:
    """Reads as a user would; everything but our errors goes through and fails the test."""
    started = time.perf_counter()
    result: Picture | EnlargerError
    try:
        result = read(data, max_pixels=4_000_000)
    except EnlargerError as error:
        result = error
    assert time.perf_counter() - started < 5
    if isinstance(result, Picture):
        assert result.pixels.ndim == 3
        assert result.pixels.shape[2] in (1, 3)
        assert 0 <= result.pixels.min() <= result.pixels.max() <= 1
        assert result.alpha is None or result.alpha.shape == result.pixels.shape[:2]
    else:
        assert "\n" not in str(result)
        assert str(result)
    return result


@functools.cache
def good_files() -> list[bytes]:
    """The corpus where it is, and one file of every format that is written here."""
    kinds = ["png8", "png16", "jpg8", "webp8", "tiff8", "tiff16", "tiff32", "avif8", "bmp8", "gif8", "ppm8", "ppm16"]
    made = []
    for kind in (*kinds, "qoi8", "tga8"):
        format = kind.rstrip("12368")
        plan = check_output(None, format=format, size=(9, 11), depth=int(kind.removeprefix(format)))
        made += [encode(plan, waves(9, 11, channels)) for channels in (1, 3)]
    folder = CORPORA / "good"
    stored = [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return made + [data for data in stored if len(data) < 40_000]


@given(st.sampled_from(STARTS), st.binary(max_size=300))
def test_any_bytes(start: bytes, rest: bytes) -> None:
    outcome(start + rest)


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_any_cut(which: int, share: float) -> None:
    data = good_files()[which % len(good_files())]
    outcome(data[: int(len(data) * share)])


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.booleans()), min_size=1, max_size=8),
)
def test_any_change(which: int, changes: list[tuple[float, int, bool]]) -> None:
    data = bytearray(good_files()[which % len(good_files())])
    for place, value, early in changes:
        # Most of a file is pixels; half of the changes go into the first bytes, where the structure is.
        data[int(place * (min(len(data), 128) if early else len(data)))] = value
    outcome(bytes(data))


@given(st.sampled_from(STARTS), st.binary(max_size=200))
def test_any_bytes_hold_a_record_or_none(start: bytes, rest: bytes) -> None:
    try:
        record = read_record(start + rest)
    except EnlargerError:
        return
    assert record is None or isinstance(record, dict)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff", "avif", "bmp", "gif", "ppm", "qoi", "tga"])
def test_half_a_file_is_never_a_whole_picture(format: str) -> None:
    """Cut in the middle of its pixels every format is refused as cut off, not read with an invented rest."""
    data = encode(
        check_output(None, format=format, size=(64, 64)), np.random.default_rng(0).random((64, 64, 3), np.float32)
    )
    for share in (0.5, 0.75, 0.9):
        result = outcome(data[: int(len(data) * share)])
        if format == "tga":
            # Its only signature is at its end, so without a name what is left may be anything.
            assert not isinstance(result, Picture)
        else:
            assert getattr(result, "kind", None) == "truncated", (share, result)


def test_a_cut_tga_is_known_by_its_name(tmp_path: Path) -> None:
    data = encode(check_output(None, format="tga", size=(64, 64)), waves(64, 64))
    path = tmp_path / "a.tga"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(EnlargerError) as caught:
        read(path)
    assert getattr(caught.value, "kind", None) == "truncated"


SILENT = """
import sys
from pathlib import Path
from enlarger.errors import EnlargerError
from enlarger.picture.read import read
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for cut in (1.0, 0.8, 0.5, 0.2):
        for change in (0, 1):
            some = bytearray(data[: int(len(data) * cut)])
            if change and len(some) > 200:
                for place in range(150, len(some), 97):
                    some[place] ^= 0x5A
            try:
                read(bytes(some))
            except EnlargerError:
                pass
"""


@pytest.mark.skipif(not (CORPORA / "good").is_dir(), reason="the corpus (../shared/corpora) is not here")
@pytest.mark.parametrize("folder", ["good", "bad"])
def test_libraries_below_write_nothing_of_their_own(folder: str) -> None:
    """One error is one line: neither Pillow's warnings nor libtiff's complaints reach standard error."""
    call = [sys.executable, "-c", SILENT, str(CORPORA / folder)]
    run = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout == ""


def test_every_ending_belongs_to_one_format() -> None:
    endings = [ending for endings in EXTENSIONS.values() for ending in endings]
    assert len(endings) == len(set(endings))
