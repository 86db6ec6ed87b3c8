"""The autoencoder gives the same picture whole and in tiles, whatever the size, the memory and what is put into it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from enlarger.canvas.autoencoder import Autoencoder, run
from enlarger.canvas.autoencoder.insertion import operations_of
from enlarger.canvas.autoencoder.maps import FileMap, MemoryMap, Statistics, affine
from enlarger.canvas.autoencoder.operations import Norm, Program, Reader, Shape
from enlarger.canvas.autoencoder.plan import KEYS, SLACK, TOKENS, Plan, pooling
from enlarger.canvas.tiles import Tile, spans
from enlarger.errors import ResourceError
from enlarger.evaluation.artefacts import seam_score
from enlarger.networks.cfw import Fusion, FusionShape, Weighted
from enlarger.size import Size

WIDTHS = {4: (32, 32, 64), 8: (32, 32, 64, 64)}
FUSED = {4: {1: 32}, 8: {1: 64, 2: 32}}
"""Levels of the decoder, 0 the coarsest, behind which something is put, and their channels."""

LATENT = (27, 41)
TILES = (16, 24, 40)


def model(factor, widths=None):
    diffusers = pytest.importorskip("diffusers")
    widths = widths or WIDTHS[factor]
    torch.manual_seed(factor)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2 if len(set(widths)) > 2 else 1,
        norm_num_groups=min(8 if widths[0] < 128 else 32, widths[0]),
    )
    return vae.eval().requires_grad_(False)


def spread(tensor):
    return float(tensor.max() - tensor.min())


def error(found, expected):
    """Largest distance as a share of the range."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) / spread(expected)


def latent(height=LATENT[0], width=LATENT[1]):
    """Lights and shadows that differ from tile to tile, and texture."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, 4, 3, 3, generator=generator) * 2
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth + 0.5 * torch.randn(1, 4, height, width, generator=generator)


def picture(height, width):
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 3, 3, generator=generator) * 2 - 1
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth + 0.2 * torch.randn(1, 3, height, width, generator=generator)


@pytest.fixture(scope="module", params=[4, 8])
def factor(request):
    return request.param


@pytest.fixture(scope="module")
def vae(factor):
    return model(factor)


@pytest.fixture(scope="module")
def fused(factor):
    """StableSR's fusion layers behind levels of the decoder, with features, and the whole picture they give."""
    torch.manual_seed(5)
    insertions = {
        level: Weighted(Fusion(width, FusionShape(blocks=1, growth=8)), 0.7) for level, width in FUSED[factor].items()
    }
    features = {
        level: 3 + torch.randn(1, width, LATENT[0] * 2**level, LATENT[1] * 2**level)
        for level, width in FUSED[factor].items()
    }
    return insertions, features


@pytest.fixture(scope="module")
def untiled(vae, fused):
    insertions, features = fused
    return Autoencoder(vae).decode(latent(), insertions=insertions, features=features).pixels


@pytest.fixture
def per_tile(monkeypatch):
    """What every other tool does: norms with the statistics of the tile."""

    def normaliser(self, norm, sources, part):
        statistics = []
        for name in sources:
            cells = torch.empty((part.height, part.width, self.maps[name].shape.channels))
            self.maps[name].read(part, cells)
            statistics.append(Statistics())
            statistics[-1].add(cells)
        middle, scale, shift = run.affine(norm, statistics)
        return lambda rows: rows.sub_(middle).mul_(scale).add_(shift)

    monkeypatch.setattr(run.Run, "_normaliser", normaliser)


# Equal to diffusers


@torch.inference_mode()
def test_whole_it_is_what_diffusers_makes(vae):
    mine = Autoencoder(vae)
    assert error(mine.decode(latent()).pixels, vae.decode(latent()).sample) < 1e-5
    for size in ((96, 104), (203, 141)):
        expected = vae.encode(picture(*size)).latent_dist
        found = mine.encode(picture(*size))
        assert error(found.mean, expected.mean) < 1e-5
        assert error(found.logvar, expected.logvar) < 1e-5


