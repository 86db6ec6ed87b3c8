"""pocket's training: every term of the loss has a say, nothing is drawn twice, runs go on exactly."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from enlarger.cli import train as command
from enlarger.errors import SettingsError
from enlarger.networks.pocket import PocketNet
from enlarger.training.perceptual import CONVOLUTIONS, PerceptualFeatures
from enlarger.training.photos import Photos
from enlarger.training.pocket import (
    CHAINS,
    PocketRecipe,
    detail,
    load_weights,
    opponent,
    patches,
    save_weights,
    train,
    unevenness,
)
from enlarger.training.settings import TrainSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for place in range(2):
        coarse = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's shape as far as relu2_2 with few channels and random weights: enough to be a space of features."""
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    before = 3
    for place in CONVOLUTIONS[:4]:
        tensors[f"features.{place}.weight"] = torch.randn(8, before, 3, 3, generator=generator) / (3 * before**0.5)
        tensors[f"features.{place}.bias"] = torch.zeros(8)
        before = 8
    save_file(tensors, path)
    return path


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        folder, tmp_path / "out", updates=3, crop=32, crops=2, regression_crops=2, micro_batches=2, workers=1, warm_up=1
    )


def small_net() -> PocketNet:
    torch.manual_seed(0)
    net = PocketNet(8, 8, (1, 1, 1), 8)
    with torch.no_grad():
        net.modulation.weight.normal_(std=0.1)
    return net


def recipe(settings: TrainSettings, vgg: Path | None = None) -> PocketRecipe:
    features = PerceptualFeatures(vgg, layers=("relu1_2", "relu2_2")) if vgg else None
    return PocketRecipe(settings, Photos(settings.photos, smallest=48), features)


def gradient(recipe: PocketRecipe, micro: int = 1) -> Tensor:
    net = small_net()
    loss, _ = recipe.loss(net, 0, micro)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))])


def test_a_micro_batch_is_a_function_of_seed_update_and_place(settings: TrainSettings) -> None:
    made, net = recipe(settings), small_net()
    for micro in (0, 1):
        assert torch.equal(made.loss(net, 3, micro)[0], made.loss(net, 3, micro)[0])
        assert not torch.equal(made.loss(net, 3, micro)[0], made.loss(net, 4, micro)[0])
    other = recipe(dataclasses.replace(settings, seed=1))
    assert not torch.equal(made.loss(net, 3, 1)[0], other.loss(net, 3, 1)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"patch_weight": 0.0},
        {"detail_weight": 0.0},
        {"colour_weight": 0.0},
        {"hue_weight": 0.0},
        {"grid_weight": 0.0},
        {"feature_weight": 0.0},
        {"patch_spread": 0.0},
        {"feature_spread": 0.0},
    ],
)
def test_every_term_changes_the_gradient(settings: TrainSettings, vgg: Path, change: dict[str, float]) -> None:
    whole = gradient(recipe(settings, vgg))
    without = gradient(recipe(dataclasses.replace(settings, **change), vgg))
    assert (whole - without).norm() > 1e-4 * whole.norm() > 0


def test_the_regression_keeps_strength_at_zero_and_draws_no_noise(settings: TrainSettings) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(PocketNet):
        def forward(self, source: Tensor, state: Tensor, eta: Tensor, strength: Tensor) -> Tensor:
            seen.append((state, strength))
            return super().forward(source, state, eta, strength) * 0 + self.tail.weight.sum() * 0

    torch.manual_seed(0)
    made, net = recipe(settings), Watched(8, 8, (1, 1, 1), 8)
    for update in range(10):
        made.loss(net, update, 0)
    assert all(not state.any() and not strength.any() for state, strength in seen)
    seen.clear()
    made.loss(net, 0, 1)
    state, strength = seen[0]
    assert strength[: len(strength) // 2].tolist() == strength[len(strength) // 2 :].tolist()
    assert (strength > 0).all()
    first, second = state.chunk(2)
    assert (first - second).abs().mean() > 0.01


def test_more_spread_pushes_samples_apart(settings: TrainSettings, vgg: Path) -> None:
    sharp = torch.zeros(1, 3, 32, 32)
    samples = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    made = recipe(settings, vgg)
    pulls = []
    for strength in (0.1, 1.0):
        moving = samples.clone().requires_grad_()
        loss, _ = made.score(moving, sharp, torch.tensor([strength]), (1, 2))
        pulls.append(float((torch.autograd.grad(loss, moving)[0] * samples).sum()))
    assert pulls[0] > 0
    assert pulls[1] < pulls[0]


def test_patches_are_cut_where_asked() -> None:
    pictures = torch.arange(3 * 12 * 12.0).view(1, 3, 12, 12)
    cut = patches(pictures, 4, 1, 3)
    assert cut.shape == (1, 48, 2, 2)
    assert cut[0, 0, 0, 0] * 48**0.5 == pytest.approx(float(pictures[0, 0, 1, 3]))
    assert cut[0, 47, 1, 1] * 48**0.5 == pytest.approx(float(pictures[0, 2, 8, 10]))


def test_detail_of_a_ramp_is_nothing_and_of_a_point_is_not() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    assert detail(ramp).abs().max() < 1e-5
    point = torch.zeros(1, 3, 7, 7)
    point[..., 3, 3] = 1
    assert detail(point)[0, 1, 2, 2] == pytest.approx(0.75)


def test_opponent_colours_ignore_brightness() -> None:
    grey = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(1, 3, 4, 4)
    assert not opponent(grey).any()
    assert opponent(grey * torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1)).abs().mean() > 0.1


