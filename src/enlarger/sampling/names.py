"""The schedulers by name, and what each may be told. No torch and no diffusers here: the command reads this."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enlarger.errors import SettingsError

SPACINGS = ("leading", "trailing", "linspace")
"""How timesteps are chosen among the training's (Lin et al. 2024, arXiv 2305.08891, table 2)."""


@dataclass(frozen=True)
class Scheduler:
    """One scheduler.

    Attributes:
        name: Ours.
        kind: The class in diffusers.
        aliases: What others call it; case, blanks, dashes and underscores never matter.
        changes: What is set in the model's own configuration.
        eta: Whether it has an eta, the share of fresh noise.
        spacing: Whether it can be told a spacing; LCM brings its own timesteps, Karras sigmas span all.
    """

    name: str
    kind: str
    aliases: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    eta: bool = False
    spacing: bool = True


_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2}

SCHEDULERS: dict[str, Scheduler] = {
    scheduler.name: scheduler
    for scheduler in (
        Scheduler("ddim", "DDIMScheduler", eta=True),
        Scheduler("ddpm", "DDPMScheduler"),
        Scheduler("pndm", "PNDMScheduler", ("plms",)),
        Scheduler("euler", "EulerDiscreteScheduler", ("k_euler",)),
        Scheduler("euler-a", "EulerAncestralDiscreteScheduler", ("euler ancestral", "k_euler_a", "k_euler_ancestral")),
        Scheduler("heun", "HeunDiscreteScheduler", ("k_heun",)),
        Scheduler(
            "dpm++2m",
            "DPMSolverMultistepScheduler",
            ("dpmpp_2m", "k_dpmpp_2m", "dpm++", "dpmsolver++"),
            {**_MULTISTEP, "use_karras_sigmas": False},
        ),
        Scheduler(
            "dpm++2m-karras",
            "DPMSolverMultistepScheduler",
            ("dpmpp_2m_karras", "k_dpmpp_2m_ka", "dpm++ karras"),
            {**_MULTISTEP, "use_karras_sigmas": True},
            spacing=False,
        ),
        Scheduler("unipc", "UniPCMultistepScheduler", ("uni_pc", "uni_pc_bh2")),
        Scheduler("lcm", "LCMScheduler", spacing=False),
    )
}
"""Every scheduler by our name."""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


# Reversed, so that of two names for one class of diffusers the first here wins.
_KNOWN: dict[str, Scheduler] = {
    _plain(alias): scheduler
    for scheduler in reversed(SCHEDULERS.values())
    for alias in (scheduler.name, scheduler.kind, scheduler.kind.removesuffix("Scheduler"), *scheduler.aliases)
}


def find(name: str) -> Scheduler:
    """The scheduler of a name: ours, or one that A1111, ComfyUI or diffusers use.

    Raises:
        SettingsError: No such scheduler; names the nearest.
    """
    plain = _plain(str(name))
    if plain in _KNOWN:
        return _KNOWN[plain]
    near = difflib.get_close_matches(plain, _KNOWN, n=1)
    hint = f"did you mean {_KNOWN[near[0]].name}? " if near else ""
    raise SettingsError(f"no scheduler is called {name!r}: {hint}there are {', '.join(SCHEDULERS)}")


def check_spacing(spacing: str, scheduler: Scheduler) -> str:
    """The spacing, if it is one and if the scheduler uses it.

    Raises:
        SettingsError: Unknown, or without effect for this scheduler.
    """
    if spacing not in SPACINGS:
        near = difflib.get_close_matches(str(spacing).lower(), SPACINGS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"spacing {spacing!r} is not one of {', '.join(SPACINGS)}{hint}")
    if not scheduler.spacing:
        able = ", ".join(other.name for other in SCHEDULERS.values() if other.spacing)
        raise SettingsError(f"scheduler {scheduler.name} chooses its own timesteps, no spacing; {able} take one")
    return spacing


def check_eta(eta: float, scheduler: Scheduler) -> float:
    """The eta, if the scheduler has one.

    Raises:
        SettingsError: Out of range, or without effect for this scheduler.
    """
    if not 0 <= eta <= 1:
        raise SettingsError(f"eta {eta!r} is out of range: 0 to 1")
    if eta and not scheduler.eta:
        able = ", ".join(other.name for other in SCHEDULERS.values() if other.eta)
        raise SettingsError(f"scheduler {scheduler.name} has no eta; {able} has one")
    return eta
