"""The one loop: tiles are seen by the network alone; state, noise, guidance and steps know only the canvas."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from enlarger.canvas import blend
from enlarger.canvas.blend import WHOLE, Tiling
from enlarger.canvas.noise import SequentialNoise
from enlarger.engines.engine import Prediction
from enlarger.errors import ModelError, ResourceError
from enlarger.evaluation.artefacts import seam_score
from enlarger.sampling import names
from enlarger.sampling.loop import denoise
from enlarger.sampling.scheduler import DiffusersSteps
from enlarger.size import Size
from tests.engines import toy

SIZE = Size(40, 56)
TILES = Tiling(24, 8, batch=3)
ENGINES = (toy.Local, toy.GlobalNorm, toy.Hinted)


class Counting:
    """Remembers the shapes that were drawn."""

    def __init__(self, seed):
        self.source = SequentialNoise(seed)
        self.shapes = []

    def draw(self, shape):
        self.shapes.append(tuple(shape))
        return self.source.draw(shape)


def run(engine, record, *, size=SIZE, tiling=WHOLE, name="ddim", steps=4, seed=0, strength=None, noise=None, **options):
    """All steps of a run."""
    process = DiffusersSteps(toy.config(engine.kind), steps, name=name, strength=strength)
    noise = noise or SequentialNoise(seed)
    return list(denoise(engine, record, process, noise, size=size, tiling=tiling, **options))


def result(*args, **options):
    return run(*args, **options)[-1].state


# One tile, many tiles, batches


@pytest.mark.parametrize("name", names.SCHEDULERS)
@pytest.mark.parametrize("kind", toy.KINDS)
def test_one_tile_is_the_plain_loop_of_diffusers_exactly(kind, name):
    engine, record = toy.GlobalNorm(kind), toy.conditioning(SIZE)
    process, noise = DiffusersSteps(toy.config(kind), 4, name=name), SequentialNoise(3)
    state = process.start(noise, (1, 4, *SIZE))
    for moment in process.moments:
        output = engine.predict(process.scale(state, moment), moment, record).conditional
        state = process.step(output, state, moment, noise)
    for tiling in (WHOLE, Tiling(56, 8), Tiling(512, 64, weights="gaussian", placement="flush")):
        assert torch.equal(result(engine, record, tiling=tiling, name=name, seed=3), state)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("guided", [False, True])
def test_a_batch_of_tiles_is_one_by_one(make, guided):
    record = toy.conditioning(SIZE, hint=True, negative=0.3 if guided else None)
    one, three, all_at_once = (
        result(make("v_prediction"), record, tiling=dataclasses.replace(TILES, batch=batch), guidance_scale=3.0)
        for batch in (1, 3, 100)
    )
    tolerance = 3e-6 if guided else 1e-6  # guidance multiplies the rounding too
    torch.testing.assert_close(one, three, rtol=0, atol=tolerance)
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", names.SCHEDULERS)
def test_a_network_that_looks_at_single_cells_gives_the_same_in_tiles(name):
    record = toy.conditioning(SIZE, hint=True)
    whole = result(toy.Hinted(), record, name=name)
    for tiling in (TILES, Tiling(16, 4, 8, "gaussian", "flush")):
        torch.testing.assert_close(result(toy.Hinted(), record, tiling=tiling, name=name), whole, rtol=0, atol=2e-4)


def test_a_network_that_looks_two_cells_far_gives_nearly_the_same_in_tiles():
    record = toy.conditioning(SIZE)
    whole, tiled = (result(toy.Local(), record, tiling=tiling) for tiling in (WHOLE, TILES))
    assert float((whole - tiled).abs().max()) < 0.05
    assert float((whole - tiled).abs().mean()) < 0.005


@pytest.mark.parametrize("tiling", [WHOLE, TILES, Tiling(64, 8, fill=True), Tiling(48, 8, fill=True)])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-a"])
def test_noise_is_drawn_for_the_canvas_whatever_the_tiles(name, tiling):
    noise = Counting(5)
    run(toy.Toy(), toy.conditioning(SIZE), tiling=tiling, name=name, noise=noise)
    fresh = {"ddim": 0, "ddpm": 4, "euler-a": 4}[name]
    assert noise.shapes == [(1, 4, *SIZE)] * (1 + fresh)
    expected = torch.Generator("cpu").manual_seed(5)
    for shape in noise.shapes:
        torch.randn(shape, generator=expected)
    assert torch.equal(noise.draw((1, 4, *SIZE)), torch.randn((1, 4, *SIZE), generator=expected))


@pytest.mark.parametrize("size", [Size(40, 56), Size(20, 100), Size(5, 9)])
@pytest.mark.parametrize("make", [toy.Toy, toy.Hinted])
def test_filling_up_to_a_tile_only_changes_what_the_network_sees(make, size):
    record = toy.conditioning(size, hint=True)
    plain, filled = make(), make()
    one, other = (
        result(engine, record, size=size, tiling=Tiling(64, 8, fill=fill))
        for engine, fill in ((plain, False), (filled, True))
    )
    assert set(filled.shapes) == {(1, 4, 64, 64)}
    assert other.shape == (1, 4, *size)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


# Guidance


@pytest.mark.parametrize("tiling", [WHOLE, TILES])
def test_without_guidance_the_network_does_half_the_work(tiling):
    guided, plain = toy.Toy(), toy.Toy()
    run(guided, toy.conditioning(SIZE, negative=0.0), tiling=tiling, guidance_scale=5.0)
    run(plain, toy.conditioning(SIZE), tiling=tiling)
    work = [sum(torch.Size(shape).numel() for shape in engine.shapes) for engine in (guided, plain)]
    assert work[0] == 2 * work[1]


def test_guidance_moves_the_picture_away_from_the_negative_prompt():
    plain = result(toy.Toy(), toy.conditioning(SIZE, value=1.0, text=0.1))
    record = toy.conditioning(SIZE, value=1.0, text=0.1, negative=0.0)
    one, strong = (result(toy.Toy(), record, guidance_scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-5)
    assert float((strong - plain).mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_in_tiles_is_that_of_the_whole(rescale):
    """With statistics of each tile, a rescale would differ from the whole picture's and between tiles."""
    record = toy.conditioning(SIZE, text=0.1, negative=-0.4)
    whole, tiled = (
        result(toy.Toy(), record, tiling=tiling, guidance_scale=4.0, guidance_rescale=rescale)
        for tiling in (WHOLE, TILES)
    )
    torch.testing.assert_close(whole, tiled, rtol=0, atol=1e-4)