def test_unevenness_sees_a_weave_of_four_pixels_and_no_other() -> None:
    picture = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    woven = picture.clone()
    woven[..., ::4] += 0.2
    other = picture + 0.2 * (torch.arange(64) % 3 == 0)
    assert unevenness(picture) < 0.02
    assert unevenness(woven) > 0.1
    assert unevenness(woven.transpose(2, 3)) > 0.1
    assert unevenness(other) < 0.03


def test_chances_are_chances_and_cover_every_step() -> None:
    assert sum(chance for *_, chance in CHAINS) == pytest.approx(1)
    assert {(steps, place) for steps, place, _ in CHAINS} == {(1, 0), (2, 1), (4, 1), (4, 2), (4, 3)}


def test_features_are_of_unit_length_or_weighed_by_heads(vgg: Path, tmp_path: Path) -> None:
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = PerceptualFeatures(vgg, layers=("relu1_2", "relu2_2"))(pictures)
    assert [layer.shape[-1] for layer in plain] == [16, 8]
    assert torch.allclose(plain[0].square().sum(1) * 8, torch.ones(1, 16, 16), atol=1e-3)
    heads = {f"vgg.lin{place}.model.1.weight": torch.full((1, 8, 1, 1), 4.0 * (place + 1)) for place in range(2)}
    save_file(heads, tmp_path / "heads.safetensors")
    weighed = PerceptualFeatures(vgg, tmp_path / "heads.safetensors", ("relu1_2", "relu2_2"))(pictures)
    assert torch.allclose(weighed[0], plain[0] * 8**0.5 * 2)
    assert torch.allclose(weighed[1], plain[1] * 8**0.5 * 8**0.5)


def test_weights_go_through_float16_and_back(tmp_path: Path) -> None:
    net, other = PocketNet(), PocketNet()
    save_weights(net, tmp_path / "pocket.safetensors", {"model": "pocket"})
    stored = load_file(tmp_path / "pocket.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert (tmp_path / "pocket.safetensors").stat().st_size < 16 * 2**20
    (tmp_path / "plain").touch()
    assert (tmp_path / "pocket.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    load_weights(other, tmp_path / "pocket.safetensors")
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-3)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_exactly(settings: TrainSettings, tmp_path: Path) -> None:
    # With the rate's fall left out, a shorter run is the beginning of a longer one.
    whole = dataclasses.replace(settings, fall=0.0, average=5.0)
    assert train(whole)
    parts = dataclasses.replace(whole, out=tmp_path / "parts", workers=2)
    assert train(dataclasses.replace(parts, updates=1))
    assert train(dataclasses.replace(parts, resume=True))
    one, two = (load_file(run.out / "pocket.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert "perceptual term is off" in (whole.out / "log.txt").read_text()


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["pocket", *words])


def test_the_command_says_what_the_settings_say(folder: Path, tmp_path: Path) -> None:
    args = parse("--photos", str(folder), "--out", str(tmp_path / "run"), "--updates", "7", "--rate", "1e-3")
    assert command.settings_of(args) == TrainSettings(folder, tmp_path / "run", updates=7, rate=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--updates", "0"], "--updates must be a whole number of at least 1, not 0"),
        (["--rate", "fast"], "--rate must be a number from 0 to 1, not fast"),
        (["--crop", "50"], "--crop must be a multiple of 8, not 50"),
        (["--vgg", "nowhere.safetensors"], "--vgg: no file nowhere.safetensors"),
        (["--resume"], "--resume: no checkpoint"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        command.settings_of(parse("--photos", str(folder), "--out", str(tmp_path / "run"), *words))


def test_a_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "training.pt").write_bytes(b"")
    with pytest.raises(SettingsError, match="add --resume"):
        command.settings_of(parse("--photos", str(folder), "--out", str(tmp_path)))