@pytest.mark.parametrize("name", ["x4", "sd15", "sd21base", "sdxl"])
@torch.inference_mode()
def test_the_tiny_models_are_decoded_and_encoded_as_by_diffusers(tiny, name):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(tiny / name / "vae", local_files_only=True).eval()
    mine = Autoencoder(theirs)
    assert (mine.factor, mine.latent_channels) == (4 if name == "x4" else 8, 4)
    assert mine.scaling == theirs.config.scaling_factor
    for tile in (None, 16):
        assert error(mine.decode(latent(37, 21), tile=tile).pixels, theirs.decode(latent(37, 21)).sample) < 1e-5
        expected = theirs.encode(picture(150, 203)).latent_dist
        assert error(mine.encode(picture(150, 203), tile=tile).mean, expected.mean) < 1e-5


@torch.inference_mode()
def test_a_model_without_pointwise_ends_and_without_attention(vae, factor):
    theirs = model(factor)
    theirs.quant_conv = theirs.post_quant_conv = None
    theirs.mid_block_add_attention = False
    for part in (theirs.encoder, theirs.decoder):
        part.mid_block.attentions[0] = None
        part.mid_block.add_attention = False
    mine = Autoencoder(theirs)
    expected = theirs.decoder(latent())
    assert error(mine.decode(latent(), tile=16).pixels, expected) < 1e-5
    assert error(mine.encode(picture(99, 120), tile=8).mean, theirs.encoder(picture(99, 120)).chunk(2, 1)[0]) < 1e-5


def test_a_model_in_half_precision_is_computed_in_single(factor):
    half, rounded = model(factor).half(), model(factor).half().float()
    assert (
        error(Autoencoder(half).decode(latent(20, 17)).pixels, Autoencoder(rounded).decode(latent(20, 17)).pixels)
        < 1e-6
    )


# Tiles change nothing


@pytest.mark.parametrize("tile", TILES)
def test_tiles_change_nothing_in_a_decode_with_insertions_that_have_norms(vae, fused, untiled, tile):
    insertions, features = fused
    decoded = Autoencoder(vae).decode(latent(), tile=tile, insertions=insertions, features=features)
    assert decoded.plan.tile == tile
    assert error(decoded.pixels, untiled) < 1e-5


@pytest.mark.parametrize("tile", TILES)
def test_the_statistics_of_each_tile_alone_are_seen(vae, fused, untiled, tile, per_tile):
    insertions, features = fused
    found = Autoencoder(vae).decode(latent(), tile=tile, insertions=insertions, features=features).pixels
    assert error(found, untiled) > 1e-2


@pytest.mark.parametrize("tile", TILES)
def test_tiles_change_nothing_in_an_encode_and_its_taps(vae, factor, tile):
    mine = Autoencoder(vae)
    pixels = picture(factor * 27 + 3, factor * 41 + 1)
    whole, tiled = mine.encode(pixels, taps=(0, 1)), mine.encode(pixels, taps=(0, 1), tile=tile)
    assert error(tiled.mean, whole.mean) < 1e-5
    assert error(tiled.logvar, whole.logvar) < 1e-5
    for level in (0, 1):
        assert error(everything(tiled.features[level]), everything(whole.features[level])) < 1e-5
    tiled.close()


def test_an_encode_with_the_statistics_of_each_tile_alone_is_seen(vae, factor, per_tile):
    mine = Autoencoder(vae)
    pixels = picture(factor * 27 + 3, factor * 41 + 1)
    assert error(mine.encode(pixels, tile=16).mean, mine.encode(pixels).mean) > 1e-2


def everything(kept):
    cells = torch.empty((*kept.shape.size, kept.shape.channels))
    kept.read(Tile(0, 0, *kept.shape.size), cells)
    return cells


def test_taps_are_the_maps_before_the_downsamplers(vae):
    seen = {}
    hooks = [
        vae.encoder.down_blocks[level]
        .resnets[-1]
        .register_forward_hook(lambda _module, _inputs, output, level=level: seen.update({level: output}))
        for level in (1, 2)
    ]
    pixels = picture(120, 99)
    vae.encode(pixels)
    for hook in hooks:
        hook.remove()
    with Autoencoder(vae).encode(pixels, taps=(1, 2), tile=8) as encoded:
        for level in (1, 2):
            assert error(everything(encoded.features[level]), seen[level][0].permute(1, 2, 0)) < 1e-5


