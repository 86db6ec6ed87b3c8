"""Memory: what there is, what a tile needs, and what an out-of-memory error looks like."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from enlarger.errors import ResourceError

RESERVE = 0.8
"""Share of the free memory that is planned for; the rest is left to the system and to our error."""


BASE_MEMORY = 350_000_000
"""Bytes that Python, torch and numpy take before any picture (measured on Linux, CPU build)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch's CPU allocator only has words for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def free_memory(device: str = "cpu") -> int:
    """Bytes that may still be taken on a device: for the CPU, within the control group's limit too."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = _available()
    limit, used = _group("memory.max"), _group("memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _group(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def fit_tile(wanted: int, cost: Callable[[int], int], budget: int, *, grid: int, least: int) -> int:
    """The largest tile side not above `wanted` that stays within a budget.

    Args:
        wanted: Tile side in output pixels.
        cost: Bytes that a run takes with a tile side.
        budget: Bytes there are.
        grid: Output pixels that a tile side must be a multiple of.
        least: Smallest tile side that is tried.

    Raises:
        ResourceError: Not even the smallest tile fits; says what it would take.
    """
    tile = max(least, wanted // grid * grid)
    while tile > least and cost(tile) > budget:
        tile = max(least, int(tile * 0.85) // grid * grid)
    if cost(tile) > budget:
        raise ResourceError(
            f"this needs {cost(tile) / 1e9:.2f} GB even with the smallest tile ({tile} pixels), "
            f"and {budget / 1e9:.2f} GB may be used: ask for a smaller result, close other programs "
            "or raise --max-memory"
        )
    return tile
