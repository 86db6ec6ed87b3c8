"""Which device and numbers a Mac gets: the choice is real, the device a stand-in, since none is here."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import enlarger
from enlarger.checkpoints import modules
from enlarger.errors import ResourceError
from tests.engines import tiny
from tests.engines.test_gan import SHAPES, network

MAKERS = {"x4": tiny.x4, "img2img": tiny.sd, "controlnet": tiny.sd}


@pytest.fixture
def mac(monkeypatch):
    """A machine with MPS and no CUDA; what would go there is noted, and stays on the CPU."""
    placed = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def assigned(assign):
        def stand_in(*args, dtype, device, **options):
            placed.append((torch.device(device).type, dtype))
            return assign(*args, dtype=dtype, device="cpu", **options)

        return stand_in

    def to(module, *args, **options):
        kinds = [each for each in (*args, *options.values()) if isinstance(each, torch.dtype)]
        placed.extend((torch.device(each).type, kinds[0] if kinds else None) for each in args if str(each) == "mps")
        return module if not kinds else move(module, dtype=kinds[0])

    move = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", to)
    for place in (modules, pytest.importorskip("enlarger.engines.stablesr_files")):
        monkeypatch.setattr(place, "assign", assigned(place.assign))
    return placed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        tiny.save(place / name, make(place / "words" / name))
    tiny.controlnet(tiny.unet(in_channels=4)).save_pretrained(place / "tile")
    save_file(network(SHAPES["rrdb"]).state_dict(), place / "gan.safetensors")
    return place


def opened(name, models, **machine):
    more = {"control": str(models / "tile")} if name == "controlnet" else {}
    return enlarger.Upscaler(name, str(models / name), **more, **machine)


@pytest.mark.parametrize("name", MAKERS)
def test_a_mac_computes_on_mps_in_full_precision_unless_told_otherwise(mac, models, name):
    engine = opened(name, models).engine
    assert (engine.device.type, engine.dtype) == ("mps", torch.float32)
    assert set(mac) == {("mps", torch.float32)}
    mac.clear()
    engine = opened(name, models, dtype="float16").engine
    assert engine.dtype == torch.float16
    kinds = [dtype for _, dtype in mac]
    assert kinds.count(torch.float32) == 1  # the autoencoder
    assert kinds.count(torch.float16) >= 2
    assert {device for device, _ in mac} == {"mps"}
    mac.clear()
    assert opened(name, models, device="cpu").engine.device.type == "cpu"
    assert {device for device, _ in mac} == {"cpu"}


def test_stablesr_does_so_too(mac, stablesr):
    cfw = str(stablesr / "cfw.safetensors")
    assert enlarger.Upscaler("stablesr", str(stablesr / "model.safetensors"), cfw=cfw).engine.dtype == torch.float32
    assert set(mac) == {("mps", torch.float32)}


def test_the_other_networks_do_so_too(mac, models):
    assert enlarger.Upscaler("pocket").engine.device.type == "mps"
    gan = enlarger.Upscaler("gan", str(models / "gan.safetensors")).engine
    assert (gan.device.type, gan.dtype) == ("mps", torch.float32)
    assert "mps" in {device for device, _ in mac}


@pytest.mark.parametrize("name", [*MAKERS, "pocket"])
def test_where_there_is_none_the_devices_that_are_there_are_named(monkeypatch, models, name):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="device mps is not there; this machine has: cpu"):
        opened(name, models, device="mps") if name in MAKERS else enlarger.Upscaler(name, device="mps")
