"""Writing: everything wrong is known before the work, and a file is there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.errors import EnlargerError, Interrupted, OutputError, SettingsError
from enlarger.picture import write as writing
from enlarger.picture.formats import CAPACITIES
from enlarger.picture.read import read
from enlarger.picture.write import check_output, encode, stale_parts, write
from tests.picture.support import noise, waves

SIZE = (30, 40)


def check(path: Path | str | None, **options: Any) -> writing.OutputPlan:
    return check_output(path, **{"size": SIZE, **options})


# --- before the work


@pytest.mark.parametrize(
    ("name", "format", "error", "says"),
    [
        ("a", None, SettingsError, "no ending"),
        ("a.xyz", None, SettingsError, r"\.xyz.*png"),
        ("a.jpg", "png", SettingsError, "make them agree"),
        ("a.png", "xyz", SettingsError, "choose one of"),
        ("a.heic", None, SettingsError, "not written"),
        ("missing/a.png", None, OutputError, "create it first"),
        ("file.txt/a.png", None, OutputError, "not a folder|not a directory"),
        ("folder.png", None, OutputError, "is a folder"),
        ("n" * 252 + ".png", None, OutputError, "255 bytes"),
        ("a\0.png", None, OutputError, "NUL"),
        ("there.png", None, OutputError, "--overwrite"),
    ],
)
def test_a_place_or_name_that_cannot_be_is_refused(
    name: str, format: str | None, error: type[EnlargerError], says: str, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").write_text("x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=says) as caught:
        check(tmp_path / name, format=format)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_standard_output_needs_a_format() -> None:
    with pytest.raises(SettingsError, match="--format"):
        check(None)
    assert check(None, format="png").format == "PNG"
    with pytest.raises(ValueError, match="only be encoded"):
        write(check(None, format="png"), waves(*SIZE))


@pytest.mark.parametrize(
    "name", ["a.PNG", "a.Jpg", "a.tif", "a.TIFF", "a.webp", "a.avif", "a.bmp", "a.ppm", "a.pgm", "a.gif"]
)
def test_endings_mean_formats_in_any_case(name: str, tmp_path: Path) -> None:
    assert check(tmp_path / name).format in CAPACITIES
    assert check(tmp_path / "a.b.png", format=".PNG").format == "PNG"
    assert check(tmp_path / "noending", format="jpeg").format == "JPEG"


@pytest.mark.parametrize("how", ["same", "symlink", "hardlink", "dots"])
def test_the_input_is_never_the_output(how: str, tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    source.write_bytes(b"precious")
    target = {
        "same": source,
        "symlink": tmp_path / "link.png",
        "hardlink": tmp_path / "hard.png",
        "dots": tmp_path / ".." / tmp_path.name / "in.png",
    }[how]
    if how == "symlink":
        target.symlink_to(source)
    if how == "hardlink":
        os.link(source, target)
    with pytest.raises(OutputError, match="input itself"):
        check(target, overwrite=True, inputs=[tmp_path / "other.png", source])
    assert source.read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            check(tmp_path / "a.png")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_the_system_protects_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check(tmp_path / "a.png")


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="too little"):
        check(tmp_path / "a.bmp", size=(1000, 1000))
    assert "MB free" in check(tmp_path / "a.png", size=(1000, 1000)).warnings[0]
    assert not check(tmp_path / "a.png", size=(10, 10)).warnings


# --- atomically


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("format", sorted(CAPACITIES))
def test_a_file_appears_whole_and_alone(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{format.lower()}"
    plan = check(path)
    assert listing(tmp_path) == []
    assert write(plan, waves(*SIZE)) == path
    assert listing(tmp_path) == [path.name]
    assert read(path).width == SIZE[1]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


class Failing:
    """A stream that breaks after some bytes."""

    def __init__(self, inner: Any, error: BaseException, after: int) -> None:
        self.inner, self.error, self.left = inner, error, after

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return int(self.inner.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("format", ["png", "tiff", "ppm", "bmp", "jpg", "webp"])
@pytest.mark.parametrize(
    ("error", "wanted", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, "disk is full"),
        (OSError(errno.EFBIG, "File too large"), OutputError, "disk is full"),
        (OSError(errno.EIO, "Input/output error"), OutputError, "input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    ],
)
def test_nothing_is_left_behind_and_nothing_lost_on_any_failure(
    format: str,
    error: BaseException,
    wanted: type[BaseException],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"out.{format}"
    path.write_bytes(b"the old picture")
    plan = check(path, overwrite=True)
    plain = writing._encode

    def breaking(stream: Any, *rest: Any) -> None:
        plain(Failing(stream, error, 100), *rest)

    monkeypatch.setattr(writing, "_encode", breaking)
    with pytest.raises(wanted, match=says):
        write(plan, noise(*SIZE, 3, np.uint8))
    assert listing(tmp_path) == [path.name]
    assert path.read_bytes() == b"the old picture"


FILLING = """
import resource, signal, sys
import numpy as np
from enlarger.errors import OutputError
from enlarger.picture.write import check_output, write
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for format in sys.argv[2:]:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    plan = check_output(f"{sys.argv[1]}/out.{format}", size=(300, 300))
    try:
        write(plan, pixels)
    except OutputError as error:
        print(format, str(error).count("disk is full"))
