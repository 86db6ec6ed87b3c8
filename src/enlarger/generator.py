"""Text to a picture, by the same loop, tiles and checks that enlarge one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from enlarger.engines.catalog import CONTROLNET, GENERATE, IMG2IMG, setting_names
from enlarger.engines.controlnet import ControlNet
from enlarger.engines.generate import Generate
from enlarger.engines.img2img import Img2Img
from enlarger.engines.settings import GenerateSettings
from enlarger.result import Result
from enlarger.settings import build, rules
from enlarger.upscaler import Callback, Upscaler


class Generator:
    """A text-to-image model, loaded once, that makes pictures of prompts.

    Args:
        model: File, folder or hub id of a Stable Diffusion 1.x, 2.x or XL model.
        components: Parts already in memory, such as `pipe.components` of a diffusers pipeline.
        **machine: control, vae, device, dtype, max_memory and so on (`engines.settings.ControlMachine`).

    Raises:
        SettingsError: Wrong machine settings.
        ModelError: The model is missing or does not fit.
        ResourceError: The device is not there.
    """

    def __init__(
        self, model: str | None = None, *, components: Mapping[str, Any] | None = None, **machine: Any
    ) -> None:
        loading = build(GENERATE.machine, machine, owner="generate")
        engine = Generate.load(model, loading, components)
        assert isinstance(engine, Generate)
        self.engine = engine
        self._upscaler = Upscaler(engine, **machine)

    def __call__(self, prompt: str, *, progress: Callback | None = None, **values: Any) -> Result:
        """Make one picture.

        Args:
            prompt: What it shows, in words.
            progress: Told after every tile; returns False to cancel.
            **values: width, height, steps, seed and so on (`engines.settings.GenerateSettings`).

        Returns:
            The picture, in the depth asked for; give its `pixels` to an `Upscaler` to enlarge it.

        Raises:
            SettingsError: A setting is wrong.
            PictureError: A control picture cannot be read.
            ResourceError: Memory is not enough for the smallest tile.
            Interrupted: `progress` returned False.
        """
        return self._upscaler(self._blank(prompt, values), progress=progress, prompt=prompt, **values)

    def samples(self, prompt: str, *, progress: Callback | None = None, **values: Any) -> Iterator[Result]:
        """All samples of one prompt; arguments and errors as in `__call__`."""
        yield from self._upscaler.samples(self._blank(prompt, values), progress=progress, prompt=prompt, **values)

    def _blank(self, prompt: str, values: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """A picture that only says how large the result is."""
        settings = build(GenerateSettings, {"prompt": prompt, **values}, owner="generate", known=setting_names())
        kinds = {8: np.uint8, 16: np.uint16, 32: np.float32}
        return np.zeros((*self.engine.size(settings), 3), kinds[settings.depth])

    def share(self, engine: str) -> Upscaler | None:
        """An upscaler on this model, which is in memory already, with its ControlNets where it takes some.

        Args:
            engine: Name of an engine.

        Returns:
            None where the engine needs another kind of model.
        """
        parts = self.engine.parts
        if engine == IMG2IMG.name:
            return Upscaler(Img2Img(IMG2IMG, parts), max_memory=parts.limit)
        if engine == CONTROLNET.name and self.engine.nets:
            return Upscaler(ControlNet(CONTROLNET, parts, self.engine.nets, self.engine.maps), max_memory=parts.limit)
        return None


def generate(prompt: str, *, model: str | None = None, **values: Any) -> Result:
    """Make one picture with a freshly loaded model; `Generator` loads once for several.

    Args:
        prompt: What it shows, in words.
        model: See `Generator`.
        **values: Settings of the picture and of loading, and `progress`, `components`.
    """
    of_machine = {name for name in values if name in rules(GENERATE.machine)} | {"components"} & set(values)
    generator = Generator(model, **{name: values[name] for name in of_machine})
    return generator(prompt, **{name: value for name, value in values.items() if name not in of_machine})
