"""Where models are: a path, a name in a folder for models, an id on the hub. No torch here.

Folders for models are looked through as web interfaces lay them out (A1111: models/Stable-diffusion, models/VAE,
models/ControlNet, models/Lora, models/ESRGAN, embeddings; ComfyUI: models/checkpoints, vae, controlnet, loras,
upscale_models, embeddings), and any other layout too: of two models with one name, the one in the folder of its kind
is taken.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from enlarger.checkpoints.folders import is_model_folder
from enlarger.errors import ModelError

ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
"""Endings of model files; of one name with several, the first of these is taken."""

FOLDERS = {
    "checkpoint": ("stable-diffusion", "checkpoints", "diffusers", "diffusion_models", "unet"),
    "vae": ("vae",),
    "controlnet": ("controlnet",),
    "lora": ("lora", "loras", "lycoris"),
    "embedding": ("embeddings",),
    "gan": ("esrgan", "realesrgan", "upscale_models"),
    "stablesr": ("stablesr",),
}
"""Kind of model -> names of its folders in A1111 and ComfyUI, in small letters."""

SKIPPED = ("venv", "env", "node_modules", "__pycache__", "repositories", "outputs", "output", "site-packages")
"""Folders that a web interface has beside its models and that hold thousands of files, none of them a model."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w./-]+)?")
"""owner/name, with a sub-folder or file behind a colon."""


def kind_of(family: str) -> str:
    """In which of the web interfaces' folders a family belongs."""
    if family.startswith(("vae", "cfw")):
        return "vae"
    first = family.partition("-")[0]
    return first if first in FOLDERS else "checkpoint"


def find_model(name: str, folders: Iterable[str | Path] = (), kinds: Collection[str] = ()) -> Path | None:
    """The file or folder that a name means; None if there is none.

    Args:
        name: A path; or a file's or folder's name in one of the folders, with or without its ending, with or without
            the folders above it.
        folders: Folders for models, looked through in order. `model_folders` gives the usual ones.
        kinds: Keys of `FOLDERS`: what is wanted, where a name is there twice.
    """
    if os.path.exists(name):
        return Path(name)
    for folder in folders:
        found = [path for path in walk(Path(folder)) if _is_called(path, name, Path(folder))]
        if found:
            return min(found, key=lambda path: _rank(path, Path(folder), kinds))
    return None


def nowhere(name: str, folders: Iterable[str | Path], *, option: str = "") -> ModelError:
    """The error for a name that no model has: where it was looked for, the near names, how to list all of them.

    Args:
        name: As the user wrote it.
        folders: Those that were looked through.
        option: The flag that it was given with, where that is not the model's own.
    """
    places = [Path(folder) for folder in folders]
    known = {path.stem if path.suffix.lower() in ENDINGS else path.name for place in places for path in walk(place)}
    plain = Path(name).stem if name.lower().endswith(ENDINGS) else Path(name).name
    near = difflib.get_close_matches(plain, sorted(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    given = f" ({option})" if option else ""
    return ModelError(
        f"there is no model {name}{given}: looked at {name} itself and in {', '.join(map(str, places))}{hint}; "
        "enlarger models lists what is there, ENLARGER_MODELS=FOLDER adds a folder"
    )


def subfolder(name: str) -> str:
    """A local folder's subfolder may be written as on the hub, FOLDER:SUBFOLDER; anything else is given back."""
    folder, colon, inner = name.rpartition(":")
    return str(Path(folder, inner)) if colon and folder and Path(folder).is_dir() else name


def _is_called(path: Path, name: str, folder: Path) -> bool:
    wanted = name.replace("\\", "/").strip("/")
    inside = path.relative_to(folder)
    without = inside.with_suffix("") if path.suffix.lower() in ENDINGS else inside
    return any(
        str(each) == wanted or str(each).endswith(f"/{wanted}") for each in (inside.as_posix(), without.as_posix())
    )


def _rank(path: Path, folder: Path, kinds: Collection[str]) -> tuple[bool, int, int, str]:
    """The right kind of folder first, then near the top, then by ending and name."""
    above = {part.lower() for part in path.relative_to(folder).parts[:-1]}
    right = not kinds or any(above & set(FOLDERS[kind]) for kind in kinds)
    ending = path.suffix.lower()
    return not right, len(path.parts), ENDINGS.index(ending) if ending in ENDINGS else -1, path.name


def walk(folder: Path) -> Iterator[Path]:
    """Every model file and model folder below a folder; links to folders are not followed."""
    for place, inside, files in os.walk(folder):
        here = Path(place)
        if here != folder and is_model_folder(here):
            inside.clear()
            yield here
            continue
        inside[:] = sorted(each for each in inside if each not in SKIPPED and not each.startswith("."))
        yield from (here / each for each in sorted(files) if Path(each).suffix.lower() in ENDINGS)


def model_folders(first: Iterable[str | Path] = ()) -> list[Path]:
    """The folders for models: those given, those of ENLARGER_MODELS, then our own.

    Raises:
        ModelError: One that was given does not exist.
    """
    from platformdirs import user_data_path

    given = [Path(folder) for folder in first]
    for folder in given:
        if not folder.is_dir():
            raise ModelError(f"the folder {folder} of --models-dir does not exist")
    environment = [Path(word) for word in os.environ.get("ENLARGER_MODELS", "").split(os.pathsep) if word]
    return [*given, *environment, user_data_path("enlarger") / "models"]


def is_hub_id(name: str) -> bool:
    """Whether a name could be one of the hub's: `owner/name`, with a sub-folder or file behind a colon.

    `folder/name.safetensors` is none: a file that is not there must not be asked of the network.
    """
    return HUB_ID.fullmatch(name) is not None and (":" in name or not name.lower().endswith(ENDINGS))
