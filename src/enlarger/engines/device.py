"""Which device and which numbers a model is loaded with."""

from __future__ import annotations

import torch

from enlarger.errors import ResourceError, SettingsError


def pick_device(name: str) -> torch.device:
    """The device a user means.

    Args:
        name: auto, cpu, cuda, cuda:N or mps; auto takes the fastest that is there.

    Raises:
        SettingsError: No device has such a name.
        ResourceError: The device is not there; names those that are.
    """
    there = devices()
    if name == "auto":
        return torch.device(there[-1] if there[-1] != "cuda:0" else "cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps") from None
    wanted = "cuda:0" if name == "cuda" else str(device)
    if wanted not in there:
        raise ResourceError(f"device {name} is not there; this machine has: {', '.join(there)}")
    return device


def devices() -> list[str]:
    """Devices of this machine, slowest first."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    found += [f"cuda:{index}" for index in reversed(range(torch.cuda.device_count()))]
    return found


def pick_dtype(name: str, device: torch.device, *, half: bool) -> torch.dtype:
    """The networks' dtype.

    Args:
        name: auto, float32, float16 or bfloat16.
        device: Where the networks are.
        half: Whether auto means half precision on a GPU; on a CPU auto is always float32.
    """
    if name == "auto":
        return torch.float16 if half and device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
