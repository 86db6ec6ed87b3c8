from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from enlarger.errors import ModelError
from enlarger.networks.rrdb import CompactNet, CompactShape, RRDBNet, RRDBShape, build, renamed, unwrapped

SHARED = Path(__file__).parents[2].parent / "shared"
SMALL = RRDBShape(channels=8, growth=4, blocks=2)


def weights(net: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of the usual size for every tensor of a network, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) * (0.1 if value.ndim == 1 else 1 / value[0].numel() ** 0.5)
        for key, value in net.state_dict().items()
    }


def picture(height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def by_hand(w: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """The recipe of the paper and of `reference/weights.md`, on bare tensors."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    first = features = conv("conv_first", x)
    for block in range(blocks):
        entry = features
        for dense in (1, 2, 3):
            name = f"body.{block}.rdb{dense}"
            stack = features
            for layer in range(1, 5):
                stack = torch.cat([stack, leaky(conv(f"{name}.conv{layer}", stack))], 1)
            features = features + 0.2 * conv(f"{name}.conv5", stack)
        features = entry + 0.2 * features
    features = first + conv("conv_body", features)
    for name in ("conv_up1", "conv_up2"):
        features = leaky(conv(name, features.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", leaky(conv("conv_hr", features)))


def test_the_network_is_the_papers_recipe():
    w = weights(RRDBNet(SMALL))
    net = build(w, "small")
    assert isinstance(net, RRDBNet)
    assert net.shape == SMALL
    torch.testing.assert_close(net(picture()), by_hand(w, picture(), 2), rtol=0, atol=2e-6)


def old_layout(w: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """The names of ESRGAN's first files; the numbers skip the layers without weights."""
    places = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}", "conv_up1": "model.3"}
    places |= {"conv_up2": "model.6", "conv_hr": "model.8", "conv_last": "model.10"}
    renamed = {}
    for key, value in w.items():
        name, kind = key.rsplit(".", 1)
        if name in places:
            renamed[f"{places[name]}.{kind}"] = value
        else:
            _, block, dense, conv = name.split(".")
            renamed[f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"] = value
    return renamed


def repository_layout(w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names in the ESRGAN repository's own code."""
    names = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    out = {}
    for key, value in w.items():
        name, kind = key.rsplit(".", 1)
        name = names.get(name, name).replace("body.", "RRDB_trunk.").replace("rdb", "RDB")
        out[f"{name}.{kind}"] = value
    return out


@pytest.mark.parametrize("layout", ["ours", "repository", "old"])
@pytest.mark.parametrize("wrapping", ["", "params_ema", "params", "module."])
def test_every_published_layout_gives_the_same_picture(layout, wrapping):
    w = weights(RRDBNet(SMALL))
    named = {"ours": w, "repository": repository_layout(w), "old": old_layout(w, 2)}[layout]
    if wrapping.endswith("."):
        checkpoint = {wrapping + key: value for key, value in named.items()}
    else:
        checkpoint = {wrapping: named} if wrapping else named
    assert torch.equal(build(checkpoint, "x")(picture()), build(w, "x")(picture()))


def test_averaged_weights_win_over_the_last_ones():
    w = weights(RRDBNet(SMALL))
    last = {key: value + 1 for key, value in w.items()}
    assert torch.equal(unwrapped({"params": last, "params_ema": w})["conv_last.bias"], w["conv_last.bias"])


@pytest.mark.parametrize(("doublings", "unshuffle", "factor"), [(1, 1, 2), (2, 1, 4), (3, 1, 8), (2, 2, 2), (2, 4, 1)])
def test_factor_and_folding_are_read_from_the_shapes(doublings, unshuffle, factor):
    shape = RRDBShape(8, 4, 1, doublings, unshuffle)
    net = build(weights(RRDBNet(shape)), "x")
    assert net.shape == shape
    assert net.factor == factor
    assert net.stride == unshuffle
    assert net(picture()).shape == (1, 3, 12 * factor, 16 * factor)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_compact_networks_add_to_the_repeated_pixels(factor):
    shape = CompactShape(8, 3, factor)
    w = weights(CompactNet(shape))
    net = build({"params": w}, "compact")
    assert isinstance(net, CompactNet)
    assert net.shape == shape
    x = features = picture()
    for layer in range(0, 9, 2):
        features = functional.conv2d(features, w[f"body.{layer}.weight"], w[f"body.{layer}.bias"], padding=1)
        if layer < 8:
            features = functional.prelu(features, w[f"body.{layer + 1}.weight"])
    expected = functional.pixel_shuffle(features, factor)
    expected = expected + x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "net", [RRDBNet(RRDBShape(4, 2, 1)), RRDBNet(RRDBShape(4, 2, 1, 2, 2)), CompactNet(CompactShape(4, 3, 2))]
)
def test_the_receptive_field_is_stated_and_no_larger_than_need_be(net):
    """By the gradient with weights that are all positive, so that nothing cancels out."""
    field, side = net.receptive_field, 60
    for parameter in net.parameters():
        parameter.data.fill_(0.1)
    x = torch.ones(1, 3, 5, side * 2, dtype=torch.float64)
    x = functional.pad(x, (0, 0, 0, net.stride - 5 % net.stride)) if 5 % net.stride else x
    x.requires_grad_()
    net.double()
    reach = []
    for place in range(side, side + net.stride):  # the place within a folded cell matters
        gradient = torch.autograd.grad(net(x)[0, :, :, place * net.factor : (place + 1) * net.factor].sum(), x)[0]
        seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        reach += [place - int(seen.min()), int(seen.max()) - place]
    assert field - 2 * net.stride <= max(reach) <= field


def test_the_usual_x4_sees_349_pixels():
    assert RRDBNet(RRDBShape(4, 2, 23)).receptive_field == 349
    assert CompactNet(CompactShape(4, 16)).receptive_field == 18


def test_what_does_not_fit_is_named_all_at_once():
    w = weights(RRDBNet(SMALL))
    del w["conv_hr.bias"]
    w["extra"] = torch.zeros(1)
    w["conv_up1.weight"] = torch.zeros(8, 7, 3, 3)
    with pytest.raises(ModelError) as caught:
        build(w, "broken.pth")
    for part in ("broken.pth", "conv_hr.bias", "extra", r"conv_up1.weight ((8, 7, 3, 3)"):
        assert part in str(caught.value)
    with pytest.raises(ModelError, match=r"no network of the ESRGAN family .* layer\.weight"):
        build({"layer.weight": torch.zeros(3)}, "other")
    with pytest.raises(ModelError, match="its tensors are none"):
        build({}, "empty")


def test_unknown_keys_keep_their_names():
    assert list(renamed({"model.diffusion_model.x": torch.zeros(1)})) == ["model.diffusion_model.x"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "name", "psnr_y"), [("Set5", "img_002", 28.86), ("Set5", "img_003", 22.43), ("Set14", "img_006", 29.55)]
)
def test_real_esrgan_gives_the_numbers_of_the_weights_table(folder, name, psnr_y):
    """reference/weights.md, section 1."""
    from PIL import Image

    file = SHARED / "weights" / "realesrgan_x4plus_fp16.safetensors"
    if not file.is_file():
        pytest.skip("Real-ESRGAN's weights are not beside the repository (../shared/weights)")
    small, true = (
        np.asarray(Image.open(SHARED / "benchmarks" / folder / part / f"{name}.png").convert("RGB")) / np.float32(255)
        for part in ("LRx4", "HR")
    )
    with torch.inference_mode():
        made = build(load_file(file), file.name)(torch.from_numpy(small).permute(2, 0, 1)[None])
    made = np.round(made[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255) / 255
    luma = (made - true)[4:-4, 4:-4] @ np.array([65.481, 128.553, 24.966])
    assert 10 * np.log10(255**2 / np.mean(luma**2)) == pytest.approx(psnr_y, abs=0.006)
