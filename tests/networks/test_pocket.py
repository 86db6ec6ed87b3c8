"""pocket's network: exact in tiles, as local as it says, as cheap as promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enlarger.networks.pocket import FACTOR, RECEPTIVE_FIELD, STRIDE, PocketNet, keys_cubic, multiply_adds


@pytest.fixture(scope="module")
def net() -> PocketNet:
    """A network of the shipped shape, all of whose layers have a say."""
    torch.manual_seed(0)
    net = PocketNet(width=8, middle_width=8).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.12 if parameter.dim() == 4 else 0.1))
    return net.double()


def evaluate(net: PocketNet, source: Tensor, state: Tensor, eta: float = 0.6, strength: float = 0.7) -> Tensor:
    count = source.shape[0]
    numbers = (torch.full((count,), value, dtype=source.dtype) for value in (eta, strength))
    with torch.inference_mode():
        return net(source, state, *numbers)


def inputs(height: int, width: int, count: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1
    state = torch.randn(count, 3, height * FACTOR, width * FACTOR, generator=generator, dtype=torch.float64) * 0.25
    return source, state


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 20, 14), (44, 46, 10, 12), (90, 80, 20, 24)])
def test_a_crop_with_the_halo_gives_the_whole_pictures_result(
    net: PocketNet, top: int, left: int, height: int, width: int
) -> None:
    rows, columns = 110, 104
    source, state = inputs(rows, columns)
    whole = net.enlarge(source) + evaluate(net, source, state)
    above, before = max(0, top - RECEPTIVE_FIELD), max(0, left - RECEPTIVE_FIELD)
    below, after = min(rows, top + height + RECEPTIVE_FIELD), min(columns, left + width + RECEPTIVE_FIELD)
    part = source[..., above:below, before:after]
    noisy = state[..., FACTOR * above : FACTOR * below, FACTOR * before : FACTOR * after]
    tile = net.enlarge(part) + evaluate(net, part, noisy)
    tile = tile[..., FACTOR * (top - above) :, FACTOR * (left - before) :][..., : FACTOR * height, : FACTOR * width]
    expected = whole[..., FACTOR * top : FACTOR * (top + height), FACTOR * left : FACTOR * (left + width)]
    assert (tile - expected).abs().max() <= 1e-9 * whole.abs().max()


@pytest.mark.parametrize("place", [56, 57])
def test_the_receptive_field_is_true_and_tight(net: PocketNet, place: int) -> None:
    source, state = inputs(8, 120)
    reference = evaluate(net, source, state)
    source[..., place] += 0.5
    state[..., FACTOR * place : FACTOR * (place + 1)] += 0.5
    changed = (evaluate(net, source, state) - reference).abs().amax((0, 1, 2)).unflatten(0, (-1, FACTOR)).amax(1)
    reached = (changed > 0).nonzero().flatten()
    reach = max(place - int(reached[0]), int(reached[-1]) - place)
    assert RECEPTIVE_FIELD - STRIDE < reach <= RECEPTIVE_FIELD <= 48


def test_work_is_within_the_promise() -> None:
    net = PocketNet()
    assert multiply_adds(net, 256, 256, steps=1) <= 7e9
    assert multiply_adds(net, 256, 256, steps=4) <= 18.4e9


def test_work_is_counted_as_it_is_done() -> None:
    counted = 0

    def hook(module: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal counted
        weight = module.weight
        assert isinstance(weight, Tensor)
        counted += weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    net = PocketNet(width=8, middle_width=16)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(hook)
    source, state = (part.float() for part in inputs(16, 24))
    evaluate(net, source, state)
    assert multiply_adds(net, 64, 96, steps=3) == 3 * counted + net.bicubic.numel() * 16 * 24


def test_pictures_of_a_batch_do_not_meet(net: PocketNet) -> None:
    source, state = inputs(12, 16, count=3)
    together = evaluate(net, source, state)
    for place in range(3):
        alone = evaluate(net, source[place : place + 1], state[place : place + 1])
        assert torch.allclose(together[place], alone[0], rtol=0, atol=1e-9)


def test_eta_and_strength_both_matter(net: PocketNet) -> None:
    source, state = inputs(12, 16)
    reference = evaluate(net, source, state, 0.6, 0.7)
    assert (evaluate(net, source, state, 0.3, 0.7) - reference).abs().max() > 1e-3
    assert (evaluate(net, source, state, 0.6, 0.2) - reference).abs().max() > 1e-3


def test_enlarging_is_keys_bicubic_with_repeated_edges() -> None:
    source, _ = inputs(6, 8)
    enlarged = PocketNet(width=4, middle_width=4, blocks=(1, 1, 1)).double().enlarge(source)
    for row, column in ((0, 0), (9, 13), (23, 31)):
        centre_y, centre_x = (row + 0.5) / 4 - 0.5, (column + 0.5) / 4 - 0.5
        expected = torch.zeros(3, dtype=torch.float64)
        for y in range(int(centre_y) - 3, int(centre_y) + 5):
            for x in range(int(centre_x) - 3, int(centre_x) + 5):
                weights = keys_cubic(torch.tensor([centre_y - y, centre_x - x], dtype=torch.float64))
                expected += source[0, :, min(max(y, 0), 5), min(max(x, 0), 7)] * weights.prod()
        assert torch.allclose(enlarged[0, :, row, column], expected, atol=1e-6)


def test_a_flat_picture_is_enlarged_flat() -> None:
    enlarged = PocketNet(width=4, middle_width=4, blocks=(1, 1, 1)).enlarge(torch.full((1, 3, 4, 6), 0.3))
    assert enlarged.shape == (1, 3, 16, 24)
    assert (enlarged - 0.3).abs().max() < 1e-6
