"""From a prompt to what a Stable Diffusion network looks at.

A CLIP text encoder reads 77 tokens: a start mark, up to 75 of text, an end mark, and pads. Longer prompts are read
in chunks of 75, each with its own marks, and the chunks' outputs stand one after the other; nothing is cut. Up to 75
tokens without weights the numbers are those of diffusers' own pipelines.

Weights (`checkpoints.prompt`) act as in AUTOMATIC1111's web UI (its default emphasis, "Original"): in each chunk the
outputs of a token are multiplied by its weight, then the chunk by one factor that gives it its old mean again. They
do not act on the pooled output.

Embeddings (`checkpoints.embedding`) are words whose vectors go in behind the table of tokens; the network sees id 0
in their places, so that the end mark, whose state is the summary, is found as ever.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.checkpoints.embedding import Embedding
from enlarger.checkpoints.prompt import parse
from enlarger.errors import ModelError, SettingsError

MOST_CHUNKS = 400
"""Longest prompt, in chunks: 30,000 tokens, some forty pages."""

GROUP = 16
"""Chunks in one forward pass."""


@dataclass(frozen=True)
class Text:
    """An encoded prompt.

    Attributes:
        embeddings: (1, 77 * chunks, C); C is both encoders' width together where there are two.
        pooled: (1, P), the second encoder's summary of the first chunk; None where there is one encoder.
        tokens: Of the text alone, without marks and pads.
        chunks: How often 77 tokens.
    """

    embeddings: Tensor
    pooled: Tensor | None
    tokens: int
    chunks: int


@dataclass(frozen=True)
class _Chunk:
    """What one forward pass reads: 77 token ids and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    used: int  # marks and text; the rest are pads

    @property
    def plain(self) -> bool:
        return all(weight == 1 for weight in self.weights)


class TextEncoders:
    """The text side of a Stable Diffusion model: one CLIP encoder (SD 1.x, 2.x, x4) or two (SDXL).

    Attributes:
        deepest: Largest clip skip.
        pools: Whether there is a second encoder, whose summary SDXL's network gets beside the text.
        pooled_width: Width of that summary; 0 without one.
        force_zeros: Whether a negative prompt that is not given becomes zeros and not an encoded "".
    """

    def __init__(
        self, components: Mapping[str, Any], *, force_zeros: bool = True, embeddings: Sequence[Embedding] = ()
    ) -> None:
        """Take the parts.

        Args:
            components: By diffusers' names: `tokenizer` and `text_encoder` (transformers' CLIPTextModel); for SDXL
                also `tokenizer_2` and `text_encoder_2` (CLIPTextModelWithProjection), or those two alone (refiner).
            force_zeros: `force_zeros_for_empty_prompt` of an SDXL model's model_index.json; other models have no
                such rule.
            embeddings: Words that prompts may hold beside the tokenizer's.

        Raises:
            ModelError: A part is missing, tokenizer and encoder do not belong together, or an embedding is another
                model's.
        """
        pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        present = [pair for pair in pairs if any(components.get(name) is not None for name in pair)]
        missing = [name for pair in present or pairs[:1] for name in pair if components.get(name) is None]
        if missing:
            raise ModelError(f"the model has no {' and no '.join(missing)}: its prompt cannot be read")
        second = pairs[1] in present
        self.force_zeros = force_zeros and second
        self._encoders = [_Encoder(*pair, components, embeddings, late=not second) for pair in present]
        self.pools = second
        self.pooled_width = int(getattr(components["text_encoder_2"].config, "projection_dim", 0)) if second else 0
        self.deepest = min(encoder.deepest for encoder in self._encoders)

    def count(self, prompt: str | None) -> int:
        """Tokens of the text, without encoding it.

        Raises:
            SettingsError: As `encode`.
        """
        return max(len(encoder.tokens(prompt or "")) for encoder in self._encoders)

    def encode(self, prompt: str | None, *, clip_skip: int = 0, chunks: int = 1) -> Text:
        """Read a prompt.

        Args:
            prompt: The text, with weights if wanted; None is "".
            clip_skip: Last layers that are left out, 0 .. `deepest`; 1 is what A1111 calls 2.
            chunks: At least so many; the ones beyond the text are empty.

        Raises:
            SettingsError: No text, a weight or clip skip out of range, or a prompt of more than `MOST_CHUNKS` chunks.
        """
        if not 0 <= clip_skip <= self.deepest:
            raise SettingsError(f"clip_skip {clip_skip} is out of range: 0 to {self.deepest} for this text encoder")
        read = [encoder.tokens(prompt or "") for encoder in self._encoders]
        chunks = max(chunks, *(encoder.chunks(tokens) for encoder, tokens in zip(self._encoders, read, strict=True)))
        outputs = [
            encoder.encode(tokens, clip_skip, chunks) for encoder, tokens in zip(self._encoders, read, strict=True)
        ]
        dtype, device = outputs[-1][0].dtype, outputs[-1][0].device
        embeddings = torch.cat([hidden.to(device, dtype) for hidden, _ in outputs], dim=-1)
        return Text(embeddings, outputs[-1][1] if self.pools else None, max(map(len, read)), chunks)

    def chunks(self, prompt: str | None) -> int:
        """Forward passes that a prompt needs.

        Raises:
            SettingsError: As `encode`.
        """
        return max(encoder.chunks(encoder.tokens(prompt or "")) for encoder in self._encoders)

    def encode_both(
        self, prompt: str | None, negative: str | None = None, *, clip_skip: int = 0, chunks: int = 1
    ) -> tuple[Text, Text]:
        """Read a prompt and its negative into the same number of chunks, at least `chunks`.

        Clip skip acts on the prompt alone, as in diffusers. A negative prompt of None is "", except with
        `force_zeros`, where it is zeros.

        Raises:
            SettingsError: As `encode`.
        """
        longest = max(chunks, self.chunks(prompt), self.chunks(negative))
        text = self.encode(prompt, clip_skip=clip_skip, chunks=longest)
        if negative is None and self.force_zeros:
            pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
            return text, Text(torch.zeros_like(text.embeddings), pooled, 0, text.chunks)
        return text, self.encode(negative, chunks=longest)


