"""What the Stable Diffusion engines share in loading a model."""

from __future__ import annotations

import json

import pytest

from enlarger.engines.diffusion import load_parts
from enlarger.engines.settings import ModelMachine
from tests.engines import tiny


@pytest.mark.parametrize("in_memory", [False, True])
def test_another_autoencoder_gets_the_latents_scale_of_the_model(in_memory: bool, tmp_path) -> None:
    """A file with an autoencoder alone says none, and that of XL is not that of 1.5."""
    components = tiny.sdxl(tmp_path / "parts")
    wanted = components["vae"].config.scaling_factor
    other = tiny.vae(4, 2 * wanted, seed=9)
    other.save_pretrained(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["scaling_factor"] == 2 * wanted
    tiny.save(tmp_path / "model", components)
    machine = ModelMachine(device="cpu", vae=str(tmp_path / "other"))
    model = None if in_memory else str(tmp_path / "model")
    parts = load_parts("img2img", ("sdxl",), model, machine, components if in_memory else None)
    assert parts.vae.config.scaling_factor == wanted
    assert (parts.vae.decoder.conv_in.bias == other.decoder.conv_in.bias).all()
