"""Measure pocket's weights: quality at every number of steps and place of the dial, and what the noise does.

    python benchmarks/pocket_quality.py --judges FOLDER --photos FOLDER --names benchmarks/pocket_held_out.txt
    python benchmarks/pocket_quality.py --judges FOLDER --pairs FOLDER          (with HR and LRx4 in it)

FOLDER of the judges holds alexnet_features, lpips_heads_v0.1, vgg16_to_relu4_3_fp16, vgg16_conv5_fp16 and
dists_alpha_beta (all .safetensors).  Photographs are judged on one 256x256 window from their middle, pairs whole.
The network is called directly: this is the script for training, `enlarger evaluate` is the one for users.

Columns: PSNR-Y without 4 border pixels; LPIPS v0.1 with AlexNet; DISTS (a second opinion; its VGG16 is training's too);
LR: PSNR-Y of the result made small again against the small picture; grid: mean luma step across columns and rows that
are multiples of 4, over that across the others (1 is no grid); seeds: mean absolute difference of two seeds, of 255.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from enlarger.networks.pocket import PocketNet
from enlarger.picture.bicubic import shrink
from enlarger.sampling.residual import SCHEDULES, run
from enlarger.training.photos import Pixels, read_picture
from enlarger.training.pocket import load_weights

SHIPPED = Path(__file__).parents[1] / "src/enlarger/checkpoints/shipped/pocket.safetensors"
WINDOW = 256


def tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) bytes to (1, 3, H, W) in -1..1."""
    scaled: Tensor = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    return scaled


