"""What a model's parts are built by: its own configuration, one beside the file, or the published one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enlarger.checkpoints.folders import config_file, part_of_config, read_json
from enlarger.checkpoints.tensors import LazyTensor, Tensors
from enlarger.errors import ModelError

PUBLISHED = Path(__file__).parent / "configs"
"""Configurations of the published models; see the README there."""

VOCABULARY = PUBLISHED / "tokenizer"
"""CLIP's vocabulary, which all these models share."""

INHERITED = {"sd2-v": "sd2", "sd2-turbo": "sd2", "sdxl-turbo": "sdxl"}
"""Published folders that hold only what differs from another."""


@dataclass(frozen=True)
class Configs:
    """Configurations of a model's parts, looked up in order.

    Attributes:
        folders: Folders in diffusers' layout, the first that has a part wins.
        given: Part -> configuration, before all folders.
        shipped: Folders with the configurations of published models, for what the model's own lack.
    """

    folders: tuple[Path, ...] = ()
    given: Mapping[str, Mapping[str, Any]] | None = None
    shipped: tuple[Path, ...] = ()

    def find(self, part: str) -> Mapping[str, Any] | None:
        """The configuration of a part, the model's own or the published one, or None."""
        own = self.own(part)
        places = (config_file(folder, part) for folder in self.shipped)
        return own if own is not None else next((read_json(place) for place in places if place is not None), None)

    def own(self, part: str) -> Mapping[str, Any] | None:
        """The configuration of a part that came with the model, or None."""
        if self.given and part in self.given:
            return self.given[part]
        for folder in self.folders:
            place = config_file(folder, part)
            if place is not None:
                return read_json(place)
            alone = folder / "config.json"  # a folder that is one part
            if alone.is_file() and part_of_config(found := read_json(alone)) == part:
                return found
        return None

    def vocabulary(self, part: str) -> Path | None:
        """The folder of a tokenizer that has a vocabulary, or None."""
        written = ("vocab.json", "tokenizer.json")  # the latter alone since transformers 5
        places = [place / part for place in self.folders]
        return next((place for place in places if any((place / name).is_file() for name in written)), None)


def published(name: str) -> Configs:
    """The published configurations by the name of a shipped folder, such as "sd15" or "sd2-v"; empty for ""."""
    names = [name, *([INHERITED[name]] if name in INHERITED else [])]
    return Configs(shipped=tuple(PUBLISHED / each for each in names if each))


def named(config: str) -> Configs:
    """What a user gives as configuration: a folder, or the name of a published model.

    Raises:
        ModelError: Neither.
    """
    if Path(config).is_dir():
        return Configs((Path(config),))
    shipped = sorted(place.name for place in PUBLISHED.iterdir() if place.is_dir() and place.name != "tokenizer")
    if config not in shipped:
        raise ModelError(f"{config} is no folder with configurations, nor a published model: {', '.join(shipped)}")
    return published(config)


def beside(path: Path, parts: Collection[str]) -> Configs:
    """The configuration that lies beside a model file and belongs to it; empty if there is none.

    That is a folder `NAME/` in diffusers' layout, a `NAME.json` with part -> configuration, or, for a single part, the
    `config.json` of its folder. Other files of these names, such as the notes of web interfaces, are passed over.

    Args:
        path: The model file.
        parts: The parts that it holds.
    """
    folder = path.with_suffix("")
    if folder != path and folder.is_dir() and any(config_file(folder, part) for part in ("model_index", "unet", "vae")):
        return Configs((folder,))
    for place in (path.with_name(path.name + ".json"), path.with_suffix(".json")):
        found = _json_or_nothing(place, path)
        given = {name: value for name, value in found.items() if isinstance(value, dict) and _is_config(value)}
        if given or part_of_config(found) in parts:
            return Configs(given=given or {part_of_config(found): found})
    found = _json_or_nothing(path.with_name("config.json"), path)
    return Configs(given={part_of_config(found): found} if [part_of_config(found)] == list(parts) else None)


def _json_or_nothing(place: Path, model: Path) -> Mapping[str, Any]:
    try:
        return read_json(place) if place.is_file() and place != model else {}
    except ModelError:
        return {}


def with_velocity(configs: Configs) -> Configs:
    """The same, with a scheduler for a network that predicts velocity."""
    scheduler = configs.find("scheduler")
    changed = {"scheduler": {**scheduler, "prediction_type": "v_prediction"}} if scheduler else {}
    return replace(configs, given={**(configs.given or {}), **changed})


def _is_config(value: Mapping[str, Any]) -> bool:
    return bool(part_of_config(value)) or "Scheduler" in str(value.get("_class_name"))


def fitted(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Mapping[str, Any]:
    """A published configuration with what models of one family differ in, read from the shapes of their tensors.

    These are the channels that go in, and of a ControlNet the channels of its encoder and the kinds of control.
    Heads and groups cannot be read from shapes, so a model of other widths needs a configuration of its own.
    """
    changes: dict[str, Any] = {}
    first = tensors.get("conv_in.weight")
    if first is not None and "in_channels" in config and len(first.shape) == 4:
        changes["in_channels"] = first.shape[1]
    if "conditioning_embedding_out_channels" in config:
        names = ["conv_in", *(f"blocks.{number}" for number in range(1, 12, 2))]
        layers = [tensors.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
        changes["conditioning_embedding_out_channels"] = [layer.shape[0] for layer in layers if layer is not None]
    if "num_control_type" in config and "task_embedding" in tensors:
        changes["num_control_type"] = tensors["task_embedding"].shape[0]
    return {**config, **changes}


def predicts_velocity(path: Path, tensors: Tensors) -> bool | None:
    """Whether a single file says that its UNet predicts velocity; None if nothing is said.

    Its metadata may say it, or a tensor `v_pred` that some XL models hold for that, or a `NAME.yaml` beside it: nothing
    in the weights tells, so web interfaces keep the original configuration there, with its `parameterization`.
    """
    told = tensors.metadata.get("modelspec.prediction_type", "")
    if told or "v_pred" in tensors:
        return told.startswith("v") or "v_pred" in tensors
    yaml = path.with_suffix(".yaml")
    if yaml.is_file() and yaml.stat().st_size < 1 << 20:
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", yaml.read_text("utf-8", "replace"), re.MULTILINE)
        return found is not None and found[1] == "v"
    return None
