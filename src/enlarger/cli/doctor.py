"""`enlarger doctor`: what is installed, what the machine has, what works here.

It must answer where things are broken, so it imports nothing of Enlarger's work before it is tried.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import enlarger
from enlarger.cli.models import describe
from enlarger.cli.say import line
from enlarger.engines.catalog import listings
from enlarger.errors import EnlargerError, ModelError

HELP = "Say what is installed, what this machine has and what works here."

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tifffile", "platformdirs", "tqdm")
"""What Enlarger cannot do without."""

EXTRAS = {
    "diffusers": ("diffusers", "transformers", "accelerate", "peft", "huggingface_hub"),
    "heif": ("pillow-heif",),
    "spandrel": ("spandrel", "einops"),
}
"""Extra -> its packages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="One JSON object.")


def run(args: argparse.Namespace) -> int:
    """Examine and tell; 0 when the default engine works here, 4 when not."""
    report = examine()
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(tell(report)))
    return 0 if report["engines"]["pocket"]["works"] else ModelError.exit_code


def examine() -> dict[str, Any]:
    """Everything there is to tell, as plain values."""
    torch, broken = _import("torch")
    report: dict[str, Any] = {
        "enlarger": enlarger.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "free_memory_bytes": _answer(lambda: importlib.import_module("enlarger.sampling.memory").free_memory()),
        "devices": _devices(torch) if torch else [],
        "cuda_build": torch.version.cuda if torch else None,
        "engines": {name: _try(name) for name in listings()},
        "problems": [],
    }
    problems: list[str] = report["problems"]
    if broken:
        problems.append(f"torch cannot be imported: {broken}")
    problems += [f"{name} is not installed" for name, found in report["packages"].items() if found is None]
    if importlib.util.find_spec("torchvision") and (reason := _import("torchvision")[1]):
        problems.append(
            f"torchvision is installed but broken ({reason}); Enlarger needs none, but it makes transformers fail: "
            "pip uninstall torchvision"
        )
    for name, tried in report["engines"].items():
        if tried["error"] and tried["ready"]:
            problems.append(f"engine {name} does not work: {tried['error']}")
    return report


def tell(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    lines = [f"enlarger {report['enlarger']}, Python {report['python']}, {report['system']}", "", "packages"]
    lines += [f"  {name:<16} {found or 'MISSING'}" for name, found in report["packages"].items()]
    for extra, packages in report["extras"].items():
        there = ", ".join(f"{name} {found}" for name, found in packages.items() if found)
        whole = all(packages.values())
        lines.append(f"  [{extra}]".ljust(19) + (there if whole else f'not installed: pip install "enlarger[{extra}]"'))
    free = report["free_memory_bytes"]
    memory = f"{free / 1e9:.1f} GB free" if free else "unknown"
    lines += [
        "",
        "machine",
        f"  {'processors':<16} {report['cpus']}, torch uses {report['threads'] or 'none'}",
        f"  {'memory':<16} {memory}",
    ]
    for device in report["devices"]:
        free = device["free_memory_bytes"]
        lines.append(f"  {device['device']:<16} {device['name']}" + (f", {free / 1e9:.1f} GB free" if free else ""))
    lines += ["", "engines (each has just enlarged a 32x32 picture)"]
    for name, tried in report["engines"].items():
        seconds = tried["seconds"]
        lines.append(
            f"  {name:<16} " + (f"works, {seconds:.2f} s" if tried["works"] else tried["error"] or tried["status"])
        )
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])]
    if not report["problems"]:
        lines.append("no problems found")
    return [line(text) for text in lines]


def _try(name: str) -> dict[str, Any]:
    """Whether an engine works here: it enlarges a small picture."""
    listing = listings()[name]
    known = describe(listing)
    tried: dict[str, Any] = {
        "ready": known["ready"], "status": known["status"], "works": False, "seconds": None, "error": None,
    }  # fmt: skip
    if not known["ready"]:
        return tried
    try:
        import numpy as np

        from enlarger.upscaler import Upscaler

        upscaler = Upscaler(name)
        started = time.perf_counter()
        grey = np.full((32, 32, 3), 128, dtype=np.uint8)
        size = upscaler(grey).size
        assert size == (32 * known["default_scale"],) * 2
        tried.update(works=True, seconds=round(time.perf_counter() - started, 3))
    except Exception as error:
        tried["error"] = _words(error)
    return tried


def _devices(torch: Any) -> list[dict[str, Any]]:
    """Each device by name, with its free memory."""
    found = [{"device": "cpu", "name": _processor(torch), "free_memory_bytes": None}]
    for index in range(torch.cuda.device_count()):
        free = _answer(partial(torch.cuda.mem_get_info, index))
        found.append({
            "device": f"cuda:{index}",
            "name": torch.cuda.get_device_name(index),
            "free_memory_bytes": free[0] if free else None,
        })  # fmt: skip
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "free_memory_bytes": None})
    return found


def _processor(torch: Any) -> str:
    capability = _answer(lambda: torch.backends.cpu.get_cpu_capability())
    return f"{platform.processor() or platform.machine()}, {capability or 'unknown instructions'}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _import(name: str) -> tuple[Any, str | None]:
    """The module, or why there is none; a broken package may raise anything."""
    try:
        return importlib.import_module(name), None
    except Exception as error:
        return None, _words(error)


def _answer(question: Callable[[], Any]) -> Any:
    """What a part of the machine says of itself; None where it fails to."""
    try:
        return question()
    except Exception:
        return None


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, EnlargerError) else f"{type(error).__name__}: {text}"
