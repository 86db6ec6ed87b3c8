"""Open a model, whatever form it has: a folder, a single file, or the id of one on the hub.

    checkpoint = open_checkpoint("sd-x4.safetensors", families=["x4"], engine="x4")
    unet = checkpoint.module("unet", dtype=torch.float16, device="cuda")

What it is, its tensors say and not its name. Nothing of it is run, and nothing is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from enlarger.checkpoints import configs as configurations
from enlarger.checkpoints import keys
from enlarger.checkpoints.configs import Configs
from enlarger.checkpoints.families import FAMILIES, Anatomy, identify, of_controlnet, of_unet, of_vae, words
from enlarger.checkpoints.folders import folder_tensors, part_of_config, parts_of, read_json, weight_files
from enlarger.checkpoints.load import digest
from enlarger.checkpoints.tensors import Tensors, open_tensors
from enlarger.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

Layout = Literal["folder", "file", "hub"]

CLIP_PARTS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found and is of a kind that the engine can use.

    Attributes:
        name: What records and errors call it; never a path.
        family: A key of `families.FAMILIES`.
        layout: What it was opened from.
        licence: Of the weights, as far as known; "" if nothing says.
        parts: Part -> its tensors under diffusers' names, opened when asked for.
        configs: Where the parts' configurations are.
        files: The weight files, for the digest.
        notes: What the user should know about how it was taken, one line each.
    """

    name: str
    family: str
    layout: Layout
    licence: str
    parts: Mapping[str, Callable[[], Tensors]] = field(repr=False)
    configs: Configs = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the weights' SHA-256."""
        return digest(self.files[0])

    def has(self, part: str) -> bool:
        """Whether the model holds the weights of a part, or for schedulers and tokenizers what they are made of."""
        if part.startswith("tokenizer"):
            return part.replace("tokenizer", "text_encoder") in self.parts
        return part in self.parts or (part.endswith("scheduler") and self.configs.find(part) is not None)

    def config(self, part: str) -> Mapping[str, Any]:
        """The configuration of a part ("unet", "vae", "scheduler", ...) or "model_index", as diffusers writes it.

        Raises:
            ModelError: There is none.
        """
        found = self.configs.find(part)
        if found is None:
            raise ModelError(
                f"nothing says how the {part} of {self.name} is built: put a folder with its configurations beside it"
            )
        return found

    def tensors(self, part: str) -> Tensors:
        """A part's tensors under diffusers' names, unread; a text encoder's without `text_model.`.

        Raises:
            ModelError: The model does not hold the part.
        """
        if part not in self.parts:
            there = ", ".join(self.parts) or "no part of a diffusion model"
            raise ModelError(f"{self.name} holds no {part}, only {there}: take a complete model")
        return self.parts[part]()

    def module(self, part: str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
        """A part as diffusers' or transformers' module, in evaluation mode, without gradients.

        Args:
            part: "unet", "vae", "controlnet", "text_encoder" or "text_encoder_2".
            dtype: Kind of number of the parameters.
            device: Where they go.

        Raises:
            ModelError: The part is not there, or its tensors do not fit its configuration; all faults together.
        """
        from enlarger.checkpoints.modules import build

        return build(self.config(part), self.tensors(part), name=self.name, part=part, dtype=dtype, device=device)

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """A tokenizer of transformers: the model's own, or CLIP's with what this family fills up with."""
        from enlarger.checkpoints.modules import load_tokenizer

        own = self.configs.vocabulary(part)
        if own is not None:
            return load_tokenizer(own)
        second = part == "tokenizer_2"
        return load_tokenizer(configurations.VOCABULARY, "!" if second else FAMILIES[self.family].pad)

    def components(
        self, parts: Iterable[str], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Any]:
        """Several parts under diffusers' names: modules, tokenizers, and schedulers as their configurations."""
        made: dict[str, Any] = {}
        for part in parts:
            if part.startswith("tokenizer"):
                made[part] = self.tokenizer(part)
            elif part.endswith("scheduler"):
                made[part] = self.config(part)
            else:
                made[part] = self.module(part, dtype=dtype, device=device)
        return made


def open_checkpoint(
    model: str | Path,
    *,
    models_dirs: Iterable[str | Path] = (),
    families: Collection[str],
    engine: str,
    config: str | None = None,
) -> Checkpoint:
    """Find a model, see what it is, and refuse it if the engine cannot use it.

    Args:
        model: A folder, a file, a name in one of the folders for models, or a hub id, `owner/name[:subfolder]`.
        models_dirs: Folders for models, as web interfaces lay them out; those of ENLARGER_MODELS come after.
        families: Families that the engine can use.
        engine: Its name, for errors.
        config: A folder with configurations in diffusers' layout, or a published model's name, for a file that
            nothing else describes.

    Raises:
        ModelError: There is no such model, it is damaged, or of another kind, which is named.
    """
    path = Path(model)
    checkpoint = _folder(path, config) if path.is_dir() else _file(path, config)
    if checkpoint.family not in families:
        known = FAMILIES[checkpoint.family].words
        raise ModelError(f"{checkpoint.name} is {known}; engine {engine} needs {words(families)}")
    return checkpoint


def _file(path: Path, config: str | None) -> Checkpoint:
    """A model in one file."""
    tensors = open_tensors(path)
    anatomy = identify(tensors)
    family = FAMILIES[anatomy.family]
    notes: tuple[str, ...] = ()
    if config is not None:
        found = configurations.named(config)
    else:
        found, notes = _configs_of_file(path, tensors, anatomy, family.config)
    licence = next(
        (tensors.metadata[key] for key in ("modelspec.license", "licence", "license") if key in tensors.metadata), ""
    )
    return Checkpoint(
        path.stem, anatomy.family, "file", licence or family.licence, anatomy.parts, found, (path,), notes
    )  # fmt: skip


def _configs_of_file(path: Path, tensors: Tensors, anatomy: Anatomy, shipped: str) -> tuple[Configs, tuple[str, ...]]:
    beside = configurations.beside(path)
    if beside is not None:
        return beside, ()
    if anatomy.family != "sd2":
        return configurations.published(shipped), ()
    velocity = configurations.predicts_velocity(path, tensors.metadata)
    if velocity is None:
        note = (
            f"nothing says whether {path.stem} predicts noise or velocity: taken as noise, as 2.1-base does; "
            f"its {path.stem}.yaml beside it would tell"
        )
        return configurations.published("sd2"), (note,)
    return configurations.published("sd2-v" if velocity else "sd2"), ()


def _folder(path: Path, config: str | None) -> Checkpoint:
    """A model in diffusers' layout: whole, or a part alone."""
    found = Configs((path,)) if config is None else configurations.named(config)
    alone = path / "config.json"
    if (path / "model_index.json").is_file() or not alone.is_file():
        names = list(parts_of(path))
        if not names:
            raise ModelError(
                f"the folder {path.name} is no model: it has no model_index.json, and no part with weights"
            )
        folders = {name: path / name for name in names}
    else:
        part = part_of_config(read_json(alone))
        if not part:
            raise ModelError(
                f"the folder {path.name} is no model that Enlarger knows: its config.json names no such class"
            )
        folders = {part: path}
    parts = {name: _reader(name, folder) for name, folder in folders.items()}
    files = tuple(file for folder in folders.values() for file in weight_files(folder))
    family = _family(parts)
    return Checkpoint(path.name, family, "folder", FAMILIES[family].licence, parts, found, files)


def _reader(part: str, folder: Path) -> Callable[[], Tensors]:
    change = keys.clip if part in CLIP_PARTS else keys.vae if part == "vae" else keys.unet
    return lambda: change(folder_tensors(folder))


def _family(parts: Mapping[str, Callable[[], Tensors]]) -> str:
    if "unet" in parts:
        return of_unet(parts["unet"]())
    if "controlnet" in parts:
        return of_controlnet(parts["controlnet"]())
    if "vae" in parts:
        return of_vae(parts["vae"]())
    return "text-encoder" if set(parts) & set(CLIP_PARTS) else ""
