"""The tensors of a model file: names, shapes and kinds are known before any number is read.

A file is mapped into memory, never read whole. Where a tensor is wanted in the kind of number that the file has,
it is the file's own pages; where it is cast, its pages are given back at once, so that reading a model costs the
memory of the model in its new kind and of one tensor.

What a file is, its first bytes decide; its name decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enlarger.errors import ModelError

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header; the format's own limit."""

SAFETENSORS_KINDS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Names of kinds of numbers in a safetensors header."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that can be read.

    Attributes:
        shape: Its sizes.
        dtype: The kind of number in the file.
        read: Gives the numbers, as the file has them; may be the file's own pages.
        release: Gives mapped pages back to the system; what was read from them stays valid and costs a new read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def load(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """The numbers, cast and on a device; pages that are no longer needed are given back."""
        here = self.read()
        made = here.to(device, dtype or self.dtype)
        if made.untyped_storage().data_ptr() != here.untyped_storage().data_ptr():
            self.release()
        return made

    def changed(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """The tensor after a change of its layout, which is made when it is read."""
        return dataclasses.replace(self, shape=shape, read=lambda: change(self.read()))


@dataclass(frozen=True)
class Tensors(Mapping[str, LazyTensor]):
    """Named tensors that can be read, and what else the file says.

    Attributes:
        entries: Name -> tensor.
        metadata: Further words of the file.
        kind: "safetensors", "pickle" or "" when put together.
    """

    entries: Mapping[str, LazyTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def __getitem__(self, name: str) -> LazyTensor:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def below(self, prefix: str) -> Tensors:
        """The tensors whose names start with a prefix, without it."""
        inside = {name.removeprefix(prefix): tensor for name, tensor in self.items() if name.startswith(prefix)}
        return Tensors(inside, self.metadata, self.kind)

    def without(self, pattern: str) -> Tensors:
        """The tensors whose names do not match a pattern anywhere."""
        left = {name: tensor for name, tensor in self.items() if not re.search(pattern, name)}
        return Tensors(left, self.metadata, self.kind)


class MappedFile:
    """A file in memory without being read: pages come when they are touched, and writing to them stays private."""

    def __init__(self, path: Path) -> None:
        """Map a file that is not empty.

        Raises:
            ModelError: It cannot be read.
        """
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path.name} cannot be read ({error})") from error
        self.size = len(self.map)

    def bytes(self, start: int, count: int) -> bytes:
        """Some of its bytes."""
        return self.map[start : start + count]

    def tensor(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers that stand at `start`, flat; the pages themselves, or a copy where a processor wants one."""
        if not count:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize:
            raw = torch.frombuffer(self.map, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
            return raw.clone().view(dtype)
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=start)

    def release(self, start: int, size: int) -> None:
        """Give back the whole pages in a stretch that was only read."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):
                self.map.madvise(mmap.MADV_DONTNEED, first, last - first)


def open_tensors(path: Path) -> Tensors:
    """The tensors of a model file, whatever it is called.

    Args:
        path: A safetensors file, or a PyTorch pickle (.ckpt, .pt, .pth, .bin; nothing in it is run).

    Raises:
        ModelError: There is no such file, it is damaged, or it is something else, which is named.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else f"is not there (looked in {path.parent})"
        raise ModelError(f"the model file {path.name} {what}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
    other = foreign(head, path.stat().st_size)
    if other:
        raise ModelError(f"{path.name} {other}")
    if _pickled(head):
        from enlarger.checkpoints.pickles import open_pickle

        return open_pickle(path)
    return open_safetensors(path)


def foreign(head: bytes, size: int) -> str:
    """What a file is that holds no weights, with the remedy, by its first bytes; "" when it may hold some."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: fetch it again"
    if text.startswith(b"version https://git-lfs"):
        words = head.decode("ascii", "replace").split()
        told = words[words.index("size") + 1] if "size" in words[:-1] else ""
        real = f"{int(told):,} bytes" if told.isdigit() else "the weights"
        return f"is a Git LFS pointer, the real file has {real}: fetch it with git lfs pull, or from the hub"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download was refused or needs a login; fetch it again"
    if text.startswith((b"{", b"[")) and head[8:9] != b"{":
        return "is JSON text, not weights: a download that failed, or a configuration"
    if head.startswith(b"GGUF"):
        return "is a GGUF file, which Enlarger does not read: take the .safetensors file of the same model"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")):
        return "is a picture, not weights"
    if not _pickled(head) and (size < 10 or head[8:9] != b"{"):
        return "is no model file that Enlarger reads: it wants .safetensors, or PyTorch's .ckpt, .pt, .pth or .bin"
    return ""


def _pickled(head: bytes) -> bool:
    """Whether a file is one of PyTorch's: an archive, or a stream of pickles (safetensors may begin alike)."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or (head[:1] == b"\x80" and head[8:9] != b"{")


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, after checking that every byte has one owner.

    Raises:
        ModelError: The file is cut or damaged.
    """
    file = MappedFile(path)
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length + 8 > file.size:
        what = "is cut" if length <= LONGEST_HEADER else "is cut or damaged"
        raise ModelError(
            f"{path.name} {what}: its header alone should have {length:,} bytes, the file has {file.size:,}; "
            "fetch it again"
        )
    if length > LONGEST_HEADER:
        raise ModelError(f"{path.name} is damaged: its header says that it has {length:,} bytes; fetch it again")
    try:
        header = json.loads(file.bytes(8, length), object_pairs_hook=_without_doubles)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(entry, file, 8 + length) for name, entry in header.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = str(error) if isinstance(error, _Fault) else "its header makes no sense"
        raise ModelError(f"{path.name} is a damaged safetensors file: {told}") from error
    place = 0
    for start, stop in spans:
        if start != place:
            raise ModelError(f"{path.name} is a damaged safetensors file: its tensors overlap or leave gaps")
        place = stop
    if 8 + length + place != file.size:
        cut = "is cut" if 8 + length + place > file.size else "is damaged"
        raise ModelError(
            f"{path.name} {cut}: the file has {file.size:,} bytes, its header says {8 + length + place:,}; "
            "fetch it again"
        )
    words = metadata if isinstance(metadata, dict) else {}
    return Tensors(entries, {str(key): str(value) for key, value in words.items()}, "safetensors")


class _Fault(ValueError):
    """Something in a header that can be named."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Fault("a name stands in its header twice")
    return made


def _entry(entry: Mapping[str, Any], file: MappedFile, data: int) -> LazyTensor:
    """One entry of a safetensors header as a tensor."""
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    kind = entry["dtype"]
    if kind not in SAFETENSORS_KINDS:
        raise _Fault(f"it has numbers of a kind that is not understood ({str(kind)[:20]})")
    dtype = SAFETENSORS_KINDS[kind]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise _Fault("a shape or place is not a whole number")
    count = math.prod(shape)
    if stop - start != count * dtype.itemsize:
        raise _Fault("a tensor's length does not fit its shape")
    return LazyTensor(
        shape,
        dtype,
        lambda: file.tensor(data + start, count, dtype).view(shape),
        lambda: file.release(data + start, stop - start),
    )


def joined(parts: Iterable[Tensors]) -> Tensors:
    """Several files as one."""
    entries: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    kinds = set()
    for part in parts:
        entries.update(part.entries)
        metadata.update(part.metadata)
        kinds.add(part.kind)
    return Tensors(entries, metadata, kinds.pop() if len(kinds) == 1 else "")