def test_a_rescale_changes_the_picture():
    record = toy.conditioning(SIZE, text=0.1, negative=-0.4)
    one, other = (
        result(toy.Toy("v_prediction"), record, guidance_scale=4.0, guidance_rescale=rescale) for rescale in (0.0, 0.7)
    )
    assert float((one - other).abs().mean()) > 0.01


# Starting, adjusting, previewing


def test_an_engine_may_start_from_a_latent():
    latent = torch.full((1, 4, *SIZE), 5.0)
    near = result(toy.Toy(start_at=latent), toy.conditioning(SIZE, value=0.0), strength=0.25, steps=8)
    far = result(toy.Toy(start_at=latent), toy.conditioning(SIZE, value=0.0), strength=1.0, steps=8)
    assert float(near.mean()) > float(far.mean()) + 0.05


def test_an_adjustment_sees_the_clean_estimate_of_the_whole_canvas():
    seen = []

    def adjust(clean, moment):
        seen.append((tuple(clean.shape), moment.index))
        return clean + 0.5

    record = toy.conditioning(SIZE)
    plain = result(toy.Toy(), record, tiling=TILES)
    adjusted = result(toy.Toy(), record, tiling=TILES, adjust=adjust)
    assert seen == [((1, 4, *SIZE), index) for index in (3, 2, 1, 0)]
    assert float((adjusted - plain).mean()) > 0.4


def test_previews_come_only_if_asked_for_and_become_the_result():
    record = toy.conditioning(SIZE)
    assert all(step.clean is None for step in run(toy.Toy(), record))
    engine = toy.Toy()
    process = DiffusersSteps(toy.config(set_alpha_to_one=True), 4)
    steps = list(denoise(engine, record, process, SequentialNoise(0), size=SIZE, preview=True))
    torch.testing.assert_close(steps[-1].clean, steps[-1].state, rtol=0, atol=1e-4)
    away = [float((step.clean - record.source.tensor).square().mean()) for step in steps]
    assert away == sorted(away)  # from the mean of all pictures to one of them


