"""Open a model, whatever form it has: a folder, a single file, a name in a folder for models, an id on the hub.

    checkpoint = open_checkpoint("sd-x4.safetensors", families=["x4"], engine="x4")
    unet = checkpoint.module("unet", dtype=torch.float16, device="cuda")

What it is, its tensors say and not its name. Nothing of it is run, and nothing is read before it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from enlarger.checkpoints import configs as configurations
from enlarger.checkpoints import keys
from enlarger.checkpoints.configs import Configs
from enlarger.checkpoints.digests import digest_of
from enlarger.checkpoints.families import FAMILIES, Anatomy, identify, of_parts, words
from enlarger.checkpoints.find import find_model, is_hub_id, kind_of, model_folders, nowhere, walk
from enlarger.checkpoints.folders import config_file, folder_tensors, part_of_config, parts_of, read_json, weight_files
from enlarger.checkpoints.tensors import Tensors, open_tensors
from enlarger.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

Layout = Literal["folder", "file", "hub"]

CLIP_PARTS = ("text_encoder", "text_encoder_2")

PARTS = ("unet", "vae", "controlnet", *CLIP_PARTS)
"""What a folder must hold one of."""

CONFIGURED = ("unet", "vae", *CLIP_PARTS, "controlnet", "scheduler", "low_res_scheduler", "model_index")
"""What a folder has configurations of that change a result."""

ADDED = tuple(
    stem + ending for stem in ("pytorch_lora_weights", "learned_embeds") for ending in (".safetensors", ".bin")
)
"""Names of the one file in a folder of diffusers that holds a LoRA or an embedding."""

Reader = Callable[[], Tensors]


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found, and what it is.

    Attributes:
        name: What records and errors call it; never a path.
        family: A key of `families.FAMILIES`.
        layout: What it was opened from.
        licence: Of the weights, as far as known; "" if nothing says.
        parts: Part -> its tensors under diffusers' names, opened when asked for.
        configs: Where the parts' configurations are.
        files: All that it is made of, for the digest; the first is a weight file.
        root: The folder that the files are in.
        notes: What the user should know about how it was taken, one line each.
        everything: All tensors under the names that they have on the disk; a folder's with the part before them.
    """

    name: str
    family: str
    layout: Layout
    licence: str
    parts: Mapping[str, Reader] = field(repr=False)
    configs: Configs = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    root: Path = field(repr=False)
    notes: tuple[str, ...] = ()
    everything: Reader = field(default=lambda: Tensors({}), repr=False)

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the weights' SHA-256: of the file, or of all files of a folder."""
        return digest_of(self.files, self.root)

    def has(self, part: str) -> bool:
        """Whether the model holds the weights of a part, or for schedulers and tokenizers what they are made of."""
        if part.startswith("tokenizer"):
            return part.replace("tokenizer", "text_encoder") in self.parts
        return part in self.parts or (part.endswith("scheduler") and self.configs.find(part) is not None)

    def config(self, part: str) -> Mapping[str, Any]:
        """The configuration of a part ("unet", "vae", "scheduler", ...) or "model_index", as diffusers writes it.

        A published configuration is fitted to what the weights say. The scaling factor of an autoencoder that stands
        alone in a file cannot be read from it: it is that of the published model named when it was opened.

        Raises:
            ModelError: There is none.
        """
        found = self.configs.find(part)
        if found is None:
            if len(self.parts) == 1 and (self.root / "config.json").is_file():
                (alone,) = self.parts
                raise ModelError(
                    f"{self.name} is a {alone} alone, without a {part}: name the folder of the whole model, above it"
                )
            if self.layout != "file":
                raise ModelError(f"the folder of {self.name} has no configuration of its {part}: fetch the model again")
            raise ModelError(f"nothing says how the {part} of {self.name} is built: {self._remedy}")
        return (
            configurations.fitted(found, self.parts[part]())
            if part in self.parts and not self._configured(part)
            else found
        )

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

        tensors = self.tensors(part)
        remedy = "fetch it again" if self._configured(part) else f"fetch it again, or {self._remedy}"
        return build(
            self.config(part), tensors, name=self.name, part=part, dtype=dtype, device=device, remedy=remedy
        )  # fmt: skip

    def _configured(self, part: str) -> bool:
        """Whether the part came with a configuration of its own."""
        return self.configs.own(part) is not None

    @property
    def _remedy(self) -> str:
        """What helps where a configuration is missing or is another's."""
        return (
            f"if it is of another size than published, name the folder that it came in, with its config.json, or put "
            f"a folder {self.name}/ with its configurations beside it"
        )

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """A tokenizer of transformers: the model's own, or CLIP's with what this family fills up with.

        Raises:
            ModelError: The model's own cannot be read.
        """
        from enlarger.checkpoints.modules import load_tokenizer

        own = self.configs.vocabulary(part)
        if own is not None:
            return load_tokenizer(own)
        second = part == "tokenizer_2"
        return load_tokenizer(configurations.VOCABULARY, "!" if second else FAMILIES[self.family].pad)

    def components(
        self,
        parts: Iterable[str],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> dict[str, Any]:
        """Several parts under diffusers' names: modules, tokenizers, and schedulers as their configurations.

        Args:
            parts: diffusers' names.
            dtype: Kind of number of the modules' parameters.
            device: Where they go.
            dtypes: Part -> another kind of number: an autoencoder in float32 beside networks in half precision.
        """
        made: dict[str, Any] = {}
        for part in parts:
            if part.startswith("tokenizer"):
                made[part] = self.tokenizer(part)
            elif part.endswith("scheduler"):
                made[part] = self.config(part)
            else:
                made[part] = self.module(part, dtype=(dtypes or {}).get(part, dtype), device=device)
        return made


def open_checkpoint(
    model: str | Path,
    *,
    models_dirs: Iterable[str | Path] = (),
    families: Collection[str],
    engine: str,
    config: str | Path | None = None,
    default: str | None = None,
) -> Checkpoint:
    """Find a model, see what it is, and refuse it if the engine cannot use it.

    Args:
        model: A folder, a file, a name in one of the folders for models, or a hub id, `owner/name[:subfolder]`.
        models_dirs: Folders for models, as web interfaces lay them out; those of ENLARGER_MODELS come after.
        families: Families that the engine can use.
        engine: Its name, for errors.
        config: A folder with configurations in diffusers' layout, or a published model's name; wins over the model's
            own and over what lies beside a file.
        default: The published model whose configurations a single file has that nothing describes; its family's own
            if None. Base models give it for their autoencoders and ControlNets.

    Raises:
        ModelError: There is no such model, it is damaged, or of another kind, which is named.
    """
    checkpoint = look_at(model, models_dirs=models_dirs, families=families, config=config, default=default)
    if checkpoint.family not in families:
        family = FAMILIES[checkpoint.family]
        known, remedy = family.words, "nothing here takes such a file"
        if not checkpoint.family:
            names = list(checkpoint.everything())
            more = ", ..." if len(names) > 3 else ""
            known += f" (its tensors are {', '.join(name[:60] for name in names[:3])}{more})"
        elif family.use:
            remedy = f"use {checkpoint.name} with {family.use}"
        raise ModelError(f"{checkpoint.name} is {known}; engine {engine} needs {words(families)}; {remedy}")
    return checkpoint


def look_at(
    model: str | Path,
    *,
    models_dirs: Iterable[str | Path] = (),
    families: Collection[str] = (),
    config: str | Path | None = None,
    default: str | None = None,
) -> Checkpoint:
    """Find a model and see what it is, whatever it is. Arguments and errors: see `open_checkpoint`."""
    folders = model_folders(models_dirs)
    path = find_model(str(model), folders, {kind_of(family) for family in families})
    given = None if config is None else configurations.named(str(config))
    if path is not None:
        return _folder(path, given) if path.is_dir() else _file(path, given, default)
    if not is_hub_id(str(model)):
        raise ModelError(f"{nowhere(str(model), folders)}; a model of the hub is called owner/name")
    from enlarger.checkpoints.hub import from_hub

    try:
        fetched = from_hub(str(model))
    except ModelError as error:
        looked = f"looked at {model} itself and in {', '.join(map(str, folders))}"
        raise ModelError(f"there is no model {model}: {looked}; {error}") from error
    opened = _folder(fetched.path, given) if fetched.path.is_dir() else _file(fetched.path, given, default)
    licence = fetched.licence or opened.licence
    return dataclasses.replace(opened, name=fetched.name, layout="hub", licence=licence)


def recorded(name: str, digest: str, folders: Iterable[str | Path]) -> Path | None:
    """The model of an earlier result, found again by what its record says of it; None if it is in none of the folders.

    Args:
        name: What the record calls it: a file's name without its ending, or a folder's.
        digest: First digits of the weights' SHA-256; another model of that name is not taken.
        folders: Looked through in order. The current folder is not: a record may come from anybody.
    """
    for folder in folders:
        for path in walk(Path(folder)):
            if name in (path.name, path.stem):
                with contextlib.suppress(ModelError):
                    if look_at(path).digest == digest:
                        return path
    return None


def _file(path: Path, config: Configs | None, default: str | None) -> Checkpoint:
    """A model in one file."""
    tensors = open_tensors(path)
    anatomy = identify(tensors)
    family = FAMILIES[anatomy.family]
    notes: tuple[str, ...] = ()
    if config is None:
        config, notes = _configs_of_file(path, tensors, anatomy, default or family.config)
    said = [tensors.metadata.get(word, "") for word in ("modelspec.license", "license", "licence")]
    licence = next(filter(None, said), family.licence)
    return Checkpoint(
        path.stem,
        anatomy.family,
        "file",
        licence,
        anatomy.parts,
        config,
        (path,),
        path.parent,
        notes,
        lambda: tensors,
    )


def _configs_of_file(path: Path, tensors: Tensors, anatomy: Anatomy, shipped: str) -> tuple[Configs, tuple[str, ...]]:
    """What a file is built by that came without a configuration, and what must be said about the choice."""
    own = configurations.beside(path, anatomy.parts)
    found = dataclasses.replace(own, shipped=configurations.published(shipped).shipped)
    if "unet" not in anatomy.parts or own.own("scheduler") is not None:
        return found, ()
    velocity = configurations.predicts_velocity(path, tensors)
    if velocity:
        as_shipped = shipped == "sd2" and own == Configs()
        return configurations.published("sd2-v") if as_shipped else configurations.with_velocity(found), ()
    if velocity is None and anatomy.family == "sd2":
        note = (
            f"nothing says whether {path.stem} predicts noise or velocity: taken as noise, as 2.1-base does; "
            f"its {path.stem}.yaml beside it would tell"
        )
        return found, (note,)
    return found, ()


def _folder(path: Path, config: Configs | None) -> Checkpoint:
    """A model in diffusers' layout: whole, or a part alone."""
    alone = path / "config.json"
    if (path / "model_index.json").is_file() or not alone.is_file():
        names = list(parts_of(path))
        added = next((path / name for name in ADDED if (path / name).is_file()), None)
        if added is not None and not names:
            return dataclasses.replace(_file(added, config, None), name=path.resolve().name)
        if not names or not set(names) & set(PARTS):
            inside = list(islice(walk(path), 4))
            several = ", ".join(each.relative_to(path).as_posix() for each in inside[:3])
            more = ", ..." if len(inside) > 3 else ""
            holds = f"it holds others ({several}{more}): name one of them" if inside else ""
            raise ModelError(
                f"the folder {path.resolve().name} is no model: it has no folder unet, vae or text_encoder with "
                f"weights in it; {holds or 'name the file that you mean, or fetch the model again'}"
            )
        folders = {name: path / name for name in names}
    else:
        part = part_of_config(read_json(alone))
        if not part:
            raise ModelError(
                f"the folder {path.resolve().name} is no model that is known here: its config.json names no UNet, "
                "autoencoder, ControlNet or CLIP text encoder"
            )
        folders = {part: path}
    parts = {name: _reader(name, folder) for name, folder in folders.items()}
    weights = [file for folder in folders.values() for file in weight_files(folder)]
    texts = [file for part in CONFIGURED if (file := config_file(path, part)) is not None] or [alone]
    family = of_parts(parts)
    return Checkpoint(
        path.name or path.resolve().name,
        family,
        "folder",
        FAMILIES[family].licence,
        parts,
        config or Configs((path,)),
        (*weights, *texts),
        path,
        everything=lambda: _all_of(folders),
    )


def _all_of(folders: Mapping[str, Path]) -> Tensors:
    """All tensors of a folder's parts, the part's name before each; of a part alone as they are."""
    if len(folders) == 1:
        return folder_tensors(*folders.values())
    read = {part: folder_tensors(folder) for part, folder in folders.items()}
    entries = {f"{part}.{name}": tensor for part, inside in read.items() for name, tensor in inside.items()}
    kinds = {inside.kind for inside in read.values()}
    return Tensors(entries, kind=kinds.pop() if len(kinds) == 1 else "")


def _reader(part: str, folder: Path) -> Reader:
    change = keys.clip if part in CLIP_PARTS else keys.vae if part == "vae" else keys.unet
    return lambda: change(folder_tensors(folder))
