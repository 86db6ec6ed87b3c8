"""The sheet as a page: all results whole, crops where they differ most. One file, without scripts or links."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from enlarger.evaluation.pixels import Bytes
from enlarger.evaluation.sheet import Column

STYLE = """
body { margin: 2rem; font: 15px/1.4 system-ui, sans-serif; color: #1e1e1e; background: #fafaf8; }
h1, h2 { font-size: 1.1rem; font-weight: 600; }
figure { margin: 0 0 1rem; }
figcaption { white-space: pre-line; }
.whole { position: relative; display: inline-block; max-width: 100%; }
.whole img, details img { display: block; max-width: 100%; height: auto; }
.place { position: absolute; box-sizing: border-box; border: 2px solid #e63c1e; }
.place b, .number { background: #e63c1e; color: #fafaf8; padding: 0 .35em; font-weight: normal; }
.crops { display: grid; gap: 12px; overflow-x: auto; justify-content: start; }
.crops img { display: block; image-rendering: pixelated; }
details { margin: .5rem 0; }
details[open] img { max-width: none; }
"""

OVERVIEW = 1400
"""Longest side of the picture at the top, pixels; the results themselves are held whole below it."""


def page(name: str, columns: Sequence[Column], spots: Sequence[tuple[int, int]], side: int, zoom: int) -> str:
    """The page as HTML.

    Args:
        name: of the input, as its heading.
        columns: input, results and the like, at least one, all of one size.
        spots: (top, left) of each place, in pixels of the columns.
        side: of a place, pixels.
        zoom: times that a place is shown enlarged; a browser repeats its pixels.
    """
    height, width = columns[0].pixels.shape[:2]
    side = min(side, height, width)
    shown = columns[-1].pixels
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(name)}</h1>",
        f'<figure><div class="whole">{_image(_overview(shown), columns[-1].label, lossless=False)}',
        *(_frame(number, spot, side, height, width) for number, spot in enumerate(spots, 1)),
        f"</div><figcaption>{html.escape(columns[-1].label)}</figcaption></figure>",
        "<h2>Where they differ most</h2>",
        f'<div class="crops" style="grid-template-columns: repeat({len(columns)}, {side * zoom}px)">',
        *(f"<figcaption>{html.escape(column.label)}</figcaption>" for column in columns),
    ]
    for number, (top, left) in enumerate(spots, 1):
        for column in columns:
            crop = np.ascontiguousarray(column.pixels[top : top + side, left : left + side])
            label = f"{_first_line(column)}, place {number}"
            parts.append(_image(crop, label, size=side * zoom))
    parts.append("</div><h2>Whole</h2>")
    for column in columns:
        label = html.escape(column.label.replace("\n", ", "))
        parts.append(f"<details><summary>{label}</summary>{_image(column.pixels, _first_line(column))}</details>")
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _first_line(column: Column) -> str:
    return column.label.split("\n")[0]


def _frame(number: int, spot: tuple[int, int], side: int, height: int, width: int) -> str:
    places = (("top", spot[0] / height), ("left", spot[1] / width), ("height", side / height), ("width", side / width))
    style = "; ".join(f"{name}: {100 * value:.3f}%" for name, value in places)
    return f'<div class="place" style="{style}"><b>{number}</b></div>'


def _overview(pixels: Bytes) -> Bytes:
    """At most `OVERVIEW` pixels long."""
    height, width = pixels.shape[:2]
    ratio = min(1.0, OVERVIEW / max(height, width))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _image(pixels: Bytes, label: str, *, lossless: bool = True, size: int | None = None) -> str:
    """An `img` that holds its picture."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"format": "PNG"} if lossless else {"format": "JPEG", "quality": 90}
    Image.fromarray(pixels).save(buffer, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    sides = f' width="{size}" height="{size}"' if size else f' width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    kind = "png" if lossless else "jpeg"
    return f'<img alt="{html.escape(label, quote=True)}"{sides} src="data:image/{kind};base64,{data}">'