"""


def test_a_limit_of_the_system_is_an_error_in_one_line_for_every_format(tmp_path: Path) -> None:
    formats = ["png", "jpg", "webp", "tiff", "bmp", "ppm", "tga", "avif", "qoi", "gif"]
    run = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path), *formats], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{format} 1" for format in formats]
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["☃" * 83 + ".png", "🐈" * 62 + ".png", "n" * 251 + ".png", "-o.png", "a\nb.png"])
def test_long_and_odd_names_are_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(check(path), waves(*SIZE))
    assert listing(tmp_path) == [name]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    plan = check(path)
    path.write_bytes(b"someone else's")
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write(plan, waves(*SIZE))
    assert path.read_bytes() == b"someone else's"
    assert listing(tmp_path) == ["out.png"]


def test_file_systems_without_hard_links_do_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out.png"
    plan = check(path)
    write(plan, waves(*SIZE))
    assert listing(tmp_path) == ["out.png"]
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write(plan, waves(*SIZE))
    assert listing(tmp_path) == ["out.png"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.png"
    outside.write_bytes(b"precious")
    link = tmp_path / "out.png"
    link.symlink_to(outside)
    write(check(link, overwrite=True), waves(*SIZE))
    assert outside.read_bytes() == b"precious"
    assert not link.is_symlink()


KILLED = """
import sys
import numpy as np
from enlarger.picture.write import check_output, write
path = sys.argv[1]
print("go", flush=True)
pixels = np.random.default_rng(0).random((500, 500, 3), np.float32)
while True:
    write(check_output(path, size=(500, 500), overwrite=True), pixels)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(encode(check(None, format="png"), waves(*SIZE)))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 10
        while not list(tmp_path.glob(".*.part")) and time.monotonic() < deadline:
            pass
        child.send_signal(signal.SIGKILL)
    read(path)
    stale = stale_parts(tmp_path)
    assert [part.name for part in stale] == [name for name in listing(tmp_path) if name.endswith(".part")]


