"""PyTorch's own files, opened by a reader of the pickle format that can call nothing.

A pickle is a program for a small stack machine, and two of its instructions call whatever Python function they name.
The machine here has these instructions too, but what they may call is a table of five names, and none of the five is
looked up: each stands for a few lines of this file. Every other name becomes an inert `Named`, every object made of
one an inert `Thing`; so the envelopes of PyTorch Lightning, with callbacks, optimizer state and configurations, open
without Lightning. A program that calls any other name is refused, except for a few that training code leaves behind
(paths, dates, numpy's numbers) and that are inert here as well.

Both of PyTorch's formats are read: the archive (since 1.6) and the stream of pickles before it. Their tensors are
mapped, not read.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enlarger.checkpoints.tensors import LazyTensor, MappedFile, Tensors
from enlarger.errors import ModelError

LONGEST_PROGRAM = 256 << 20
"""Bytes of a pickle without its tensors; a checkpoint with all its envelope has a few million."""

WEIGHTS = ("state_dict", "params_ema", "params", "model_state_dict", "model")
"""Names under which training code keeps the weights inside its envelope, the averaged ones first."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""Kinds of numbers by the names of torch's storage classes."""

INERT_CALLS = (
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.set",
    "builtins.slice",
    "collections.",
    "copyreg._reconstructor",
    "datetime.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "lightning.",
    "torch.Size",
    "torch.device",
    "torch.dtype",
    "torch._utils._rebuild_",
    "typing.",
    "uuid.UUID",
)
"""Names that envelopes are known to call (whole, or up to a dot); here the calls do nothing, like everything else."""


RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that old protocols call by their names in Python 2."""


@dataclass(frozen=True)
class Named:
    """A name that a pickle mentions; nothing is looked up."""

    name: str


class Thing:
    """An object of a class that is not known here: it takes everything and does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class Storage:
    """A stretch of a file that holds the numbers of one or more tensors."""

    dtype: torch.dtype
    count: int
    read: Callable[[], Tensor]
    release: Callable[[], None]


class _Fault(Exception):
    """What is wrong with a pickle, to stand behind the file's name."""


def open_pickle(path: Path) -> Tensors:
    """The tensors of a PyTorch file, under their own names; nothing in the file is run.

    The weights are taken out of the envelope that training code puts around them (`state_dict` and others); names of
    nested mappings are joined by dots. Plain words and numbers of the envelope become the metadata.

    Raises:
        ModelError: The file is cut or damaged, is no checkpoint, or wants to call something.
    """
    try:
        file = MappedFile(path)
        tree = _archive(path, file) if file.bytes(0, 2) == b"PK" else _stream(file)
        if not isinstance(tree, dict):
            raise _Fault("holds no named tensors")
        words = {str(key): str(value) for key, value in tree.items() if isinstance(value, str | int | float)}
        return Tensors(_flat(_weights(tree)), words, "pickle")
    except _Fault as fault:
        raise ModelError(f"{path.name} {fault}") from None


def _weights(tree: dict[Any, Any]) -> dict[Any, Any]:
    """The mapping with the weights, out of its envelopes."""
    for name in WEIGHTS:
        inner = tree.get(name)
        if isinstance(inner, dict) and _flat(inner):
            return _weights(inner)
    return tree


def _flat(tree: Mapping[Any, Any], depth: int = 0) -> dict[str, LazyTensor]:
    """All tensors of nested mappings, names joined by dots."""
    found: dict[str, LazyTensor] = {}
    for key, value in tree.items():
        if isinstance(value, LazyTensor):
            found[str(key)] = value
        elif isinstance(value, dict) and depth < 4:
            found.update({f"{key}.{name}": tensor for name, tensor in _flat(value, depth + 1).items()})
    return found


