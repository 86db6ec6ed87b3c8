"""What every command tells: what was lost, what failed of several things, and words that help where one is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.support import Called, picture
from tests.cli.test_given_models import small_gan
from tests.engines import tiny

Call = Callable[..., Called]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion model."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder / "sd", tiny.sd(folder / "words"))
    return folder / "sd"


def animation(path: Path) -> Path:
    """Two frames, dark and light."""
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("black", "white")]
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0)
    return path


def test_generate_tells_what_the_format_cannot_hold(call: Call, folder: Path, model: Path) -> None:
    words = ["generate", "a cat", "-m", model, "--width", "16", "--height", "16", "--steps", "1", "--depth", "16"]
    assert "warning: reduced from 16 bit to 8 bit: WEBP has no more" in call(*words, "-o", "a.webp").err
    done = call(*words, "-o", "a.png")
    assert (done.code, "reduced" in done.err) == (0, False)


def test_compare_tells_what_a_sheet_does_not_show_and_takes_a_page(call: Call, folder: Path) -> None:
    Image.new("RGBA", (16, 12), (255, 0, 0, 90)).save("half.png")
    words = ["--engines", "interpolate,interpolate:filter=nearest", "-s", "2"]
    done = call("compare", "half.png", *words, "-o", "a.png")
    assert done.err.count("a sheet shows no transparency") == 1
    assert "no transparency" not in call("compare", "half.png", *words, "-o", "b.png", "--quiet").err
    animation(Path("two.gif"))
    done = call("compare", "two.gif", *words, "-o", "c.png")
    assert done.err.count("it holds 2 pages or frames") == 1
    done = call("compare", "two.gif", *words, "-o", "d.png", "--page", "2")
    assert (done.code, "pages or frames" in done.err) == (0, False)
    with Image.open("d.png") as sheet:
        assert sheet.convert("L").getextrema()[1] == 255
    assert call("compare", "two.gif", *words, "-o", "e.png", "--page", "3").code == 2


def test_degrade_tells_what_is_lost_and_names_no_option_of_other_commands(call: Call, folder: Path) -> None:
    Image.new("RGBA", (16, 12), (255, 0, 0, 90)).save("half.png")
    animation(Path("two.gif"))
    done = call("degrade", "half.png", "two.gif", "-o", "small")
    assert done.code == 0
    assert "half.png: transparency left out" in done.err
    assert "two.gif: it holds 2 pages or frames; the first was taken\n" in done.err


def test_where_some_of_several_fail_each_is_an_error_and_the_last_line_counts_them(call: Call, folder: Path) -> None:
    picture("a.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:-400])
    Path("b.pth").write_bytes(b"no model")
    (folder / "HR").mkdir()
    (folder / "LR").mkdir()
    for name in ("HR/a.png", "HR/b.png", "LR/a.png"):
        shutil.copy("a.png", name)
    shutil.copy("b.png", "LR/b.png")
    for words, counted in (
        ("degrade a.png b.png -o small", "1 of 2 pictures failed"),
        ("compare a.png --engines interpolate,gan@b.pth -o sheet.png -s 2", "1 of 2 engines failed"),
        ("evaluate --pairs HR LR --engines interpolate --metrics psnr-y", "1 of 2 pictures failed"),
        ("upscale a.png b.png -e interpolate", "1 of 2 pictures failed, 1 is done"),
    ):
        done = call(*words.split())
        lines = [line for line in done.err.splitlines() if line.startswith("enlarger: error: ")]
        assert done.code == 7, words
        assert len(lines) == 2, done.err
        assert "b" in lines[0], words
        assert lines[1].startswith(f"enlarger: error: {counted}"), words
        assert done.err.endswith(lines[1] + "\n")


def test_metrics_that_all_lack_a_file_are_one_line(call: Call, folder: Path) -> None:
    for name in ("HR/a.png", "LR/a.png"):
        picture(name)
    done = call("evaluate", "--pairs", "HR", "LR", "--engines", "interpolate", "--metrics", "dists,lpips-vgg")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.error.count("--vgg FILE") == 1
    done = call("evaluate", "--pairs", "HR", "LR", "--engines", "interpolate", "--metrics", "dists,psnr-y")
    assert done.code == 0
    assert "enlarger: warning: dists is unavailable: needs VGG16" in done.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("generate a lighthouse -o a.png", 2, "'lighthouse' is one word too many: put words that belong toge"),
        ("generate x -o a.png --size 64x48", 2, "here it is --width and --height"),
        ("evaluate --pairs HR --engines interpolate", 2, "--pairs needs a value (HR LR), but --engines follows"),
        ("models convert . a.safetensors", 4, ". is a folder, and convert takes a file"),
        ("models import-ncnn no.param no.bin", 4, "there is no file no.param"),
        ("inspect .", 4, "the folder here is no model"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_with_the_right_one(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int, told: str
) -> None:
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    done = call(*words.split())
    assert (done.code, told in done.error) == (code, True), done.err


def test_from_with_another_model_says_that_it_is_another(call: Call, folder: Path) -> None:
    picture("a.png")
    small_gan(Path("one.safetensors"))
    small_gan(Path("other.safetensors"), seed=1)
    assert call("upscale", "a.png", "-e", "gan", "-m", "one.safetensors", "-o", "b.png").code == 0
    same = call("upscale", "a.png", "--from", "b.png", "-m", "one.safetensors", "-o", "c.png")
    assert (same.code, "recorded with" in same.err) == (0, False)
    done = call("upscale", "a.png", "--from", "b.png", "-m", "other.safetensors", "-o", "d.png")
    assert done.code == 0
    assert "enlarger: note: the settings were recorded with the model one (" in done.err
    assert "and other (" in done.err
