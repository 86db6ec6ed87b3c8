"""Embeddings: words that a model was taught, each a few vectors in place of a token's own (textual inversion).

Gal et al. 2022, arXiv 2208.01618, section 4. A file has the vectors of one word: A1111's `emb_params` or
`string_to_param`, diffusers' with the word as the only name, and Stable Diffusion XL's with a tensor for each encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enlarger.checkpoints.tensors import LazyTensor, Tensors
from enlarger.errors import ModelError, SettingsError

CLIP_L, CLIP_G = "text_encoder", "text_encoder_2"


@dataclass(frozen=True)
class Embedding:
    """A word with its vectors.

    Attributes:
        name: The file's, for records and errors.
        word: What stands for it in a prompt; small and large letters are alike.
        vectors: By part, "text_encoder" or "text_encoder_2": (k, width), float32, k places of 77.
    """

    name: str
    word: str
    vectors: Mapping[str, Tensor] = field(repr=False)

    def of(self, part: str, width: int) -> Tensor:
        """The vectors for an encoder.

        Raises:
            ModelError: There are none, or they have another width.
        """
        if part not in self.vectors:
            raise ModelError(
                f"embedding {self.name} has nothing for the model's {part}: it was made for a model with one encoder"
            )
        vectors = self.vectors[part]
        if vectors.shape[1] != width:
            raise ModelError(
                f"embedding {self.name} was made for another model: its vectors have {vectors.shape[1]} numbers, and "
                f"this model's {part} has {width} (768: Stable Diffusion 1.x, 1024: 2.x)"
            )
        return vectors


def read_embedding(tensors: Tensors, name: str, word: str | None = None) -> Embedding:
    """The word of an embedding's file.

    Args:
        tensors: As the file has them.
        name: The file's, without its ending.
        word: Stands for it in a prompt; None is what the file says, else its name.

    Raises:
        ModelError: No embedding.
        SettingsError: A word that no prompt can hold.
    """
    said: str | None = None
    found: dict[str, LazyTensor] = {}
    if "clip_l" in tensors or "clip_g" in tensors:
        found = {part: tensors[key] for key, part in (("clip_l", CLIP_L), ("clip_g", CLIP_G)) if key in tensors}
    elif "emb_params" in tensors:
        found = {CLIP_L: tensors["emb_params"]}
    else:
        inner = tensors.below("string_to_param.")
        if not inner and len(tensors) == 1:
            inner, said = tensors, next(iter(tensors))
        if len(inner) == 1:
            found = {CLIP_L: next(iter(inner.values()))}
    vectors = {part: tensor.load(torch.float32) for part, tensor in found.items()}
    vectors = {part: each[None] if each.ndim == 1 else each for part, each in vectors.items()}
    if not vectors or any(each.ndim != 2 or not 1 <= len(each) <= 75 for each in vectors.values()):
        raise ModelError(f"{name} is no embedding: it has no tensor of 1 to 75 vectors for one word")
    if len({len(each) for each in vectors.values()}) > 1:
        raise ModelError(f"embedding {name} has another number of vectors for each encoder: fetch it again")
    if not all(bool(torch.isfinite(each).all()) for each in vectors.values()):
        raise ModelError(f"embedding {name} holds numbers that are not finite: fetch it again")
    return Embedding(name, checked(word or said or name), vectors)


def checked(word: str) -> str:
    """A word that a prompt can hold.

    Raises:
        SettingsError: It is empty, or holds spaces or the marks of weights.
    """
    if not word or re.search(r"[\s()\[\]\\:]", word):
        raise SettingsError(
            f"{word!r} cannot be an embedding's word, which has no spaces, brackets, colons or backslashes: "
            "name another with --embedding FILE:WORD"
        )
    return word
