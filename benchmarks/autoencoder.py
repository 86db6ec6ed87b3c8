"""The tiled autoencoder at full size, with random weights, beside diffusers' own tiling.

    python benchmarks/autoencoder.py [--size 4096] [--compare 2048] [--error 1024] [--limit 4.5] [--threads 1]
    python benchmarks/autoencoder.py --attention 512    # what averaged keys change, and nothing else

Every decode but the second command's runs in a process of its own. Printed are its seconds, and those of them that it
had a processor (other work on the machine does not count there), its peak resident memory (all of the process, weights
included), the bytes of its temporary files and how attention was computed; for errors the largest and the mean distance
to diffusers' untiled decode, as a share of that picture's range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

os.environ["HF_HUB_OFFLINE"] = "1"

WIDTHS = {4: (128, 256, 512), 8: (128, 256, 512, 512)}
"""Channels of the levels of Stable Diffusion's autoencoders, by pixels per latent cell."""


def autoencoder(factor: int) -> Any:
    """An AutoencoderKL of the published size with random weights."""
    from diffusers import AutoencoderKL

    widths = WIDTHS[factor]
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        sample_size=512 if factor == 8 else 256,
    ).eval()


def latent(side: int) -> torch.Tensor:
    """Smooth areas with texture on them, about normal."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 4, 5, 5, generator=generator)
    smooth = functional.interpolate(coarse, (side, side), mode="bicubic")
    return smooth + 0.3 * torch.randn(1, 4, side, side, generator=generator)


def child(args: argparse.Namespace) -> None:
    """Decode once and print what it took."""
    torch.set_num_threads(args.threads)
    vae = autoencoder(args.factor)
    cells = latent(args.size // args.factor)
    report: dict[str, Any] = {}
    before = _status("VmRSS")
    started, worked = time.perf_counter(), time.process_time()
    if args.method == "ours":
        from enlarger.canvas.autoencoder import Autoencoder

        decoded = Autoencoder(vae).decode(
            cells,
            limit=None if args.limit is None else int(args.limit * 1e9),
            tile=args.tile,
            progress=_progress(args),
        )
        pixels, plan = decoded.pixels, decoded.plan
        report = {"tile": plan.tile, "planned": plan.memory, "disk": plan.disk, "attention": plan.attention}
    else:
        if args.method == "tiling":
            vae.enable_tiling()
        with torch.inference_mode():
            pixels = vae.decode(cells).sample
        report = {"attention": "of each tile" if args.method == "tiling" else "exact"}
    report |= {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}
    report |= {"before": before, "peak": _status("VmHWM")}
    if args.keep:
        torch.save(pixels, args.keep)
    print(json.dumps(report))


def _progress(args: argparse.Namespace) -> Any:
    last = [time.perf_counter()]

    def told(share: float) -> None:
        if time.perf_counter() - last[0] > 60:
            last[0] = time.perf_counter()
            print(f"f={args.factor} {args.size}: {share:.1%}", file=sys.stderr)

    return told


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(
    args: argparse.Namespace,
    method: str,
    factor: int,
    size: int,
    limit: float | None = None,
    tile: int | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """One decode in a process of its own; prints its line."""
    command = [sys.executable, __file__, "--method", method, "--factors", str(factor), "--size", str(size)]
    command += ["--threads", str(args.threads)]
    command += ["--limit", "none" if limit is None else str(limit)]
    command += ["--tile", str(tile)] if tile else []
    command += ["--keep", str(keep)] if keep else []
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(found.stdout)
    name = {"ours": "enlarger", "tiling": "diffusers' enable_tiling", "whole": "diffusers untiled"}[method]
    how = "" if method != "ours" else f", {'whole' if report['tile'] is None else 'tiles of ' + str(report['tile'])}"
    files = f", files {report['disk'] / 1e9:.1f} GB" if report.get("disk") else ""
    print(
        f"f={factor} {size}x{size} {name}{how}: {report['seconds']:.0f} s ({report['cpu']:.0f} s of "
        f"processor), peak {report['peak'] / 1e9:.2f} GB "
        f"({(report['peak'] - report['before']) / 1e9:.2f} GB for the decode){files}, attention {report['attention']}",
        flush=True,
    )
    return report


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the large picture in pixels; 0 leaves it out")
    parser.add_argument("--compare", type=int, default=2048, help="side for time and memory beside diffusers' tiling")
    parser.add_argument("--error", type=int, default=1024, help="side for errors against the untiled decode")
    parser.add_argument("--limit", type=lambda text: None if text == "none" else float(text), default=4.5, help="GB")
    parser.add_argument("--attention", type=int, help="side at which averaged attention is compared with exact one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--tile", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        args.factor = args.factors[0]
        child(args)
        return
    for factor in args.factors:
        if args.attention:
            averaged(args, factor)
            continue
        if args.error:
            errors(args, factor)
        if args.compare:
            measure(args, "tiling", factor, args.compare)
            measure(args, "ours", factor, args.compare, args.limit)
        if args.size:
            measure(args, "ours", factor, args.size, args.limit)


def errors(args: argparse.Namespace, factor: int) -> None:
    """Both ways of tiling against the untiled decode."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {method: Path(folder, f"{method}.pt") for method in ("whole", "tiling", "ours")}
        for method, path in kept.items():
            # Tiles of 128 pixels, whatever the memory: ours would take the whole where that fits.
            tile = 128 // factor if method == "ours" else None
            measure(args, method, factor, args.error, tile=tile, keep=path)
        truth = torch.load(kept["whole"])
        extent = float(truth.max() - truth.min())
        for method in ("tiling", "ours"):
            distance = (torch.load(kept[method]) - truth).abs() / extent
            name = "enlarger" if method == "ours" else "diffusers' enable_tiling"
            print(
                f"f={factor} {args.error}x{args.error} {name}: largest error {float(distance.max()):.1e} of the range, "
                f"mean {float(distance.mean()):.1e}",
                flush=True,
            )


