"""StableSR's published inventories, row for row and at full size, on tensors without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enlarger.checkpoints.configs import Configs
from enlarger.checkpoints.families import identify
from enlarger.checkpoints.open import Checkpoint
from enlarger.checkpoints.stablesr import TextNames, leftover
from enlarger.checkpoints.tensors import LazyTensor, Tensors
from enlarger.engines.stablesr_files import Shelf
from enlarger.engines.stablesr_parts import Description
from enlarger.errors import ModelError

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"

UNREAD = {"text_encoder_unused", "schedule_buffer", "cfw_training_only"}
"""Parts of the tables that inference has no use for."""


def table(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Published key -> its shape and part."""
    path = REFERENCE / f"{name}.tsv"
    if not path.is_file():
        pytest.skip(f"the table of published keys is not beside the repository (../shared/reference/{name}.tsv)")
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {key: (() if shape == "scalar" else tuple(map(int, shape.split("x"))), part) for key, shape, _, part in rows}


def published(name: str, **changes: tuple[int, ...] | None) -> Checkpoint:
    """A file of a table; a key with another shape, or left out with None."""
    shapes = {key: shape for key, (shape, _) in table(name).items()}
    for key, shape in changes.items():
        if shape is None:
            del shapes[key]
        else:
            shapes[key] = shape
    tensors = Tensors({key: empty(shape) for key, shape in shapes.items()}, {}, "pickle")
    family = identify(tensors).family
    return Checkpoint(name, family, "file", "", {}, Configs(), (), Path(), everything=lambda: tensors)


def empty(shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, torch.float32, lambda: torch.empty(shape, device="meta"))


@pytest.fixture
def shelf() -> Shelf:
    """Networks of the published sizes."""
    return Shelf(Description())


def take(shelf: Shelf, checkpoint: Checkpoint) -> None:
    if checkpoint.family == "cfw":
        shelf.take_whole(published("keys_512"))
        shelf.take_cfw(checkpoint)
    else:
        shelf.take_whole(checkpoint)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without numbers cannot be compared."""
    monkeypatch.setattr("enlarger.engines.stablesr_parts.differ", lambda *_: False)


@pytest.mark.parametrize(("name", "family", "count"), [("keys_512", "stablesr", 1616), ("keys_cfw", "cfw", 460)])
def test_every_published_row_loads_at_full_shape(shelf, alike, name, family, count):
    rows = table(name)
    assert len(rows) == count
    checkpoint = published(name)
    assert checkpoint.family == family
    take(shelf, checkpoint)
    found = {part: tensors for part, (owner, tensors) in shelf.found.items() if owner == name}
    read = set()
    for part, tensors in found.items():
        wanted = part.network.state_dict()
        assert set(tensors) == set(wanted)
        for own, tensor in tensors.items():
            assert tensor.shape == tuple(wanted[own].shape)
            assert tuple(tensor.read().shape) == tensor.shape
            read.add(part.published(own))
    unread = {key for key, (_, part) in rows.items() if part in UNREAD}
    assert read == set(rows) - unread
    names = TextNames()
    assert all(leftover(key) or names.unread(key, Description().text.layers - 1) for key in unread)


WRONG = [
    ("keys_512", "model.diffusion_model.input_blocks.1.0.spade.mlp_gamma.weight"),
    ("keys_512", "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"),
    ("keys_512", "structcond_stage_model.input_blocks.1.1.qkv.weight"),
    ("keys_512", "first_stage_model.decoder.mid.attn_1.q.weight"),
    ("keys_512", "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"),
    ("keys_cfw", "decoder.conv_out.bias"),
]


@pytest.mark.parametrize(("name", "key"), WRONG)
def test_a_missing_and_a_reshaped_key_are_told_by_name(shelf, alike, name, key):
    shape = table(name)[key][0]
    with pytest.raises(ModelError) as missing:
        take(shelf, published(name, **{key: None}))
    assert f"{name} does not fit StableSR: missing: {key}" in str(missing.value)
    other = (shape[0] + 3, *shape[1:])
    with pytest.raises(ModelError) as reshaped:
        take(Shelf(Description()), published(name, **{key: other}))
    words = "x".join(map(str, other)), "x".join(map(str, shape))
    assert f"of the wrong shape: {key} ({words[0]}, not {words[1]})" in str(reshaped.value)


def test_a_missing_fusion_layer_is_told_by_name(shelf, alike):
    key = next(key for key, (_, part) in table("keys_cfw").items() if part == "cfw_fusion" and key.endswith("bias"))
    with pytest.raises(ModelError, match="missing") as raised:
        take(shelf, published("keys_cfw", **{key: None}))
    assert key in str(raised.value)


def test_all_faults_are_told_together(shelf):
    first, second = WRONG[0][1], WRONG[2][1]
    with pytest.raises(ModelError) as raised:
        shelf.take_whole(published("keys_512", **{first: None, second: (1,), "something.else": (2, 3)}))
    told = str(raised.value)
    assert f"missing: {first}; of the wrong shape: {second} (1, not" in told
    assert "unexpected: something.else" in told
