from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from enlarger.engines.gan import Gan
from enlarger.errors import ModelError
from enlarger.networks.rrdb import CompactNet, CompactShape, RRDBNet, RRDBShape, build
from enlarger.settings import Machine
from enlarger.upscaler import Upscaler

SHAPES = {
    "rrdb": RRDBShape(16, 4, 5),
    "rrdb of odd width": RRDBShape(10, 4, 3),
    "x2, folded": RRDBShape(16, 4, 3, 2, 2),
    "x2": RRDBShape(8, 4, 2, 1),
    "x1, folded": RRDBShape(16, 4, 2, 2, 4),
    "compact": CompactShape(8, 4, 4),
}


def network(shape):
    net = RRDBNet(shape) if isinstance(shape, RRDBShape) else CompactNet(shape)
    generator = torch.Generator().manual_seed(0)
    w = {
        key: torch.randn(value.shape, generator=generator) * (0.1 if value.ndim == 1 else 1.5 / value[0].numel() ** 0.5)
        for key, value in net.state_dict().items()
    }
    # Into the middle of 0..1: what is clipped cannot differ.
    last = "conv_last" if isinstance(shape, RRDBShape) else f"body.{2 * shape.convolutions + 2}"
    w[f"{last}.weight"] *= 0.1
    w[f"{last}.bias"] = w[f"{last}.bias"] * 0.1 + (0.5 if isinstance(shape, RRDBShape) else 0)
    return build(w, "random")


def engine(net) -> Gan:
    return Gan(net, torch.device("cpu"), torch.float32)


def small_picture(height, width):
    return np.random.default_rng(4).random((height, width, 3), dtype=np.float32) * 0.6 + 0.2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_of_any_size_give_what_plain_torch_gives(shape):
    net = network(shape)
    source = small_picture(16, 48)
    with torch.inference_mode():
        plain = net(torch.from_numpy(source).permute(2, 0, 1)[None])[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert plain.std() > 0.01
    upscaler = Upscaler(engine(net))
    for tile in (24, 64, None):
        made = upscaler(source, tile=tile).pixels
        assert made.shape == plain.shape
        assert np.abs(made - plain).max() < 1e-5


def test_a_halo_one_pixel_too_small_would_be_seen(monkeypatch):
    """The check above can fail: with less than the stated field tiles do change the picture."""
    import dataclasses

    net = network(SHAPES["rrdb"])
    whole = Upscaler(engine(net))(small_picture(44, 72)).pixels
    short = engine(net)
    short.facts = dataclasses.replace(short.facts, field=2)
    assert np.abs(Upscaler(short)(small_picture(44, 72), tile=64).pixels - whole).max() > 1e-4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 67), (33, 2)])
@pytest.mark.parametrize("name", ["rrdb", "x2, folded", "x1, folded", "compact"])
def test_any_size_and_any_scale(name, height, width):
    upscaler = Upscaler(engine(network(SHAPES[name])))
    assert upscaler(small_picture(height, width)).pixels.shape == (
        height * upscaler.facts.factor,
        width * upscaler.facts.factor,
        3,
    )
    assert upscaler(small_picture(height, width), scale=2.5).size == (int(height * 2.5 + 0.5), int(width * 2.5 + 0.5))


def test_the_factor_is_the_files(tmp_path):
    for name in ("x2", "rrdb"):
        net = network(SHAPES[name])
        save_file(net.state_dict(), tmp_path / "a.safetensors")
        upscaler = Upscaler(Gan.load(str(tmp_path / "a.safetensors"), Machine(device="cpu")))
        result = upscaler(small_picture(6, 8))
        assert result.size == (6 * net.factor, 8 * net.factor)
        assert result.model == "a"
        assert len(result.digest) == 16


def test_pickles_are_opened_without_running_them(tmp_path):
    net = network(SHAPES["rrdb"])
    torch.save({"params_ema": net.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    made = Upscaler(Gan.load(str(tmp_path / "a.pth"), Machine(device="cpu")))(small_picture(8, 8))
    assert np.array_equal(made.pixels, Upscaler(engine(net))(small_picture(8, 8)).pixels)

    class Evil:
        def __reduce__(self):
            return ((tmp_path / "ran").touch, ())

    torch.save({"conv_first.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "text.pth", "list.pth", "absent.pth", "absent.safetensors"):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            Gan.load(str(tmp_path / name), Machine(device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_without_a_file_the_remedy_is_said():
    with pytest.raises(ModelError, match=r"--model FILE.*import-ncnn"):
        Gan.load(None, Machine(device="cpu"))


def test_consistency_brings_the_result_back_to_the_input():
    from enlarger.evaluation.fidelity import consistency

    upscaler = Upscaler(engine(network(SHAPES["rrdb"])))
    source = (small_picture(24, 24) * 255).astype(np.uint8)
    free, held = (upscaler(source, consistency=amount).pixels for amount in (0.0, 1.0))
    assert consistency(free, source) < 30
    assert consistency(held, source) > 38
