"""Building diffusers' and transformers' modules around weights that are already there.

A module is built without memory (on torch's meta device) from its configuration; its parameters then become the
tensors of the file. No class is looked up by a name that a file gives: a table holds the few that are known.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enlarger.checkpoints.load import assign
from enlarger.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from enlarger.checkpoints.tensors import Tensors

DIFFUSERS = ("UNet2DConditionModel", "AutoencoderKL", "ControlNetModel", "ControlNetUnionModel")
"""Classes of diffusers that a configuration may name."""

TRANSFORMERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
"""Classes of transformers that a configuration may name."""


def build(
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    name: str,
    part: str,
    dtype: torch.dtype,
    device: torch.device | str,
    remedy: str = "fetch it again",
) -> nn.Module:
    """A module with its weights, ready to evaluate.

    Args:
        config: As diffusers or transformers write it.
        tensors: Under diffusers' names; a text encoder's without `text_model.`.
        name: The model's name, for errors.
        part: Which part of it, for errors.
        dtype: Kind of number of the parameters.
        device: Where they go.
        remedy: What to do when the tensors are not those that the configuration asks for.

    Raises:
        ModelError: A class that is not known, a configuration that makes no sense, or tensors that do not fit it.
    """
    with _quiet(), _needed(name):
        module = _empty(config, f"{name}'s {part}", part)
    assign(module, tensors, f"{name}'s {part}", dtype=dtype, device=device, remedy=remedy)
    return module.eval().requires_grad_(False)


def _empty(config: Mapping[str, Any], owner: str, part: str) -> nn.Module:
    import torch

    kind = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
    if not kind and config.get("model_type") in ("clip_text_model", "clip"):
        kind = "CLIPTextModelWithProjection" if part == "text_encoder_2" else "CLIPTextModel"
    try:
        if kind in DIFFUSERS:
            import diffusers

            with torch.device("meta"):
                return cast("nn.Module", getattr(diffusers, kind).from_config(dict(config)))
        if kind in TRANSFORMERS:
            import transformers

            plain = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")}
            with torch.device("meta"):
                return cast("nn.Module", getattr(transformers, kind)(transformers.CLIPTextConfig(**plain)))
    except (TypeError, ValueError, KeyError, NotImplementedError, ZeroDivisionError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelError(f"the configuration of {owner} makes no sense: {words}") from error
    known = ", ".join((*DIFFUSERS, *TRANSFORMERS))
    raise ModelError(f"{owner} is a {kind or 'module of no class'}, which is not known here; known are {known}")


def load_tokenizer(folder: Path, pad: str | None = None) -> Any:
    """CLIP's tokenizer out of a folder with vocab.json and merges.txt, or with tokenizer.json.

    Args:
        folder: Where they are.
        pad: What prompts are filled up with; None for what the folder says.

    Raises:
        ModelError: The folder holds no such tokenizer.
    """
    with _quiet(), _needed("the tokenizer"):
        from transformers import CLIPTokenizer

    changes = {} if pad is None else {"pad_token": pad}
    try:
        with _quiet():
            return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **changes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the tokenizer in {folder.name} cannot be read: fetch the model again") from error


@contextlib.contextmanager
def _needed(what: str) -> Iterator[None]:
    """Libraries that are not installed, or broken, are told with the first cause and what to install."""
    try:
        yield
    except ImportError as error:
        words = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{what} needs diffusers and transformers, an extra that is not installed or broken ({words}): "
            'pip install "enlarger[diffusers]"'
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries remark on configurations of other versions and on what they lack; users can do nothing about it."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