class _Encoder:
    """One tokenizer with its CLIP encoder."""

    def __init__(
        self,
        tokenizes: str,
        encodes: str,
        components: Mapping[str, Any],
        embeddings: Sequence[Embedding],
        *,
        late: bool,
    ) -> None:
        """Look at the parts; `late`: the last layer's output, normed (SD 1.x, 2.x), not the one before it (SDXL).

        Raises:
            ModelError: More tokens than the encoder knows, or an embedding that does not fit it.
        """
        tokenizer, model = components[tokenizes], components[encodes]
        config: Any = model.config
        self._tokenizer = tokenizer
        self._model: Any = model
        self._late = late
        self._norm = _final_norm(model)
        self._masked = bool(getattr(config, "use_attention_mask", False))
        self._length = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        self._room = self._length - 2
        pad = tokenizer.pad_token_id
        self._pad = int(tokenizer.eos_token_id if pad is None else pad)
        self.deepest = int(config.num_hidden_layers) - (1 if late else 2)
        if len(tokenizer) > int(config.vocab_size):
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens and the text encoder knows {config.vocab_size}: "
                "they are of different models"
            )
        # Ids from the vocabulary's end on stand for rows of `_vectors`.
        self._own = int(config.vocab_size)
        self._words: dict[str, range] = {}
        rows: list[Tensor] = []
        for embedding in embeddings:
            vectors = embedding.of(encodes, int(config.hidden_size))
            first = self._own + sum(map(len, rows))
            self._words[embedding.word.lower()] = range(first, first + len(vectors))
            rows.append(vectors)
        self._vectors = torch.cat(rows) if rows else None
        spelt = "|".join(re.escape(word) for word in sorted(self._words, key=len, reverse=True))
        self._word = re.compile(rf"(?<!\w)({spelt})(?!\w)", re.IGNORECASE) if rows else None

    def tokens(self, prompt: str) -> list[tuple[int, float]]:
        """Id and weight of every token of the text."""
        found: list[tuple[int, float]] = []
        for span in parse(prompt):
            # Splitting by a pattern with one group gives plain text and words in turns.
            pieces = [span.text] if self._word is None else self._word.split(span.text)
            for number, piece in enumerate(pieces):
                ids: Iterable[int] = self._words[piece.lower()] if number % 2 else self._plain(piece)
                found += [(token, span.weight) for token in ids]
        if self.chunks(found) > MOST_CHUNKS:
            raise SettingsError(f"the prompt has {len(found)} tokens: at most {MOST_CHUNKS * self._room}")
        return found

    def _plain(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return [int(token) for token in ids]

    def chunks(self, tokens: Sequence[tuple[int, float]]) -> int:
        """Forward passes that the text needs; an empty one needs one."""
        return max(1, math.ceil(len(tokens) / self._room))

    @torch.inference_mode()
    def encode(self, tokens: Sequence[tuple[int, float]], clip_skip: int, count: int) -> tuple[Tensor, Tensor | None]:
        """(1, 77 * count, C) and the pooled output (1, P) of the first chunk, if the encoder has one."""
        chunks = list(self._cut(tokens, count))
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        for start in range(0, count, GROUP):
            group = chunks[start : start + GROUP]
            output = self._forward(group)
            if start == 0:
                pooled = getattr(output, "text_embeds", None)
            layer = self._layer(output, clip_skip)
            hidden += [_weighted(one, chunk) for one, chunk in zip(layer, group, strict=True)]
        return torch.cat(hidden)[None], None if pooled is None else pooled[:1]

    def _cut(self, tokens: Sequence[tuple[int, float]], count: int) -> Iterator[_Chunk]:
        start, end = int(self._tokenizer.bos_token_id), int(self._tokenizer.eos_token_id)
        for first in range(0, count * self._room, self._room):
            part = tokens[first : first + self._room]
            pads = self._room - len(part)
            ids = (start, *(token for token, _ in part), end, *[self._pad] * pads)
            yield _Chunk(ids, (1.0, *(weight for _, weight in part), 1.0, *[1.0] * pads), len(part) + 2)

    def _forward(self, chunks: list[_Chunk]) -> Any:
        device = next(self._model.parameters()).device
        ids = torch.tensor([chunk.ids for chunk in chunks], device=device)
        mask = None
        if self._masked:
            used = torch.tensor([chunk.used for chunk in chunks], device=device)
            mask = (torch.arange(self._length, device=device) < used[:, None]).long()
        taught = ids >= self._own
        with self._inserted(ids, taught):
            return self._model(ids.masked_fill(taught, 0), attention_mask=mask, output_hidden_states=True)

    @contextlib.contextmanager
    def _inserted(self, ids: Tensor, taught: Tensor) -> Iterator[None]:
        """While the vectors of words that are `taught` stand where the table's rows for their places would."""
        if self._vectors is None or not bool(taught.any()):
            yield
            return
        vectors = self._vectors.to(ids.device)[ids[taught] - self._own]
        here = threading.get_ident()

        def insert(_: nn.Module, __: Any, found: Tensor) -> Tensor:
            if threading.get_ident() != here:  # another picture's prompt, read by the same encoder
                return found
            found = found.clone()
            found[taught] = vectors.to(found.dtype)
            return found

        handle = self._model.get_input_embeddings().register_forward_hook(insert)
        try:
            yield
        finally:
            handle.remove()

    def _layer(self, output: Any, clip_skip: int) -> Tensor:
        """The layer that the network was trained on, (chunks, 77, C); `hidden_states` are without the final norm."""
        if not self._late:
            layer: Tensor = output.hidden_states[-(clip_skip + 2)]
            return layer
        if clip_skip == 0:
            last: Tensor = output[0]
            return last
        normed: Tensor = self._norm(output.hidden_states[-(clip_skip + 1)])
        return normed


def _final_norm(model: nn.Module) -> nn.Module:
    """The final layer norm, which stands in the model itself or, with older transformers, in its `text_model`."""
    inner: Any = getattr(model, "text_model", model)
    norm: nn.Module = inner.final_layer_norm
    return norm


def _weighted(hidden: Tensor, chunk: _Chunk) -> Tensor:
    """One chunk's output (77, C) under its weights, at its old mean.

    The mean is left as it is where no positive factor brings it back: that would turn the meaning round.
    """
    if chunk.plain:
        return hidden
    before = hidden.float()
    after = before * torch.tensor(chunk.weights, device=hidden.device)[:, None]
    ratio = float(before.mean() / after.mean())
    if math.isfinite(ratio) and ratio > 0:
        after = after * ratio
    return after.to(hidden.dtype)
