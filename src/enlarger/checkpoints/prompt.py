r"""How a prompt is written: weights in brackets, as AUTOMATIC1111's web UI reads them.

`(word)` counts 1.1 times as much, `((word))` 1.21 times, `(word:1.3)` 1.3 times, `[word]` 1.1 times less; brackets
nest, and one that is never closed reaches to the end. `\(`, `\)`, `\[`, `\]` and `\\` are plain characters, and so
is a closing bracket that nothing opened. Rule: github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features,
"Attention/emphasis". No torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from enlarger.errors import SettingsError

STEP = 1.1
"""Factor of one pair of brackets without a number."""

HEAVIEST = 10.0
"""Largest weight that can be written, and that nested brackets may reach."""

_PIECES = re.compile(
    r"""
      \\(?P<plain>[()\[\]\\])                                 # an escaped character
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)           # the number and the bracket it closes
    | (?P<bracket>[()\[\]])
    | (?P<text>[^\\()\[\]:]+|[\\:])
    """,
    re.VERBOSE,
)

_ADAPTER = re.compile(r"<(lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
_EDIT = re.compile(r"(?<!\\)\[[^\[\]()]*:\s*\d*\.?\d+\s*\]")


@dataclass(frozen=True)
class Span:
    """Words of one weight.

    Attributes:
        text: The words, without the marks.
        weight: 1 for plain words.
    """

    text: str
    weight: float = 1.0


def parse(prompt: str) -> tuple[Span, ...]:
    """The prompt as spans, neighbours of equal weight joined; none for an empty prompt.

    Raises:
        SettingsError: Characters that are no text, a weight out of range, or a notation of other tools that
            has another place here.
    """
    _check(prompt)
    spans: list[Span] = []
    opened: list[tuple[str, int]] = []  # which bracket, and the first span inside

    def weigh(first: int, factor: float) -> None:
        spans[first:] = [Span(span.text, span.weight * factor) for span in spans[first:]]

    for piece in _PIECES.finditer(prompt):
        kind, text = str(piece.lastgroup), piece.group(piece.lastgroup or 0)
        if kind == "bracket" and text in "([":
            opened.append((text, len(spans)))
        elif kind == "weight" and opened and opened[-1][0] == "(":
            weigh(opened.pop()[1], _number(text))
        elif kind == "bracket" and opened and opened[-1][0] == {")": "(", "]": "["}[text]:
            bracket, first = opened.pop()
            weigh(first, STEP if bracket == "(" else 1 / STEP)
        elif kind == "weight":  # a number and a bracket that close nothing
            spans.append(Span(piece.group()))
        else:
            spans.append(Span(text))
    for bracket, first in opened:
        weigh(first, STEP if bracket == "(" else 1 / STEP)
    for span in spans:
        if span.weight > HEAVIEST:
            raise SettingsError(
                f"the brackets around {_short(span.text)!r} give it a weight of {span.weight:.3g}: "
                f"at most {HEAVIEST:g}; plain brackets are written \\( \\)"
            )
    return _joined(spans)


def _joined(spans: list[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].weight == span.weight:
            joined[-1] = Span(joined[-1].text + span.text, span.weight)
        else:
            joined.append(span)
    return tuple(joined)


def _number(text: str) -> float:
    weight = float(text)
    if not 0 <= weight <= HEAVIEST:
        raise SettingsError(
            f"a prompt's weight is {text}: 0 to {HEAVIEST:g}, such as (word:1.3); plain brackets are written \\( \\)"
        )
    return weight


def _check(prompt: str) -> None:
    """Refuse what would be read as words though it was meant otherwise.

    Raises:
        SettingsError: See `parse`.
    """
    if "\0" in prompt:
        raise SettingsError("the prompt holds a NUL character")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise SettingsError("the prompt holds bytes that are no text: give it as UTF-8") from None
    if adapter := _ADAPTER.search(prompt):
        told = "name the file with --lora FILE:SCALE" if adapter[1].lower() != "hypernet" else "leave it out"
        raise SettingsError(f"{_short(adapter.group())} is no word of a prompt: {told}")
    if edit := _EDIT.search(prompt):
        raise SettingsError(
            f"{_short(edit.group())}: a prompt cannot change during the steps; "
            "weights are written (word:0.8), plain brackets \\[ \\]"
        )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
