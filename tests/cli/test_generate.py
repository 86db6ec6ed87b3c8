"""`enlarger generate`: files whole or not at all, options where they belong, straight on into an engine."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import main
from enlarger.picture.write import read_record
from tests.cli.support import Called, files, picture
from tests.engines import tiny

SMALL = ["--width", "24", "--height", "16", "--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    parts = tiny.sd(folder / "words")
    tiny.save(folder / "sd", parts)
    tiny.controlnet(parts["unet"]).save_pretrained(folder / "edges")
    return folder / "sd"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = main(["generate", *map(str, words)])
        said = capsys.readouterr()
        return Called(code, said.out, said.err)

    return call


def test_a_prompt_becomes_a_file_with_its_recipe(run, model):
    called = run("a cat", "-m", model, "-o", "cat.png", *SMALL, "--json")
    assert called.code == 0, called.err
    with Image.open("cat.png") as image:
        assert image.size == (24, 16)
    record = read_record("cat.png")
    assert record["engine"] == record["command"] == "generate"
    assert record["settings"]["prompt"] == "a cat"
    assert str(model.parent) not in str(record)
    (told,) = called.records
    assert (told["input"], told["output"], told["width"], told["height"]) == (None, "cat.png", 24, 16)
    assert told["settings"]["steps"] == 2


def test_the_same_seed_gives_the_same_file_and_samples_are_numbered(run, model):
    assert run("a cat", "-m", model, "-o", "a.png", *SMALL, "--seed", "5").code == 0
    assert run("a cat", "-m", model, "-o", "b.png", *SMALL, "--seed", "5").code == 0
    with Image.open("a.png") as one, Image.open("b.png") as other:
        assert np.array_equal(one, other)
    called = run("a cat", "-m", model, "-o", "c.png", *SMALL, "--samples", "2", "--seed", "random", "--json")
    assert called.code == 0
    first, second = called.records
    assert (first["output"], second["output"]) == ("c_1.png", "c_2.png")
    assert first["seed"] == second["seed"]
    with Image.open("c_1.png") as one, Image.open("c_2.png") as other:
        assert not np.array_equal(one, other)


def test_it_goes_straight_on_into_an_engine(run, model, tmp_path):
    called = run(
        "a cat", "-m", model, "-o", "big.png", *SMALL, "--seed", "5", "--json",
        "--upscale", "img2img", "-s", "2", "--steps", "3", "--strength", "0.9",
    )  # fmt: skip
    assert called.code == 0, called.err
    (told,) = called.records
    assert (told["width"], told["height"], told["engine"]) == (48, 32, "img2img")
    assert told["settings"]["prompt"] == "a cat"
    assert told["settings"]["seed"] == 5
    assert told["settings"]["steps"] == 3
    record = read_record("big.png")
    assert record["command"] == "generate"
    assert record["generated"]["settings"]["steps"] == 2
    with Image.open("big.png") as image:
        assert image.mode == "RGB"
    called = run("a cat", "-m", model, "-o", "plain.png", *SMALL, "--upscale", "interpolate", "-s", "3")
    assert called.code == 0, called.err
    with Image.open("plain.png") as image:
        assert image.size == (72, 48)
    assert files(tmp_path) == {"big.png", "plain.png"}


def test_a_control_picture_changes_the_result(run, model):
    picture("dog.png", (24, 16))
    plain, held = ("-m", model, *SMALL), ("--control", model.parent / "edges", "--control-image", "dog.png")
    assert run("a cat", *plain, "-o", "a.png").code == 0
    for name, more in (("b.png", ()), ("c.png", ("--control-map", "canny")), ("d.png", ("--control-scale", "0.2"))):
        called = run("a cat", *plain, *held, *more, "-o", name)
        assert called.code == 0, called.err
    pictures = []
    for name in ("a.png", "b.png", "c.png", "d.png"):
        with Image.open(name) as image:
            pictures.append(np.asarray(image).astype(int))
    assert all(np.abs(one - other).max() > 1 for at, one in enumerate(pictures) for other in pictures[:at])
    called = run("a cat", *plain, *held, "-o", "e.png", "--upscale", "controlnet", "-s", "2", "--steps", "2")
    assert called.code == 0, called.err


def test_standard_output_takes_a_picture(run, model, monkeypatch):
    class Out(io.TextIOWrapper):
        def isatty(self):
            return False

    out = Out(io.BytesIO(), write_through=True)
    monkeypatch.setattr("sys.stdout", out)
    assert main(["generate", "a cat", "-m", str(model), "-o", "-", "--format", "png", *SMALL]) == 0
    with Image.open(io.BytesIO(out.buffer.getvalue())) as image:
        assert image.size == (24, 16)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a cat", "-o", "a.png"], 4, "name a Stable Diffusion file or folder with -m"),
        (["a cat", "-m", "nowhere.safetensors", "-o", "a.png"], 4, "nowhere"),
        (["a cat", "-m", "MODEL"], 2, "name a file with -o"),
        (["a cat", "-m", "MODEL", "-o", "a.xyz"], 2, "xyz"),
        (["a cat", "-m", "MODEL", "-o", "none/a.png"], 5, "none"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--width", "3"], 2, "16 to 8192"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--strength", "0.3"], 2, "--strength"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--num-inference-steps", "3"], 2, "--steps"),
        (["a (cat:99)", "-m", "MODEL", "-o", "a.png"], 2, "0 to 10"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale"], 2, "needs an engine"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale=x4"], 2, "two words"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale", "img2im"], 2, "did you mean img2img"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale", "x4"], 4, "-m after --upscale x4"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale", "controlnet"], 4, "--control, before"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale", "img2img", "--dtype", "float16"], 2, "before --upscale"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--upscale", "pocket", "--strength", "1"], 2, "--strength"),
        (["a cat", "-m", "MODEL", "-o", "a.png", "--control-scale", "1"], 2, "name it with --control"),
        (["a cat", "-m", "MODEL", "-o", "-", "--samples", "2"], 2, "standard output"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_leaves_nothing(run, model, tmp_path, words, code, said):
    called = run(*[str(model) if word == "MODEL" else word for word in words])
    assert called.code == code, called.err
    assert said in called.error
    assert not files(tmp_path)


def test_existing_files_are_kept(run, model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    called = run("a cat", "-m", model, "-o", "a.png", *SMALL)
    assert called.code == 5
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert run("a cat", "-m", model, "-o", "a.png", *SMALL, "--overwrite").code == 0
    with Image.open("a.png") as image:
        assert image.size == (24, 16)


def test_settings_of_an_earlier_result_with_a_file_ask_for_it_again(run, model, capsys):
    picture("dog.png", (24, 16))
    held = ["-e", "controlnet", "-m", str(model), "--control", str(model.parent / "edges"), "--steps", "2"]
    assert main(["upscale", "dog.png", "-o", "big.png", *held, "--control-image", "dog.png"]) == 0
    again = ["upscale", "dog.png", "-o", "more.png", *held[2:], "--from", "big.png"]
    capsys.readouterr()
    assert main(again) == 2
    assert "name it again with --control-image" in capsys.readouterr().err
    assert main([*again, "--control-image", "dog.png"]) == 0
    with Image.open("big.png") as one, Image.open("more.png") as other:
        assert np.array_equal(one, other)
    assert run("a cat", "-m", model, "-o", "cat.png", *SMALL).code == 0
    capsys.readouterr()
    assert main(["upscale", "dog.png", "-o", "x.png", "--from", "cat.png"]) == 2
    assert "enlarger generate" in capsys.readouterr().err
