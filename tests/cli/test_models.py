"""`enlarger models`: what there is, and whether it is ready."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from enlarger.checkpoints.families import FAMILIES
from enlarger.cli import models
from enlarger.engines.catalog import listings
from enlarger.errors import ModelError
from tests.cli.support import Called

Call = Callable[..., Called]


def test_every_engine_is_listed_with_its_summary_licence_and_presets(call: Call) -> None:
    done = call("models")
    assert done.code == 0
    for name, listing in listings().items():
        assert name in done.out
        assert listing.facts.summary in done.out
        assert listing.facts.licence in done.out
        for preset in listing.facts.settings.presets:
            assert f"preset {preset}" in done.out


def test_json_is_one_object_an_engine(call: Call) -> None:
    records = call("models", "--json").records
    assert [record["engine"] for record in records] == list(listings())
    pocket = next(record for record in records if record["engine"] == "pocket")
    assert pocket["ready"] is True
    assert pocket["licence"] == "Apache-2.0"
    assert "steps" in pocket["settings"]
    assert pocket["presets"]["faithful"]["fidelity"] == 1


def test_an_engine_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = listings()["pocket"]
    needing = dataclasses.replace(
        listing, facts=dataclasses.replace(listing.facts, extra="diffusers", needs_model=True)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = models.describe(needing)
    assert told["ready"] is False
    assert told["status"] == 'not installed: pip install "enlarger[diffusers]"'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    told = models.describe(needing)
    assert told["ready"] is False
    assert "-m" in told["status"]


def test_models_that_are_there_are_told_with_the_engines_that_take_them(call: Call, tmp_path: Path) -> None:
    (tmp_path / "ESRGAN").mkdir()
    save_file({"conv_first.weight": torch.ones(4, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.ones(2, 4, 3, 3)},
              tmp_path / "ESRGAN" / "4x-mine.pth")  # fmt: skip
    (tmp_path / "ESRGAN" / "broken.pth").write_text("<html>")
    done = call("models", "--models-dir", tmp_path)
    assert "needs an ESRGAN, Real-ESRGAN or compact network or one that spandrel knows; there: 4x-mine" in done.out
    assert "needs a Stable Diffusion x4 upscaler; there: none" in done.out
    assert "4x-mine.pth: a network of the ESRGAN family" in done.out
    assert "broken.pth: broken.pth is a web page" in done.out
    records = {
        record["engine"]: record["models"] for record in call("models", "--json", "--models-dir", tmp_path).records
    }
    assert records["gan"] == ["4x-mine"]
    assert records["x4"] == []


def test_every_engine_that_needs_a_model_says_which_in_words_that_errors_use() -> None:
    for listing in listings().values():
        assert listing.facts.needs_model == bool(listing.facts.families)
        assert set(listing.facts.families) <= set(FAMILIES) & set(models.NEEDS)


def test_a_path_is_itself_and_a_name_is_looked_up_near_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/a/b/net.pth", "one/net.pth", "two/other.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("ENLARGER_MODELS", str(tmp_path / "two"))
    one = str(tmp_path / "one")
    path = str(tmp_path / "two" / "other.safetensors")
    assert models.locate(path, None, by_hub=False) == path
    assert models.locate("net", one, by_hub=False) == str(tmp_path / "one" / "net.pth")
    assert models.locate("other", one, by_hub=False) == path
    assert models.locate("org/name", one, by_hub=True) == "org/name"
    with pytest.raises(ModelError, match="two") as missing:
        models.locate("org/name", one, by_hub=False)
    assert one in str(missing.value)