# Progress and cancelling


def test_every_forward_pass_is_told_and_the_last_step_is_the_result():
    steps = run(toy.Toy(), toy.conditioning(SIZE), tiling=TILES)
    count = len(TILES.plan(SIZE))
    assert [step.done for step in steps][:4] == [3, 6, 9, 12]
    assert steps[-1].done == steps[-1].total == 4 * count
    assert [step.moment.index for step in steps if step.state is not None] == [3, 2, 1, 0]
    assert all(step.warnings == () for step in steps)


def test_a_caller_that_stops_listening_stops_the_work():
    engine = toy.Toy()
    process = DiffusersSteps(toy.config(), 4)
    going = denoise(engine, toy.conditioning(SIZE), process, SequentialNoise(0), size=SIZE, tiling=TILES)
    next(going)
    going.close()
    assert len(engine.shapes) == 1


def test_the_callers_own_torch_mode_is_left_alone():
    process = DiffusersSteps(toy.config(), 4)
    for step in denoise(toy.Toy(), toy.conditioning(SIZE), process, SequentialNoise(0), size=SIZE, tiling=TILES):
        assert not torch.is_inference_mode_enabled()
        assert step.state is None or step.state.is_inference()


# Numbers that are none, and memory that is not there


class Breaking(toy.Toy):
    """Gives NaN in one cell at one moment."""

    def __init__(self, index, dtype=torch.float32, value=float("nan")):
        super().__init__()
        self.index, self.dtype, self.value = index, dtype, value

    def predict(self, noisy, moment, conditioning):
        outputs = super().predict(noisy, moment, conditioning)
        if moment.index == self.index:
            outputs.conditional[0, 0, 3, 3] = self.value
        return outputs


@pytest.mark.parametrize("tiling", [WHOLE, TILES])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_prediction_that_is_no_number_stops_with_step_timestep_and_remedy(value, tiling):
    with pytest.raises(ModelError, match=r"step 3 of 4 \(timestep 251\): try another --scheduler"):
        run(Breaking(1, value=value), toy.conditioning(SIZE), tiling=tiling)


def test_in_half_precision_the_remedy_is_float32():
    with pytest.raises(ModelError, match=r"--dtype float32 \(now float16\)"):
        run(Breaking(3, torch.float16), toy.conditioning(SIZE))


class Short(toy.Toy):
    """Runs out of memory beyond some cells in a forward pass; pointwise, so that tiles change nothing."""

    def __init__(self, cells, error=None):
        super().__init__()
        self.cells = cells
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def predict(self, noisy, moment, conditioning):
        if noisy.numel() // noisy.shape[1] > self.cells:
            raise self.error
        return super().predict(noisy, moment, conditioning)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to..."),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_the_picture_stays_the_same(error):
    record = toy.conditioning(SIZE)
    plenty = run(toy.Toy(), record, tiling=dataclasses.replace(TILES, batch=4))
    short = run(Short(24 * 24 * 2, error), record, tiling=dataclasses.replace(TILES, batch=4))
    torch.testing.assert_close(short[-1].state, plenty[-1].state, rtol=0, atol=1e-6)
    assert short[-1].warnings == ("memory ran out: 2 tiles in one forward pass from here on",)
    assert plenty[-1].warnings == ()


def test_out_of_memory_with_one_tile_halves_the_tile_for_good():
    engine, record = Short(30 * 30), toy.conditioning(SIZE)
    steps = run(engine, record)
    torch.testing.assert_close(steps[-1].state, result(toy.Toy(), record), rtol=0, atol=1e-4)
    assert steps[-1].warnings == ("memory ran out: tiles of 24x24 cells from here on, details may differ",)
    assert {shape[-2:] for shape in engine.shapes} == {(24, 24)}
    assert steps[-1].done == steps[-1].total == 4 * len(Tiling(24, 6).plan(SIZE))


