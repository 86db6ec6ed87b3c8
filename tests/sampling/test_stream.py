"""The loop on a stream of rows: for a local network, tiles, batches and shortages change nothing at all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.canvas.noise import PositionalNoise
from enlarger.canvas.tiles import Tile
from enlarger.engines.engine import Conditioning, Engine, Facts, Prediction
from enlarger.errors import ResourceError
from enlarger.sampling.residual import ResidualSteps
from enlarger.sampling.stream import Cutting, stages, stream
from enlarger.settings import SeededSettings
from enlarger.size import Size

FACTOR, STRIDE, FIELD = 2, 2, 2  # one cell of the half grid, to either side
BLUR = torch.outer(torch.tensor([1.0, 2, 4]), torch.tensor([3.0, 1, 2])).expand(3, 1, 3, 3) / 42
"""Not symmetric, so that a tile in the wrong place shows."""


class Nearby(Engine):
    """Blurs what it sees, on its own grid and on half of the source's; runs out of memory when told to."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, decode_field=0, short=()):
        self.facts = Facts(
            "nearby", "", SeededSettings, factor=FACTOR, stride=STRIDE, field=FIELD, decode_field=decode_field
        )
        self.short = set(short)
        self.calls = 0
        self.seen = []

    @classmethod
    def load(cls, model, machine, components=None):
        return cls()

    def condition(self, source, passage, prepared, settings, noise):
        return Conditioning(Plane(source))

    def predict(self, noisy, moment, conditioning):
        self.calls += 1
        if self.calls in self.short:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        source = conditioning.source.tensor
        self.seen.append(tuple(source.shape))
        assert noisy.shape[-2:] == (FACTOR * source.shape[-2], FACTOR * source.shape[-1])
        half = blur(functional.avg_pool2d(source, STRIDE))
        coarse = functional.interpolate(half, scale_factor=FACTOR * STRIDE)
        return Prediction(blur(noisy) * (1 + moment.timestep) + coarse)

    def decode(self, latent, conditioning):
        if self.facts.decode_field:
            return blur(latent)
        return latent + functional.interpolate(conditioning.source.tensor, scale_factor=FACTOR)


def blur(plane):
    return functional.conv2d(plane, BLUR, padding=1, groups=3)


def setting(size):
    passage = Pass(size, size.padded(STRIDE), FACTOR)
    source = PositionalNoise(1).values(Tile(0, 0, *passage.padded))[None]
    return passage, source, PositionalNoise(2)


def whole(engine, size, count):
    """The plain loop, no rows and no tiles."""
    passage, source, noise = setting(size)
    record = engine.condition(source, passage, None, None, None)
    steps = ResidualSteps(count, 0.7)
    values = noise.crop([Tile(0, 0, *passage.padded.times(FACTOR))])
    state = steps.start(values, (1, 3, *passage.padded.times(FACTOR)))
    for moment in steps.moments:
        state = steps.step(engine.predict(state, moment, record).conditional, state, moment, values)
    return engine.decode(state, record)[0]


def streamed(engine, size, count, tile, batch=1, read=7):
    passage, source, noise = setting(size)
    told, warned = [], []
    record = engine.condition(source, passage, None, None, None)
    rows = stream(
        engine, record, ResidualSteps(count, 0.7), noise, passage, Cutting(tile, batch, told.append, warned.append)
    )
    height = passage.padded.height * FACTOR
    parts = [rows.read(start, min(start + read, height)) for start in range(0, height, read)]
    return torch.cat(parts, 1), sum(told), warned


sizes = st.builds(Size, st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=15)
@given(
    sizes,
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(1, 130),
    st.sampled_from([0, 1]),
)
def test_tiles_batches_and_reads_change_nothing(size, count, tile, batch, read, decode_field):
    made, told, warned = streamed(Nearby(decode_field), size, count, tile, batch, read)
    torch.testing.assert_close(made, whole(Nearby(decode_field), size, count), rtol=0, atol=1e-5)
    area = size.padded(STRIDE).times(FACTOR).area
    assert told == area * stages(ResidualSteps(count, 0.7), decode_field)
    assert warned == []


@settings(max_examples=15)
@given(st.sampled_from([1, 2, 4]), st.sets(st.integers(1, 12), min_size=1, max_size=2), st.integers(1, 3))
def test_a_shortage_at_any_moment_changes_nothing_but_says_so(count, short, batch):
    size = Size(40, 84)
    made, told, warned = streamed(Nearby(short=short), size, count, 80, batch)
    torch.testing.assert_close(made, whole(Nearby(), size, count), rtol=0, atol=1e-5)
    assert told == size.times(FACTOR).area * count
    assert all(line.startswith("memory ran out") for line in warned)


def test_a_shortage_that_lasts_is_a_resource_error():
    with pytest.raises(ResourceError, match="memory ran out"):
        streamed(Nearby(short=range(1, 1000)), Size(70, 84), 1, 80)


def test_memory_is_bounded_by_the_tile_and_not_by_the_height():
    """However tall the picture, a network never sees more than a tile and its halo."""
    engine = Nearby()
    streamed(engine, Size(400, 20), 2, 16)
    assert max(shape[-2] for shape in engine.seen) <= 16 + 2 * FIELD
    assert max(shape[-1] for shape in engine.seen) <= 16 + 2 * FIELD


def test_nothing_is_computed_before_it_is_read():
    passage, source, noise = setting(Size(100, 20))
    engine = Nearby()
    record = engine.condition(source, passage, None, None, None)
    rows = stream(engine, record, ResidualSteps(2, 0.7), noise, passage, Cutting(20, 1, int, print))
    assert engine.calls == 0
    rows.read(0, 1)
    assert engine.calls < 6
