"""The names of schedulers: diffusers' class names and the names that people know, each with what it stands for.

Only names and plain settings live here, so that a producer without diffusers can check a spec; the worker turns a
choice into an object with diffusers' own `from_config`. The options of the familiar names are those that diffusers'
documentation gives for the samplers of k-diffusion and AUTOMATIC1111 (its table "schedulers: A1111 / diffusers").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .errors import InvalidSpecError, did_you_mean

#: diffusers' scheduler classes that a Stable Diffusion pipeline can run with.
CLASS_NAMES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler as diffusers builds it: `getattr(diffusers, class_name).from_config(model's, **options)`."""

    class_name: str
    options: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def _choice(class_name: str, **options: Any) -> SchedulerChoice:
    return SchedulerChoice(class_name, MappingProxyType(options))


_KARRAS = {"use_karras_sigmas": True}
_DPM = "DPMSolverMultistepScheduler"

#: Names that people know, in their canonical spelling. Display names of AUTOMATIC1111 fold to these.
FAMILIAR: dict[str, SchedulerChoice] = {
    "ddim": _choice("DDIMScheduler"),
    "ddpm": _choice("DDPMScheduler"),
    "deis": _choice("DEISMultistepScheduler"),
    "dpm++ 2m": _choice(_DPM),
    "dpm++ 2m karras": _choice(_DPM, **_KARRAS),
    "dpm++ 2m sde": _choice(_DPM, algorithm_type="sde-dpmsolver++"),
    "dpm++ 2m sde karras": _choice(_DPM, algorithm_type="sde-dpmsolver++", **_KARRAS),
    "dpm++ 2s": _choice("DPMSolverSinglestepScheduler"),
    "dpm++ 2s karras": _choice("DPMSolverSinglestepScheduler", **_KARRAS),
    "dpm++ sde": _choice("DPMSolverSDEScheduler"),
    "dpm++ sde karras": _choice("DPMSolverSDEScheduler", **_KARRAS),
    "dpm2": _choice("KDPM2DiscreteScheduler"),
    "dpm2 karras": _choice("KDPM2DiscreteScheduler", **_KARRAS),
    "dpm2 a": _choice("KDPM2AncestralDiscreteScheduler"),
    "dpm2 a karras": _choice("KDPM2AncestralDiscreteScheduler", **_KARRAS),
    "euler": _choice("EulerDiscreteScheduler"),
    "euler karras": _choice("EulerDiscreteScheduler", **_KARRAS),
    "euler a": _choice("EulerAncestralDiscreteScheduler"),
    "heun": _choice("HeunDiscreteScheduler"),
    "heun karras": _choice("HeunDiscreteScheduler", **_KARRAS),
    "lcm": _choice("LCMScheduler"),
    "lms": _choice("LMSDiscreteScheduler"),
    "lms karras": _choice("LMSDiscreteScheduler", **_KARRAS),
    "plms": _choice("PNDMScheduler", skip_prk_steps=True),
    "pndm": _choice("PNDMScheduler", skip_prk_steps=True),
    "tcd": _choice("TCDScheduler"),
    "unipc": _choice("UniPCMultistepScheduler"),
    "unipc karras": _choice("UniPCMultistepScheduler", **_KARRAS),
}

#: Other spellings of the same things.
_ALIASES = {
    "euler ancestral": "euler a",
    "k_euler": "euler",
    "k_euler_a": "euler a",
    "euler_a": "euler a",
    "dpmpp_2m": "dpm++ 2m",
    "dpmpp_2m_karras": "dpm++ 2m karras",
    "dpmpp_2m_sde": "dpm++ 2m sde",
    "dpmpp_sde": "dpm++ sde",
    "dpm++": "dpm++ 2m",
    "dpmsolver++": "dpm++ 2m",
    "dpmsolvermultistep": "dpm++ 2m",
    "dpm solver multistep": "dpm++ 2m",
    "uni_pc": "unipc",
    "dpm++ 2s a": "dpm++ 2s",
    "dpm++ 2s a karras": "dpm++ 2s karras",
}

#: The distilled ones pick their steps out of those that their model was distilled with: diffusers' own number, which
#: is that of the published models.
_MOST_STEPS = {"LCMScheduler": 50, "TCDScheduler": 50}

_FOLDED_CLASSES = {name.casefold(): name for name in CLASS_NAMES}


def known_names() -> list[str]:
    """All names that a spec may use, familiar ones first."""
    return [*FAMILIAR, *CLASS_NAMES]


def canonical_name(name: str) -> str:
    """The one spelling of a scheduler's name that goes into a digest.

    `Euler a`, `euler_a` and `k_euler_a` are the same choice; so are `DPM++ 2M Karras` and `dpmpp_2m_karras`.

    Raises:
        InvalidSpecError: no such scheduler; the message holds the nearest names.
    """
    folded = re.sub(r"\s+", " ", name.strip().casefold())
    if folded in FAMILIAR:
        return folded
    if folded in _ALIASES:
        return _ALIASES[folded]
    for suffix in ("", "scheduler"):
        if folded + suffix in _FOLDED_CLASSES:
            return _FOLDED_CLASSES[folded + suffix]
    raise InvalidSpecError(
        f"unknown scheduler {name!r}.{did_you_mean(name, known_names())} "
        "Use a name such as 'euler a' or 'dpm++ 2m karras', or a diffusers class name."
    )


def resolve(name: str) -> SchedulerChoice:
    """What a canonical (or any known) name stands for. Raises InvalidSpecError like `canonical_name`."""
    canonical = canonical_name(name)
    return FAMILIAR.get(canonical) or SchedulerChoice(canonical)


def most_steps(name: str) -> int | None:
    """How many steps it makes at most, where its name says so. Raises InvalidSpecError like `canonical_name`."""
    return _MOST_STEPS.get(resolve(name).class_name)
