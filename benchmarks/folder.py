"""A folder with reading, computing and writing side by side against one by one: seconds, and the same bytes.

    python benchmarks/folder.py [--engine interpolate pocket] [--count 24] [--side 512] [--rounds 3] [--threads 2]

Both ways run over the same pictures in this process and take turns, round by round; each round gives a ratio, and the
median of them counts. "processor" is the processor time of all threads over the elapsed time: where it is near the
number of threads one by one already, nothing is left for the overlap to win.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = {"interpolate": 512, "pocket": 96}
"""Pixels of either side of a picture, where --side says nothing."""


def photo(side: int, seed: int) -> Any:
    """(side, side, 3) uint8 with structure everywhere."""
    import numpy as np

    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / 9
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], 2) * 70 + 128
    return np.clip(waves + random.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def measure(folder: Path, engine: str, format: str, *, overlap: bool) -> tuple[float, float, dict[str, bytes]]:
    """Seconds, processor seconds and results of one run."""
    from enlarger.batch.jobs import plan
    from enlarger.batch.order import Order
    from enlarger.batch.run import run
    from enlarger.engines.catalog import find
    from enlarger.settings import build

    listing = find(engine)
    order = Order(
        listing, None, {"scale": 4.0}, build(listing.facts.settings, {"scale": 4.0}, owner=engine), {}, format
    )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        jobs = plan([str(folder / "in")], out, format, "_4x")
        started, worked = time.perf_counter(), time.process_time()
        states = {outcome.state for outcome in run(jobs, order, overlap=overlap)}
        seconds, processor = time.perf_counter() - started, time.process_time() - worked
        assert states == {"made"}, states
        return seconds, processor, {path.name: path.read_bytes() for path in Path(out).iterdir()}


def main() -> None:
    """Print a line for each engine and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", default=["interpolate", "pocket"])
    parser.add_argument("--format", nargs="+", default=["png", "jpg"])
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--side", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    import torch
    from PIL import Image

    torch.set_num_threads(options.threads)
    print(f"{options.count} pictures, x4, {options.threads} threads, torch {torch.__version__}")
    print("engine        format  side   one by one   overlapping   speed-up   processor (one by one)")
    for engine in options.engine:
        side = options.side or SIDES.get(engine, 96)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").mkdir()
            for number in range(options.count):
                Image.fromarray(photo(side, number)).save(folder / "in" / f"{number:03}.png")
            for format in options.format:
                measure(folder, engine, format, overlap=True)  # the first run is slower
                pairs = []
                for _ in range(options.rounds):
                    one, worked, expected = measure(folder, engine, format, overlap=False)
                    both, _, found = measure(folder, engine, format, overlap=True)
                    assert found == expected, "the overlap changed a result"
                    pairs.append((one, both, worked / one))
                ratio = statistics.median(one / both for one, both, _ in pairs)
                one, both, busy = (statistics.median(values) for values in zip(*pairs, strict=True))
                print(
                    f"{engine:<13} {format:<6} {side:>5} {one:>10.2f} s {both:>11.2f} s {ratio:>10.2f} {busy:>12.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