def test_taps_go_into_insertions_as_they_are(vae, factor, fused):
    insertions, _ = fused
    mine = Autoencoder(vae)
    levels = {level: len(WIDTHS[factor]) - 1 - level for level in insertions}
    pixels = picture(factor * LATENT[0], factor * LATENT[1])
    whole = mine.encode(pixels, taps=levels.values())
    expected = mine.decode(
        latent(), insertions=insertions, features={level: whole.features[tap] for level, tap in levels.items()}
    )
    encoding = mine.plan_encode(Size(*pixels.shape[2:]), taps=levels.values(), tile=16).memory - 1_000_000
    decoding = mine.plan_decode(Size(*LATENT), tile=16, insertions=insertions).memory - 1_000_000
    with mine.encode(pixels, taps=levels.values(), tile=16, limit=encoding) as encoded:
        features = {level: encoded.features[tap] for level, tap in levels.items()}
        found = mine.decode(latent(), tile=16, limit=decoding, insertions=insertions, features=features)
    assert encoded.plan.disk > 0
    assert found.plan.disk > 0
    assert error(found.pixels, expected.pixels) < 1e-5


def test_a_single_cell_a_row_and_tiles_beyond_the_picture(vae, factor):
    mine = Autoencoder(vae)
    for size in ((1, 1), (1, 30), (2, 3)):
        whole = mine.decode(latent(*size)).pixels
        assert whole.shape == (1, 3, size[0] * factor, size[1] * factor)
        for tile in (1, 8, 64):
            assert error(mine.decode(latent(*size), tile=tile).pixels, whole) < 1e-5


# No seams


@pytest.mark.slow
def test_no_step_at_tile_borders_of_flat_and_smooth_pictures_at_full_size(factor, request):
    mine = Autoencoder(model(factor, (128, 256, 512) if factor == 4 else (128, 256, 512, 512)))
    cells, tile = 24, 8
    borders = [span.start * factor for span in spans(cells, tile, 0)][1:]
    slope = torch.linspace(-1, 1, cells)
    flat = torch.tensor([0.6, -0.3, 0.2, 0.9]).view(1, 4, 1, 1).expand(1, 4, cells, cells)
    smooth = flat + 0.5 * slope.view(1, 1, 1, -1) + 0.3 * slope.view(1, 1, -1, 1)

    def seams(start, tile):
        return seam_score(levels(mine.decode(start, tile=tile).pixels[0]), borders, borders)

    # A random network bends on its own grid of cells, so the untiled picture is what a seam is measured against.
    untiled = [seams(start, None) for start in (flat, smooth)]
    assert [seams(start, tile) / score for start, score in zip((flat, smooth), untiled, strict=True)] == pytest.approx(
        [1, 1], abs=1e-3
    )
    request.getfixturevalue("per_tile")
    assert seams(flat, tile) / untiled[0] > 1.5


def levels(pixels):
    """(H, W, 3) over 0..1: the picture's own range, so that small steps of a flat picture count."""
    return ((pixels - pixels.min()) / (pixels.max() - pixels.min())).permute(1, 2, 0).numpy()


# Norms


def test_statistics_of_parts_are_those_of_the_whole_though_the_mean_is_large():
    cells = torch.randn(37, 29, 8, generator=torch.Generator().manual_seed(0)) * 3 + torch.arange(8) // 2 * 100 + 1000
    norm = Norm(4, torch.rand(8) + 0.5, torch.randn(8), 1e-6)
    statistics = Statistics()
    for top, left in itertools.product((0, 16, 30), (0, 11)):
        statistics.add(cells[top : {0: 16, 16: 30, 30: 37}[top], left : {0: 11, 11: 29}[left]])
    middle, scale, shift = affine(norm, [statistics])
    expected = functional.group_norm(
        cells.double().permute(2, 0, 1)[None], 4, norm.weight.double(), norm.bias.double(), 1e-6
    )
    assert torch.allclose((cells - middle) * scale + shift, expected[0].permute(1, 2, 0).float(), atol=1e-4)


def test_a_norm_over_two_maps_pools_their_channels():
    one, other = torch.randn(9, 7, 6) + 5, torch.randn(9, 7, 2)
    both = [Statistics(), Statistics()]
    both[0].add(one)
    both[1].add(other)
    middle, scale, shift = affine(Norm(2, None, None, 1e-6), both)  # the groups do not end where the maps do
    cells = torch.cat([one, other], 2)
    expected = functional.group_norm(cells.permute(2, 0, 1)[None], 2, eps=1e-6)[0].permute(1, 2, 0)
    assert torch.allclose((cells - middle) * scale + shift, expected, atol=1e-5)


