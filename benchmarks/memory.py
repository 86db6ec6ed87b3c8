"""Peak memory of one enlargement, in a process of its own.

    python benchmarks/memory.py 2000x1500 [--scale 4] [--engine pocket] [--settings steps=2 ...]

Prints the plan, the seconds, and the peak resident memory after enlarging and after writing a PNG.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import enlarger


def peak() -> str:
    """The most memory this process has held so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB"


def main() -> None:
    """Enlarge blocks of random colour and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="WxH of the input in pixels")
    parser.add_argument("--scale", type=float, default=4)
    parser.add_argument("--engine", default="pocket")
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])
    settings = dict(pair.split("=", 1) for pair in args.settings)

    upscaler = enlarger.Upscaler(args.engine)
    plan = upscaler.plan(enlarger.Size(height, width), upscaler.settings(scale=args.scale, **settings))
    print(f"plan: {plan.canvas.target}, {plan.tiles} tiles of {plan.tile} pixels, {plan.memory / 1e9:.2f} GB")
    started = time.perf_counter()
    result = upscaler(picture, scale=args.scale, **settings)
    print(f"enlarged: {result.size} in {time.perf_counter() - started:.0f} s, peak {peak()}")
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder, "result.png"))
    print(f"written: {time.perf_counter() - started:.0f} s, peak {peak()}")


if __name__ == "__main__":
    main()