def _archive(path: Path, file: MappedFile) -> Any:
    """What a file of torch >= 1.6 holds: a zip archive of a pickle and one member for each storage."""
    try:
        archive = zipfile.ZipFile(path)
        members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _Fault("is cut or damaged: the end of its archive is missing; fetch it again") from error
    with archive:
        programs = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in members):
            raise _Fault("is a TorchScript program, not weights: it is not opened, because it could run code")
        if any(name.endswith((".pt2", "/archive_format", "/archive_version")) for name in members):
            raise _Fault("is an exported PyTorch program (.pt2), not weights: it is not opened")
        if len(programs) != 1:
            raise _Fault("is a zip archive, but no PyTorch checkpoint")
        root = programs[0].removesuffix("data.pkl")
        if members[programs[0]].file_size > LONGEST_PROGRAM:
            raise _Fault("is no checkpoint: its pickle is larger than any")
        try:
            program = archive.read(programs[0])
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise _Fault("is damaged: its pickle cannot be unpacked; fetch it again") from error
    if order != b"little":
        raise _Fault("has numbers in big-endian order, which is not read here")

    def storage(key: str, dtype: torch.dtype, count: int) -> Storage:
        info = members.get(f"{root}data/{key}")
        if info is None:
            raise _Fault(f"is damaged: the numbers of its tensor {key} are missing")
        size = count * dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Fault("was packed again with compression: unpack it, or convert it with PyTorch")
        # The local header says how long its own name and extra are; torch fills the extra to align the numbers.
        head = file.bytes(info.header_offset, 30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise _Fault("is damaged: its archive's directory does not fit; fetch it again")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if info.file_size < size or start + size > file.size:
            raise _Fault(f"is cut or damaged: the numbers of its tensor {key} are not all there; fetch it again")
        return Storage(
            dtype, count, lambda: file.tensor(start, count, dtype), lambda: file.release(start, size)
        )  # fmt: skip

    kept: dict[tuple[str, torch.dtype], Storage] = {}

    def persistent(reference: Any) -> Storage:
        key, dtype, count = _reference(reference)
        if (key, dtype) not in kept:
            kept[key, dtype] = storage(key, dtype, count)
        return kept[key, dtype]

    return Machine(program, persistent).run()


STREAM_MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file of torch < 1.6."""


def _stream(file: MappedFile) -> Any:
    """What a file of torch < 1.6 holds: pickles, then for each storage its length and its numbers."""
    machine = Machine(file.map, _no_storage)
    if machine.run() != STREAM_MAGIC:
        raise _Fault("is a pickle, but no PyTorch checkpoint")
    for _ in range(2):  # the format's version and the machine's sizes of numbers
        machine = machine.next()
        machine.run()
    places: dict[str, tuple[int, int]] = {}

    def persistent(reference: Any) -> Storage:
        key, dtype, count = _reference(reference)
        size = count * dtype.itemsize

        def start() -> int:
            place, there = places.get(key, (0, -1))
            if there != count:
                raise _Fault(f"is damaged: the numbers of its tensor {key} are missing")
            return place

        return Storage(
            dtype, count, lambda: file.tensor(start(), count, dtype), lambda: file.release(start(), size)
        )  # fmt: skip

    sizes: dict[str, int] = {}

    def noted(reference: Any) -> Storage:
        made = persistent(reference)
        sizes[str(reference[2])] = made.dtype.itemsize
        return made

    machine = machine.next(noted)
    tree = machine.run()
    machine = machine.next()
    keys = machine.run()
    place = machine.place
    if not isinstance(keys, list):
        raise _Fault("is damaged: it does not say which tensors follow")
    for key in keys:
        count = int.from_bytes(file.bytes(place, 8), "little")
        end = place + 8 + count * sizes.get(str(key), 0)
        if str(key) not in sizes or end > file.size:
            raise _Fault("is cut or damaged: its tensors are not all there; fetch it again")
        places[str(key)] = (place + 8, count)
        place = end
    return tree


def _no_storage(reference: Any) -> Any:
    raise _Fault("is damaged, or no PyTorch checkpoint")


def _reference(reference: Any) -> tuple[str, torch.dtype, int]:
    """Key, kind and count out of a reference to a storage: ("storage", class, key, device, count[, view])."""
    match reference:
        case ("storage", Named(name), str(key), _, int(count), *rest) if count >= 0:
            dtype = STORAGES.get(name.rpartition(".")[2])
            if dtype is None:
                raise _Fault(f"holds numbers of a kind that is not understood ({name[:40]})")
            if rest and rest[0] is not None:
                raise _Fault("holds views of tensors of a very old kind: save it again with a newer PyTorch")
            return key, dtype, count
        case _:
            raise _Fault("is damaged, or no PyTorch checkpoint")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> LazyTensor:
    """What `torch._utils._rebuild_tensor_v2` says: a view of a storage; checked to lie inside."""
    sizes = (*shape, *stride, offset) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, Storage) or not all(type(size) is int and size >= 0 for size in sizes):
        raise _Fault("is damaged: a tensor is not described as tensors are")
    empty = 0 in shape
    reach = 0 if empty else offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    if len(shape) != len(stride) or reach > storage.count:
        raise _Fault("is damaged: a tensor reaches beyond its numbers")
    return LazyTensor(
        tuple(shape), storage.dtype, lambda: storage.read().as_strided(shape, stride, offset), storage.release
    )


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


def _rebuild_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """What `torch._tensor._rebuild_from_type_v2` says: a tensor with attributes, which are dropped."""
    made = CALLS.get(function.name) if isinstance(function, Named) else None
    if made is None or not isinstance(arguments, tuple):
        raise _Fault("is damaged: a tensor is not described as tensors are")
    return made(*arguments)


def _ordered(*arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else ()
    return {pair[0]: pair[1] for pair in pairs if isinstance(pair, tuple | list) and len(pair) == 2}


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
}
"""All that a pickle may call, and what is done then."""


class Machine:
    """The stack machine of the pickle format, protocols 0 to 5, with nothing in it that could act on the world."""

    def __init__(self, program: bytes | mmap, persistent: Callable[[Any], Any], place: int = 0) -> None:
        self.program = program
        self.persistent = persistent
        self.place = place
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def next(self, persistent: Callable[[Any], Any] | None = None) -> Machine:
        """A fresh machine for the pickle that follows this one."""
        return Machine(self.program, persistent or self.persistent, self.place)

    def run(self) -> Any:
        """What the pickle describes.

        Raises:
            _Fault: It is cut, damaged, or calls something.
        """
        try:
            while True:
                code = self.program[self.place]
                self.place += 1
                if code == 0x2E:  # STOP
                    return self.stack.pop()
                OPCODES[code](self)
        except (IndexError, KeyError, ValueError, TypeError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise _Fault("is cut or damaged, or no PyTorch checkpoint: its pickle makes no sense") from error

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self.program[self.place : self.place + count]
        if count < 0 or len(taken) < count:
            raise IndexError("cut")
        self.place += count
        return taken

    def number(self, form: str) -> int:
        """The next whole number, little-endian."""
        (found,) = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
        return int(found)

    def line(self) -> str:
        """The next line of text."""
        end = self.program.find(b"\n", self.place)
        if end < 0:
            raise IndexError("cut")
        return self.take(end - self.place + 1)[:-1].decode("utf-8")

    def push(self, value: Any) -> None:
        """Put on the stack."""
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """Everything above the last mark, taken off."""
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call gives; only names of `CALLS` do anything."""
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise _Fault("is damaged, or calls something that is no name: it was not opened")
        if function.name in CALLS:
            return CALLS[function.name](*arguments)
        if any(function.name == name or (name[-1] in "._" and function.name.startswith(name)) for name in INERT_CALLS):
            return Thing(function.name)
        raise _Fault(f"would run code ({function.name[:60]}): it was not opened; take a .safetensors file instead")

    def make(self, kind: Any) -> Any:
        """An object of a class; of an unknown one a `Thing`."""
        name = kind.name if isinstance(kind, Named) else ""
        return {} if name in ("collections.OrderedDict", "collections.defaultdict") else Thing(name)


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(Named(f"{RENAMED.get(module, module)}.{name}"))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.push(Named(f"{RENAMED.get(module, module)}.{name}"))


def _reduce(machine: Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.push(machine.call(function, arguments))


def _instance(machine: Machine) -> None:
    """INST: a class by name and its arguments above the mark."""
    _global(machine)
    kind = machine.stack.pop()
    arguments = tuple(machine.marked())
    machine.push(machine.call(kind, arguments) if arguments else machine.make(kind))


def _object(machine: Machine) -> None:
    """OBJ: a class and its arguments above the mark."""
    kind, *arguments = machine.marked()
    machine.push(machine.call(kind, tuple(arguments)) if arguments else machine.make(kind))


def _new(machine: Machine, words: int) -> None:
    """NEWOBJ and NEWOBJ_EX."""
    kind = [machine.stack.pop() for _ in range(words)][-1]
    machine.push(machine.make(kind))


def _items(machine: Machine, pairs: Sequence[Any]) -> None:
    """SETITEM and SETITEMS: into a mapping; things take everything."""
    target = machine.stack[-1]
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Classes and things can be keys of an envelope (callbacks by their class): they are told apart by identity.
            target[key if isinstance(key, str | int | float | bytes | Named | None) else id(key)] = value
    elif not isinstance(target, Thing):
        raise ValueError("no mapping")


def _extend(machine: Machine, values: Sequence[Any]) -> None:
    """APPEND, APPENDS and ADDITEMS: into a list or set; things take everything."""
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Thing):
        raise ValueError("no list")


def _remember(machine: Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _text_int(machine: Machine) -> None:
    text = machine.line()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))


