"""Any model file as safetensors, with its names and numbers."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from enlarger.checkpoints.convert import convert
from enlarger.checkpoints.open import look_at
from enlarger.errors import ModelError
from tests.cli.support import files


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(8, 6)
    return {
        "z.odd": torch.arange(3, dtype=torch.uint8), "a.weight": base, "a.view": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "half": torch.randn(5).half(), "steps": torch.tensor([7]), "empty": torch.empty(0, 4), "turned": base.t(),
        "brain": torch.randn(3).bfloat16(),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_names_and_numbers_are_kept(dtype: str | None, tmp_path: Path) -> None:
    envelope = {"state_dict": collections.OrderedDict(weights()), "optimizer_states": [{"m": torch.ones(9)}]}
    torch.save(envelope, tmp_path / "in.ckpt")
    made = load_file(convert(tmp_path / "in.ckpt", tmp_path / "out.safetensors", dtype=dtype))
    assert made.keys() == weights().keys()
    for key, value in weights().items():
        kind = getattr(torch, dtype) if dtype and value.is_floating_point() else value.dtype
        assert made[key].dtype == kind
        assert torch.equal(made[key], value.to(kind))


def test_words_of_a_safetensors_file_stay(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "in.safetensors", {"modelspec.license": "MIT"})
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype="float16")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.license": "MIT"}


def test_what_does_not_fit_half_precision_leaves_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "big": torch.tensor([1e6])}, tmp_path / "in.bin")
    with pytest.raises(ModelError, match="cannot be float16: big has numbers too large"):
        convert(tmp_path / "in.bin", tmp_path / "out.safetensors", dtype="float16")
    assert files(tmp_path) == {"in.bin"}


def test_stablesrs_envelope_converts_and_stays_what_it_is(tmp_path: Path) -> None:
    envelope = Path(__file__).parents[2].parent / "shared" / "fixtures" / "stablesr" / "envelope.ckpt"
    if not envelope.is_file():
        pytest.skip("the fixtures are not beside the repository (../shared/fixtures/stablesr)")
    made = convert(envelope, tmp_path / "out.safetensors", dtype="float16")
    before, after = look_at(envelope), look_at(made)
    assert after.family == before.family == "stablesr"
    assert after.everything().keys() == before.everything().keys()