@torch.inference_mode()
def averaged(args: argparse.Namespace, factor: int) -> None:
    """Decodes whose attention looks at averages of cells, against exact ones.

    Random weights attend to everything alike, and there nothing is lost. So that attention chooses, as trained one may,
    its queries are multiplied; how many cells a query looks at is the exponential of its mean entropy.
    """
    from enlarger.canvas.autoencoder import Autoencoder

    torch.set_num_threads(args.threads)
    cells = latent(args.attention // factor)
    count = cells.shape[2] * cells.shape[3]
    for gain in (1, 8, 64):
        vae = autoencoder(factor)
        attention = vae.decoder.mid_block.attentions[0]
        attention.to_q.weight *= gain
        attention.to_q.bias *= gain
        looked = _looked_at(vae, attention, cells)
        ours = Autoencoder(vae)
        exact = ours.decode(cells, tokens=count).pixels
        for share in (4, 16, 64):
            decoded = ours.decode(cells, tokens=count // share)
            distance = (decoded.pixels - exact).abs() / (exact.max() - exact.min())
            print(
                f"f={factor} {args.attention}x{args.attention}, queries times {gain} ({looked:.0f} of {count} cells "
                f"looked at), {decoded.plan.attention}: largest error {float(distance.max()):.1e} of the range, "
                f"mean {float(distance.mean()):.1e}",
                flush=True,
            )


def _looked_at(vae: Any, attention: Any, cells: torch.Tensor) -> float:
    """Cells that a query of the mid attention looks at, on average."""
    seen: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        vae.decoder.mid_block(vae.decoder.conv_in(vae.post_quant_conv(cells)))
    finally:
        handle.remove()
    tokens = attention.group_norm(seen[0].flatten(2)).transpose(1, 2)[0]
    scores = attention.to_q(tokens) @ attention.to_k(tokens).T / tokens.shape[1] ** 0.5
    shares = scores.softmax(1)
    entropy = -(shares * scores.log_softmax(1)).sum(1)
    return float(entropy.mean().exp())


if __name__ == "__main__":
    main()
