"""How `pocket` is trained: what a micro-batch is, what its loss is, and the run as a whole.

An update has several micro-batches, of two kinds.

*Regression*: strength 0, no noise, Charbonnier distance to the sharp crop.  It keeps the faithful end of the dial.

*Sampling*: for each crop two noises; the model's own chain leads, without gradient, to a random step of a 1, 2 or 4
step run (so that training sees the states that inference makes), where both samples are predicted with gradient.  The
loss is the energy score (`enlarger.training.scoring`) in several spaces: patches of pixels, patches of fine detail, and
layers of VGG16.  How much spread it asks for is the dial's strength.  There is no opponent network.  The sum of the two
kinds makes one network that regresses at strength 0 and samples at strength 1.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from enlarger.errors import OutputError
from enlarger.networks.pocket import PocketNet
from enlarger.picture.atomic import appearing
from enlarger.sampling.residual import SCHEDULES, run, state_at
from enlarger.training.loop import Loop, Pace, stop_on_signals
from enlarger.training.perceptual import PerceptualFeatures
from enlarger.training.photos import MARGIN, Photos
from enlarger.training.scoring import energy_score
from enlarger.training.settings import TrainSettings

CHECKPOINT = "training.pt"
WEIGHTS = "pocket.safetensors"

CHAINS: tuple[tuple[int, int, float], ...] = ((1, 0, 0.4), (2, 1, 0.2), (4, 1, 0.13), (4, 2, 0.13), (4, 3, 0.14))
"""(steps of the run, step that is trained, chance)."""


def charbonnier(difference: Tensor) -> Tensor:
    """A smooth absolute value, sqrt(d^2 + 1e-6) (Lai et al. 2017, arXiv 1710.01992)."""
    return torch.sqrt(difference.square() + 1e-6)


def patches(pictures: Tensor, size: int, top: int, left: int) -> Tensor:
    """Cut (B, 3, H, W) into size x size patches from (top, left) on: (B, 3 size^2, h, w), scaled to unit mean."""
    height = (pictures.shape[2] - top) // size * size
    width = (pictures.shape[3] - left) // size * size
    window = pictures[:, :, top : top + height, left : left + width]
    return functional.pixel_unshuffle(window, size) / math.sqrt(3 * size * size)


def detail(pictures: Tensor) -> Tensor:
    """What a 3x3 binomial blur takes away: (B, 3, H, W) to (B, 3, H - 2, W - 2)."""
    taps = pictures.new_tensor([0.25, 0.5, 0.25])
    kernel = (taps[:, None] * taps[None, :]).expand(3, 1, 3, 3)
    return pictures[:, :, 1:-1, 1:-1] - functional.conv2d(pictures, kernel, groups=3)


def opponent(pictures: Tensor) -> Tensor:
    """Colour without brightness: R - G, G - B, and B - R, (B, 3, H, W) to the same."""
    return pictures - pictures.roll(-1, 1)


def unevenness(pictures: Tensor) -> Tensor:
    """How much the steps between pixels depend on their place in the network's grid of 4 pixels.

    Mean absolute first and second differences, down and across, for each of the four phases; their mean deviation from
    the phases' mean, relative to it. Near 0 for photographs, whose content knows no grid.

    Args:
        pictures: (B, 3, H, W), H and W multiples of 4.

    Returns:
        A number for all pictures together.
    """
    total = pictures.new_zeros(())
    for turned in (pictures, pictures.transpose(2, 3)):
        steps = turned
        for _ in range(2):
            steps = steps[..., 1:] - steps[..., :-1]
            whole = steps.shape[-1] // 4 * 4
            phases = steps[..., :whole].abs().reshape(-1, 4).mean(0)
            total = total + (phases / phases.mean() - 1).abs().mean() / 4
    return total


class PocketRecipe:
    """The loss of `pocket`; a micro-batch is a function of (seed, update, micro)."""

    def __init__(self, settings: TrainSettings, photos: Photos, features: PerceptualFeatures | None) -> None:
        """Take the settings, the photographs, and the perceptual features or None."""
        self.settings = settings
        self.photos = photos
        self.features = features
        self.micro_batches = settings.micro_batches

    def loss(self, net: PocketNet, update: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one micro-batch: the first of an update is regression, the others are sampling."""
        generator = np.random.default_rng([self.settings.seed, update, micro])
        if micro == 0:
            return self.regression(net, generator)
        return self.sampling(net, generator)

    def regression(self, net: PocketNet, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Strength 0: the plain distance, mostly in one step, sometimes in a later step of a run."""
        count = self.settings.regression_crops
        sharp, small = self.photos.pairs(generator, count, self.settings.crop)
        strength = torch.zeros(count)
        steps, trained = self._place(generator)
        levels = SCHEDULES[steps]
        nothing = torch.zeros_like(sharp)
        with torch.no_grad():
            known, _ = run(net, small, nothing, strength, levels[:trained])
        state = state_at(levels[trained], known, nothing, strength)
        residual = net(small, state, torch.full((count,), levels[trained]), strength)
        picture = net.enlarge(small) + residual
        loss = charbonnier(picture - sharp).mean()
        grid = unevenness(picture)
        numbers = {"regression": float(loss.detach()), "grid0": float(grid.detach())}
        return loss * 10 + self.settings.grid_weight * grid, numbers

    def sampling(self, net: PocketNet, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Strength above 0: the energy scores of two samples."""
        count = self.settings.crops
        sharp, small = self.photos.pairs(generator, count, self.settings.crop)
        drawn = generator.uniform(0.05, 1.0, count)
        strength = torch.from_numpy(np.where(generator.random(count) < 0.6, 1.0, drawn).astype(np.float32))
        noise = torch.from_numpy(generator.standard_normal((2 * count, *sharp.shape[1:]), dtype=np.float32))
        steps, trained = self._place(generator)
        corner = (int(generator.integers(4)), int(generator.integers(4)))
        both, twice = torch.cat([small, small]), torch.cat([strength, strength])
        levels = SCHEDULES[steps]
        with torch.no_grad():
            known, _ = run(net, both, noise, twice, levels[:trained])
        state = state_at(levels[trained], known, noise, twice)
        residual = net(both, state, torch.full((2 * count,), levels[trained]), twice)
        return self.score(net.enlarge(both) + residual, sharp, strength, corner)

    def score(
        self, samples: Tensor, sharp: Tensor, strength: Tensor, corner: tuple[int, int]
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of pairs of samples.

        Args:
            samples: (2B, 3, H, W) in about -1..1, the second sample of picture i at B + i.
            sharp: the truth, (B, 3, H, W).
            strength: (B,) in 0..1.
            corner: where the grid of patches starts; random, so that no phase of the network's 4-pixel grid is special.

        Returns:
            The loss, and its parts for the log.
        """
        settings = self.settings
        # A patch is scored with less spread than the truth's: calibrated pixels would cost 3 dB.
        little, full = settings.patch_spread * strength, settings.feature_spread * strength
        first, second = samples.chunk(2)

        def scored(space: Callable[[Tensor], Tensor], spread: Tensor) -> Tensor:
            return energy_score(space(first), space(second), space(sharp), spread).mean()

        means = functional.avg_pool2d(samples, 8) - functional.avg_pool2d(sharp, 8).repeat(2, 1, 1, 1)
        parts: dict[str, Tensor] = {
            "patch": settings.patch_weight * scored(lambda picture: patches(picture, 4, *corner), little),
            "detail": settings.detail_weight * scored(lambda picture: patches(detail(picture), 4, *corner), full),
            # On its own, because beside brightness a patch's colour hardly counts, and coloured speckle shows.
            "hue": settings.hue_weight * scored(lambda picture: patches(opponent(picture), 4, *corner), little),
            "colour": settings.colour_weight * means.abs().mean(),
            "grid": settings.grid_weight * unevenness(samples),
        }
        if self.features is not None:
            # VGG's pooling has a grid of 4 pixels too. If it always lay alike on the network's own, its gradient would
            # differ by phase and weave a pattern into the pictures (it did), so it starts at the random corner as well.
            top, left = corner
            with torch.no_grad():
                truths = self.features(sharp[:, :, top:, left:])
            made = [layer.chunk(2) for layer in self.features(samples[:, :, top:, left:])]
            scores = torch.stack(
                [energy_score(one, two, truth, full) for (one, two), truth in zip(made, truths, strict=True)]
            ).sum(0)
            # Weighed by the strength too, so that the faithful end of the dial joins the plain regression smoothly.
            parts["feature"] = settings.feature_weight * (strength * scores).mean()
        numbers = {name: float(part.detach()) for name, part in parts.items()}
        numbers["apart"] = float((first - second).detach().abs().mean() * 127.5)
        return torch.stack(list(parts.values())).sum(), numbers

    @staticmethod
    def _place(generator: np.random.Generator) -> tuple[int, int]:
        """Draw a run's number of steps and which of them is trained."""
        steps, trained, _ = CHAINS[int(generator.choice(len(CHAINS), p=[chance for *_, chance in CHAINS]))]
        return steps, trained


def load_weights(net: PocketNet, path: Path) -> None:
    """Fill `net` from a safetensors file of any float type."""
    net.load_state_dict({key: value.float() for key, value in load_file(path).items()})


def save_weights(net: PocketNet, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights as float16 safetensors, complete or not at all."""
    halves = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    with appearing(path, overwrite=True) as file:
        file.write(save(halves, dict(metadata)))


def train(settings: TrainSettings) -> bool:
    """Run a training, or go on with one.

    Returns:
        Whether it is complete; False after Ctrl-C or SIGTERM, with everything saved for `resume`.
    """
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {settings.out} of --out cannot be made: {error.strerror}") from error
    log = settings.out / "log.txt"

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        with log.open("a") as file:
            file.write(line + "\n")

    features = None
    if settings.vgg is None:
        say("no VGG file: the perceptual term is off, results will be smoother")
    else:
        features = PerceptualFeatures(settings.vgg, settings.heads)
    lines = settings.hold_out.read_text("utf-8").splitlines() if settings.hold_out else []
    names = [line.strip() for line in lines]
    photos = Photos(settings.photos, names, settings.crop + 2 * MARGIN)
    torch.manual_seed(settings.seed)
    net = PocketNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.init is not None:
        load_weights(net, settings.init)
    average = settings.average or settings.updates / 10
    pace = Pace(settings.updates, settings.rate, settings.warm_up, settings.fall, 0.05, average, settings.clip)
    loop = Loop(net, PocketRecipe(settings, photos, features), pace, settings.workers)
    checkpoint = settings.out / CHECKPOINT
    if settings.resume:
        loop.load(checkpoint)
    say(f"{len(photos.pictures)} pictures, update {loop.update} of {settings.updates}, {settings}")

    def save() -> None:
        loop.save(checkpoint)
        metadata = {"format": "pt", "model": "pocket", "updates": str(loop.update), "seconds": f"{loop.seconds:.0f}"}
        save_weights(loop.average, settings.out / WEIGHTS, metadata)

    window: dict[str, list[float]] = {}
    clock = [time.monotonic(), loop.update]

    def after_update(update: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            window.setdefault(name, []).append(value)
        if update % settings.log_every == 0:
            each = (time.monotonic() - clock[0]) / max(1, update - clock[1])
            left = each * (settings.updates - update) / 60
            means = " ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in window.items())
            rate = pace.rate_at(update - 1)
            say(f"{update} {means} rate {rate:.1e} {each:.2f} s/update {loop.seconds:.0f} s, {left:.0f} min left")
            window.clear()
            clock[:] = [time.monotonic(), update]
        if update % settings.save_every == 0:
            save()

    with stop_on_signals() as stop:
        complete = loop.run(stop, after_update=after_update)
    save()
    say(f"{'complete' if complete else 'stopped'} at update {loop.update}, micro-batch {loop.micro}")
    return complete
