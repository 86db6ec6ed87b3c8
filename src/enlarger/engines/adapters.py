"""What is put into a model beside its own weights: LoRAs, which change them, and embeddings, new words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from enlarger.checkpoints.embedding import Embedding, checked, read_embedding
from enlarger.checkpoints.families import FAMILIES, WIDTHS
from enlarger.checkpoints.lora import Lora, read_lora
from enlarger.engines.engine import Loaded
from enlarger.engines.settings import with_scale, with_word
from enlarger.errors import ModelError

if TYPE_CHECKING:
    from enlarger.checkpoints.open import Checkpoint

Opener = Callable[[str, Collection[str]], "Checkpoint"]
"""Opens a file, folder or name as one of some families."""

LORAS = tuple(name for name in FAMILIES if name == "lora" or name.startswith("lora-"))
EMBEDDINGS = tuple(name for name in FAMILIES if name == "embedding" or name.startswith("embedding-"))


def with_loras(
    components: Mapping[str, Any], names: Sequence[str], opened: Opener, *, own: bool
) -> tuple[dict[str, Any], list[Loaded]]:
    """Parts of a model with LoRAs added to their weights, one after the other.

    Args:
        components: By diffusers' names.
        names: FILE or FILE:SCALE.
        opened: Opens a file.
        own: Whether the modules are ours to change; if not, those that change are copied, their weights are not.

    Returns:
        The parts, and what the record says of each LoRA.

    Raises:
        ModelError: Missing, no LoRA, of another kind, or made for another model.
    """
    parts = dict(components)
    records: list[Loaded] = []
    copied: set[str] = set()
    for given in names:
        name, scale = with_scale(given)
        checkpoint = opened(name, LORAS)
        _check_base(checkpoint, parts.get("unet"), "LoRA")
        lora: Lora = read_lora(checkpoint.everything(), checkpoint.name)
        for part in () if own else lora.parts():
            if isinstance(parts.get(part), nn.Module) and part not in copied:
                parts[part] = _with_common_weights(parts[part])
                copied.add(part)
        notes = lora.apply(parts, scale)
        records.append(Loaded(f"{checkpoint.name}:{scale:g}", f"{checkpoint.digest}:{scale:g}", notes))
    return parts, records


def with_words(names: Sequence[str], opened: Opener, unet: Any) -> tuple[list[Embedding], list[Loaded]]:
    """Embeddings, and what the record says of each.

    Args:
        names: FILE or FILE:WORD.
        opened: Opens a file.
        unet: The model's, to name what an embedding was made for.

    Raises:
        ModelError: Missing, no embedding, made for another model, or two for one word.
    """
    embeddings: list[Embedding] = []
    records: list[Loaded] = []
    for given in names:
        name, word = with_word(given)
        if word is not None:
            checked(word)
        checkpoint = opened(name, EMBEDDINGS)
        _check_base(checkpoint, unet, "embedding")
        embedding = read_embedding(checkpoint.everything(), checkpoint.name, word)
        taken = {each.word.lower(): each.name for each in embeddings}
        if embedding.word.lower() in taken:
            raise ModelError(
                f"embeddings {taken[embedding.word.lower()]} and {checkpoint.name} both want the word "
                f"{embedding.word!r}: give one of them another with --embedding FILE:WORD"
            )
        embeddings.append(embedding)
        records.append(Loaded(f"{checkpoint.name} as {embedding.word}", f"{checkpoint.digest}:{embedding.word}"))
    return embeddings, records


def _check_base(checkpoint: Checkpoint, unet: Any, what: str) -> None:
    """Refuse what was made for another base model, as far as the width of its text tells.

    Raises:
        ModelError: With both names.
    """
    base = WIDTHS.get(getattr(getattr(unet, "config", None), "cross_attention_dim", None) or 0)
    made_for = checkpoint.family.partition("-")[2]
    if base and made_for and base != made_for:
        raise ModelError(
            f"{checkpoint.name} is {FAMILIES[checkpoint.family].words}, and the model is {FAMILIES[base].words}: "
            f"take {'a LoRA' if what == 'LoRA' else 'an embedding'} that is made for it"
        )


def _with_common_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers are the original's own until they are replaced."""
    shared = {id(each): each for each in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
