"""Any model file as safetensors: the format that holds nothing but tensors, opens at once and cannot run code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from enlarger.checkpoints.load import SHOWN
from enlarger.checkpoints.tensors import SAFETENSORS_KINDS, LazyTensor, open_tensors
from enlarger.errors import ModelError, OutputError
from enlarger.picture.atomic import appearing

KINDS = {dtype: name for name, dtype in SAFETENSORS_KINDS.items()}
"""torch's kinds of numbers -> their names in a safetensors header."""


def convert(model: Path, output: Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write a model file's weights as safetensors, tensor by tensor: memory is needed for one.

    Names are kept. What training code packs around the weights (optimizer state, callbacks) is left out.

    Args:
        model: A .ckpt, .pt, .pth, .bin or .safetensors file.
        output: The file to write; it appears whole or not at all.
        dtype: "float32", "float16" or "bfloat16" for the numbers that are not whole; None keeps each as it is.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ModelError: The model cannot be read, or has numbers too large for `dtype`.
        OutputError: The output exists, or cannot be written.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists already; --overwrite replaces it")
    tensors = open_tensors(model)
    if not tensors:
        raise ModelError(f"{model.name} holds no tensors")
    cast = None if dtype is None else getattr(torch, dtype)
    # The widest numbers first, so that each stands at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-_kind(tensors[name], cast).itemsize, name))
    words = tensors.metadata if tensors.kind == "safetensors" else {}
    with appearing(output, overwrite) as file:
        file.write(_header({name: tensors[name] for name in names}, cast, {"format": "pt", **words}))
        for name in names:
            _write(file, name, tensors[name], _kind(tensors[name], cast), model.name)
    return output


def _kind(tensor: LazyTensor, cast: torch.dtype | None) -> torch.dtype:
    return cast if cast is not None and tensor.dtype.is_floating_point else tensor.dtype


def _header(tensors: Mapping[str, LazyTensor], cast: torch.dtype | None, words: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file: the header's length and the header, filled up to a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": dict(words)}
    place = 0
    for name, tensor in tensors.items():
        kind = _kind(tensor, cast)
        end = place + math.prod(tensor.shape) * kind.itemsize
        entries[name] = {"dtype": KINDS[kind], "shape": tensor.shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, name: str, tensor: LazyTensor, kind: torch.dtype, model: str) -> None:
    value = tensor.read()
    made = value.to(kind).contiguous()
    if made.is_floating_point() and kind.itemsize < value.dtype.itemsize:
        lost = made.isinf() & value.isfinite()
        if bool(lost.any()):
            what = str(kind).removeprefix("torch.")
            raise ModelError(f"{model} cannot be {what}: {name} has numbers too large for it; take --dtype bfloat16")
    file.write(made.reshape(-1).view(torch.uint8).numpy().data)
    tensor.release()


def broken(tensors: Mapping[str, LazyTensor]) -> str:
    """Names of the tensors with numbers that are not finite, some of them; "" if there are none."""
    found = []
    for name, tensor in tensors.items():
        value = tensor.read()
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            found.append(name)
        tensor.release()
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