def luma(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Y of ITU-R BT.601 in 16..235, (H, W)."""
    values = pixels.astype(np.float64) @ np.array([65.481, 128.553, 24.966])
    return np.asarray(16 + values / 255)


def psnr(first: Pixels, second: Pixels, border: int) -> float:
    """PSNR-Y in dB, `border` pixels left out."""
    difference = luma(first) - luma(second)
    if border:
        difference = difference[border:-border, border:-border]
    return float(10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-9)))


def grid_ratio(pixels: Pixels) -> float:
    """Luma steps across the 4-pixel grid over those across other places."""
    values = luma(pixels)
    on: list[float] = []
    off: list[float] = []
    for steps in (np.abs(np.diff(values, axis=0)).mean(1), np.abs(np.diff(values, axis=1)).mean(0)):
        phase = (np.arange(len(steps)) + 1) % 4 == 0
        on.append(steps[phase].mean())
        off.append(steps[~phase].mean())
    return float(np.mean(on) / max(float(np.mean(off)), 1e-9))


class Lpips:
    """LPIPS v0.1 with AlexNet (Zhang et al. 2018)."""

    LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))

    def __init__(self, folder: Path) -> None:
        weights = {key: value.float() for key, value in load_file(folder / "alexnet_features.safetensors").items()}
        heads = load_file(folder / "lpips_heads_v0.1.safetensors")
        self.weights = [(weights[f"features.{i}.weight"], weights[f"features.{i}.bias"]) for i, _, _ in self.LAYERS]
        self.heads = [heads[f"alex.lin{i}.model.1.weight"].float() for i in range(5)]

    def features(self, picture: Tensor) -> Iterator[Tensor]:
        shift, scale = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        hidden = (picture - torch.tensor(shift).view(1, 3, 1, 1)) / torch.tensor(scale).view(1, 3, 1, 1)
        for (place, stride, padding), (weight, bias) in zip(self.LAYERS, self.weights, strict=True):
            if place in (3, 6):
                hidden = functional.max_pool2d(hidden, 3, 2)
            hidden = functional.relu(functional.conv2d(hidden, weight, bias, stride=stride, padding=padding))
            yield hidden / (hidden.square().sum(1, keepdim=True).sqrt() + 1e-10)

    def __call__(self, first: Tensor, second: Tensor) -> float:
        layers = zip(self.features(first), self.features(second), self.heads, strict=True)
        return float(sum(functional.conv2d((a - b) ** 2, head).mean() for a, b, head in layers))


class Dists:
    """DISTS (Ding et al. 2020, arXiv 2004.07728): structure and texture of VGG16's features, L2-pooled."""

    LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

    def __init__(self, folder: Path) -> None:
        weights: dict[str, Tensor] = {}
        for name in ("vgg16_to_relu4_3_fp16", "vgg16_conv5_fp16"):
            weights |= load_file(folder / f"{name}.safetensors")
        self.weights = {
            i: (weights[f"features.{i}.weight"].float(), weights[f"features.{i}.bias"].float()) for i in self.LAYERS
        }
        parameters = load_file(folder / "dists_alpha_beta.safetensors")
        self.alpha, self.beta = (parameters[name].float().flatten() for name in ("alpha", "beta"))
        taps = torch.from_numpy(np.hanning(5)[1:-1].astype(np.float32))
        kernel = taps[:, None] * taps[None, :]
        self.pool = (kernel / kernel.sum())[None, None]

    def features(self, picture: Tensor) -> Iterator[Tensor]:
        picture = (picture + 1) / 2
        yield picture
        mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        hidden = (picture - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(deviation).view(1, 3, 1, 1)
        for place, (weight, bias) in self.weights.items():
            if place in (5, 10, 17, 24):
                channels = hidden.shape[1]
                kernel = self.pool.expand(channels, 1, 3, 3)
                hidden = (functional.conv2d(hidden**2, kernel, stride=2, padding=1, groups=channels) + 1e-12).sqrt()
            hidden = functional.relu(functional.conv2d(hidden, weight, bias, padding=1))
            if place in (2, 7, 14, 21, 28):
                yield hidden

    def __call__(self, first: Tensor, second: Tensor) -> float:
        total, start, weight = 0.0, 0, float(self.alpha.sum() + self.beta.sum())
        for a, b in zip(self.features(first), self.features(second), strict=True):
            alpha, beta = (part[start : start + a.shape[1]] for part in (self.alpha, self.beta))
            start += a.shape[1]
            mean_a, mean_b = a.mean((0, 2, 3)), b.mean((0, 2, 3))
            texture = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
            spread_a, spread_b = a.var((0, 2, 3), correction=0), b.var((0, 2, 3), correction=0)
            common = (a * b).mean((0, 2, 3)) - mean_a * mean_b
            structure = (2 * common + 1e-6) / (spread_a + spread_b + 1e-6)
            total += float((alpha * texture + beta * structure).sum()) / weight
        return 1 - total


@dataclasses.dataclass(frozen=True)
class Pair:
    """A sharp picture and its small version."""

    name: str
    sharp: Pixels
    small: Pixels


def windows(folder: Path, names: list[str]) -> list[Pair]:
    """A window from the middle of each named photograph, the small version cut from that of the whole."""
    pairs = []
    for name in names:
        whole = read_picture(folder / name)
        small = shrink(whole[: whole.shape[0] // 4 * 4, : whole.shape[1] // 4 * 4], 4)
        side = WINDOW // 4
        top, left = ((length - side) // 4 * 2 for length in small.shape[:2])
        sharp = whole[4 * top : 4 * top + WINDOW, 4 * left : 4 * left + WINDOW]
        pairs.append(Pair(name, sharp, small[top : top + side, left : left + side]))
    return pairs


def whole_pairs(folder: Path) -> list[Pair]:
    """The pictures of HR and LRx4 by name."""
    small = {path.stem: path for path in sorted((folder / "LRx4").iterdir()) if path.suffix in (".png", ".webp")}
    sharp = {path.stem: path for path in sorted((folder / "HR").iterdir()) if path.stem in small}
    return [Pair(name, read_picture(sharp[name]), read_picture(small[name])) for name in sharp]


@torch.inference_mode()
def enlarge(net: PocketNet, small: Pixels, steps: int, strength: float, seed: int = 0, blind: bool = False) -> Pixels:
    """Enlarge one picture; `blind` gives the network a state without noise, to see what the noise is worth."""
    height, width = small.shape[:2]
    source = tensor(np.pad(small, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
    noise = torch.randn(1, 3, source.shape[2] * 4, source.shape[3] * 4, generator=torch.Generator().manual_seed(seed))

    def predict(source: Tensor, state: Tensor, eta: Tensor, strength: Tensor) -> Tensor:
        residual: Tensor = net(source, torch.zeros_like(state) if blind else state, eta, strength)
        return residual

    residual, _ = run(predict, source, noise, torch.tensor([float(strength)]), SCHEDULES[steps])
    assert residual is not None
    picture = (net.enlarge(source) + residual)[0, :, : 4 * height, : 4 * width]
    return np.asarray(((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def sheet(
    net: PocketNet, pairs: list[Pair], settings: list[tuple[int, float]], path: Path, zoom: int, side: int
) -> None:
    """Save a row for each pair: bicubic, each (steps, strength), sharp; the middle `side` pixels, `zoom` times."""
    rows = []
    for pair in pairs:
        bicubic = np.asarray(Image.fromarray(pair.small).resize(pair.sharp.shape[1::-1], Image.Resampling.BICUBIC))
        shown = [bicubic, *(enlarge(net, pair.small, steps, strength) for steps, strength in settings), pair.sharp]
        top, left = ((length - side) // 2 for length in pair.sharp.shape[:2])
        cut = [picture[top : top + side, left : left + side].repeat(zoom, 0).repeat(zoom, 1) for picture in shown]
        rows.append(np.concatenate([np.pad(part, ((0, 4), (0, 4), (0, 0))) for part in cut], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--settings", default="1:0,1:1,2:1,4:1", help="steps:strength,...")
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture")
    parser.add_argument("--noise", action="store_true", help="also measure what the noise is worth")
    parser.add_argument("--no-dists", action="store_true")
    parser.add_argument("--sheet", type=Path, help="also save the pictures' middles side by side")
    parser.add_argument("--zoom", type=int, default=2)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--only", default="", help="names of pictures, comma-separated")
    options = parser.parse_args()
    net = PocketNet().to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    load_weights(net, options.weights)
    if options.pairs:
        pairs = whole_pairs(options.pairs)
    else:
        pairs = windows(options.photos, options.names.read_text().split())
    pairs = [pair for pair in pairs if not options.only or pair.name in options.only.split(",")][:: options.every]
    settings = [
        (int(steps), float(strength)) for steps, strength in (part.split(":") for part in options.settings.split(","))
    ]
    lpips, dists = Lpips(options.judges), None if options.no_dists else Dists(options.judges)

    def judge(pair: Pair, made: Pixels) -> list[float]:
        with torch.inference_mode():
            a, b = tensor(made), tensor(pair.sharp)
            second = dists(a, b) if dists else float("nan")
            first = lpips(a, b)
        whole = made[: made.shape[0] // 4 * 4, : made.shape[1] // 4 * 4]
        # A window's border has no neighbours to make small again: it is left out.
        again = psnr(shrink(whole, 4), pair.small, 0 if options.pairs else 4)
        return [psnr(made, pair.sharp, 4), first, second, again, grid_ratio(made)]

    def line(name: str, rows: list[list[float]], more: str = "") -> None:
        mean: Any = np.mean(rows, 0)
        print(
            f"{name:24s} {mean[0]:6.2f} {mean[1]:7.4f} {mean[2]:7.4f} {mean[3]:6.1f} {mean[4]:6.3f} {more}", flush=True
        )

    print(f"{len(pairs)} pictures           PSNR-Y LPIPS-A   DISTS     LR   grid")
    line("sharp", [judge(pair, pair.sharp) for pair in pairs])
    resized = [
        np.asarray(Image.fromarray(p.small).resize(p.sharp.shape[1::-1], Image.Resampling.BICUBIC)) for p in pairs
    ]
    line("bicubic", [judge(pair, made) for pair, made in zip(pairs, resized, strict=True)])
    for steps, strength in settings:
        made = [enlarge(net, pair.small, steps, strength) for pair in pairs]
        more = ""
        if options.noise and strength > 0:
            other = [enlarge(net, pair.small, steps, strength, seed=1) for pair in pairs]
            apart = np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(made, other, strict=True)])
            more = f"seeds {apart:.2f}"
        line(
            f"{steps} steps, strength {strength:g}",
            [judge(p, picture) for p, picture in zip(pairs, made, strict=True)],
            more,
        )
        if options.noise and strength > 0:
            line(
                "  without noise",
                [judge(pair, enlarge(net, pair.small, steps, strength, blind=True)) for pair in pairs],
            )
    if options.sheet:
        sheet(net, pairs, settings, options.sheet, options.zoom, options.side)


if __name__ == "__main__":
    main()
