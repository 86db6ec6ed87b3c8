"""StableSR's own networks: what the recorded numbers of the whole do not show."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import nn

from enlarger.networks.cfw import Fusion, FusionShape, Weighted, Wrapping
from enlarger.networks.spade import Spade, blocks, maps, modulate
from enlarger.networks.time_aware_encoder import EncoderShape, TimeAwareEncoder, time_embedding

# At 32 channels the norms would see each channel alone and take the time out again.
SMALL = EncoderShape(channels=64, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, outputs=64)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_a_timestep_is_told_by_cosines_and_then_sines():
    told = time_embedding(torch.tensor([0, 250]), 8)
    frequencies = [1.0, 0.1, 0.01, 0.001]  # 10000 ** (-k / 4)
    assert told[0].tolist() == [1.0] * 4 + [0.0] * 4
    expected = [math.cos(250 * f) for f in frequencies] + [math.sin(250 * f) for f in frequencies]
    assert told[1].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11), (1, 1)])
def test_every_level_has_a_map_of_half_the_side_rounded_up(height, width):
    net = TimeAwareEncoder(SMALL).eval()
    told = net(torch.randn(2, 4, height, width), torch.tensor([0, 999]))
    assert [tuple(one.shape) for one in told] == [
        (2, 64, height, width),
        (2, 64, -(-height // 2), -(-width // 2)),
    ]


def test_the_maps_know_the_time_and_items_do_not_know_each_other():
    net, latent = TimeAwareEncoder(SMALL).eval(), torch.randn(2, 4, 6, 6)
    early, late = (net(latent, torch.tensor([t, t])) for t in (0, 999))
    assert all(float((one - other).abs().max()) > 1e-3 for one, other in zip(early, late, strict=True))
    alone = net(latent[1:], torch.tensor([999]))
    for one, other in zip(alone, late, strict=True):
        torch.testing.assert_close(one, other[1:], atol=1e-5, rtol=1e-5)


def test_modulation_scales_and_shifts_what_is_normed():
    layer = Spade(32, 8).eval()
    features, told = torch.randn(1, 32, 5, 6) * 7 + 3, torch.randn(1, 8, 5, 6)
    for conv in (layer.mlp_gamma, layer.mlp_beta):
        conv.weight.zero_()
        conv.bias.fill_(2.0)
    made = layer(features, told)
    normed = nn.functional.group_norm(features, 32)  # the norm's own scale and shift begin at 1 and 0
    torch.testing.assert_close(made, normed * 3 + 2)


def test_with_guidance_both_halves_read_one_map():
    layer, told = Spade(32, 8).eval(), torch.randn(2, 8, 4, 4)
    features = torch.randn(4, 32, 4, 4)
    torch.testing.assert_close(layer(features, told), layer(features, torch.cat([told, told])))


def test_a_map_of_another_tile_is_refused():
    with pytest.raises(ValueError, match="a map of 4x4 cells for features of 4x5"):
        Spade(32, 8)(torch.zeros(1, 32, 4, 5), torch.zeros(1, 8, 4, 4))


class Block(nn.Module):
    """As much of diffusers' residual block as modulation touches."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(32, 32, 1)


class Stage(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.resnets = nn.ModuleList(Block() for _ in range(count))


class Net(nn.Module):
    """Two levels, one block down each, two up each."""

    def __init__(self):
        super().__init__()
        self.down_blocks = nn.ModuleList([Stage(1), Stage(1)])
        self.mid_block = Stage(2)
        self.up_blocks = nn.ModuleList([Stage(2), Stage(2)])


def test_every_block_reads_its_own_level_and_keeps_its_name():
    net = Net()
    before = set(net.state_dict())
    modulate(net, 8)
    assert [level for _, level in blocks(net)] == [0, 1, 1, 1, 1, 1, 0, 0]
    assert {key for key in net.state_dict() if ".spade." not in key} == before
    told = [torch.randn(1, 8, 6, 6), torch.randn(1, 8, 3, 3)]
    for block, level in blocks(net):
        features = torch.randn(1, 32, 6 // 2**level, 6 // 2**level)
        plain = nn.functional.conv2d(features, block.conv2.weight, block.conv2.bias)
        with maps(told):
            torch.testing.assert_close(block.conv2(features), block.spade(plain, told[level]))


def test_threads_do_not_see_each_others_maps():
    net = Net()
    modulate(net, 8)
    conv = net.down_blocks[0].resnets[0].conv2
    features = torch.randn(1, 32, 4, 4)
    told = [[torch.randn(1, 8, 4, 4)] * 2 for _ in range(2)]
    alone = []
    for each in told:
        with maps(each):
            alone.append(conv(features))
    together, ready = {}, threading.Barrier(2)

    def work(number):
        with torch.no_grad(), maps(told[number]):
            ready.wait()
            together[number] = conv(features)
            ready.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.allclose(alone[0], alone[1])
    assert all(torch.equal(together[number], alone[number]) for number in (0, 1))


def test_fusion_counts_as_much_as_is_asked_for():
    layer = Fusion(32, FusionShape(1, 8)).eval()
    encoded, decoded = torch.randn(2, 1, 32, 5, 5).unbind(0)
    assert torch.equal(Weighted(layer, 0.0)(encoded, decoded), decoded)
    added = Weighted(layer, 1.0)(encoded, decoded) - decoded
    assert float(added.abs().max()) > 1e-3
    torch.testing.assert_close(Weighted(layer, 0.25)(encoded, decoded), decoded + 0.25 * added, atol=1e-5, rtol=1e-4)


def test_the_encoders_features_stand_first():
    layer = Fusion(32, FusionShape(1, 8)).eval()
    first = layer.encode_enc_1
    first.conv1.weight.zero_()
    first.conv_out.weight[:, 32:].zero_()  # only the first half of what stands side by side still counts
    encoded, decoded, other = torch.randn(3, 1, 32, 5, 5).unbind(0)
    assert torch.equal(layer(encoded, decoded), layer(encoded, other))
    assert not torch.allclose(layer(encoded, decoded), layer(other, decoded), atol=1e-3)


def test_all_but_the_first_and_last_level_are_fused():
    assert Wrapping((32, 64, 64), FusionShape(1, 8)).levels == (1,)
    names = {key.split(".")[0] for key in Wrapping((32, 32, 64, 64), FusionShape(1, 8)).state_dict()}
    assert names == {"fusion_layer_1", "fusion_layer_2"}
