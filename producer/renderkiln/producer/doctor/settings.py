"""The settings: those that contradict each other, or this machine, and those that another one hides."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from renderkiln.home.checkup import Finding, ok, problem, warning
from renderkiln.home.settings import Settings, hidden_keys

#: What has no effect where the engine is given.
_IDLE = {"torch": ("compute_unit", "variant"), "coreml": ("device", "dtype"), "coreai": ("device", "dtype", "variant")}


def check_settings(settings: Settings) -> list[Finding]:
    """The settings in force."""
    values = settings.model_dump(include={"engine", "device", "dtype", "compute_unit", "variant"})
    given = sorted(settings.model_fields_set - {"redis_url"})
    found = [*judge_settings(values, is_mac=sys.platform == "darwin"), *judge_hidden(hidden_keys())]
    shown = f"{', '.join(given)} are set" if len(given) > 1 else f"{given[0]} is set" if given else "all by default"
    return found or [ok("settings", f"{shown}; `renderkiln config` shows where each comes from", given=given)]


def judge_settings(values: Mapping[str, Any], *, is_mac: bool) -> list[Finding]:
    """What of the engine's settings cannot be, or has no effect, on this system.

    Args:
        values: engine, device, dtype, compute_unit and variant.
    """
    engine, device, unit, variant = (str(values[name]) for name in ("engine", "device", "compute_unit", "variant"))
    found = []
    if device == "mps" and not is_mac:
        found.append(_wrong("device is mps, which is Apple's, and this is no Mac", "RENDERKILN_DEVICE=auto"))
    if device == "cuda" and is_mac:
        found.append(_wrong("device is cuda, which no Mac has", "RENDERKILN_DEVICE=auto"))
    if unit not in ("auto", "reference") and not is_mac:
        says = f"compute_unit is {unit}, which is a Mac's, and this is none"
        found.append(_wrong(says, "RENDERKILN_COMPUTE_UNIT=auto"))
    if unit == "reference" and is_mac:
        says = "compute_unit is reference: models run on the CPU alone, many times slower than on Core ML"
        found.append(_odd(says, "RENDERKILN_COMPUTE_UNIT=auto"))
    if unit == "cpu_and_ne" and variant == "original":
        says = "compute_unit cpu_and_ne with the variant original: the Neural Engine may load it for ever"
        found.append(_odd(says, "RENDERKILN_VARIANT=split-einsum, or RENDERKILN_COMPUTE_UNIT=cpu_and_gpu"))
    if unit == "cpu_and_gpu" and variant.startswith("split-einsum"):
        says = f"compute_unit cpu_and_gpu with the variant {variant}, which is made for the Neural Engine"
        found.append(_odd(says, "RENDERKILN_VARIANT=original, or RENDERKILN_COMPUTE_UNIT=cpu_and_ne"))
    idle = [name for name in _IDLE.get(engine, ()) if values[name] != "auto"]
    if idle:
        says = f"{_listed(idle)} {'have' if len(idle) > 1 else 'has'} no effect with the engine {engine}"
        found.append(_odd(says, f"RENDERKILN_ENGINE=auto, or take {_listed(idle)} out"))
    return found


def judge_hidden(names: Sequence[str]) -> list[Finding]:
    """Keys of renderkiln.toml that the environment gives another value."""
    return [
        warning(
            "settings",
            f"RENDERKILN_{name.upper()} hides the {name} of renderkiln.toml, which is another",
            f"unset RENDERKILN_{name.upper()}, or take {name} out of renderkiln.toml",
            setting=name,
        )
        for name in names
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _wrong(says: str, instead: str) -> Finding:
    return problem("settings", says, f"set {instead} (or in renderkiln.toml)")


def _odd(says: str, instead: str) -> Finding:
    return warning("settings", says, f"set {instead} (or in renderkiln.toml)")
