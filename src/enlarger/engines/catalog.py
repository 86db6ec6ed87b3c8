"""Every engine: what it is, what it may be told, and where its class is. No torch here.

An engine is one file in this folder and one entry at the end of this one. Other packages add engines
through the entry-point group `enlarger.engines`, whose entry points name a `Listing`; the built-in
engines are looked up the same way.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from enlarger.engines.engine import Facts
from enlarger.engines.settings import (
    ControlMachine,
    ControlNetSettings,
    GanSettings,
    GenerateSettings,
    Img2ImgSettings,
    InterpolateSettings,
    ModelMachine,
    PocketSettings,
    StableSRMachine,
    StableSRSettings,
    X4Settings,
)
from enlarger.errors import ModelError, SettingsError
from enlarger.settings import Loading, Machine, rules

if TYPE_CHECKING:
    from enlarger.engines.engine import Engine


@dataclass(frozen=True)
class Listing:
    """An engine in the catalog.

    Attributes:
        facts: What is known without loading it.
        target: Its class as "module:Class".
    """

    facts: Facts
    target: str


INTERPOLATE = Facts(
    name="interpolate",
    summary="Interpolation: nearest, bilinear, bicubic, lanczos. Invents nothing.",
    settings=InterpolateSettings,
    machine=Loading,
    factor=1,
    field=0,
    tile=2048,
    bytes_per_pixel=48,
)

POCKET = Facts(
    name="pocket",
    summary="Our small diffusion model, shipped in the package: 1, 2 or 4 steps, works offline.",
    settings=PocketSettings,
    stride=2,
    field=40,
    tile=1536,
    prediction="x0",
    bytes_per_pixel=160,
    licence="Apache-2.0",
)

GAN = Facts(
    name="gan",
    summary="Your ESRGAN, Real-ESRGAN or compact network: sharp in one step, invents without a dial.",
    settings=GanSettings,
    field=0,  # and factor, stride, decode_field: as the loaded network says
    tile=1024,
    bytes_per_pixel=768,
    needs_model=True,
    families=("gan", "swinir"),
    links=("https://github.com/xinntao/Real-ESRGAN",),
)

X4 = Facts(
    name="x4",
    summary="Your Stable Diffusion x4 upscaler: a prompt and a noise level, four times larger.",
    settings=X4Settings,
    machine=ModelMachine,
    grid=4,
    tile=512,
    overlap=128,
    bytes_per_pixel=2500,
    needs_model=True,
    families=("x4",),
    extra="diffusers",
    links=("https://huggingface.co/stabilityai/stable-diffusion-x4-upscaler",),
)

STABLESR = Facts(
    name="stablesr",
    summary="Your StableSR model: Stable Diffusion 2.1 as a restorer of photographs; slow, best at real damage.",
    settings=StableSRSettings,
    machine=StableSRMachine,
    factor=1,
    at_target=True,
    grid=8,
    stride=8,
    padding="reflect",
    tile=512,
    overlap=256,
    fill=True,
    bytes_per_pixel=6000,
    needs_model=True,
    families=("stablesr", "stablesr-module"),
    extra="diffusers",
    links=("https://arxiv.org/abs/2305.07015", "https://huggingface.co/Iceclear/StableSR"),
)

IMG2IMG = Facts(
    name="img2img",
    summary="Your Stable Diffusion 1.5, 2.x or XL model: enlarged first, then new detail by a prompt.",
    settings=Img2ImgSettings,
    machine=ModelMachine,
    factor=1,
    at_target=True,
    enlargement="lanczos",
    default_scale=2.0,
    grid=8,
    stride=8,
    tile=768,  # half as much again as the loaded model was trained on
    overlap=128,
    bytes_per_pixel=2500,
    needs_model=True,
    families=("sd15", "sd2", "sdxl"),
    extra="diffusers",
    links=("https://arxiv.org/abs/2108.01073",),
)

CONTROLNET = replace(
    IMG2IMG,
    name="controlnet",
    summary="Your Stable Diffusion model with ControlNets (Tile, canny, pose, ...): much new detail, the form stays.",
    settings=ControlNetSettings,
    machine=ControlMachine,
    bytes_per_pixel=3200,
    links=("https://arxiv.org/abs/2302.05543",),
)

GENERATE = replace(
    CONTROLNET,
    name="generate",
    summary="Text to a picture; its own command, no way to enlarge one.",
    settings=GenerateSettings,
    default_scale=1.0,
    links=("https://arxiv.org/abs/2112.10752",),
)
"""What `enlarger generate` runs; it stands in no list of engines."""

BUILT_IN = (
    Listing(INTERPOLATE, "enlarger.engines.interpolate:Interpolate"),
    Listing(POCKET, "enlarger.engines.pocket:Pocket"),
    Listing(GAN, "enlarger.engines.gan:Gan"),
    Listing(X4, "enlarger.engines.x4:X4Upscaler"),
    Listing(IMG2IMG, "enlarger.engines.img2img:Img2Img"),
    Listing(CONTROLNET, "enlarger.engines.controlnet:ControlNet"),
    Listing(STABLESR, "enlarger.engines.stablesr:StableSR"),
)


@cache
def listings() -> Mapping[str, Listing]:
    """Name -> listing of every engine, the built-in ones first.

    Raises:
        ModelError: An installed plug-in names no `Listing`, or a name that is taken.
    """
    found = {listing.facts.name: listing for listing in BUILT_IN}
    for point in entry_points(group="enlarger.engines"):
        listing = point.load()
        if not isinstance(listing, Listing):
            raise ModelError(f"the plug-in {point.value} names no engine listing: it must be an enlarger Listing")
        if listing.facts.name in found:
            raise ModelError(f"two engines are called {listing.facts.name}: one of them comes from {point.value}")
        found[listing.facts.name] = listing
    return found


def find(name: str) -> Listing:
    """The listing of an engine.

    Raises:
        SettingsError: No such engine; names the near ones.
    """
    found = listings()
    if name not in found:
        near = difflib.get_close_matches(str(name).lower(), found, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"no engine is called {name!r}: {hint}there are {', '.join(found)}")
    return found[name]


def engine_class(listing: Listing) -> type[Engine]:
    """The engine's class; this imports torch and whatever else the engine needs.

    Raises:
        ModelError: The extra that the engine needs is not installed.
    """
    module, name = listing.target.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        facts = listing.facts
        if not facts.extra:
            raise
        raise ModelError(
            f'engine {facts.name} needs an extra that is not installed ({error}): pip install "enlarger[{facts.extra}]"'
        ) from error
    engine: type[Engine] = found
    return engine


def setting_names() -> set[str]:
    """Names of all settings that any engine or its loading has."""
    return {
        name
        for listing in listings().values()
        for record in (listing.facts.settings, listing.facts.machine, Machine)
        for name in rules(record)
    }
