"""What pocket promises beyond what every engine owes: settings that do what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import enlarger
from enlarger.engines.catalog import POCKET
from enlarger.engines.pocket import Pocket
from enlarger.errors import ModelError
from enlarger.networks.pocket import FACTOR, RECEPTIVE_FIELD, STRIDE
from tests.engines.test_contract import picture


@pytest.fixture(scope="module")
def up():
    return enlarger.Upscaler("pocket")


def test_the_catalog_tells_the_network_s_numbers():
    assert (POCKET.factor, POCKET.stride, POCKET.field) == (FACTOR, STRIDE, RECEPTIVE_FIELD)
    assert RECEPTIVE_FIELD <= 48


def test_a_full_run_is_the_steps_one_after_the_other(up, monkeypatch):
    calls = []
    network = up.engine.network
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *given: calls.append(given) or forward(*given))
    up(picture(10, 12), steps=4, fidelity=0.25)
    assert [round(float(call[2][0]), 3) for call in calls] == [1.0, 0.6, 0.3, 0.1]
    assert all(float(call[3][0]) == 0.75 for call in calls)


def test_fidelity_one_leaves_no_noise(up):
    source = picture(12, 12)
    assert np.array_equal(up(source, fidelity=1, seed=1).pixels, up(source, fidelity=1, seed=2).pixels)


def test_more_fidelity_means_less_noise(up):
    source = picture(16, 16)
    apart = [
        np.abs(up(source, fidelity=f, seed=1).pixels.astype(int) - up(source, fidelity=f, seed=2).pixels).mean()
        for f in (0, 0.5, 0.9)
    ]
    assert apart[0] > apart[1] > apart[2] > 0


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_brings_the_source_back(up, steps):
    source = picture(24, 24)
    reduced = {}
    for amount in (0, 1):
        result = up(source.astype(np.float32) / 255, steps=steps, fidelity=0, consistency=amount)
        tensor = torch.from_numpy(result.pixels).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(tensor, (24, 24), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
        reduced[amount] = float(np.sqrt(((small.numpy() * 255 - source) ** 2).mean()))
    assert reduced[1] < 0.6
    assert reduced[1] < reduced[0] / 2


def test_a_second_pass_is_more_faithful(up):
    settings = up.settings(fidelity=0.2)
    assert up.engine.later(settings).fidelity == pytest.approx(0.6)


def test_other_weights_can_be_named_and_wrong_ones_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    from enlarger.engines.pocket import WEIGHTS

    weights = load_file(WEIGHTS)
    good = tmp_path / "a.bin"
    save_file(weights, good)
    assert enlarger.Upscaler("pocket", str(good)).engine.loaded.model == "a"
    del weights["head.bias"]
    weights["tail.weight"] = weights["tail.weight"][:2].contiguous()
    weights["more"] = torch.zeros(1)
    weights["up.bias"][0] = float("nan")
    save_file(weights, tmp_path / "b.bin")
    with pytest.raises(ModelError) as error:
        enlarger.Upscaler("pocket", str(tmp_path / "b.bin"))
    for words in ("missing: head.bias", "unexpected: more", "wrong shape: tail.weight", "not finite: up.bias"):
        assert words in str(error.value)
    (tmp_path / "c.bin").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"c\.bin is cut"):
        enlarger.Upscaler("pocket", str(tmp_path / "c.bin"))


def test_parts_in_memory_are_refused():
    with pytest.raises(ModelError, match="no parts"):
        enlarger.Upscaler("pocket", components={"unet": None})


def test_out_of_memory_makes_smaller_pieces_and_says_so(monkeypatch):
    up = enlarger.Upscaler("pocket")
    source = picture(30, 44)
    whole = up(source).pixels
    predict = Pocket.predict

    def short(self, noisy, moment, conditioning):
        if noisy.shape[0] * noisy.shape[2] * noisy.shape[3] > 64 * 65:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        return predict(self, noisy, moment, conditioning)

    monkeypatch.setattr(Pocket, "predict", short)
    monkeypatch.setattr("enlarger.sampling.stream.LEAST_TILE", 2)
    monkeypatch.setattr(Pocket, "facts", dataclasses.replace(POCKET, field=4))
    result = up(source, batch=2, tile=80)
    assert any("memory ran out" in warning for warning in result.warnings)
    assert result.pixels.shape == whole.shape
