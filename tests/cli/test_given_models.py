"""Models that the command is told to load: found again for `--from`, missed with one exit code, sent where they fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from enlarger.checkpoints.families import FAMILIES
from enlarger.checkpoints.open import look_at
from enlarger.cli.options import find
from enlarger.engines.catalog import listings
from enlarger.networks.rrdb import CompactNet, CompactShape
from enlarger.settings import flag, rules
from tests.cli.support import Called, files, picture
from tests.engines import tiny

Call = Callable[..., Called]


def small_gan(path: Path, seed: int = 0) -> Path:
    """A network of the compact kind, x2."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(CompactNet(CompactShape(8, 2, 2)).state_dict(), path)
    return path


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture, and an empty folder for models that the command looks into."""
    monkeypatch.setenv("ENLARGER_MODELS", str(folder / "mine"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    (folder / "mine").mkdir()
    picture("a.png")
    return folder / "mine"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Stable Diffusion model, another autoencoder and a ControlNet, all tiny."""
    folder = tmp_path_factory.mktemp("models")
    parts = tiny.sd(folder / "words")
    tiny.save(folder / "sd", parts)
    tiny.vae(4, 0.18215, seed=9).save_pretrained(folder / "other")
    tiny.controlnet(parts["unet"]).save_pretrained(folder / "edges")
    return folder


def test_from_finds_the_recorded_model_in_the_folders_for_models(call: Call, mine: Path) -> None:
    small_gan(mine / "ESRGAN" / "sharp.safetensors")
    assert call("upscale", "a.png", "-e", "gan", "-m", "sharp", "-o", "b.png").code == 0
    done = call("upscale", "a.png", "--from", "b.png", "-o", "c.png", "--json")
    assert done.code == 0, done.err
    assert done.records[0]["model"] == "sharp"
    with Image.open("b.png") as one, Image.open("c.png") as other:
        assert np.array_equal(one, other)
    (mine / "ESRGAN").rename("elsewhere")
    done = call("upscale", "a.png", "--from", "b.png", "-o", "d.png", "--models-dir", "elsewhere")
    assert done.code == 0, done.err


def test_from_takes_no_other_model_of_the_name_and_none_of_the_current_folder(call: Call, mine: Path) -> None:
    digest = look_at(small_gan(Path("sharp.safetensors"))).digest
    assert call("upscale", "a.png", "-e", "gan", "-m", "sharp.safetensors", "-o", "b.png").code == 0
    for step in ("nothing there", "another of the name"):
        done = call("upscale", "a.png", "--from", "b.png", "-o", "c.png")
        assert done.code == 4, step
        assert f"b.png was made with the model sharp (digest {digest}), which is not in {mine}" in done.error
        assert done.error.endswith(": name it with -m FILE")
        small_gan(mine / "sharp.safetensors", seed=1)
    assert not Path("c.png").exists()
    assert call("upscale", "a.png", "--from", "b.png", "-m", "sharp.safetensors", "-o", "c.png").code == 0


