"""What `controlnet` and `generate` share: the ControlNets beside the model, and when they act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.canvas.blend import Plane
from enlarger.canvas.geometry import Pass
from enlarger.controls.maps import MapModels, open_models
from enlarger.engines import control, diffusion
from enlarger.engines.control import Acting, Control, Net
from enlarger.engines.diffusion import Parts, Prompts
from enlarger.engines.engine import Facts, Loaded, Prediction, together
from enlarger.engines.prompted import PromptedConditioning, PromptedEngine, Script
from enlarger.engines.settings import ControlledSettings, ControlMachine
from enlarger.sampling.steps import Moment


@dataclass(frozen=True)
class ControlledScript(Script):
    """What is to be drawn where, and what ControlNets see beside it.

    Attributes:
        controls: One for each net.
    """

    controls: tuple[Control, ...] = ()


@dataclass(frozen=True)
class ControlledConditioning(PromptedConditioning):
    """What a prediction looks at.

    Attributes:
        controls: One for each net.
        hints: What their nets have read, one after the other on channels, (1, n * C, h, w); None without nets.
        guess: Whether the nets run on the prompt's half alone.
    """

    controls: tuple[Control, ...] = ()
    hints: Plane | None = None
    guess: bool = False


class ControlledEngine(PromptedEngine):
    """See `engines.engine.Engine`; subclasses say where the process starts."""

    needs_image = False
    """Whether there is no input that a net could see."""

    def __init__(self, facts: Facts, parts: Parts, nets: Sequence[Net], maps: MapModels | None = None) -> None:
        super().__init__(facts, parts, held=bool(nets))
        self.nets = tuple(nets)
        self.maps = maps or MapModels()
        beside = [*((net.name, net.digest) for net in self.nets), *self.maps.names]
        self.loaded = together(parts.loaded, *(Loaded(name, digest) for name, digest in beside))

    @classmethod
    def loaded_parts(
        cls, facts: Facts, model: str | None, machine: Any, components: Mapping[str, Any] | None
    ) -> tuple[Parts, list[Net], MapModels]:
        """The model, its ControlNets, and what makes maps for them."""
        assert isinstance(machine, ControlMachine)
        parts = cls.parts_of(facts, model, machine, components)
        nets = control.load_nets(facts.name, parts, machine, components)
        return parts, nets, open_models(machine.map_model, parts.device)

    def prepare(self, settings: Any) -> ControlledScript:
        """See `Engine.prepare`: the encoded prompts, and the control pictures as they are in their files."""
        script = super().prepare(settings)
        controls = control.controls_of(self.nets, settings, self.maps, needs_image=self.needs_image)
        return ControlledScript(script.prompts, script.regions, controls)

    def controlled(
        self,
        source: Tensor,
        passage: Pass,
        script: ControlledScript,
        settings: ControlledSettings,
        start: Tensor | None = None,
        remarks: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The fields of a `ControlledConditioning`, by name."""
        fields = self.shared(source, passage, script, settings, start, remarks)
        if not script.controls:
            return fields
        pictures = control.control_pictures(script.controls, source, passage.source, settings, self.maps)
        read = [
            control.read_hint(each.net, picture, self.device, self.dtype)
            for each, picture in zip(script.controls, pictures, strict=True)
        ]
        first: Any = self.nets[0].body.config
        guess = settings.guess_mode or bool(getattr(first, "global_pool_conditions", False))
        return {**fields, "controls": script.controls, "hints": Plane(torch.cat(read, 1)), "guess": guess}

    def forward(self, seen: Tensor, moment: Moment, conditioning: PromptedConditioning, prompts: Prompts) -> Prediction:
        """See `PromptedEngine.forward`; a net outside its share of the steps is not computed."""
        assert isinstance(conditioning, ControlledConditioning)
        return diffusion.guided(
            self.parts.unet,
            seen,
            moment,
            prompts,
            control=_acting(conditioning, moment),
            **self.extras(seen, conditioning),
        )


def _acting(conditioning: ControlledConditioning, moment: Moment) -> Acting | None:
    """The controls that act in a moment, None for none."""
    if conditioning.hints is None:
        return None
    position = moment.count - 1 - moment.index
    hints = conditioning.hints.tensor.chunk(len(conditioning.controls), 1)
    pairs = [
        (each, hint)
        for each, hint in zip(conditioning.controls, hints, strict=True)
        if each.acts(position, moment.count)
    ]
    if not pairs:
        return None
    return Acting(tuple(each for each, _ in pairs), tuple(hint for _, hint in pairs), conditioning.guess)
