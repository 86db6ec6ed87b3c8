"""`enlarger models convert`: its files, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.support import Called, files

Call = Callable[..., Called]


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(4, 3), "half": torch.randn(5).half(), "steps": torch.tensor([7])}


def test_the_command(call: Call, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "in.pth")
    out = tmp_path / "out.safetensors"
    done = call("models", "convert", tmp_path / "in.pth", out, "--dtype", "bfloat16")
    assert (done.code, done.out.strip()) == (0, str(out))
    before = out.read_bytes()
    again = call("models", "convert", tmp_path / "in.pth", out)
    assert again.code == 5
    assert "--overwrite" in again.error
    assert out.read_bytes() == before
    assert call("models", "convert", tmp_path / "in.pth", out, "--overwrite").code == 0
    assert load_file(out)["half"].dtype == torch.float16
    assert files(tmp_path) == {"in.pth", "out.safetensors"}


@pytest.mark.parametrize(("words", "code", "told"), [
    (("convert", "in.pth"), 2, "convert takes two files"),
    (("convert", "in.pth", "out.ckpt"), 2, "writes .safetensors files"),
    (("convert", "in.pth", "out.safetensors", "--dtype", "int8"), 2, "invalid choice"),
    (("convert", "gone.pth", "out.safetensors"), 4, "gone.pth is not there"),
    (("convert", "in.pth", "gone/out.safetensors"), 5, "cannot be written"),
    (("turn",), 2, "there are convert IN OUT and import-ncnn PARAM BIN"),
    (("--dtype", "float16"), 2, "--dtype is for models convert"),
])  # fmt: skip
def test_wrong_use_is_one_line(
    words: tuple[str, ...], code: int, told: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(weights(), "in.pth")
    done = call("models", *words)
    assert done.code == code
    assert told in done.error
    assert files(tmp_path) == {"in.pth"}