def test_from_names_all_models_where_there_were_several(call: Call, mine: Path, diffusion: Path) -> None:
    words = ["upscale", "a.png", "-e", "img2img", "-s", "1", "--steps", "2"]
    held = ["-m", diffusion / "sd", "--vae", diffusion / "other"]
    assert call(*words, *held, "-o", "b.png").code == 0
    for given in ([], held[:2]):
        done = call("upscale", "a.png", "--from", "b.png", *given, "-o", "c.png")
        assert done.code == 4
        assert re.search(
            r"made with the models sd \+ other \(digest of all [0-9a-f]{16}\): name each again", done.error
        )
        assert "-m FILE" in done.error
        assert "--vae" in done.error
        assert "--cfw" not in done.error
    done = call("upscale", "a.png", "--from", "b.png", *held[2:], "-o", "c.png")
    assert (done.code, "name it with -m FILE" in done.error) == (4, True)
    assert call("upscale", "a.png", "--from", "b.png", *held, "-o", "c.png").code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("-e gan", 4, "engine gan needs a model: name its file or folder with -m"),
        ("-e img2img -m nowhere", 4, "there is no model nowhere: looked at"),
        ("-e img2img -m SD --vae nowhere", 4, "there is no model nowhere (--vae): looked at"),
        ("-e controlnet -m SD --control nowhere", 4, "there is no model nowhere (--control): looked at"),
        (
            "-e controlnet -m SD --control EDGES --control nowhere",
            4,
            "there is no model nowhere (--control): looked at",
        ),
        ("-e controlnet -m SD --control EDGES --map-model nowhere", 4, "there is no folder nowhere (--map-model)"),
        ("-e stablesr -m SD --base nowhere", 4, "there is no model nowhere (--base): looked at"),
        ("-e stablesr -m SD --cfw nowhere.ckpt", 4, "there is no model nowhere.ckpt (--cfw): looked at"),
        ("-e stablesr -m SD --reference nowhere.png", 3, "nowhere.png (--reference) does not exist"),
        ("-e controlnet -m SD --control EDGES --control-image no.png", 3, "no.png (--control-image) does not exist"),
    ],
)
def test_what_is_not_there_is_missed_before_anything_is_read(
    call: Call, mine: Path, diffusion: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int, told: str
) -> None:
    monkeypatch.setattr("enlarger.upscaler.Upscaler.__init__", _never)
    before = files(Path())
    filled = words.replace("SD", str(diffusion / "sd")).replace("EDGES", str(diffusion / "edges"))
    done = call("upscale", "a.png", *filled.split())
    assert done.code == code, done.err
    assert told in done.error
    assert files(Path()) == before


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("an engine was loaded")


def test_a_controlnet_that_is_not_named_is_a_missing_model_too(call: Call, mine: Path, diffusion: Path) -> None:
    done = call("upscale", "a.png", "-e", "controlnet", "-m", diffusion / "sd")
    assert (done.code, "name it with --control" in done.error) == (4, True)


def test_a_controlnet_in_a_folder_of_several_is_there(call: Call, mine: Path, diffusion: Path) -> None:
    words = ["-e", "controlnet", "-m", diffusion / "sd", "--control", f"{diffusion}:edges", "-s", "1", "--steps", "2"]
    done = call("upscale", "a.png", *words, "-o", "b.png")
    assert done.code == 0, done.err


def test_a_name_that_is_nowhere_is_told_with_the_near_one_and_how_to_list_all(call: Call, mine: Path) -> None:
    small_gan(mine / "4x-UltraSharp.pth")
    done = call("upscale", "a.png", "-e", "gan", "-m", "4x-UltraShrap.pth")
    assert done.code == 4
    assert f"looked at 4x-UltraShrap.pth itself and in {mine}" in done.error
    assert "did you mean 4x-UltraSharp?" in done.error
    assert "enlarger models lists what is there" in done.error
    assert "did you mean" not in call("inspect", "wibble").error


@pytest.mark.parametrize("engine", ["x4", "gan"])
def test_a_model_of_the_wrong_kind_is_told_with_the_engine_that_takes_it(
    call: Call, mine: Path, diffusion: Path, engine: str
) -> None:
    done = call("upscale", "a.png", "-e", engine, "-m", diffusion / "sd")
    assert done.code == 4
    assert f"sd is a Stable Diffusion 2.x model; engine {engine} needs " in done.error
    assert done.error.endswith("; use sd with -e img2img or -e controlnet, or --base of -e stablesr")


def test_every_family_is_sent_to_the_engines_that_take_it_and_to_no_others() -> None:
    takers: dict[str, set[str]] = {}
    for name, listing in listings().items():
        for family in listing.facts.families:
            takers.setdefault(family, set()).add(name)
    for name, family in FAMILIES.items():
        told = re.findall(r"-e ([a-z0-9]+)", family.use)
        assert takers.get(name, set()) <= set(told), name
        for engine in told:
            find(engine)
        options = re.findall(r"(--[a-z-]+)", family.use)
        for option in options:
            assert any(option in map(flag, rules(find(engine).facts.machine)) for engine in told), (name, option)
        alone = [engine for engine in told if f"of -e {engine}" not in family.use and engine != "pocket"]
        if not options:
            assert set(alone) <= takers.get(name, set()), name


