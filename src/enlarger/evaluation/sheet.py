"""One picture that shows how results differ: the whole, and the places where they differ most, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from enlarger.evaluation.pixels import Bytes, Floats

GAP = 12
LINE = 22
TEXT = 15
PAPER, INK, MARK = (250, 250, 248), (30, 30, 30), (230, 60, 30)

OVERVIEW = 560
"""Height of the whole picture on the sheet at most, pixels."""


@dataclass(frozen=True)
class Column:
    """One result.

    Attributes:
        label: what stands above it, one line or several.
        pixels: (H, W, 3) bytes; all columns have the same size.
    """

    label: str
    pixels: Bytes


def disagreement(results: Sequence[Bytes]) -> Floats:
    """How much results differ at each pixel: standard deviation over them, (H, W), levels of 255, mean of RGB."""
    stack = np.stack([result.astype(np.float32) for result in results])
    return np.asarray(stack.std(axis=0).mean(axis=2), dtype=np.float64)


def window_means(values: Floats, side: int) -> Floats:
    """Mean over each window of `side` x `side` that lies wholly inside, by its top left pixel."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return np.asarray(sums / side**2, dtype=np.float64)


def places(values: Floats, side: int, count: int) -> list[tuple[int, int]]:
    """Where windows have the largest means, (top, left), largest first, none overlapping another.

    Fewer than `count` when no more fit. Every place is the largest that the earlier ones leave.
    """
    side = min(side, *values.shape)
    means = window_means(values, side)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        top, left = (int(part) for part in np.unravel_index(int(means.argmax()), means.shape))
        if means[top, left] < 0:
            break
        found.append((top, left))
        means[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = -1
    return found


def draw(
    whole: Bytes, columns: Sequence[Column], spots: Sequence[tuple[int, int]], side: int, zoom: int
) -> Image.Image:
    """The sheet.

    Args:
        whole: the picture shown as a whole, with the places framed and numbered; any size of the same shape.
        columns: at least one.
        spots: (top, left) of each place, in pixels of the columns.
        side: of a place, pixels.
        zoom: whole times that a place is enlarged, by repeating pixels: what is seen is what was made.
    """
    font = ImageFont.load_default(TEXT)
    height, width = columns[0].pixels.shape[:2]
    side = min(side, height, width)
    cell = side * zoom
    lines = max(column.label.count("\n") + 1 for column in columns)
    head = GAP + lines * LINE
    sheet_width = max(GAP + len(columns) * (cell + GAP), 2 * GAP + 240)
    ratio = min((sheet_width - 2 * GAP) / width, OVERVIEW / height)
    seen = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    overview = Image.fromarray(whole).resize(seen, Image.Resampling.LANCZOS)
    top = GAP + seen[1] + head
    sheet = Image.new("RGB", (sheet_width, top + len(spots) * (cell + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(overview, (GAP, GAP))
    for number, (y, x) in enumerate(spots, 1):
        corner = (GAP + round(x * ratio), GAP + round(y * ratio))
        opposite = (corner[0] + max(2, round(side * ratio)), corner[1] + max(2, round(side * ratio)))
        pen.rectangle((*corner, *opposite), outline=MARK, width=2)
        _numbered(pen, corner, number, font)
    for index, column in enumerate(columns):
        left = GAP + index * (cell + GAP)
        for row, text in enumerate(column.label.split("\n")):
            place = (left, GAP + seen[1] + GAP // 2 + row * LINE)
            pen.text(place, _fitted(pen, text, cell, font), fill=INK, font=font)
        for number, (y, x) in enumerate(spots, 1):
            crop = Image.fromarray(np.ascontiguousarray(column.pixels[y : y + side, x : x + side]))
            corner = (left, top + (number - 1) * (cell + GAP))
            sheet.paste(crop.resize((cell, cell), Image.Resampling.NEAREST), corner)
            if index == 0:
                _numbered(pen, corner, number, font)
    return sheet


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _numbered(pen: ImageDraw.ImageDraw, corner: tuple[int, int], number: int, font: Font) -> None:
    x, y = corner
    pen.rectangle((x, y, x + 17, y + 19), fill=MARK)
    pen.text((x + 5, y + 1), str(number), fill=PAPER, font=font)


def _fitted(pen: ImageDraw.ImageDraw, text: str, width: int, font: Font) -> str:
    """The text, shortened in the middle where it would run into its neighbour's."""
    if pen.textlength(text, font=font) <= width:
        return text
    kept = len(text)
    while kept > 2 and pen.textlength(text[: kept // 2] + "…" + text[len(text) - kept // 2 :], font=font) > width:
        kept -= 1
    return text[: kept // 2] + "…" + text[len(text) - kept // 2 :]
