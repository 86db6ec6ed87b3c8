"""Where a result cannot be trusted: heat maps of what contradicts the input and of what the seed decides.

`consistency` shows where the result made small again is not the input: the model changed what was there.
`deviation` shows where results of other seeds differ: the model invented what was not there. A place may be
invented and consistent; that is what enlarging with a diffusion model is, and this map says where.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from enlarger.errors import OutputError, PictureError
from enlarger.evaluation.fidelity import Spread, colour_shift, consistency, consistency_map
from enlarger.evaluation.pixels import Bytes, Floats, Pixels
from enlarger.picture.atomic import appearing
from enlarger.picture.recipe import KEYWORD, to_json

FULL_CONSISTENCY = 8.0
"""Levels of 255 of the small picture that the hottest colour stands for; rounding alone makes about 0.3."""

FULL_DEVIATION = 32.0
"""Levels of 255 of deviation that the hottest colour stands for: strong texture that is another with every seed."""

_COLOURS = np.array([(0, 0, 4), (80, 18, 123), (183, 55, 121), (252, 137, 97), (252, 253, 191)], dtype=np.float64)
"""Dark to light by way of violet and orange: its order is that of lightness, so it reads in grey too."""


def heat(values: Floats, full: float) -> Bytes:
    """Values (H, W) as colours (H, W, 3): 0 is black, `full` and more is light."""
    place = np.clip(values / full, 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(np.int64), len(_COLOURS) - 2)
    share = (place - low)[..., None]
    return np.asarray(np.round(_COLOURS[low] * (1 - share) + _COLOURS[low + 1] * share), dtype=np.uint8)


def faithfulness(results: Iterable[Pixels], source: Pixels) -> tuple[dict[str, Any], dict[str, Bytes]]:
    """Numbers and maps of one picture's results.

    Args:
        results: the result; further ones of other seeds add the deviation. Taken one by one, none is kept.
        source: the input, (h, w, 3).

    Returns:
        Numbers: `consistency` (dB), `worst` (levels of 255, of the small picture), `colour-shift`, and with several
        results `deviation`. Maps: `consistency`, in the input's size; with several results `deviation`, in theirs.

    Raises:
        PictureError: no result, pictures that cannot be measured, or results of different sizes.
    """
    numbers: dict[str, Any] = {}
    maps: dict[str, Bytes] = {}
    spread = Spread()
    for result in results:
        if not maps:
            off = consistency_map(result, source)
            maps["consistency"] = heat(off, FULL_CONSISTENCY)
            numbers["consistency"] = consistency(result, source)
            numbers["worst"] = float(off.max())
            numbers["colour-shift"] = colour_shift(result, source)
        spread.add(result)
    if not maps:
        raise PictureError("there is no result that could be measured", "missing")
    if spread.count > 1:
        apart = spread.map()
        numbers["deviation"] = float(apart.mean())
        maps["deviation"] = heat(apart, FULL_DEVIATION)
    return numbers, maps


def write_maps(maps: dict[str, Bytes], beside: Path, *, overwrite: bool = False) -> list[Path]:
    """Write maps beside a result: `photo_4x.png` gets `photo_4x.consistency.png` and `photo_4x.deviation.png`.

    What the hottest colour stands for is in each file's `Description`. Each also has a recipe, so that it is not taken
    for a photograph when the folder is enlarged.

    Raises:
        OutputError: a file is there already, or cannot be written.
    """
    targets = {name: beside.with_name(f"{beside.stem}.{name}.png") for name in maps}
    taken = [path for path in targets.values() if path.exists()]
    if taken and not overwrite:
        raise OutputError(f"{taken[0]} exists already; --overwrite replaces it")
    for name, target in targets.items():
        note = PngInfo()
        full = FULL_CONSISTENCY if name == "consistency" else FULL_DEVIATION
        note.add_text("Description", f"{name}: black 0, light {full:g} levels of 255 and more")
        note.add_text(KEYWORD, to_json({"engine": "report", "settings": {}, "map": name}))
        with appearing(target, overwrite) as file:
            Image.fromarray(maps[name]).save(file, format="PNG", pnginfo=note)
    return list(targets.values())