def test_a_file_of_another_size_is_told_in_one_short_line(call: Call, mine: Path, tiny: Path) -> None:
    shutil.copy(tiny / "single_file" / "sd15_fp16.safetensors", "dream.safetensors")
    done = call("upscale", "a.png", "-e", "img2img", "-m", "dream.safetensors")
    assert done.code == 4
    shape = r"\d+(x\d+)*"
    told = rf"\d+ of its \d+ tensors have other shapes, such as \S+ \({shape}, not {shape}\) and \S+ \("
    assert re.search(told, done.error)
    assert "name the folder that it came in, with its config.json" in done.error
    assert len(done.error) < 500


def test_a_network_that_doubles_gives_twice_the_size_where_no_size_is_asked_for(call: Call, mine: Path) -> None:
    small_gan(Path("twice.safetensors"))
    words = ["upscale", "a.png", "-e", "gan", "-m", "twice.safetensors"]
    assert "would become a_2x.png, 48x32" in call(*words, "--dry-run").err
    done = call(*words, "--json")
    assert done.code == 0, done.err
    assert (done.records[0]["output"], done.records[0]["width"]) == ("a_2x.png", 48)
    assert call(*words, "-s", "3", "--json").records[0]["output"] == "a_3x.png"


@pytest.fixture(scope="module")
def adapters(diffusion: Path) -> Path:
    """A LoRA for the model, and an embedding, in the folder beside it."""
    to_v = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
    rows, columns = tiny.unet().get_submodule(to_v).weight.shape
    factors = {f"unet.{to_v}.lora_A.weight": torch.ones(1, columns), f"unet.{to_v}.lora_B.weight": torch.ones(rows, 1)}
    save_file(factors, diffusion / "style.safetensors")
    save_file({"emb_params": torch.ones(2, tiny.CONTEXT)}, diffusion / "word.safetensors")
    return diffusion


def test_from_asks_for_every_lora_and_embedding_again_and_is_content_with_them(
    call: Call, mine: Path, adapters: Path
) -> None:
    first = ("-m", adapters / "sd")
    more = (
        "--lora",
        f"{adapters / 'style.safetensors'}:0.5",
        "--embedding",
        f"{adapters / 'word.safetensors'}:harbour",
    )
    made = call(
        "upscale", "a.png", "-e", "img2img", *first, *more, "-p", "a harbour", "--steps", "2", "-s", "1", "-o", "b.png"
    )
    assert made.code == 0, made.err
    for given in ((), first, (*first, *more[:2])):
        refused = call("upscale", "a.png", "--from", "b.png", *given, "-o", "c.png")
        assert refused.code == 4
        assert "sd + style:0.5 + word as harbour" in refused.error
        assert "--lora" in refused.error
        assert "--embedding" in refused.error
    done = call("upscale", "a.png", "--from", "b.png", *first, *more, "-o", "c.png")
    assert done.code == 0, done.err
    with Image.open("b.png") as one, Image.open("c.png") as other:
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("option", "ending"), [("--lora", ":0.5"), ("--embedding", ":word")])
def test_a_missing_adapter_is_told_with_its_option_before_a_model_is_loaded(
    call: Call, mine: Path, option: str, ending: str
) -> None:
    Path("broken.safetensors").write_bytes(b"no model")
    refused = call("upscale", "a.png", "-e", "img2img", "-m", "broken.safetensors", option, f"nowhere{ending}")
    assert refused.code == 4
    assert f"there is no model nowhere ({option})" in refused.error


def test_what_was_said_of_the_prediction_is_part_of_the_recipe(call: Call, mine: Path, stablesr: Path) -> None:
    model = ("-m", stablesr / "model.safetensors")
    said = ("--prediction", "v_prediction")
    made = call("upscale", "a.png", "-e", "stablesr", *model, *said, "--steps", "2", "-s", "1", "-o", "b.png")
    assert made.code == 0, made.err
    assert call("upscale", "a.png", "--from", "b.png", *model, "-o", "c.png").code == 0
    other = call("upscale", "a.png", "--from", "b.png", *model, "--prediction", "epsilon", "-o", "d.png")
    assert other.code == 0, other.err
    with Image.open("b.png") as one, Image.open("c.png") as again, Image.open("d.png") as changed:
        assert np.array_equal(one, again)
        assert not np.array_equal(one, changed)
