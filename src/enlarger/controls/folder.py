"""Folders as transformers writes them, with a model that makes control maps; nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enlarger.checkpoints.digests import digest_of
from enlarger.checkpoints.folders import read_json
from enlarger.errors import ModelError

if TYPE_CHECKING:
    import torch

KINDS = {
    "ForDepthEstimation": "depth",
    "ForPoseEstimation": "pose",
    "ForObjectDetection": "people",
}
"""End of an architecture's name -> what it is good for here."""

CLASSES = {
    "depth": "AutoModelForDepthEstimation",
    "pose": "AutoModelForPoseEstimation",
    "people": "AutoModelForObjectDetection",
}
"""Transformers' class that opens it."""

BEFORE = {"pose": "VitPoseForPoseEstimation"}
"""The one class of the kind in a transformers that has none for all of them."""


@dataclass(frozen=True)
class Folder:
    """A folder with a model of transformers.

    Attributes:
        path: Where it is.
        architecture: Its class.
        kind: A value of `KINDS`.
        config: Its configuration as the file has it.
    """

    path: Path
    architecture: str
    kind: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For records and errors; never a path."""
        return self.path.resolve().name

    @cached_property
    def digest(self) -> str:
        """Of the weights and of the configurations."""
        files = [*sorted(self.path.glob("*.safetensors")), *sorted(self.path.glob("*.json"))]
        return digest_of(files, self.path)

    def model(self, device: torch.device) -> Any:
        """The model in float32, for evaluation.

        Raises:
            ModelError: It cannot be opened; transformers is not installed, or too old.
        """
        import torch

        made = self._opened(_class(self.kind), use_safetensors=True, dtype=torch.float32)
        return made.eval().to(device)

    def processor(self) -> Any:
        """What makes a model's input of a picture, and people or depth of its output.

        Raises:
            ModelError: As `model`.
        """
        return self._opened("AutoImageProcessor")

    def preprocessing(self) -> dict[str, Any]:
        """What the folder says of its input: size, mean and deviation; {} if nothing."""
        place = self.path / "preprocessor_config.json"
        return read_json(place) if place.is_file() else {}

    def _opened(self, name: str, **options: Any) -> Any:
        with quiet():
            try:
                return _of_transformers(name).from_pretrained(
                    str(self.path), local_files_only=True, trust_remote_code=False, **options
                )
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
                line = " ".join(str(error).split())[:160]
                raise ModelError(f"{self.name} ({self.architecture}) cannot be opened: {line}") from error


def look_at(folder: str) -> Folder:
    """See what a folder holds, without opening the model.

    Raises:
        ModelError: No folder of transformers, or no model that makes maps.
    """
    path = Path(folder)
    try:
        config = read_json(path / "config.json")
        architecture = str((config.get("architectures") or [""])[0])
    except (ModelError, IndexError, TypeError, KeyError) as error:
        raise ModelError(f"{folder} is no folder of a transformers model: it has no config.json to read") from error
    for ending, kind in KINDS.items():
        if architecture.endswith(ending):
            return Folder(path, architecture, kind, config)
    raise ModelError(
        f"{path.resolve().name} is {architecture or 'of no stated kind'}, no model for maps: those are for depth "
        "(...ForDepthEstimation), poses (...ForPoseEstimation), or find the people for these (...ForObjectDetection)"
    )


def _class(kind: str) -> str:
    import transformers

    return CLASSES[kind] if hasattr(transformers, CLASSES[kind]) else BEFORE.get(kind, CLASSES[kind])


def _of_transformers(name: str) -> Any:
    try:
        import transformers

        return getattr(transformers, name)
    except ImportError as error:
        raise ModelError(
            f'maps of a model need an extra that is not installed ({error}): pip install "enlarger[diffusers]"'
        ) from error
    except AttributeError as error:
        raise ModelError(f"this transformers is too old for such a model: it has no {name}; update it") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' remarks and bars on stderr."""
    try:
        from transformers.utils import logging
    except ImportError:  # whoever needs it says so
        yield
        return
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