def test_temporary_files_of_the_living_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f".a.png.enlarger-{os.getpid()}-0.part").touch()
    (tmp_path / ".a.png.enlarger-999999999-0.part").touch()
    (tmp_path / ".a.png.enlarger-x-0.part").touch()
    (tmp_path / "photo.part").touch()
    assert [part.name for part in stale_parts(tmp_path)] == [".a.png.enlarger-999999999-0.part"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("/proc is not here to count descriptors")
    before = len(os.listdir("/proc/self/fd"))
    for format in ("png", "jpg", "tiff"):
        path = tmp_path / f"a.{format}"
        write(check(path), waves(*SIZE))
        read(path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(EnlargerError):
            read(path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- what is written


def test_floats_integers_and_bands_give_the_same_file() -> None:
    pixels, alpha = waves(*SIZE), waves(*SIZE, 1)[..., 0]
    for depth, dtype in ((8, np.uint8), (16, np.uint16)):
        plan = check(None, format="png", depth=depth, alpha=True)
        whole = encode(plan, pixels, alpha)
        top = np.iinfo(dtype).max
        integers = np.floor(pixels * np.float32(top) + 0.5).astype(dtype)
        assert encode(plan, integers, np.floor(alpha * np.float32(top) + 0.5).astype(dtype)) == whole
        bands = np.concatenate([plan.finish(pixels[start : start + 7]) for start in range(0, SIZE[0], 7)])
        assert encode(plan, bands, alpha, finished=True) == whole


def test_integers_of_another_depth_are_brought_to_the_plan() -> None:
    samples = noise(*SIZE, 3, np.uint16)
    again = read(encode(check(None, format="png", depth=8), samples))
    np.testing.assert_allclose(again.pixels, samples / 65535, atol=1 / 500)
    eight = noise(*SIZE, 3, np.uint8)
    again = read(encode(check(None, format="png", depth=16), eight))
    assert again.depth == 16
    np.testing.assert_array_equal(np.round(again.pixels * 65535), eight.astype(np.uint16) * 257)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_has_no_alpha_is_laid_on_the_background(depth: int, channels: int) -> None:
    pixels = waves(*SIZE, channels)
    alpha = waves(*SIZE, 1)[..., 0]
    plan = check(None, format="ppm", depth=depth, alpha=True, background=(0.25, 0.25, 0.25))
    assert "transparency" in plan.warnings[0]
    got = read(encode(plan, pixels, alpha)).pixels
    want = pixels * alpha[..., None] + 0.25 * (1 - alpha[..., None])
    np.testing.assert_allclose(got, want, atol=1.5 / (1 << depth))


def test_a_profile_is_carried_even_when_the_plan_did_not_know(good: Path) -> None:
    picture = read(good / "icc_wide.png")
    size = (picture.height, picture.width)
    data = encode(check_output(None, format="png", size=size), picture.pixels, None, picture)
    assert data == encode(check_output(None, format="png", size=size, picture=picture), picture.pixels, None, picture)
    assert read(data).profile == picture.profile


@pytest.mark.parametrize("format", ["jpg", "webp", "avif"])
def test_quality_matters_and_has_limits(format: str) -> None:
    plan = check(None, format=format)
    sizes = [len(encode(plan, waves(*SIZE), quality=quality)) for quality in (5, 50, 99)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    for quality in (0, 101):
        with pytest.raises(SettingsError, match=r"1\.\.100"):
            encode(plan, waves(*SIZE), quality=quality)


@pytest.mark.parametrize("format", ["jpg", "webp", "avif"])
@pytest.mark.parametrize("quality", [1, 89, 95, 100])
def test_noise_fits_into_every_encoder(format: str, quality: int) -> None:
    side = 300 if format == "jpg" else 100
    samples = noise(side, side, 3, np.uint8)
    assert read(encode(check(None, format=format, size=(side, side)), samples, quality=quality)).width == side


def test_webp_of_quality_100_loses_nothing() -> None:
    samples = noise(*SIZE, 3, np.uint8)
    again = read(encode(check(None, format="webp", alpha=True), samples, samples[..., 0], quality=100))
    np.testing.assert_array_equal(np.round(again.pixels * 255), samples)
    np.testing.assert_array_equal(np.round(again.alpha * 255), samples[..., 0])


def test_a_plan_for_another_size_is_a_bug() -> None:
    with pytest.raises(ValueError, match="the plan is for"):
        encode(check(None, format="png"), waves(5, 5))


@given(
    st.integers(1, 30), st.integers(1, 30), st.sampled_from(["png", "tiff", "bmp", "ppm", "tga", "qoi"]), st.booleans()
)
def test_lossless_formats_lose_nothing(height: int, width: int, format: str, grey: bool) -> None:
    samples = noise(height, width, 1 if grey else 3, np.uint8, seed=height * 31 + width)
    picture = read(samples)
    plan = check_output(None, format=format, size=(height, width), picture=picture)
    again = read(encode(plan, samples, None, picture)) if format != "tga" else None
    if again is not None:
        np.testing.assert_array_equal(np.round(again.rgb() * 255), np.broadcast_to(samples, (height, width, 3)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_large_results_take_little_beside_themselves(tmp_path: Path) -> None:
    """A result of 6 megapixels is written with less than half of itself beside it."""
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from enlarger.picture.write import check_output, write
        from enlarger.picture import png, tiff
        pixels = np.zeros((2000, 3000, 3), np.uint8)
        pixels += np.arange(3000, dtype=np.uint8)[:, None]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write(check_output(sys.argv[1], size=(2000, 3000)), pixels)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    for name in ("a.png", "a.tif", "a.ppm"):
        call = [sys.executable, "-c", script, str(tmp_path / name)]
        run = subprocess.run(call, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        assert int(run.stdout) < 18_000 // 2, name


# --- hooks of a run over many pictures


def test_a_file_is_given_up_when_its_writer_is_told_to_stop(tmp_path: Path) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(Interrupted):
        write(check(tmp_path / "a.ppm", size=(300, 400)), noise(300, 400), stopped=stopped)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_file_is_shown_before_it_takes_its_name(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def sealed(part: Path) -> None:
        assert not (tmp_path / "a.png").exists()
        seen.append(part.read_bytes())

    write(check(tmp_path / "a.png"), noise(*SIZE), sealed=sealed)
    assert seen == [(tmp_path / "a.png").read_bytes()]
