"""Seconds per output megapixel and peak memory, by engine and size, each beside a plain call for the same work.

    python benchmarks/speed.py [--sizes 256 512 1024] [--rounds 3] [--threads 2]

Every measurement is a process of its own (so its peak memory is its own); ours and the peer's take turns, and the
fastest of the rounds counts. Loading is left out of the seconds. Peers: Pillow's resize of the bytes, and for pocket
the network called on the whole picture in plain torch, with the same steps, without tiles, rows or files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CASES = {
    "interpolate": ("Pillow", {"filter": "bicubic"}),
    "pocket, 1 step": ("plain torch", {"steps": 1}),
    "pocket, 2 steps": ("plain torch", {"steps": 2}),
}
"""Ours -> the peer and our settings."""


def ours(name: str, side: int) -> Callable[[], Any]:
    """Our engine on a picture of side x side pixels, x4."""
    import enlarger

    upscaler = enlarger.Upscaler(name.partition(",")[0])
    return lambda: upscaler(photo(side), scale=4, **CASES[name][1])


def pillow(side: int) -> Callable[[], Any]:
    """Pillow's bicubic x4 on 8-bit pixels."""
    from PIL import Image

    image = Image.fromarray(photo(side))
    return lambda: image.resize((4 * side, 4 * side), Image.Resampling.BICUBIC)


def plain_torch(side: int, steps: int) -> Callable[[], Any]:
    """The network of pocket on the whole picture at once, as a script would call it."""
    import torch

    from enlarger.engines.pocket import Pocket
    from enlarger.sampling.residual import SCHEDULES, run
    from enlarger.settings import Machine

    network = Pocket.load(None, Machine()).network  # type: ignore[attr-defined]

    @torch.inference_mode()
    def enlarge() -> Any:
        source = torch.from_numpy(photo(side)).permute(2, 0, 1)[None].float() / 127.5 - 1
        noise = torch.randn(1, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(0))
        residual, _ = run(network, source, noise, torch.ones(1), SCHEDULES[steps])
        result = network.enlarge(source) + residual
        return (result.clamp(-1, 1) + 1).mul(127.5).round().byte()

    return enlarge


def photo(side: int) -> Any:
    """(side, side, 3) uint8 with structure everywhere."""
    import numpy as np

    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / 9
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], 2) * 70 + 128
    return np.clip(waves + random.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def measure(who: str, name: str, side: int, threads: int) -> dict[str, float]:
    """One run in this process."""
    if who != "Pillow":
        import torch

        torch.set_num_threads(threads)
    if who == "ours":
        work = ours(name, side)
    elif who == "Pillow":
        work = pillow(side)
    else:
        work = plain_torch(side, CASES[name][1]["steps"])
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        who, name, side = args.one
        print(json.dumps(measure(who, name, int(side), args.threads)))
        return
    print(
        "| engine | input | s per output megapixel | peak MB | peer | s per output megapixel | peak MB | ours / peer |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (peer, _) in CASES.items():
        for side in args.sizes:
            best: dict[str, dict[str, float]] = {}
            for _round in range(args.rounds):
                for who in ("ours", peer):
                    command = [sys.executable, __file__, "--threads", str(args.threads), "--one", who, name, str(side)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    if who not in best or found["seconds"] < best[who]["seconds"]:
                        best[who] = found
            megapixels = 16 * side * side / 1e6
            mine, theirs = best["ours"], best[peer]
            print(
                f"| {name} | {side}x{side} | {mine['seconds'] / megapixels:.3f} | {mine['megabytes']:.0f} | {peer} | "
                f"{theirs['seconds'] / megapixels:.3f} | {theirs['megabytes']:.0f} | "
                f"{mine['seconds'] / theirs['seconds']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
