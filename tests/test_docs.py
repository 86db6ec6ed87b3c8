"""The documentation's examples run, and what it names is there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from enlarger.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.fixture
def photograph(tmp_path, monkeypatch):
    """A folder with a photo.jpg in it, to run in."""
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:80, :120] * 2
    Image.fromarray(np.stack([x, y, x + y], 2).clip(0, 255).astype(np.uint8)).save("photo.jpg")
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with tiny random models under the names that the pages use."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (the extra 'diffusers')")
    from tests.engines import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "stable-diffusion-x4-upscaler", tiny.x4(folder / "parts"))
    held, xl = tiny.with_control(folder / "parts-15"), tiny.sdxl(folder / "parts-xl")
    tile = held.pop("controlnet")
    tiny.save(folder / "stable-diffusion-v1-5", held)
    tile.save_pretrained(folder / "control_v11f1e_sd15_tile")
    tiny.save(folder / "sdxl", xl)
    tiny.controlnet(xl["unet"]).save_pretrained(folder / "openpose-sdxl")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
    rows, columns = held["unet"].get_submodule(layer).weight.shape
    factors = {
        f"unet.{layer}.lora_A.weight": torch.ones(1, columns),
        f"unet.{layer}.lora_B.weight": torch.ones(rows, 1),
    }
    save_file(factors, folder / "lora.safetensors")
    save_file({"emb_params": torch.ones(2, tiny.CONTEXT)}, folder / "embedding.safetensors")
    from tests.controls import test_maps

    test_maps.write_pose(folder / "vitpose")
    test_maps.write_finder(folder / "yolos")
    test_maps.write_depth(folder / "dpt")
    return folder


@pytest.fixture(scope="session")
def restorer(stablesr, tmp_path_factory):
    """A folder with a tiny StableSR under the published names."""
    from enlarger.checkpoints.tensors import open_tensors

    folder = tmp_path_factory.mktemp("restorer")
    for name, source in (("stablesr_turbo", "model"), ("vqgan_cfw_00011", "cfw")):
        tensors = open_tensors(stablesr / f"{source}.safetensors").items()
        torch.save(
            {"state_dict": {key: tensor.load(torch.float32) for key, tensor in tensors}}, folder / f"{name}.ckpt"
        )
    shutil.copy(stablesr / "config.json", folder)
    return folder


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_run(block, photograph, request):
    if '"stablesr"' in block:
        (photograph / "models").symlink_to(request.getfixturevalue("restorer"))
    elif "models/" in block:
        (photograph / "models").symlink_to(request.getfixturevalue("models"))
    exec(compile(block, "example", "exec"), {})


def test_the_misspelt_keyword_gets_the_answer_that_the_page_shows(photograph, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "scael" in block)
    exec(compile(block, "example", "exec"), {})
    assert re.search(r"print\(error\)\s+# (.*)", block)[1] in capsys.readouterr().out


def test_commands_of_the_readme_are_accepted(photograph):
    """Each runs as a rehearsal (--dry-run), but for those that need the user's model or this repository."""
    (photograph / "scans").mkdir()
    Image.new("RGB", (4, 4)).save(photograph / "scans" / "a.png")
    block = (ROOT / "README.md").read_text().split("## Use it")[1].split("```sh\n")[1].split("```")[0]
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert len(commands) > 5
    for command in commands:
        if "-m" not in command:
            assert main([*command[1:], "--dry-run", "--quiet"]) == 0, command


def test_links_and_pictures_exist():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_paths_in_the_architecture_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = "src/enlarger|canvas|sampling|engines|picture|evaluation|training|cli|batch"
    found = re.findall(rf"`((?:{rooms})/[a-z0-9_/]+\.(?:py|md))", text)
    assert len(found) > 20
    for path in found:
        place = ROOT / path if path.startswith("src") else ROOT / "src" / "enlarger" / path
        assert place.exists(), path


PROMPTED = re.findall(r"^enlarger .*", (ROOT / "docs" / "prompts.md").read_text(), re.M)
STAND_INS = {
    "sd15.safetensors": "stable-diffusion-v1-5",
    "sd-turbo": "stable-diffusion-v1-5",
    "sdxl.safetensors": "sdxl",
    "openpose-sdxl": "openpose-sdxl",
    "control_v11f1e_sd15_tile": "control_v11f1e_sd15_tile",
    "control_v11p_sd15_canny": "control_v11f1e_sd15_tile",
    "control_v11p_sd15_openpose": "control_v11f1e_sd15_tile",
    "control_v11f1p_sd15_depth": "control_v11f1e_sd15_tile",
    "vitpose-base-simple": "vitpose",
    "yolos-tiny": "yolos",
    "dpt-large": "dpt",
    "more_details.safetensors": "lora.safetensors",
    "film.safetensors": "lora.safetensors",
    "easynegative.safetensors": "embedding.safetensors",
    "learned_embeds.bin": "embedding.safetensors",
}
"""A name of the page's commands -> the tiny model that stands there."""


@pytest.mark.parametrize("command", PROMPTED)
def test_commands_with_prompts_run(command, photograph, models, monkeypatch):
    """Tiny models stand under the names of the page: `generate` runs, smaller than it says; `upscale` is rehearsed,
    which enlarges a small picture with the same settings."""
    from enlarger.controls import people

    for name in ("SURE", "FOUND"):
        monkeypatch.setattr(people, name, -100.0)  # random models are sure of nothing
    for name, stands in STAND_INS.items():
        (photograph / name).symlink_to(models / stands)
    Image.new("RGB", (256, 256), "white").save("small.png")
    Image.new("RGB", (64, 64), "white").save("dog.jpg")
    Path("pose.json").write_text('{"canvas_width": 9, "canvas_height": 9, "people": []}')
    _, *words = shlex.split(re.sub(r"--steps \d+", "--steps 4", command))
    if words[0] == "generate":
        place = words.index("--upscale") if "--upscale" in words else len(words)
        words[place:place] = ["--width", "32", "--height", "32", "--steps", "2"]
    else:
        words += ["--dry-run"]
    assert main(words) == 0
    assert words[0] == "upscale" or any(photograph.glob(f"{Path(words[words.index('-o') + 1]).stem}*.png"))


RESTORING = re.findall(r"^enlarger .*", (ROOT / "docs" / "stablesr.md").read_text(), re.M)


# Tiny ones know no words.
@pytest.mark.parametrize("command", [command for command in RESTORING if " -p " not in command])
def test_commands_that_restore_are_accepted(command, photograph, restorer):
    """Each runs as a rehearsal, with a tiny StableSR under the names of the page."""
    for name in set(re.findall(r"\S+\.ckpt", command)):
        (photograph / name).symlink_to(restorer / ("vqgan_cfw_00011.ckpt" if "cfw" in name else "stablesr_turbo.ckpt"))
    (photograph / "config.json").symlink_to(restorer / "config.json")
    for name in ("old.jpg", "scan.png"):
        Image.new("RGB", (300, 200), "grey").save(photograph / name)
    assert main([*shlex.split(command)[1:], "--dry-run", "--quiet"]) == 0