def test_a_shortage_in_the_middle_of_a_moment_loses_and_doubles_no_tile():
    class Later(Short):
        def predict(self, noisy, moment, conditioning):
            self.cells = 10**9 if len(self.shapes) < 3 else 20 * 20
            return super().predict(noisy, moment, conditioning)

    record = toy.conditioning(SIZE)
    steps = run(Later(0), record, tiling=Tiling(40, 8, 2))
    torch.testing.assert_close(steps[-1].state, result(toy.Toy(), record), rtol=0, atol=1e-4)
    assert [line.split(":")[1][:10] for line in steps[-1].warnings] == [" one tile ", " tiles of "]


def test_too_little_memory_for_the_smallest_tile_is_a_resource_error():
    with pytest.raises(ResourceError, match=r"not enough memory for the smallest tile, 16x16 cells.*Tried to allocate"):
        run(Short(10), toy.conditioning(SIZE), tiling=Tiling(32, 8))


def test_other_errors_of_a_network_are_not_taken_for_a_shortage():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(Short(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), toy.conditioning(SIZE))


# Precision


def test_the_state_is_float32_whatever_the_network_computes_in():
    class Half(toy.Toy):
        dtype = torch.bfloat16

        def predict(self, noisy, moment, conditioning):
            assert noisy.dtype == torch.float32
            outputs = super().predict(noisy, moment, conditioning)
            return Prediction(outputs.conditional.bfloat16())

    for tiling in (WHOLE, TILES):
        steps = run(Half(), toy.conditioning(SIZE), tiling=tiling, name="dpm++2m", preview=True)
        assert {step.state.dtype for step in steps if step.state is not None} == {torch.float32}
        assert steps[-1].clean.dtype == torch.float32


# Seams


WIDE = Size(192, 256)
PLANS = (Tiling(32, 16, 64), Tiling(48, 16, 64), Tiling(64, 48, 64, "gaussian", "flush"))


def hard(starts, tile, shape):
    """Blending switched off: every cell is taken from one tile, cut in the middle of the overlap."""
    weights = torch.zeros(len(starts), tile)
    for number, start in enumerate(starts):
        first = (starts[number - 1] + tile - start) // 2 if number else 0
        last = tile - (start + tile - starts[number + 1] + 1) // 2 if number + 1 < len(starts) else tile
        weights[number, first:last] = 1
    return weights


def borders(tiling, axis):
    """Both edges of every overlap, and its middle, along an axis of `WIDE`."""
    starts = sorted({tile[axis] for tile in tiling.plan(WIDE)})
    pairs = list(pairwise(starts))
    edges = set(starts[1:]) | {start + tiling.tile for start in starts[:-1]}
    middles = {later + (earlier + tiling.tile - later) // 2 for earlier, later in pairs}
    return sorted(edges), sorted(middles)


def seams(latent, tiling):
    """The worse of the scores at the overlaps' edges and at their middles."""
    picture = (0.5 + 0.25 * latent[0, :3].permute(1, 2, 0)).clamp(0, 1).double().numpy()
    rows, columns = borders(tiling, 0), borders(tiling, 1)
    return max(seam_score(picture, rows[place], columns[place]) for place in (0, 1))


@pytest.fixture(params=["noise", "constant latent"])
def begin(request):
    """A toy whose output depends on each tile's mean, and what it looks at: from pure noise, and a constant latent."""
    if request.param == "noise":
        return toy.GlobalNorm("v_prediction"), toy.conditioning(WIDE), None
    latent = torch.zeros(1, 4, *WIDE)
    return toy.GlobalNorm("v_prediction", start_at=latent), toy.conditioning(WIDE, value=0.0), 0.8


@pytest.mark.parametrize("tiling", PLANS, ids=lambda tiling: f"{tiling.tile}-{tiling.overlap}-{tiling.weights}")
def test_blended_tiles_leave_no_seam_and_the_same_meter_sees_one_without_blending(begin, tiling, monkeypatch):
    engine, record, strength = begin
    options = {"size": WIDE, "tiling": tiling, "strength": strength, "steps": 5}
    blended = result(engine, record, **options)
    monkeypatch.setattr(blend, "axis_weights", hard)
    cut = result(engine, record, **options)
    assert seams(blended, tiling) <= 1.05
    assert seams(cut, tiling) > 1.5
