"""Seconds and memory of opening a full-size Stable Diffusion x4 model with random weights.

A file with the published names and shapes (UNet 473, text encoder 354, autoencoder 55 million parameters) is written
piece by piece into a temporary folder and opened in a fresh process for each row: what it takes above the memory that
the imports take, as a multiple of the weights in the kind of number asked for. The peak is the process's own (VmHWM).

    python benchmarks/loading.py [--layouts safetensors pickle] [--stored float16 float32] [--wanted float16 float32]
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = ("unet", "vae", "text_encoder")

PROBE = """
import json, re, sys, time
from pathlib import Path
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
path, dtype, parts = sys.argv[1], sys.argv[2], sys.argv[3:]
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel
from enlarger.checkpoints.open import open_checkpoint
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is not ours
started = time.perf_counter()
checkpoint = open_checkpoint(path, families=["x4"], engine="x4")
opened = time.perf_counter() - started
made = checkpoint.components(parts, getattr(torch, dtype))
seconds = time.perf_counter() - started
peak = status("VmHWM") - before
started = time.perf_counter()
digest = checkpoint.digest
hashed = time.perf_counter() - started
started = time.perf_counter()
open_checkpoint(path, families=["x4"], engine="x4").digest
again = time.perf_counter() - started
weights = sum(p.numel() * p.itemsize for module in made.values() for p in module.parameters())
print(json.dumps({"opened": opened, "seconds": seconds, "peak": peak, "weights": weights, "hashed": hashed,
                  "again": again}))
"""


def inventory(family: str = "x4", parts: Sequence[str] = PARTS) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, made the other way round from diffusers' modules (no weights)."""
    import torch

    from enlarger.checkpoints.configs import published
    from enlarger.checkpoints.modules import _empty
    from tests.checkpoints.published import original_text, original_unet, original_vae

    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        config = published(family).find(part)
        assert config is not None
        with torch.device("meta"):
            state = _empty(config, family, part).state_dict()
            if part == "unet":
                named = {f"model.diffusion_model.{key}": value for key, value in original_unet(state).items()}
            elif part == "vae":
                named = {f"first_stage_model.{key}": value for key, value in original_vae(state).items()}
            else:
                named = original_text(family, part, state)
        shapes |= {key: tuple(value.shape) for key, value in named.items()}
    return shapes


def pieces(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Iterator[tuple[str, bytes]]:
    """Random numbers for each tensor: one stretch of them, repeated."""
    import torch

    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(getattr(torch, dtype))
    raw = noise.view(torch.uint8).numpy().tobytes()
    for name, shape in shapes.items():
        size = math.prod(shape) * noise.itemsize
        yield name, (raw * (size // len(raw) + 1))[:size]


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """One .safetensors file, piece by piece."""
    width = 2 if dtype == "float16" else 4
    entries, place = {}, 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * width
        kind = "F16" if width == 2 else "F32"
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, piece in pieces(shapes, dtype):
            file.write(piece)


class Tensor:
    """Pickles as torch pickles a tensor whose numbers are a member of the archive."""

    def __init__(self, key: str, shape: tuple[int, ...], dtype: str) -> None:
        self.key, self.shape, self.dtype = key, shape, dtype

    def __reduce__(self) -> Any:
        from torch._utils import _rebuild_tensor_v2

        strides = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        return _rebuild_tensor_v2, (Storage(self), 0, self.shape, strides, False, {})


class Storage:
    """The numbers of such a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Pickler(pickle.Pickler):
    """Writes storages as references, as torch does."""

    def persistent_id(self, item: Any) -> Any:
        """("storage", class, key, device, count) for a storage."""
        import torch

        if not isinstance(item, Storage):
            return None
        kind = torch.HalfStorage if item.tensor.dtype == "float16" else torch.FloatStorage
        return "storage", kind, item.tensor.key, "cpu", math.prod(item.tensor.shape)


def write_pickle(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """One .ckpt file as torch.save writes it, piece by piece."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            tensors = {name: Tensor(str(number), shape, dtype) for number, (name, shape) in enumerate(shapes.items())}
            Pickler(file, 2).dump({"state_dict": tensors, "global_step": 1})
        for number, (_, piece) in enumerate(pieces(shapes, dtype)):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            head = archive.fp.tell() + 30 + len(info.filename)  # type: ignore[union-attr]
            filled = -(head + 4) % 64
            info.extra = b"FB" + filled.to_bytes(2, "little") + bytes(filled)
            archive.writestr(info, piece)


def main() -> int:
    """Print a row for each file and kind of number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", nargs="+", default=["safetensors", "pickle"], choices=["safetensors", "pickle"])
    parser.add_argument("--stored", nargs="+", default=["float16", "float32"], choices=["float16", "float32"])
    parser.add_argument(
        "--wanted", nargs="+", default=["float16", "float32"], choices=["float16", "float32", "bfloat16"]
    )
    parser.add_argument("--limit", type=float, default=1.15, help="Multiple of the weights that the peak may reach.")
    args = parser.parse_args()
    shapes = inventory()
    print(f"x4, {sum(map(math.prod, shapes.values())) / 1e6:,.0f} million numbers in {len(shapes):,} tensors")
    print("file         stored    wanted    weights  peak     peak/weights  open    load    digest  digest again")
    worst = 0.0
    for layout in args.layouts:
        for stored in args.stored:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "a.bin"
                (write_safetensors if layout == "safetensors" else write_pickle)(path, shapes, stored)
                for wanted in args.wanted:
                    command = [sys.executable, "-c", PROBE, str(path), wanted, *PARTS]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    row = json.loads(done.stdout.splitlines()[-1])
                    ratio = row["peak"] / row["weights"]
                    worst = max(worst, ratio)
                    print(
                        f"{layout:<12} {stored:<9} {wanted:<9} "
                        f"{row['weights'] / 1e9:5.2f} GB {row['peak'] / 1e9:5.2f} GB {ratio:12.3f}  "
                        f"{row['opened']:5.2f} s {row['seconds']:5.1f} s "
                        f"{row['hashed']:5.1f} s {row['again']:5.2f} s",
                        flush=True,
                    )
    print(f"worst {worst:.3f} of the weights, at most {args.limit} allowed")
    return 0 if worst <= args.limit else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    raise SystemExit(main())
