"""Pictures in and out: the only place that knows file formats.

`read`, `write` and `resize` live in the modules of their names (`from enlarger.picture.read import read`). The names
below load on first use, so that importing the package costs neither numpy nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enlarger.picture.alpha import bleed, enlarge_alpha
    from enlarger.picture.atomic import stale_parts
    from enlarger.picture.colour import luma, quantise
    from enlarger.picture.picture import Metadata, Picture
    from enlarger.picture.plan import OutputPlan, check_output
    from enlarger.picture.write import encode, read_record

_HOME = {
    "Metadata": "picture",
    "OutputPlan": "plan",
    "Picture": "picture",
    "bleed": "alpha",
    "check_output": "plan",
    "encode": "write",
    "enlarge_alpha": "alpha",
    "luma": "colour",
    "quantise": "colour",
    "read_record": "write",
    "stale_parts": "atomic",
}

__all__ = [
    "Metadata",
    "OutputPlan",
    "Picture",
    "bleed",
    "check_output",
    "encode",
    "enlarge_alpha",
    "luma",
    "quantise",
    "read_record",
    "stale_parts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