def _frozen(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(values)


def _string(machine: Machine) -> None:
    """STRING: quoted text of protocol 0."""
    text = machine.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        raise ValueError("no string")
    machine.push(text[1:-1])


OPCODES: dict[int, Callable[[Machine], Any]] = {
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.marked(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("I"): _text_int,
    ord("J"): lambda m: m.push(m.number("i")),
    ord("K"): lambda m: m.push(m.number("B")),
    ord("L"): lambda m: m.push(int(m.line().removesuffix("L"))),
    ord("M"): lambda m: m.push(m.number("H")),
    ord("N"): lambda m: m.push(None),
    ord("P"): lambda m: m.push(m.persistent(m.line())),
    ord("Q"): lambda m: m.push(m.persistent(m.stack.pop())),
    ord("R"): _reduce,
    ord("S"): _string,
    ord("T"): lambda m: m.push(m.take(m.number("I")).decode("latin-1")),
    ord("U"): lambda m: m.push(m.take(m.number("B")).decode("latin-1")),
    ord("V"): lambda m: m.push(m.line().encode("latin-1").decode("raw-unicode-escape")),
    ord("X"): lambda m: m.push(m.take(m.number("I")).decode("utf-8", "surrogatepass")),
    ord("a"): lambda m: _extend(m, [m.stack.pop()]),
    ord("b"): lambda m: m.stack.pop(),  # BUILD: the state of an object, which is dropped
    ord("c"): _global,
    ord("d"): lambda m: m.push(_ordered(list(zip(*[iter(m.marked())] * 2, strict=True)))),
    ord("}"): lambda m: m.push({}),
    ord("e"): lambda m: _extend(m, m.marked()),
    ord("g"): lambda m: m.push(m.memo[int(m.line())]),
    ord("h"): lambda m: m.push(m.memo[m.number("B")]),
    ord("i"): _instance,
    ord("j"): lambda m: m.push(m.memo[m.number("I")]),
    ord("l"): lambda m: m.push(list(m.marked())),
    ord("]"): lambda m: m.push([]),
    ord("o"): _object,
    ord("p"): lambda m: _remember(m, int(m.line())),
    ord("q"): lambda m: _remember(m, m.number("B")),
    ord("r"): lambda m: _remember(m, m.number("I")),
    ord("s"): lambda m: _items(m, [m.stack.pop(), m.stack.pop()][::-1]),
    ord("t"): lambda m: m.push(_frozen(m.marked())),
    ord(")"): lambda m: m.push(()),
    ord("u"): lambda m: _items(m, m.marked()),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x80: lambda m: m.take(1),
    0x81: lambda m: _new(m, 2),
    0x85: lambda m: m.push((m.stack.pop(),)),
    0x86: lambda m: m.push(tuple([m.stack.pop() for _ in range(2)][::-1])),
    0x87: lambda m: m.push(tuple([m.stack.pop() for _ in range(3)][::-1])),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x8A: lambda m: m.push(_long(m.take(m.number("B")))),
    0x8B: lambda m: m.push(_long(m.take(m.number("I")))),
    ord("B"): lambda m: m.push(m.take(m.number("I"))),
    ord("C"): lambda m: m.push(m.take(m.number("B"))),
    0x8C: lambda m: m.push(m.take(m.number("B")).decode("utf-8", "surrogatepass")),
    0x8D: lambda m: m.push(m.take(m.number("Q")).decode("utf-8", "surrogatepass")),
    0x8E: lambda m: m.push(m.take(m.number("Q"))),
    0x8F: lambda m: m.push([]),
    0x90: lambda m: _extend(m, m.marked()),
    0x91: lambda m: m.push(_frozen(m.marked())),
    0x92: lambda m: _new(m, 3),
    0x93: _stack_global,
    0x94: lambda m: _remember(m, len(m.memo)),
    0x95: lambda m: m.take(8),
    0x96: lambda m: m.push(m.take(m.number("Q"))),
}
"""Instruction -> what it does. Instructions that reach outside the pickle (extension registry, buffers) are absent."""
