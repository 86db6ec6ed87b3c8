"""Whatever is wrong with a command line: the right exit code, one line with the remedy, nothing written, no torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import process

REFUSED = [
    # a line's words | exit code | what the one line must say
    ("a.png --guidence-scale 3", 2, "--guidence-scale", "did you mean --guidance-scale?"),
    ("a.png --sclae 3", 2, "--sclae", "did you mean --scale?"),
    ("a.png --promt cat", 2, "--promt", "did you mean --prompt?"),
    ("a.png -scale 3", 2, "-scale", "did you mean --scale?"),
    ("a.png --max_memory 3GB", 2, "--max_memory", "did you mean --max-memory?"),
    ("a.png --scal 3", 2, "--scal", "did you mean --scale?"),
    ("a.png --wibble", 2, "--wibble", "--help"),
    ("a.png -z", 2, "-z", "--help"),
    ("a.png --num_inference_steps 2", 2, "--num_inference_steps", "called --steps"),
    ("a.png --number_of_inference_steps 2", 2, "--number_of_inference_steps", "called --steps"),
    ("a.png --cfg_scale 7", 2, "--cfg_scale", "called --guidance-scale"),
    ("a.png --denoising_strength 0.4", 2, "--denoising_strength", "called --strength"),
    ("a.png --denoising-strength=0.4", 2, "--denoising-strength", "called --strength"),
    ("a.png --controlnet_conditioning_scale 1", 2, "--controlnet_conditioning_scale", "called --control-scale"),
    ("a.png --tile_size 512", 2, "--tile_size", "called --tile"),
    ("a.png --outscale 3", 2, "--outscale", "called --scale"),
    ("a.png --prompt cat", 2, "engine pocket does not use --prompt", "x4"),
    ("a.png -p cat", 2, "engine pocket does not use --prompt", "x4"),
    ("a.png --scale 0", 2, "scale", "1 to 16"),
    ("a.png --scale 0.99", 2, "scale", "1 to 16"),
    ("a.png --scale -1", 2, "scale", "1 to 16"),
    ("a.png --scale nan", 2, "scale nan", "1 to 16"),
    ("a.png --scale inf", 2, "scale inf", "1 to 16"),
    ("a.png --scale -inf", 2, "scale -inf", "1 to 16"),
    ("a.png --scale 1e9", 2, "scale", "1 to 16"),
    ("a.png -s 16.01", 2, "scale", "1 to 16"),
    ("a.png --scale four", 2, "scale 'four'", "not a number"),
    ("a.png --scale", 2, "--scale", "needs a value"),
    ("a.png --scale --size 90x60", 2, "--scale", "needs a value"),
    ("a.png --size 0x9", 2, "size", "1 to 1000000"),
    ("a.png --size 90", 2, "size", "1800x512"),
    ("a.png --size 20x16", 2, "size", "only enlarges"),
    ("a.png --size 90x999", 2, "size", "at most 16 times"),
    ("a.png --longest 0", 2, "longest", "1 to"),
    ("a.png --megapixels 0", 2, "megapixels", "above 0"),
    ("a.png --scale 2 --size 90x60", 2, "--scale and --size", "only one"),
    ("a.png --longest 90 --megapixels 1", 2, "--longest and --megapixels", "only one"),
    ("a.png --steps 3", 2, "steps 3", "1, 2, 4"),
    ("a.png --steps 0", 2, "steps 0", "1, 2, 4"),
    ("a.png --steps 1.5", 2, "steps '1.5'", "whole number"),
    ("a.png --seed -1", 2, "seed '-1'", "0 to 9223372036854775807"),
    ("a.png --seed 9223372036854775808", 2, "seed", "0 to 9223372036854775807"),
    ("a.png --seed radnom", 2, "seed 'radnom'", "random"),
    ("a.png --fidelity 1.5", 2, "fidelity 1.5", "0 to 1"),
    ("a.png --consistency -0.1", 2, "consistency -0.1", "0 to 1"),
    ("a.png --preset vivd", 2, "vivd", "did you mean vivid"),
    ("a.png --tile 7", 2, "tile 7", "16 to"),
    ("a.png --batch 0", 2, "batch 0", "1 to 1024"),
    ("a.png --dtype half", 2, "dtype 'half'", "float16"),
    ("a.png --device tpu", 2, "device 'tpu'", "cuda"),
    ("a.png --max-memory 0", 2, "max_memory", "3GB"),
    ("a.png --max-memory lots", 2, "max_memory", "3GB"),
    ("a.png --page 0", 2, "page 0", "1"),
    ("a.png --page 2", 2, "page 2", "only page 1"),
    ("a.png --max-pixels 0", 2, "max_pixels 0", "at least 1"),
    ("a.png -e interpolate --steps 2", 2, "interpolate does not use --steps", "pocket"),
    ("a.png -e interpolate --seed 2", 2, "interpolate does not use --seed", "pocket"),
    ("a.png --filter lanczos", 2, "pocket does not use --filter", "interpolate"),
    ("a.png --linear-light", 2, "pocket does not use --linear-light", "interpolate"),
    ("a.png -e interpolate --filter lancos", 2, "lancos", "did you mean lanczos"),
    ("a.png -e poket", 2, "'poket'", "did you mean pocket?"),
    ("a.png -e wibble", 2, "'wibble'", "interpolate, pocket"),
    ("a.png --quality 0", 2, "quality 0", "1 to 100"),
    ("a.png --quality 50", 2, "--quality is for", "PNG loses nothing"),
    ("a.png -o b.jpg --format png --quality 50", 2, "", ""),
    ("a.png -o - --format tiff --quality 50", 2, "--quality is for", "TIFF"),
    ("a.png --format exr", 2, "'exr'", "png"),
    ("a.png --overwrite=yes", 2, "--overwrite", "takes no value"),
    ("a.png --no-metadata --strip-private", 2, "--strip-private", "--no-metadata"),
    ("a.png -o b.xyz", 2, "b.xyz", ".png"),
    ("a.png -o b", 2, "b names no format", "--format"),
    ("a.png -o b.jpg --format png", 2, "b.jpg and --format png", "contradict"),
    ("a.png -o -", 2, "standard output", "--format"),
    ("a.png -o - --format png --json", 2, "--json", "-o"),
    ("a.png c.png -o - --format png", 2, "standard output", "one picture"),
    ("a.png - --format png", 2, "standard input", "other inputs"),
    ("a.png c.png -o b.png", 2, "2 inputs", "b.png"),
    ("a.png a.png", 2, "a.png and a.png", "a_4x.png"),
    ("a.png sub/a.png -o out", 2, "a.png and sub/a.png", "a_4x.png"),
    ("", 2, "INPUT", "--help"),
    ("missing.png", 3, "missing.png", "does not exist"),
    ("''", 3, "empty name", "name of a picture"),
    ("broken.png", 3, "broken.png", "give a picture"),
    ("empty", 3, "empty", "no pictures"),
    ("a.png --max-pixels 100", 3, "a.png", "--max-pixels"),
    ("a.png --from a.png", 3, "a.png", "no settings"),
    ("a.png -m nowhere.safetensors", 4, "nowhere.safetensors", "looked at"),
    ("a.png -m x --models-dir nowhere", 4, "nowhere", "--models-dir"),
    ("a.png -o there.png", 5, "there.png", "--overwrite"),
    ("a.png -o a.png", 5, "a.png", "the input itself"),
    ("a.png -o a.png --overwrite", 5, "a.png", "the input itself"),
    ("a.png -o link.png --overwrite", 5, "link.png", "the input itself"),
    ("a.png -o nowhere/b.png", 5, "nowhere", "does not exist"),
    ("a.png -o nowhere/", 5, "nowhere", "does not exist"),
    ("sub -o nowhere/deeper", 5, "nowhere", "does not exist"),
    ("sub -o there.png", 5, "there.png", "is a file"),
    ("a.png --report=nowhere", 5, "nowhere", "--report"),
    ("a.png -o - --format png --report", 2, "--report", "piped"),
    ("a.png -o - --format png --samples 2", 2, "2 samples", "--sample N"),
    ("a.png --samples 65", 2, "samples 65", "1 to 64"),
    ("a.png --sample 2", 2, "sample 2", "--samples"),
    ("tall.png --format webp", 5, "WEBP", "16,383"),
]

SCRIPT = """
import contextlib, io, json, shlex, sys, time
from pathlib import Path
from enlarger.cli.main import main

