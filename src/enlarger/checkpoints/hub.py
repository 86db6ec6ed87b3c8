"""Models of the Hugging Face hub: out of the cache that is there, else fetched after saying what and how much."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enlarger.checkpoints.find import ENDINGS as FILES
from enlarger.checkpoints.folders import ENDINGS, STEMS, VARIANTS, read_json, weight_files
from enlarger.errors import ModelError

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "controlnet")
"""Parts whose weights are needed; safety checkers and image encoders are not."""

WORDS = ("tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler")
"""Parts that are only text."""

log = logging.getLogger("enlarger")


@dataclass(frozen=True)
class Fetched:
    """A model of the hub, on the disk.

    Attributes:
        path: The folder or file in the cache.
        name: The id without its owner.
        licence: As its card says; "" if it came from the cache, or the card says none.
    """

    path: Path
    name: str
    licence: str


def from_hub(model: str) -> Fetched:
    """A model by its id: `owner/name`, with a sub-folder or a file in it behind a colon.

    What the cache has is taken without asking the hub, and with HF_HUB_OFFLINE set nothing is asked at all. Before a
    download its size and licence are said (to the logger "enlarger", which writes to stderr).

    Raises:
        ModelError: It is not in the cache and cannot be fetched, with the reason.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModelError(
            f'{model} is a model on the hub, and huggingface_hub is not installed: pip install "enlarger[diffusers]"'
        ) from error
    repository, _, inside = model.partition(":")
    name = repository.partition("/")[2] + (f":{inside}" if inside else "")
    cached = _cached(repository, inside)
    if cached is not None:
        return Fetched(cached, name, "")
    cache = huggingface_hub.constants.HF_HUB_CACHE
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or huggingface_hub.is_offline_mode():
        raise ModelError(
            f"{model} is not complete in the hub's cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it: "
            "unset that, or name a file or folder"
        )
    try:
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
        licence = _licence(info)
        wanted = needed(sizes, inside)
        if not wanted:
            raise ModelError(f"{model} has no weights under names that diffusers uses: name a file, {repository}:FILE")
        amount = sum(sizes[each] for each in wanted) / 1e9
        log.warning(
            "fetching %s: %d files, %.2f GB, licence %s; into %s",
            model, len(wanted), amount, licence or "not said", cache,
        )  # fmt: skip
        folder = _download(huggingface_hub, repository, info.sha, wanted)
    except ModelError:
        raise
    except Exception as error:  # many kinds, of several libraries: no network, no such model, no access, no space
        words = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{model} is not in the hub's cache ({cache}) and cannot be fetched: {type(error).__name__}: {words}"
        ) from error
    return Fetched(folder / inside, name, licence)


def _download(huggingface_hub: Any, repository: str, revision: str | None, wanted: list[str]) -> Path:
    """Fetch files, with the hub's own progress bars where somebody sees them."""
    bars = huggingface_hub.utils
    hidden = bars.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        bars.disable_progress_bars()
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    finally:
        if not hidden:
            bars.enable_progress_bars()


def _cached(repository: str, inside: str) -> Path | None:
    """The model in the cache, if it is there whole."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True)) / inside
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    if folder.is_file():
        return folder
    return folder if folder.is_dir() and _whole(folder) else None


def _whole(folder: Path) -> bool:
    """Whether a folder has all that is needed of it: a fetch may have been broken off."""
    try:
        if not (folder / "model_index.json").is_file():
            return (folder / "config.json").is_file() and bool(weight_files(folder))
        index = read_json(folder / "model_index.json")
        wanted = [part for part in PARTS if isinstance(index.get(part), list) and index[part][0] is not None]
        return all((folder / part).is_dir() and bool(weight_files(folder / part)) for part in wanted)
    except ModelError:
        return False


def needed(names: Iterable[str], inside: str) -> list[str]:
    """Which of a repository's files make the model: texts, and of each part one set of weights.

    Args:
        names: All files of the repository.
        inside: A sub-folder or file of it, "" for the whole.
    """
    there = set(names)
    if inside.endswith(FILES):
        return [inside] if inside in there else []
    root = f"{inside}/" if inside else ""
    texts = [f"{root}model_index.json", f"{root}config.json"]
    if texts[0] in there:
        parts = [f"{root}{part}/" for part in PARTS]
        places = [*parts, *(f"{root}{part}/" for part in WORDS)]
        texts += [name for name in there if name.endswith((".json", ".txt")) and name.startswith(tuple(places))]
    else:
        parts = [root]
    weights = [name for part in parts for name in _weights(there, part)]
    return sorted({*(text for text in texts if text in there), *weights}) if weights else []


def _weights(there: set[str], part: str) -> list[str]:
    """The weight files of one folder that `folders.weight_files` will take, shards and index included."""
    for ending in ENDINGS:
        for variant in VARIANTS:
            middle = f".{variant}" if variant else ""
            for stem in STEMS:
                if f"{part}{stem}{middle}{ending}" in there:
                    return [f"{part}{stem}{middle}{ending}"]
                shard = re.compile(
                    rf"{re.escape(part + stem)}({re.escape(middle)}-\d+-of-\d+|-\d+-of-\d+{re.escape(middle)})"
                    rf"{re.escape(ending)}"
                )
                shards = [name for name in there if shard.fullmatch(name)]
                if shards:
                    index = f"{part}{stem}{ending}.index{middle}.json", f"{part}{stem}{middle}{ending}.index.json"
                    return [*shards, *(name for name in index if name in there)]
    return []


def _licence(info: Any) -> str:
    """What the model's card says."""
    card = getattr(info, "card_data", None)
    told = (getattr(card, "license_name", None) or getattr(card, "license", None)) if card is not None else None
    tags = [tag.removeprefix("license:") for tag in getattr(info, "tags", None) or () if tag.startswith("license:")]
    return str(told or next(iter(tags), ""))
