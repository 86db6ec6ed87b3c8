"""Noise: the same values as diffusers draws, or values that depend on nothing but seed and place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enlarger.canvas.noise import PositionalNoise, SequentialNoise
from enlarger.canvas.tiles import Tile

WHOLE = Tile(0, 0, 300, 400)


@pytest.fixture(scope="module")
def field():
    return PositionalNoise(7).values(WHOLE)


def test_sequential_draws_are_those_of_one_torch_generator():
    source = SequentialNoise(2**63 - 1)
    generator = torch.Generator("cpu").manual_seed(2**63 - 1)
    for shape in [(1, 3, 5, 7), (1, 4, 16, 16), (1, 4, 16, 16)]:
        assert torch.equal(source.draw(shape), torch.randn(shape, generator=generator))


def test_sequential_draws_are_those_of_diffusers():
    from diffusers.utils.torch_utils import randn_tensor

    source, generator = SequentialNoise(3), torch.Generator("cpu").manual_seed(3)
    for shape in [(1, 4, 9, 11), (1, 4, 9, 11)]:
        assert torch.equal(source.draw(shape), randn_tensor(shape, generator=generator, dtype=torch.float32))


def test_no_source_touches_the_global_generator():
    before = torch.random.get_rng_state()
    SequentialNoise(1).draw((1, 4, 8, 8))
    PositionalNoise(1).values(Tile(0, 0, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), before)


@given(st.integers(0, 280), st.integers(0, 380), st.integers(1, 20), st.integers(1, 20))
def test_any_crop_of_positional_noise_is_the_same_part_of_the_whole(field, top, left, height, width):
    part = PositionalNoise(7).values(Tile(top, left, height, width))
    assert torch.equal(part, field[:, top : top + height, left : left + width])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_crop_is_the_same_part_for_any_number_of_channels(channels):
    whole = PositionalNoise(5, channels).values(Tile(0, 0, 9, 40))
    assert whole.shape == (channels, 9, 40)
    for left in range(12):
        assert torch.equal(PositionalNoise(5, channels).values(Tile(2, left, 3, 5)), whole[:, 2:5, left : left + 5])


def test_a_picture_of_any_size_starts_with_the_same_noise(field):
    assert torch.equal(PositionalNoise(7).values(Tile(0, 0, 10, 1200))[:, :, :400], field[:, :10])


def test_positional_noise_is_standard_normal(field):
    count = field.numel()
    values = field.double()
    # Five standard errors of each moment of a normal sample.
    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.std() - 1) < 5 / (2 * count) ** 0.5
    assert abs((values**3).mean()) < 5 * (15 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / count) ** 0.5
    # Kolmogorov and Smirnov's distance to the normal distribution; 1.95 / sqrt(n) has probability 0.001.
    ordered = torch.special.ndtr(values.flatten().sort().values)
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (ordered - steps).abs().max() < 1.95 / count**0.5


@pytest.mark.parametrize("shift", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 8), (0, 2, 3), (2, 0, 0)])
def test_rows_columns_and_channels_are_uncorrelated(field, shift):
    channels, rows, columns = (size - step for size, step in zip(field.shape, shift, strict=True))
    one = field[:channels, :rows, :columns].double()
    other = field[shift[0] :, shift[1] :, shift[2] :].double()
    assert abs((one * other).mean()) < 5 / one.numel() ** 0.5


def test_seeds_and_passes_have_noise_of_their_own(field):
    for other in (PositionalNoise(8), PositionalNoise(7 + 2**32), PositionalNoise(7, 3, 1), PositionalNoise(2**63 - 1)):
        values = other.values(WHOLE)
        assert abs((values * field).double().mean()) < 5 / field.numel() ** 0.5
        assert abs((values[:, 1:] * field[:, :-1]).double().mean()) < 5 / field.numel() ** 0.5


def test_a_batch_of_crops_draws_the_same_values_every_time(field):
    tiles = [Tile(0, 0, 8, 16), Tile(100, 37, 8, 16)]
    source = PositionalNoise(7).crop(tiles)
    first = source.draw((2, 3, 8, 16))
    assert torch.equal(first, torch.stack([field[:, :8, :16], field[:, 100:108, 37:53]]))
    assert torch.equal(source.draw((2, 3, 8, 16)), first)


def test_the_noise_of_a_seed_is_the_same_for_good():
    """Values made with numpy 2.4.6 and torch 2.13.0 (CPU): a picture can be made again years later."""
    values = PositionalNoise(7).values(Tile(1000, 2000, 1, 2)).flatten()
    expected = [0.32974458, 0.80896270, -0.27415740, -0.29511225, 0.59002519, -0.68063152]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-6)
    values = PositionalNoise(2**63 - 1, 4, 1).values(Tile(0, 0, 1, 2)).flatten()
    expected = [0.71818942, -0.26501217, 0.35591373, 0.53394848, 0.59684569, 0.13088579, 1.11001217, -0.46698275]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("word", [0, 2**32 - 1, 2**64 - 2**32, 2**64 - 1])
def test_the_rarest_words_are_finite_noise_too(monkeypatch, word):
    class Rare:
        def __init__(self, **_):
            pass

        def random_raw(self, count):
            return np.full(count, word, np.uint64)

    monkeypatch.setattr(np.random, "Philox", Rare)
    values = PositionalNoise(0).values(Tile(0, 0, 2, 4))
    assert values.isfinite().all()
    assert float(values.abs().max()) < 6.8


def test_asking_a_crop_for_another_shape_is_an_error():
    with pytest.raises(ValueError, match="shape"):
        PositionalNoise(7).crop([Tile(0, 0, 8, 16)]).draw((1, 3, 8, 8))