for words in json.load(open(sys.argv[1])):
    before = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["upscale", *shlex.split(words)])
    seconds = time.process_time() - started
    after = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    print(json.dumps([code, out.getvalue(), err.getvalue(), seconds, before == after, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """How each line ended, all in one fresh process that has never needed torch."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("refusals")
    for name in ("a.png", "c.png", "there.png", "sub/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (24, 16), "orange").save(folder / name)
    Image.new("L", (2, 5000)).save(folder / "tall.png")
    (folder / "link.png").hardlink_to(folder / "a.png")
    (folder / "broken.png").write_text("this is no picture")
    (folder / "empty").mkdir()
    (folder / "out").mkdir()
    lines = folder / "lines.json"
    lines.write_text(json.dumps([words for words, *_ in REFUSED]))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(lines)], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip([words for words, *_ in REFUSED], ends, strict=True))


@pytest.mark.parametrize(("words", "code", "what", "remedy"), REFUSED, ids=[words or "-" for words, *_ in REFUSED])
def test_a_wrong_line_is_refused_in_one_line(
    ends: dict[str, list[object]], words: str, code: int, what: str, remedy: str
) -> None:
    ended, out, err, seconds, untouched, torch = ends[words]
    assert isinstance(err, str)
    assert ended == code, err
    assert err.startswith("enlarger: error: ")
    assert err.count("\n") == 1
    assert what in err
    assert remedy in err
    assert out == ""
    assert untouched, "a file was written or changed"
    assert not torch, "torch was imported before the line was refused"
    assert isinstance(seconds, float)
    assert seconds < 1


def test_a_wrong_option_in_a_fresh_process_takes_less_than_a_second(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = process("upscale", "a.png", "--scale", "0", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert done.returncode == 2
    assert done.stderr.startswith("enlarger: error: scale")
    assert not list(tmp_path.iterdir())
