"""Model folders in diffusers' layout: where a part's weights and configuration are. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.errors import ModelError

if TYPE_CHECKING:
    from enlarger.checkpoints.tensors import Tensors

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files without their endings: of diffusers, of transformers, of either's older files."""

VARIANTS = ("fp16", "")
"""Half-precision files are taken where they are: they are half as long, and every engine casts anyway."""

ENDINGS = (".safetensors", ".bin", ".pt", ".ckpt")
"""Endings of weight files in such folders, the ones without a pickle first."""

LONGEST_CONFIG = 1 << 20
"""Bytes of a configuration."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: It cannot be read, is too long or holds something else.
    """
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise ModelError(f"{path.parent.name}/{path.name} is too long for a configuration")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} cannot be read as JSON: fetch it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.parent.name}/{path.name} holds no configuration")
    return found


def config_file(folder: Path, part: str) -> Path | None:
    """Where a folder keeps the configuration of a part, if it does."""
    if part == "model_index":
        places = [folder / "model_index.json"]
    elif part.endswith("scheduler"):
        places = [folder / part / "scheduler_config.json"]
    else:
        places = [folder / part / "config.json"]
    return next((place for place in places if place.is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a part's folder: one, or all shards that an index names; [] if there are none.

    Raises:
        ModelError: A shard is missing.
    """
    for ending in ENDINGS:
        for variant in VARIANTS:
            middle = f".{variant}" if variant else ""
            for stem in STEMS:
                whole = folder / f"{stem}{middle}{ending}"
                if whole.is_file():
                    return [whole]
                for index in (
                    folder / f"{stem}{ending}.index{middle}.json",
                    folder / f"{stem}{middle}{ending}.index.json",
                ):
                    if index.is_file():
                        return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    """The files that an index names; names that lead out of the folder are refused."""
    found = read_json(index).get("weight_map")
    names = sorted({str(name) for name in found.values()}) if isinstance(found, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(f"{index.parent.name}/{index.name} names no shards beside it: fetch the model again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent.name} has {len(names) - len(missing)} of its {len(names)} shards, missing: {missing[0]}"
            f"{' and others' if len(missing) > 1 else ''}; fetch them"
        )
    return [index.parent / name for name in names]


def folder_tensors(folder: Path) -> Tensors:
    """The tensors of a part's folder, as they are named there.

    Raises:
        ModelError: There are no weights, a shard is missing, or a file is damaged.
    """
    from enlarger.checkpoints.tensors import joined, open_tensors

    files = weight_files(folder)
    if not files:
        there = "no file at all" if not any(folder.iterdir()) else "none under a name that diffusers uses"
        raise ModelError(
            f"the folder {folder.name} has no weights ({there}): it needs {STEMS[0]}.safetensors or model.safetensors"
        )
    return joined(open_tensors(file) for file in files)


def parts_of(folder: Path) -> Iterator[str]:
    """Names of the sub-folders that hold weights, in the order of their names."""
    for inside in sorted(folder.iterdir()):
        if inside.is_dir() and re.fullmatch(r"[a-z_0-9]+", inside.name) and weight_files(inside):
            yield inside.name


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model: a whole one, or a part alone."""
    if (folder / "model_index.json").is_file():
        return True
    try:  # many a folder of loose files has a config.json of something else
        alone = folder / "config.json"
        return alone.is_file() and bool(part_of_config(read_json(alone))) and bool(weight_files(folder))
    except ModelError:
        return False


def part_of_config(config: Mapping[str, Any]) -> str:
    """Which part a configuration is of, by the class that it names; "" if that is none of ours."""
    name = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
    return {
        "UNet2DConditionModel": "unet",
        "AutoencoderKL": "vae",
        "ControlNetModel": "controlnet",
        "ControlNetUnionModel": "controlnet",
        "CLIPTextModel": "text_encoder",
        "CLIPTextModelWithProjection": "text_encoder_2",
    }.get(name, "")
