"""Any bytes, and any good file cut or changed, give a picture or an error of ours: nothing else, in bounded time."""

from __future__ import annotations

import functools
import io
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

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


def outcome(data: bytes, limit: float = 5) -> Picture | EnlargerError:
    """Reads as a user would; everything but our errors goes through and fails the test."""
    started = time.perf_counter()
    result: Picture | EnlargerError
    try:
        result = read(data, max_pixels=4_000_000)
    except EnlargerError as error:
        result = error
    assert time.perf_counter() - started < limit
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


def hostile(what: str) -> bytes:
    """Small files that ask for much work."""
    if what == "a TIFF whose entries all claim the same megabytes":
        blob = bytes(3_000_000)
        tags = b"".join(struct.pack("<HHII", tag, 1, len(blob), 8) for tag in range(1, 4000))
        return b"II*\0" + struct.pack("<I", 8 + len(blob)) + blob + struct.pack("<H", 3999) + tags + bytes(4)
    if what == "a TIFF of countless directories":
        places = np.zeros(1_500_000, [("count", "<u2"), ("next", "<u4")])
        places["next"] = 8 + 6 * np.arange(1, len(places) + 1)
        return b"II*\0\x08\0\0\0" + places.tobytes()
    if what == "EXIF whose entries all claim the same bytes":
        table = b"".join(struct.pack("<HHII", 0x9C9B, 1, 50_000, 8) for _ in range(900))
        exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 900) + table + bytes(50_010)
        segment = b"Exif\0\0" + exif[:65_000]
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg()[2:]
    if what == "XMP that opens a hundred thousand times in a comment":
        body = "<!-- " + "<Iptc4xmpExt:DigitalSourceType>" * 100_000 + " -->"
        return png(b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_START + body.encode() + XMP_END, b"iTXt")
    if what == "XMP of a million empty thumbnails":
        return png(b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_START + b"<xmp:Thumbnails/>" * 100_000 + XMP_END, b"iTXt")
    if what == "a PNG of countless chunks":
        return png(b"", b"IDAT", times=300_000)
    if what == "a JPEG of a thousand scans":
        data = jpeg(progressive=True)
        at = data.rindex(b"\xff\xda")
        return data[:at] + data[at:-2] * 1000 + data[-2:]
    raise AssertionError(what)


XMP_START = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:xmp="u" xmlns:Iptc4xmpExt="v">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
XMP_END = b"</rdf:RDF></x:xmpmeta>"


def jpeg(**options: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((waves(64, 64) * 255).astype(np.uint8)).save(stream, "JPEG", **options)
    return stream.getvalue()


def png(body: bytes, kind: bytes, times: int = 1) -> bytes:
    data = encode(check_output(None, format="png", size=(8, 8)), waves(8, 8))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk * times + data[33:]


@pytest.mark.parametrize(
    ("what", "seconds"),
    [
        ("a TIFF whose entries all claim the same megabytes", 2),
        ("a TIFF of countless directories", 1),
        ("EXIF whose entries all claim the same bytes", 2),
        ("XMP that opens a hundred thousand times in a comment", 4),
        ("XMP of a million empty thumbnails", 4),
    ],
)
def test_small_files_cannot_ask_for_much_work(what: str, seconds: float) -> None:
    """Seconds of processor time, several times what it takes: a machine may be slow, but not a thousand times."""
    data = hostile(what)
    started = time.process_time()
    result = outcome(data, limit=30)
    if isinstance(result, Picture):
        plan = check_output(None, format="png", size=result.pixels.shape[:2], picture=result)
        encode(plan, result.pixels, None, result, record={"engine": "pocket"}, strip="private")
    assert time.process_time() - started < seconds


@pytest.mark.parametrize(
    ("what", "says"), [("a PNG of countless chunks", "chunks"), ("a JPEG of a thousand scans", "scans")]
)
def test_what_asks_for_much_work_is_refused_with_the_reason(what: str, says: str) -> None:
    result = outcome(hostile(what), limit=30)
    assert getattr(result, "kind", None) == "corrupt"
    assert re.search(rf"more than [\d,]+ {says}", str(result))


def test_a_jpeg_that_declares_far_more_than_it_holds_is_not_filled_with_grey() -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, 2000, 2000)
    assert not isinstance(outcome(bytes(data)), Picture)


def test_entries_that_claim_the_same_bytes_take_no_memory() -> None:
    data = hostile("a TIFF whose entries all claim the same megabytes")
    tracemalloc.start()
    try:
        outcome(data)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_every_ending_belongs_to_one_format() -> None:
    endings = [ending for endings in EXTENSIONS.values() for ending in endings]
    assert len(endings) == len(set(endings))
