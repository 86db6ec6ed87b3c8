from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from enlarger.picture import degrade as module
from enlarger.picture.bicubic import shrink
from enlarger.picture.degrade import (
    NAMES,
    RECIPES,
    Noise,
    Plan,
    Round,
    blur_kernel,
    carried_out,
    degrade,
    filtered,
    jpeg,
    jpeg_factor,
    plan,
    poisson_rate,
    resized,
    sharpened,
    sinc_kernel,
    widened,
    with_gaussian_noise,
    with_poisson_noise,
)
from tests.evaluation.conftest import truth, worse

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "stablesr"


@pytest.fixture
def pictures():
    """The makers of pictures by arithmetic alone."""
    return truth, worse


@pytest.fixture(scope="module")
def recorded():
    """Single operations of the original implementation."""
    if not FIXTURES.is_dir():
        pytest.skip("recorded operations are not beside the repository (../shared/fixtures/stablesr)")
    with np.load(FIXTURES / "degradation_ops.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def close(made, expected, limit=1e-5):
    assert tuple(made.shape) == expected.shape
    assert np.abs(made.numpy() - expected).max() < limit


class Recorded:
    """Fields that were drawn elsewhere."""

    def __init__(self, *fields):
        self.fields = [torch.from_numpy(field) for field in fields]

    def normal(self, shape):
        field = self.fields.pop(0)
        assert tuple(field.shape) == tuple(shape)
        return field

    def poisson(self, rate):
        return self.normal(rate.shape)


def test_kernels_are_the_originals(recorded):
    for case in json.loads(str(recorded["meta_json"])):
        name, kind = case["array"], case.get("type", "")
        if name.startswith("kernel"):
            shape = kind.split("_")[0] if "_" in kind else "gaussian"
            made = blur_kernel(
                case["size"], case["sigma_x"], case["sigma_y"], case["theta"], shape=shape, beta=case["beta"]
            )
            close(made, recorded[name], 1e-6)
        elif kind == "sinc":
            made = sinc_kernel(case["cutoff"], case["size"])
            close(widened(made, case["pad_to"]) if case["pad_to"] else made, recorded[name], 1e-6)


def test_filters_sharpening_and_resizes_are_the_originals(recorded):
    image = torch.from_numpy(recorded["image"])
    kernels = [torch.from_numpy(recorded[f"kernel{i}"]) for i in (0, 2)]
    close(filtered(image, torch.stack([kernels[0]] * 2)), recorded["filter_single"])
    close(filtered(image, torch.stack(kernels)), recorded["filter_pair"])
    close(sharpened(torch.from_numpy(recorded["usm_image"])), recorded["usm_out"])
    for mode in ("area", "bilinear", "bicubic"):
        for factor in (0.71, 1.3):
            made = resized(image[:1], mode, factor=factor)
            close(made, recorded[f"resize_{mode}_{round(factor * 100)}"])
        close(resized(image[:1], mode, size=(17, 11)), recorded[f"resize_{mode}_17x11"])


def test_jpeg_is_the_originals(recorded):
    image = torch.from_numpy(recorded["jpeg_image"])
    assert [jpeg_factor(q) for q in recorded["jpeg_quality"]] == pytest.approx(recorded["jpeg_factor"])
    close(jpeg(image, recorded["jpeg_quality"].tolist()), recorded["jpeg_out"])
    close(jpeg(image[:1], [75]), recorded["jpeg_out_q75"])


def test_noise_is_the_originals(recorded):
    image = torch.from_numpy(recorded["noise_image"])
    for item in range(2):
        one, colour = image[item : item + 1], recorded["gauss_z_color"][item : item + 1]
        sigma, grey = float(recorded["gauss_sigma"][item]), bool(recorded["gauss_gray"][item])
        fields = [recorded["gauss_z_gray"]] * grey + [colour]
        close(with_gaussian_noise(one, sigma, grey, Recorded(*fields)), recorded["gauss_out"][item : item + 1])
        close(with_gaussian_noise(one, sigma, False, Recorded(colour)), recorded["gauss_out_nogray"][item : item + 1])
        scale, grey = float(recorded["poisson_scale"][item]), bool(recorded["poisson_gray"][item])
        close(poisson_rate(one)[0], recorded["poisson_rate_color"][item : item + 1], 1e-4)
        fields = [recorded["poisson_counts_gray"][item : item + 1]] * grey
        fields.append(recorded["poisson_counts_color"][item : item + 1])
        close(with_poisson_noise(one, scale, grey, Recorded(*fields)), recorded["poisson_out"][item : item + 1])


@pytest.mark.parametrize("case", ["p", "q"])
def test_the_whole_chain_is_the_originals(case):
    """degradation_full.npz: every draw of the original is put in place of ours."""
    if not FIXTURES.is_dir():
        pytest.skip("recorded operations are not beside the repository (../shared/fixtures/stablesr)")
    with np.load(FIXTURES / "degradation_full.npz", allow_pickle=False) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    trace = iter(json.loads(str(stored[f"{case}_trace_json"])))
    ranges = json.loads(str(stored["settings_json"]))
    fields = []

    def value():
        return next(trace)[1]

    def field():
        return stored[value()]

    def one_round(kernel, second):
        ending = "2" if second else ""
        direction = value()
        factor = 1.0 if direction == "keep" else value()
        mode = value()
        gaussian = value() < ranges[f"gaussian_noise_prob{ending}"]
        low, high = ranges[f"noise_range{ending}" if gaussian else f"poisson_scale_range{ending}"]
        level = float(field()[0]) * (high - low) + low
        grey = bool(field()[0] < ranges[f"gray_noise_prob{ending}"])
        fields.extend(field() for _ in range(1 + grey))
        return Round(kernel, factor, mode, Noise(gaussian, level, grey), 0.0)

    def kernel(name):
        return torch.from_numpy(stored[f"{case}_{name}"][0])

    first = one_round(kernel("kernel1"), second=False)
    first = Round(first.kernel, first.factor, first.mode, first.noise, float(field()[0]))
    blurred = value() < ranges["second_blur_prob"]
    second = one_round(kernel("kernel2") if blurred else None, second=True)
    resize_first = value() < 0.5
    if resize_first:
        mode, quality = value(), float(field()[0])
    else:
        quality, mode = float(field()[0]), value()
    second = Round(second.kernel, second.factor, second.mode, second.noise, quality)
    top, left = value(), value()

    truth = sharpened(torch.from_numpy(stored[f"{case}_gt"]))
    size = (truth.shape[2] // 4, truth.shape[3] // 4)
    choices = Plan(first, second, mode, kernel("sinc"), resize_first)
    small = carried_out(choices, truth, size, Recorded(*fields))
    side = ranges["gt_size"]
    cut = small[..., top : top + side // 4, left : left + side // 4]
    close(truth[..., 4 * top : 4 * top + side, 4 * left : 4 * left + side] * 2 - 1, stored[f"{case}_gt_out"])
    close((resized(cut, "bicubic", size=(side, side)) * 2 - 1).clamp(-1, 1), stored[f"{case}_lq_out"])


def pictures_of(truth, count, height=64, width=80):
    stack = [truth(height, width + 4 * i)[:, :width] for i in range(count)]
    return torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("recipe", NAMES)
def test_a_picture_depends_on_its_seed_and_not_on_its_batch(pictures, recipe):
    large = pictures_of(pictures[0], 3)
    together = degrade(large, recipe, [5, 6, 7])
    assert together.shape == (3, 3, 16, 20)
    assert together.min() >= 0
    assert together.max() <= 1
    alone = torch.cat([degrade(large[i : i + 1], recipe, [5 + i]) for i in range(3)])
    assert torch.equal(together, alone)
    state = torch.random.get_rng_state()
    others = degrade(large, recipe, [8, 9, 10])
    assert torch.equal(others, together) == (recipe == "bicubic")
    assert torch.equal(torch.random.get_rng_state(), state)  # global random state is left alone


def test_bicubic_is_matlabs_and_recipes_are_worse_than_it(pictures):
    large = pictures_of(pictures[0], 1)
    clean = degrade(large, "bicubic", [0])
    expected = shrink(pictures[0](64, 80), 4)
    assert np.array_equal((clean[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)

    def harm(recipe):
        return np.mean([float((degrade(large, recipe, [seed]) - clean).square().mean()) for seed in range(12)])

    assert harm("realesrgan") > harm("stablesr") > 1e-4


def test_a_size_of_ones_own_is_kept_for_any_picture(pictures):
    large = pictures_of(pictures[0], 1, 9, 7)
    for recipe in NAMES:
        for seed in range(6):
            made = degrade(large, recipe, [seed], (5, 3))
            assert made.shape == (1, 3, 5, 3)
            assert bool(made.isfinite().all())


def test_rounding_is_the_recipes(pictures):
    large = pictures_of(pictures[0], 1)
    rounded, free = (degrade(large, recipe, [1]) * 255 for recipe in ("realesrgan", "stablesr"))
    assert torch.allclose(rounded, rounded.round(), atol=1e-3)
    assert not torch.allclose(free, free.round(), atol=1e-3)


def test_choices_have_the_published_shares():
    rng = np.random.default_rng(0)
    plans = [plan(RECIPES["stablesr"], rng) for _ in range(800)]
    shares = {
        "second blur": (np.mean([p.second.kernel is not None for p in plans]), 0.5),
        "final sinc": (np.mean([p.last_kernel is not None for p in plans]), 0.8),
        "resize first": (np.mean([p.resize_first for p in plans]), 0.5),
        "down": (np.mean([p.first.factor < 1 for p in plans]), 0.7),
        "keep": (np.mean([p.second.factor == 1 for p in plans]), 0.3),
        "gaussian": (np.mean([p.first.noise.gaussian for p in plans]), 0.5),
        "grey": (np.mean([p.second.noise.grey for p in plans]), 0.4),
    }
    for name, (share, expected) in shares.items():
        assert share == pytest.approx(expected, abs=0.06), name
    assert all(60 <= p.first.quality <= 95 and 0.3 <= p.first.factor <= 1.5 for p in plans)
    assert all(float(p.first.kernel.sum()) == pytest.approx(1, abs=1e-4) for p in plans)


def test_jpeg_of_low_quality_loses_more_and_of_full_quality_next_to_nothing(pictures):
    large = pictures_of(pictures[0], 1)
    losses = [float((jpeg(large, [q]) - large).square().mean()) for q in (10, 50, 90)]
    assert losses == sorted(losses, reverse=True)
    grey = large.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert float((jpeg(grey, [99.9]) - grey).abs().max()) < 0.01


def test_seeds_must_fit_the_batch(pictures):
    with pytest.raises(ValueError, match="2 pictures need as many seeds"):
        degrade(pictures_of(pictures[0], 2), "stablesr", [1])
    assert math.isclose(sum(share for *_, share in module.KERNEL_SHARES), 1)