# Attention


def test_attention_over_many_cells_is_exact_up_to_a_number_and_said_to_be_averaged_beyond(vae, factor):
    mine = Autoencoder(vae)
    exact = mine.decode(latent())
    averaged = mine.decode(latent(), tokens=500)
    assert exact.plan.attention == "exact"
    assert averaged.plan.attention == "keys averaged over 2x2 cells"
    assert mine.plan_decode(Size(256, 256)).attention == "exact"
    assert mine.plan_decode(Size(256, 257)).attention == "keys averaged over 3x2 cells"
    assert 1e-6 < error(averaged.pixels, exact.pixels) < 0.05


@pytest.mark.parametrize("tile", [7, 16])
def test_averaged_attention_knows_no_tiles_either(vae, tile):
    mine = Autoencoder(vae)
    assert error(mine.decode(latent(), tokens=200, tile=tile).pixels, mine.decode(latent(), tokens=200).pixels) < 1e-5


def test_averaging_keys_changes_nothing_where_cells_are_alike_and_border_blocks_weigh_by_their_cells(vae):
    blocks = latent(12, 10).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :23]
    attention = next(each for each in Autoencoder(vae)._decoder({}, False).operations if isinstance(each, run.Attend))

    def attend(tokens):
        pool = pooling(Size(23, 20), tokens)
        program = Program((attention,), attention.source, attention.into)
        given = torch.cat([blocks] * (len(attention.norm.weight) // 4), 1)[0].permute(1, 2, 0)
        given = given * torch.linspace(1, 3, given.shape[2])
        source = MemoryMap(Shape(given.shape[2], Size(23, 20), 1), torch.device("cpu"))
        source.write(Tile(0, 0, 23, 20), given)
        source.statistics.add(given)
        return carried_out(program, {attention.source: source}, pool=pool)

    assert pooling(Size(23, 20), 120) == (2, 2)
    assert error(attend(120), attend(10_000)) < 1e-5


def carried_out(program, maps, tile=None, pool=(1, 1)):
    """The result of a list of operations, (h, w, C)."""
    shapes = {name: each.shape for name, each in maps.items()}
    plan = Plan(tile, 0, pool=pool, work=sum(run.multiplications(program, program.shapes(shapes), pool).values()))
    result = run.Run(program, plan, maps, device=torch.device("cpu"), dtype=torch.float32, folder=None)()
    return everything(result[program.result])


def test_attention_is_exact_to_65536_cells_and_above_it_sees_16384_averages_at_most():
    assert pooling(Size(256, 256), TOKENS) == (1, 1)
    for size in (Size(257, 256), Size(512, 512), Size(1000, 70), Size(1024, 1024)):
        pool = pooling(size, TOKENS)
        keys = -(-size.height // pool[0]) * -(-size.width // pool[1])
        assert KEYS / 2 < keys <= KEYS
    assert pooling(Size(512, 512), TOKENS) == (4, 4)


# Insertions


class Everything(nn.Module):
    """Every piece that an insertion may be built of."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide = nn.GroupNorm(3, 12), nn.Conv2d(12, 6, 3, padding=1)
        self.chain = nn.Sequential(nn.Conv2d(6, 6, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 6, 5, padding=2), nn.ReLU())
        self.last, self.own = nn.GroupNorm(2, 6), nn.Conv2d(18, 6, 3, padding=1, bias=False)
        self.point, self.amount = nn.Conv2d(6, 6, 1), 0.3

    def forward(self, features, state):
        both = torch.cat([features, state], dim=1)
        first = self.wide(functional.silu(self.norm(both)))
        second = self.chain(first)
        sums = first * 0.5 + second.mul(2) + state
        third = functional.leaky_relu(self.own(torch.cat((sums, first, features), 1)), 0.1)
        normed = self.last(third) + first
        bent = functional.silu(self.point(state) * 2 + features) * 0.5
        return state + self.amount * (normed + torch.relu(self.last(sums))) + features * 2 + bent


@pytest.mark.parametrize("tile", [None, 5])
def test_an_insertion_runs_as_it_stands(tile):
    torch.manual_seed(2)
    module = Everything()
    for norm in (module.norm, module.last):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    operations, result = operations_of(module, Reader(torch.float32), "features", "state", "x")
    given = {"features": torch.randn(1, 6, 13, 17) + 2, "state": torch.randn(1, 6, 13, 17)}
    maps = {}
    for name, tensor in given.items():
        maps[name] = MemoryMap(Shape(6, Size(13, 17), 1), torch.device("cpu"))
        maps[name].write(Tile(0, 0, 13, 17), tensor[0].permute(1, 2, 0))
        maps[name].statistics.add(tensor[0].permute(1, 2, 0))
    # Both maps are the caller's and stay as they are, though the list has no other name for its source.
    program = Program(tuple(operations), "state", result, given=("features",))
    found = carried_out(program, maps, tile)
    with torch.inference_mode():
        expected = module(**given)[0].permute(1, 2, 0)
    assert error(found, expected) < 1e-5
    assert torch.equal(everything(maps["state"]), given["state"][0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softmax(1)), "Softmax"),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "dilation"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.InstanceNorm2d(4), "InstanceNorm"),
    ],
)
def test_what_cannot_run_in_tiles_is_refused_by_name(module, what):
    class Inserted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = module

        def forward(self, features, state):
            return self.layer(features) + state

    with pytest.raises(ValueError, match=rf"(?s){what}.*tile by tile"):
        operations_of(Inserted(), Reader(torch.float32), "features", "state", "x")


def test_an_insertion_without_weight_is_the_plain_decoder(vae, factor, fused):
    insertions, features = fused
    none = {level: Weighted(each.layer, 0.0) for level, each in insertions.items()}
    mine = Autoencoder(vae)
    assert error(mine.decode(latent(), insertions=none, features=features).pixels, mine.decode(latent()).pixels) < 1e-6


def test_an_insertion_is_the_module_behind_the_levels_resnets(vae, fused, untiled):
    insertions, features = fused
    hooks = [
        vae.decoder.up_blocks[level]
        .resnets[-1]
        .register_forward_hook(lambda _module, _inputs, output, level=level: insertions[level](features[level], output))
        for level in insertions
    ]
    with torch.inference_mode():
        expected = vae.decode(latent()).sample
    for hook in hooks:
        hook.remove()
    assert error(untiled, expected) < 1e-5


# Memory, files, words


def test_what_does_not_fit_goes_to_files_and_nothing_is_left_of_them(vae, tmp_path, monkeypatch):
    mine = Autoencoder(vae)
    whole = mine.decode(latent())
    limit = mine.plan_decode(Size(*LATENT), tile=16).memory - 1_500_000
    made = counted(monkeypatch)
    tiled = mine.decode(latent(), limit=limit, tile=16, folder=tmp_path)
    assert len(made) == len(tiled.plan.filed) > 0
    assert all(each._file.closed for each in made)
    assert tiled.plan.memory <= limit
    assert error(tiled.pixels, whole.pixels) < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_an_end_on_the_way_leaves_no_file_open(vae, tmp_path, monkeypatch):
    mine = Autoencoder(vae)
    made = counted(monkeypatch)

    def stop(share):
        if share > 0.7:
            raise InterruptedError

    limit = mine.plan_decode(Size(*LATENT), tile=16).memory - 1_500_000
    with pytest.raises(InterruptedError):
        mine.decode(latent(), limit=limit, tile=16, folder=tmp_path, progress=stop)
    assert made
    assert all(each._file.closed for each in made)
    assert list(tmp_path.iterdir()) == []


def counted(monkeypatch):
    made = []

    class Counted(FileMap):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(run, "FileMap", Counted)
    return made


def test_whole_when_it_fits_and_tiles_when_not(vae):
    mine = Autoencoder(vae)
    size = Size(120, 100)
    whole = mine.plan_decode(size)
    assert whole.tile is None
    assert mine.plan_decode(size, limit=whole.memory) == whole
    less = mine.plan_decode(size, limit=whole.memory - 1)
    assert less.tile is not None
    assert less.memory < whole.memory
    assert less.disk == 0
    least = mine.plan_decode(size, limit=SLACK)
    assert least.tile == 8
    tight = mine.plan_decode(size, limit=least.memory + 1_000_000)
    assert tight.disk > 0
    assert tight.memory <= least.memory + 1_000_000
    pixels = Size(480, 400)
    assert mine.plan_encode(pixels, limit=mine.plan_encode(pixels).memory - 1).tile is not None


def test_a_limit_bounds_memory_whatever_the_size(vae):
    mine = Autoencoder(vae)
    limit = SLACK + 100_000_000
    for side in (64, 128, 256):
        # What comes out is held in memory in any case.
        planned = mine.plan_decode(Size(side, side), limit=limit)
        assert planned.memory <= limit
    assert planned.disk > 0


PEAK = """
import sys
from pathlib import Path
import torch
from enlarger.canvas.autoencoder import Autoencoder
from tests.canvas.test_autoencoder import latent, model

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

torch.set_num_threads(1)
mine, start = Autoencoder(model(4, (64, 64, 128))), latent(96, 96)
before = status("VmRSS")
plan = mine.decode(start, limit=eval(sys.argv[1])).plan
print(plan.tile or 0, plan.memory, plan.disk, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak memory from")
def test_a_decode_takes_no_more_memory_than_planned():
    def decoded(limit):
        command = [sys.executable, "-c", PEAK, str(limit)]
        root = Path(__file__).parents[2]
        found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env={**os.environ})
        return [int(word) for word in found.stdout.split()]

    tile, planned, disk, measured = decoded(None)
    assert (tile, disk) == (0, 0)
    assert planned / 2 < measured <= planned
    limit = 150_000_000
    assert limit < 0.7 * planned
    tile, planned, disk, measured = decoded(limit)
    assert tile > 0
    assert disk > 0
    assert measured <= limit


def test_too_little_memory_and_a_full_disk_are_said_before_the_work(vae, monkeypatch):
    mine = Autoencoder(vae)
    with pytest.raises(ResourceError, match=r"needs 0\.\d\d GB even in tiles of 8 cells, and 0\.10 GB .*--max-memory"):
        mine.decode(latent(), limit=SLACK)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1000})())
    limit = mine.plan_decode(Size(*LATENT), tile=16).memory - 1_500_000
    with pytest.raises(ResourceError, match=r"for temporary files in .*TMPDIR"):
        mine.decode(latent(), tile=16, limit=limit)


