"""PyTorch's files open without running anything, whatever their envelope holds, and only what is asked for is read."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enlarger.checkpoints import tensors as tensors_module
from enlarger.checkpoints.pickles import open_pickle
from enlarger.checkpoints.tensors import open_tensors
from enlarger.errors import ModelError


def saved(path: Path, content: Any, *, old: bool = False, **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old, **options)
    return path


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    made = {f"kinds.{str(kind)[6:]}": torch.arange(7).to(kind) for kind in kinds}
    made |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    # Views: transposed, with an offset, of one storage
    return made | {"base": base, "view": base[2:4, 1::3], "turned": base.t(), "parameter": torch.nn.Parameter(base[1])}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_kind_of_number_and_view_comes_back(old: bool, protocol: int, tmp_path: Path) -> None:
    wanted = tensors()
    found = open_pickle(saved(tmp_path / "a.bin", wanted, old=old, pickle_protocol=protocol))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == tuple(value.shape)
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key].load(), value.detach())


def test_the_weights_are_taken_out_of_their_envelope(tmp_path: Path) -> None:
    weights, averaged = {"a.weight": torch.ones(2)}, {"a.weight": torch.full((2,), 3.0)}
    for envelope in (
        {"state_dict": averaged, "epoch": 3},
        {"params": weights, "params_ema": averaged},
        {"model": {"state_dict": averaged}, "optimizer": {"state": {0: {"step": torch.zeros(2)}}}},
        collections.OrderedDict(averaged),
    ):
        found = open_pickle(saved(tmp_path / "a.bin", envelope))
        assert list(found) == ["a.weight"]
        assert found["a.weight"].load().tolist() == [3, 3]
    assert open_pickle(saved(tmp_path / "a.bin", {"state_dict": weights, "epoch": 3})).metadata == {"epoch": "3"}
    nested = {"string_to_param": {"*": torch.ones(2, 8)}, "name": "mine", "state_dict": {}}
    assert list(open_pickle(saved(tmp_path / "a.bin", nested))) == ["string_to_param.*"]


def lightning(name: str) -> type:
    """A class in a module that exists only while this test writes its file, as Lightning does for most users."""
    module, _, kind = name.rpartition(".")
    made = type(kind, (), {"__init__": lambda self, **state: self.__dict__.update(state)})
    made.__module__ = module
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    setattr(sys.modules[module], kind, made)
    return made


def test_lightnings_envelope_opens_without_lightning(tmp_path: Path) -> None:
    callback = lightning("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    config = lightning("omegaconf.dictconfig.DictConfig")
    envelope = {
        "epoch": 117,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": collections.OrderedDict(tensors()),
        "callbacks": {callback: {"monitor": "val/loss", "best": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": config(content={"a": [1, {2, 3}, frozenset((4,))]}, parent=config()),
        "path": Path("/some/where"),
        "losses": collections.deque([0.1, torch.tensor(0.2)], maxlen=3),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "bytes": b"\x00\x01",
    }
    file = saved(tmp_path / "a.bin", envelope)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pytorch_lightning", "omegaconf")]:
        del sys.modules[name]
    found = open_pickle(file)
    assert found.keys() == tensors().keys()
    assert torch.equal(found["view"].load(), tensors()["view"])
    assert found.metadata["epoch"] == "117"
    assert "pytorch_lightning" not in sys.modules


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("make", "name"), [
    (lambda marker: Call(os.system, f"touch {marker}"), os.system.__module__ + ".system"),
    (lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec"),
    (lambda marker: Call(getattr, os, "system"), "builtins.getattr"),
    (lambda marker: Call(io.open, str(marker), "w"), "io.open"),
    (lambda marker: Call(torch.load, str(marker)), "torch.serialization.load"),
])  # fmt: skip
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(
    make: Callable[[Path], Call], name: str, old: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    payload = make(marker) if name != "builtins.getattr" else Call(getattr, 1, "real")
    file = saved(tmp_path / "a.bin", {"state_dict": {"a": torch.ones(2)}, "more": payload}, old=old)
    with pytest.raises(ModelError, match=rf"would run code \({name}\)"):
        open_tensors(file)
    assert not marker.exists()


def in_archive(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/version", "3\n")
    return path


@pytest.mark.parametrize("program", [
    b"(cos\nsystem\nS'touch marker'\ni.",  # not well formed
    b"(S'touch marker'\nios\nsystem\n.",  # INST
    b"(cos\nsystem\nS'touch marker'\no.",  # OBJ
    b"cos\nsystem\n(S'touch marker'\ntR.",  # REDUCE
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",  # STACK_GLOBAL
    b"cos\nsystem\n}b.",  # BUILD on a name
    b"\x82\x01.",  # EXT1
    b"cbuiltins\neval\n\x85.",
    b"}r\xff\xff\xff\x7f.",  # a memo that would fill the memory
    b"X\xff\xff\xff\x7fabc.",  # text longer than the file
    b"\x8b\xff\xff\xff\x7f.",
    b"]" * 5000 + b".",
    b"(" * 5000 + b"t.",
    b"",
    b".",
    b"\x80\x02}.",
    b"N.",
])  # fmt: skip
def test_odd_programs_end_in_one_line(program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = in_archive(tmp_path / "a.bin", program)
    told = []
    try:
        assert list(open_pickle(file)) == []
    except ModelError as error:
        told = [str(error)]
    assert all(line.startswith("a.bin ") and "\n" not in line for line in told)
    assert not Path("marker").exists()


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_end_in_one_line(noise: bytes, place: int, value: int) -> None:
    from enlarger.checkpoints.pickles import Machine, _Fault

    program = bytearray(pickle.dumps({"a": [1, 2.0, "x", b"y", None, True, (3,), {4}]}, 4) + noise)
    program[place % len(program)] = value
    with contextlib.suppress(_Fault):
        Machine(bytes(program), lambda reference: reference).run()


def test_a_tensor_may_not_reach_beyond_its_numbers(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.bin", {"a": torch.arange(6.0).reshape(2, 3)})
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name: archive.read(name) for name in archive.namelist()}
    program = members[f"{root}/data.pkl"]
    sizes = [(op.name, arg, pos) for op, arg, pos in pickletools.genops(program) if op.name == "BININT1"]
    place = next(pos for _, arg, pos in sizes if arg == 3)
    members[f"{root}/data.pkl"] = program[: place + 1] + b"\xfa" + program[place + 2 :]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="a tensor reaches beyond its numbers"):
        open_pickle(file)


@pytest.mark.parametrize("old", [False, True])
def test_a_cut_file_is_told(old: bool, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.bin", {"a": torch.randn(1000), "b": torch.randn(1000)}, old=old)
    whole = file.read_bytes()
    for share in (0.2, 0.6, 0.95):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ModelError, match=r"a\.bin is cut or damaged"):
            open_tensors(file)


def test_programs_of_torch_are_not_weights(tmp_path: Path) -> None:
    file = in_archive(tmp_path / "a.bin", b"\x80\x02}.")
    with zipfile.ZipFile(file, "a") as archive:  # as torch.jit.save writes it
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/code/__torch__.py", b"")
    with pytest.raises(ModelError, match="TorchScript program"):
        open_tensors(file)
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/weights/model.pt", b"")
    with pytest.raises(ModelError, match=r"exported PyTorch program \(.pt2\)"):
        open_tensors(tmp_path / "b.bin")


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "a.bin", {f"t{i}": torch.full((4096,), float(i)) for i in range(8)})
    reads: list[int] = []
    plain = tensors_module.MappedFile.tensor

    def counted(self: Any, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        reads.append(count)
        return plain(self, start, count, dtype)

    monkeypatch.setattr(tensors_module.MappedFile, "tensor", counted)
    found = open_pickle(file)
    assert [found[key].shape for key in found] == [(4096,)] * 8
    assert reads == []
    assert found["t3"].load()[0] == 3
    assert reads == [4096]


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.bin", {"a": torch.ones(5000)})
    before = file.read_bytes()
    found = open_pickle(file)
    value = found["a"].load()
    value += 1
    found["a"].release()  # pages at the edges are shared with neighbours and stay
    assert value[0] == 2 or value[2500] in (1, 2)
    assert file.read_bytes() == before
