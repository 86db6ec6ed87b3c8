"""StableSR's files: which belongs where, what they are taken to predict, and the networks that they fill."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import torch

from enlarger.checkpoints.configs import predicts_velocity
from enlarger.checkpoints.families import FAMILIES, words
from enlarger.checkpoints.load import assign
from enlarger.checkpoints.open import Checkpoint, look_at
from enlarger.checkpoints.stablesr import AUTOENCODER, CATALOG, TextNames, leftover
from enlarger.checkpoints.tensors import LazyTensor
from enlarger.engines import stablesr_parts as parts
from enlarger.engines.stablesr_parts import Description, Inventory
from enlarger.errors import ModelError

if TYPE_CHECKING:
    from enlarger.engines.settings import StableSRMachine

LICENCE = "StableSR's weights are under the S-Lab License 1.0: not for commercial use"

WORDS = {"epsilon": "noise (epsilon)", "v_prediction": "velocity (v)"}
"""What a network predicts, for people."""

REMEDIES = {
    "stablesr": "give it with --model",
    "stablesr-module": "give it with --model",
    "cfw": "give it with --cfw, and the model (such as stablesr_000117.ckpt) with --model",
    "cfw-fusion": "give it with --cfw, and the model (such as stablesr_000117.ckpt) with --model",
    "sd2": "it lacks StableSR's modules: give it with --base, and a trimmed StableSR module with --model",
    "vae": "give it with --vae",
}
"""Family -> where such a file belongs, if anywhere here."""


def opened(model: str, machine: StableSRMachine, families: Collection[str], option: str) -> Checkpoint:
    """A file of one of some families.

    Raises:
        ModelError: There is none, or it is another; says which, and where that belongs.
    """
    folders = (machine.models_dir,) if machine.models_dir else ()
    checkpoint = look_at(model, models_dirs=folders, families=families)
    if checkpoint.family in families:
        return checkpoint
    family = FAMILIES[checkpoint.family]
    elsewhere = f"use it with {family.use}" if family.use else "nothing here takes such a file"
    remedy = REMEDIES.get(checkpoint.family, elsewhere)
    raise ModelError(f"{checkpoint.name} is {family.words}, and --{option} takes {words(families)}: {remedy}")


def predicted(asked: str | None, found: Description | None, checkpoint: Checkpoint) -> tuple[str, str]:
    """What the network predicts, and who says so: the option, what lies beside the file, its digest, or its name.

    Nothing in the tensors tells; `stablesr.probed` looks at what the network does.
    """
    known = CATALOG.get(checkpoint.digest)
    if asked is not None:
        return asked, "as --prediction says"
    if found is not None and found.prediction:
        return found.prediction, "as the configuration beside it says"
    velocity = predicts_velocity(checkpoint.files[0], checkpoint.everything())
    if velocity is not None:
        return "v_prediction" if velocity else "epsilon", "as the configuration beside it says"
    if known is not None:
        return known.prediction, f"as its digest says, which is that of the published {known.name}"
    name = checkpoint.name.lower()
    if "768v" in name or "face_stablesr" in name:
        return "v_prediction", "as its name says"
    return "epsilon", "as most of its kind do, and nothing says otherwise"


def native_size(found: Description | None, checkpoint: Checkpoint, prediction: str) -> int:
    """Pixels of the side of the squares that a model was trained on, as what says what it predicts has it.

    Where nothing does, those of the published model that predicts the same.
    """
    if found is not None and found.native:
        return found.native
    yaml = checkpoint.files[0].with_suffix(".yaml")
    if yaml.is_file() and yaml.stat().st_size < 1 << 20:
        # The networks have an image_size of their own, which nothing reads.
        sizes = re.findall(r"^ {0,4}image_size:\s*(\d+)", yaml.read_text("utf-8", "replace"), re.MULTILINE)
        if sizes:
            return int(sizes[0])
    known = CATALOG.get(checkpoint.digest)
    if known is not None:
        return known.native
    name = checkpoint.name.lower()
    if "face_stablesr" in name:
        return 512
    return 768 if "768" in name or prediction == "v_prediction" else 512


class Shelf:
    """The networks without memory, and the tensors that were found for them.

    Attributes:
        remarks: What the user must know of how they go together.
    """

    def __init__(self, description: Description) -> None:
        """Build the networks of a description, on the meta device."""
        self.description = description
        self.remarks: tuple[str, ...] = ()
        self.unet = parts.unet_part(description.unet, description.encoder.outputs)
        self.encoder = parts.encoder_part(description.encoder)
        self.vae = parts.autoencoder_part(description.autoencoder, description.latent_scale)
        self.text = parts.text_part(description.text)
        self.fusion: parts.Part | None = None
        self.found: dict[parts.Part, tuple[str, dict[str, LazyTensor]]] = {}

    def take_whole(self, checkpoint: Checkpoint) -> None:
        """Everything but CFW, out of a published file.

        Raises:
            ModelError: Tensors are missing, unexpected or of another shape; all are named.
        """
        self._take(checkpoint, (self.unet, self.encoder, self.vae, self.text))

    def take_trimmed(self, module: Checkpoint, base: Checkpoint) -> None:
        """StableSR's own modules out of one file, everything else out of a Stable Diffusion model.

        Raises:
            ModelError: As `take_whole`.
        """
        inventory = Inventory(module.name, module.everything())
        modulation = inventory.take(self.unet, parts.is_modulation)
        self.found[self.encoder] = module.name, inventory.take(self.encoder)
        inventory.check()
        for part, name in ((self.unet, "unet"), (self.vae, "vae"), (self.text, "text_encoder")):
            self.found[part] = base.name, parts.own(part, base.tensors(name), f"{base.name}'s {name}")
        self.found[self.unet][1].update(modulation)

    def take_cfw(self, checkpoint: Checkpoint) -> None:
        """The fusion layers, and the autoencoder that they were trained with, where the file has it.

        Raises:
            ModelError: As `take_whole`.
        """
        description, tensors = self.description, checkpoint.everything()
        prefix = AUTOENCODER if any(key.startswith(AUTOENCODER) for key in tensors) else ""
        self.fusion = parts.fusion_part(description.autoencoder, description.fusion, prefix)
        if checkpoint.family == "cfw-fusion":
            self._take(checkpoint, (self.fusion,))
            return
        before = self.found[self.vae][1]
        self.vae = parts.autoencoder_part(description.autoencoder, description.latent_scale, prefix)
        self._take(checkpoint, (self.fusion, self.vae))
        if parts.differ(before, self.found[self.vae][1]):
            told = f"the autoencoder in {checkpoint.name} is another than the model's own: they may not belong together"
            self.remarks = (told,)

    def take_vae(self, checkpoint: Checkpoint) -> None:
        """Another autoencoder.

        Raises:
            ModelError: As `take_whole`.
        """
        self.found[self.vae] = checkpoint.name, parts.own(self.vae, checkpoint.tensors("vae"), checkpoint.name)

    def _take(self, checkpoint: Checkpoint, wanted: Iterable[parts.Part]) -> None:
        names, layers = TextNames(), self.description.text.layers - 1
        inventory = Inventory(
            checkpoint.name, checkpoint.everything(), lambda key: leftover(key) or names.unread(key, layers)
        )
        for part in wanted:
            self.found[part] = checkpoint.name, inventory.take(part)
        inventory.check()

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """The networks with their numbers, by the names that `StableSR` takes them by."""
        named = {
            "unet": self.unet,
            "encoder": self.encoder,
            "text": self.text,
            "vae": self.vae,
            "wrapping": self.fusion,
        }
        for name, part in named.items():
            if part is not None:
                owner, tensors = self.found[part]
                kind = torch.float32 if name in ("vae", "wrapping") else dtype
                assign(part.network, tensors, owner, dtype=kind, device=device)
                part.network.eval().requires_grad_(False)
        return {name: None if part is None else part.network for name, part in named.items()}
