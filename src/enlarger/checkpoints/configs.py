"""What a model's parts are built by: its own configuration, one beside the file, or the published one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enlarger.checkpoints.folders import config_file, part_of_config, read_json
from enlarger.checkpoints.tensors import LazyTensor
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
        published: Whether they are the published ones and not the model's own.
    """

    folders: tuple[Path, ...] = ()
    given: Mapping[str, Mapping[str, Any]] | None = None
    published: bool = False

    def find(self, part: str) -> Mapping[str, Any] | None:
        """The configuration of a part, or None."""
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
    return Configs(tuple(PUBLISHED / each for each in names if each), published=True)


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


def beside(path: Path) -> Configs | None:
    """A configuration that lies beside a model file and belongs to it, if there is one.

    That is a folder `NAME/` in diffusers' layout, a `NAME.json` with part -> configuration, or, in a folder of a
    single part, its `config.json`.
    """
    folder = path.with_suffix("")
    if folder != path and folder.is_dir() and any(config_file(folder, part) for part in ("model_index", "unet", "vae")):
        return Configs((folder,))
    for place in (path.with_name(path.name + ".json"), path.with_suffix(".json")):
        if place.is_file() and place != path:
            found = read_json(place)
            if part := part_of_config(found):
                return Configs(given={part: found})
            parts = {name: value for name, value in found.items() if isinstance(value, dict) and _is_config(value)}
            if parts:
                return Configs(given=parts)
    alone = path.with_name("config.json")
    if alone.is_file() and alone != path and (part := part_of_config(found := read_json(alone))):
        return Configs(given={part: found})
    return None


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


def predicts_velocity(path: Path, metadata: Mapping[str, str]) -> bool | None:
    """Whether a single file says that its UNet predicts velocity: by its metadata, or by a `NAME.yaml` beside it.

    Nothing in the weights of a Stable Diffusion 2 tells; web interfaces keep the original configuration beside the
    file, whose `parameterization` does. None if nothing is said.
    """
    told = metadata.get("modelspec.prediction_type", "")
    if told:
        return told.startswith("v")
    yaml = path.with_suffix(".yaml")
    if yaml.is_file() and yaml.stat().st_size < 1 << 20:
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", yaml.read_text("utf-8", "replace"), re.MULTILINE)
        return found is not None and found[1] == "v"
    return None
