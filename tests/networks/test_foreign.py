"""Other architectures by way of spandrel: imported without torchvision, recognised, blended, refused by name."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from enlarger.engines.gan import Gan
from enlarger.errors import ModelError, SettingsError
from enlarger.networks import foreign
from enlarger.networks.foreign import ForeignNet, build_foreign
from enlarger.upscaler import Upscaler

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("spandrel", "einops")),
    reason=f"the extra spandrel is not installed: {foreign.REMEDY}",
)


def architecture(name: str):
    return getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)


def swinir(**changes) -> dict[str, torch.Tensor]:
    """A tiny SwinIR with random weights."""
    foreign._spandrel("test")
    torch.manual_seed(0)
    shape = {"upscale": 4, "img_size": 16, "window_size": 8, "depths": [2, 2], "embed_dim": 12, "num_heads": [2, 2]}
    shape |= {"mlp_ratio": 2, "upsampler": "pixelshuffle", "resi_connection": "1conv", **changes}
    with foreign._quietly():
        weights = architecture("SwinIR")(**shape).state_dict()
    # Into the middle of 0..1, so that nothing is clipped.
    weights["conv_last.weight"] *= 0.3
    weights["conv_last.bias"] = torch.full_like(weights["conv_last.bias"], 0.05)
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).random((height, width, 3), dtype=np.float32) * 0.6 + 0.2


def test_spandrel_comes_without_torchvision():
    foreign._spandrel("test")
    assert not [name for name in sys.modules if name.startswith("torchvision")]
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("SwinIR", {}),
        ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 12, "upscale": 2}),
        ("OmniSR", {"num_feat": 16, "up_scale": 4}),
    ],
)
def test_architectures_are_told_by_their_tensors_and_take_any_size(name, shape):
    foreign._spandrel("test")
    torch.manual_seed(0)
    weights = swinir() if name == "SwinIR" else architecture(name)(**shape).state_dict()
    network = build_foreign({f"params.{key}": value for key, value in weights.items()}, "a.bin")
    assert network.architecture == name
    with torch.inference_mode():
        for size in ((1, 3), (13, 21)):
            made = network(torch.rand(1, 3, *size))
            assert made.shape == (1, 3, size[0] * network.factor, size[1] * network.factor)


def test_the_engine_gives_what_the_network_gives_and_finds_it_under_any_name(tmp_path):
    weights = swinir()
    save_file(weights, tmp_path / "a.safetensors")
    up = Upscaler("gan", str(tmp_path / "a.safetensors"))
    assert isinstance(up.engine, Gan)
    assert isinstance(up.engine.network, ForeignNet)
    source = photo(17, 22)
    with torch.inference_mode():
        plain = up.engine.network(torch.from_numpy(source).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    seen = []
    result = up(source, progress=seen.append)
    assert np.abs(result.pixels - plain.numpy().clip(0, 1)).max() < 1e-5
    assert result.model == "a"
    assert seen[-1].done == seen[-1].total
    assert up(source, scale=2.5).size == (43, 55)
    assert up(source, scale=9).size == (153, 198)


def test_tiles_overlap_and_leave_no_seam(tmp_path):
    """Blended, tiles differ from the whole by what attention sees beyond them, smoothly; butted, a step is left."""
    save_file(swinir(), tmp_path / "a.safetensors")
    up = Upscaler("gan", str(tmp_path / "a.safetensors"))
    source = photo(24, 96)
    whole = up(source, tile=4096).pixels
    tiled = up(source, tile=128).pixels
    off = np.abs(tiled - whole)
    assert 0 < off.max() < 0.05
    steps = np.abs(np.diff(tiled - whole, axis=1)).mean(axis=(0, 2))
    assert steps.max() < 0.01


def test_half_precision_is_refused_where_the_network_has_none(tmp_path):
    save_file(swinir(), tmp_path / "a.safetensors")
    with pytest.raises(SettingsError, match="SwinIR networks do not work in float16: choose float32"):
        Upscaler("gan", str(tmp_path / "a.safetensors"), dtype="float16")


def test_what_is_of_no_use_is_refused_by_name(monkeypatch):
    with pytest.raises(ModelError, match=r"a is of no architecture .* its tensors are wibble"):
        build_foreign({"wibble": torch.zeros(2)}, "a")
    weights = swinir()
    weights["layers.0.residual_group.blocks.0.norm1.weight"] = torch.zeros(5)
    with pytest.raises(ModelError, match="a looks like SwinIR, but does not fit it"):
        build_foreign(weights, "a")
    grey = swinir(in_chans=1)
    with pytest.raises(ModelError, match="a takes 1 channels and gives 1"):
        build_foreign(grey, "a")
    assert all(name in foreign._spandrel("a").MAIN_REGISTRY for name in foreign.WITHOUT)
    monkeypatch.setattr(foreign, "WITHOUT", ("SwinIR",))
    with pytest.raises(ModelError, match="a is a SwinIR network, which cannot run without torchvision"):
        build_foreign(swinir(), "a")


def test_without_the_extra_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.delitem(sys.modules, "spandrel")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "spandrel" else find(name, *rest)
    )
    save_file({f"wibble.{side}": torch.zeros(2, 2, 3, 3) for side in "ab"}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"an extra that is not installed: pip install .*enlarger\[spandrel\]"):
        Upscaler("gan", str(tmp_path / "a.safetensors"))
