"""The recipe in the picture: how a result was made, for people's viewers and for `--from`.

A record is a JSON object. PNG holds it as the texts `parameters` (the line that A1111 writes, which viewers of that
world show) and `enlarger` (the JSON). Other formats hold the line in EXIF's user comment and the JSON in XMP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

KEYWORD = "enlarger"

# A1111's names for what we record, in the order in which it writes them.
_WORDS = (
    ("steps", "Steps"),
    ("scheduler", "Sampler"),
    ("guidance_scale", "CFG scale"),
    ("seed", "Seed"),
    ("size", "Size"),
    ("model_digest", "Model hash"),
    ("model", "Model"),
    ("strength", "Denoising strength"),
    ("scale", "Postprocess upscale by"),
    ("engine", "Postprocess upscaler"),
    ("version", "Version"),
)


def to_json(record: Mapping[str, Any]) -> str:
    """Gives the record as one line of ASCII, the same for equal records."""
    return json.dumps(record, ensure_ascii=True, separators=(",", ":"), sort_keys=True, default=str)


def from_json(text: str) -> dict[str, Any] | None:
    """Reads a record back; None when it is not one. A foreign file may hold anything: size and depth are bounded."""
    if len(text) > 1 << 20:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def parameters(record: Mapping[str, Any], size: tuple[int, int], before: str | None = None) -> str:
    """Gives the text that A1111 would write.

    Args:
        record: Settings may stand at the top or under "settings"; a model may be a name or {"name", "digest"}.
        size: (height, width) of the result in pixels.
        before: The `parameters` of the input: kept when the record has no prompt of its own, as A1111's extras do.
    """
    flat = _flat(record)
    flat["size"] = f"{size[1]}x{size[0]}"
    if flat.get("version"):
        flat["version"] = f"Enlarger {flat['version']}"
    prompt = str(flat.get("prompt") or "")
    pairs = [(word, flat[key]) for key, word in _WORDS if flat.get(key) not in (None, "", False)]
    if before and not prompt:
        extra = [f"{word}: {_quoted(value)}" for word, value in pairs if word.startswith("Postprocess")]
        kept = re.sub(r",? ?Postprocess upscale[^,]*", "", before).rstrip("\n")
        return kept + (", " if "\n" in kept or ": " in kept else "\n") + ", ".join(extra)
    lines = [prompt] if prompt else []
    if flat.get("negative_prompt"):
        lines.append(f"Negative prompt: {flat['negative_prompt']}")
    lines.append(", ".join(f"{word}: {_quoted(value)}" for word, value in pairs))
    return "\n".join(lines)


def source_type(record: Mapping[str, Any]) -> str:
    """Gives the IPTC digital source type of a result; the record's own word ("source_type") goes before the engine."""
    given = record.get("source_type")
    if isinstance(given, str) and given:
        return given
    engine = str(record.get("engine", ""))
    if engine == "generate" or record.get("command") == "generate":
        return "trainedAlgorithmicMedia"
    return "algorithmicallyEnhanced" if engine == "interpolate" else "compositeWithTrainedAlgorithmicMedia"


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in record.items() if key != "settings"}
    settings = record.get("settings")
    if isinstance(settings, Mapping):
        flat = {**settings, **flat}
    model = flat.get("model")
    if isinstance(model, Mapping):
        flat["model"] = model.get("name")
        flat.setdefault("model_digest", str(model.get("digest") or model.get("sha256") or "")[:10])
    digest = flat.get("model_digest") or flat.get("digest")
    if isinstance(digest, str):
        flat["model_digest"] = digest.removeprefix("sha256:")[:10]
    return flat


def _quoted(value: Any) -> str:
    """Quotes as A1111 does: what holds a comma, a colon or a line break becomes JSON."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text