def test_a_folder_that_takes_no_file_is_said(tmp_path):
    with pytest.raises(ResourceError, match="no temporary file can be made"):
        FileMap(Shape(3, Size(2, 2), 1), tmp_path / "absent")


def test_a_full_disk_on_the_way_is_said(tmp_path, monkeypatch):
    kept = FileMap(Shape(3, Size(2, 2), 1), tmp_path)

    class Full:
        def seek(self, place): ...

        def write(self, data):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="No space left on device"):
        patch.setattr(kept, "_file", Full())
        kept.write(Tile(0, 0, 2, 2), torch.zeros(2, 2, 3))
    kept.close()


def test_progress_rises_to_one(vae):
    shares = []
    Autoencoder(vae).decode(latent(), tile=16, progress=shares.append)
    assert len(shares) > 100
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_other_shapes_are_refused(vae, factor, fused):
    mine = Autoencoder(vae)
    insertions, features = fused
    for wrong in (torch.zeros(2, 4, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(4, 8, 8), torch.zeros(1, 4, 0, 8)):
        with pytest.raises(ValueError, match="a latent is"):
            mine.decode(wrong)
    for wrong in (torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, factor - 1, 64)):
        with pytest.raises(ValueError, match="a picture is"):
            mine.encode(wrong)
    with pytest.raises(ValueError, match="features for"):
        mine.decode(latent(), insertions=insertions)
    with pytest.raises(ValueError, match="differ in size"):
        mine.decode(latent(9, 9), insertions=insertions, features=features)


def test_whatever_was_decoded_before_leaves_no_trace(vae):
    mine = Autoencoder(vae)
    start = latent()
    first = mine.decode(start, tile=24).pixels
    mine.decode(latent(20, 30) * 5, tile=16)
    assert torch.equal(mine.decode(start, tile=24).pixels, first)
    assert torch.equal(start, latent())
