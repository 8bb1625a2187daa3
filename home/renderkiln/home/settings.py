"""Settings: from flags, the environment (`RENDERKILN_…`), `renderkiln.toml`, and defaults, in that order.

`explain` says for each value where it came from, which is what `renderkiln config` prints.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from renderkiln.schema.errors import SettingsError, did_you_mean
from renderkiln.schema.workers import MemoryPolicy

from .folder import absolute

CONFIG_FILE = "renderkiln.toml"


def default_data_dir() -> Path:
    """Where a machine's ledger, server and models live unless told: the system's usual place for such data."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "renderkiln"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "renderkiln"


class Settings(BaseSettings):
    """One machine's settings. Every field is also `RENDERKILN_<NAME>` and a key of renderkiln.toml."""

    model_config = SettingsConfigDict(
        env_prefix="RENDERKILN_", toml_file=CONFIG_FILE, extra="forbid", frozen=True, env_ignore_empty=True
    )

    data_dir: Path = Field(
        default_factory=default_data_dir, description="The one folder that holds ledger, server and models."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis of the fleet (redis://, rediss://, unix://); empty: the embedded server."
    )
    out: str = Field("out", description="The store: where pictures go. A folder or an fsspec URL.")
    model: str = Field("shapes", description="The model that is rendered with unless a spec names another.")
    engine: Literal["auto", "torch", "coreml", "coreai"] = Field(
        "auto", description="What runs a model's stages; auto: on macOS what the model is converted to, else torch."
    )
    device: Literal["auto", "mps", "cuda", "cpu"] = Field("auto", description="Device of the torch engine.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Arithmetic of the torch engine; auto: float16 on mps and cuda, float32 on cpu."
    )
    compute_unit: Literal["auto", "cpu_and_ne", "cpu_and_gpu", "cpu_only", "all", "reference"] = Field(
        "auto",
        description="What Core ML and Core AI compute on; without macOS there is `reference` alone, on the CPU.",
    )
    variant: Literal["auto", "original", "split-einsum", "split-einsum-v2"] = Field(
        "auto", description="Which variant of a model that is converted to Core ML is used, where it has several."
    )
    memory: MemoryPolicy = Field(
        "auto",
        description="What stays in memory: resident, every stage; jit, the stage at work alone; auto, what the budget "
        "has room for, and less while the system is short of memory.",
    )
    memory_budget: ByteSize | None = Field(
        None,
        ge=1_000_000,  # a number without a unit is of bytes
        description="What a renderer may take, such as 6GB; unless told, three quarters of the memory.",
    )
    look_ahead: int = Field(
        48, ge=0, le=1000, description="Waiting jobs whose prompts are encoded while the text encoder is loaded."
    )
    denoise_ahead: int = Field(
        8, ge=1, le=100, description="Images of a job that are denoised before the VAE, where both do not fit."
    )
    embeddings_memory: ByteSize = Field(ByteSize(64_000_000), ge=0, description="Memory for encoded prompts; 0: none.")
    embeddings_disk: ByteSize = Field(ByteSize(0), ge=0, description="Disk for encoded prompts, such as 1GB; 0: none.")
    pressure_warn: float = Field(
        10.0, ge=0, le=100, description="Percent of memory available at which a worker drops what is idle."
    )
    pressure_critical: float = Field(
        5.0, ge=0, le=100, description="Percent of memory available at which it keeps the stage at work alone."
    )
    pressure_stall: float = Field(
        10.0, ge=0, le=100, description="Percent of time waited for memory (Linux); four times that is critical."
    )
    pressure_swap: ByteSize = Field(
        ByteSize(256_000_000), gt=0, description="Growth of swap within a minute at which a worker drops what is idle."
    )
    pressure_calm: float = Field(
        60.0, ge=1, description="Seconds without pressure after which a worker keeps more in memory again."
    )
    image_format: Literal["png", "jpeg", "webp"] = Field("png", description="File format of the pictures.")
    job_timeout: float = Field(3600.0, gt=0, description="Seconds an attempt may take where the job does not say.")
    patience: float = Field(300.0, ge=0, description="Seconds for which a store or a ledger that fails is tried again.")
    disk_reserve: ByteSize = Field(
        ByteSize(200_000_000), ge=0, description="Room that a worker leaves on the disks of store and ledger; 0: none."
    )
    spool: ByteSize = Field(
        ByteSize(2_000_000_000),
        ge=0,
        description="Disk in the data folder for pictures whose store is away for longer than patience; 0: none.",
    )
    unwell_pause: float = Field(
        300.0, gt=0, description="Seconds for which a worker on which five jobs in a row failed takes none; it doubles."
    )
    lease: float = Field(30.0, ge=2, le=3600, description="Seconds without a sign of life until a worker is dead.")
    store_policy: Literal["any", "own"] = Field(
        "any", description="Whether a job may name its own store ('any') or only the worker's is written ('own')."
    )
    log_format: Literal["human", "json"] = Field("human", description="How a worker writes its log.")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return absolute(path)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def check_system(settings: Settings) -> None:
    """For who is going to render on this machine: raises SettingsError if it cannot, as it is set."""
    unit = settings.compute_unit
    if unit not in ("auto", "reference") and platform.system() != "Darwin":
        raise SettingsError(f"compute_unit = {unit!r} needs macOS; elsewhere there is `reference` alone (or `auto`)")


@dataclass(frozen=True)
class Origin:
    """One setting's value and where it came from."""

    name: str
    value: Any
    source: str


def load(**flags: Any) -> Settings:
    """The settings in force; `flags` are values given on the command line, None where not given.

    Raises:
        SettingsError: a value is not valid, renderkiln.toml is not TOML, or it holds an unknown key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _refuse_unknown_variables()
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_say(finding, given) for finding in error.errors(include_url=False))) from None
    except (ValueError, OSError) as error:  # the TOML reader's own complaints
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error}") from None


def explain(settings: Settings, **flags: Any) -> list[Origin]:
    """Each setting with its origin: flag, environment, file or default. Secrets are masked."""
    in_file = _toml_keys()
    rows = []
    for name in Settings.model_fields:
        variable = f"RENDERKILN_{name.upper()}"
        if flags.get(name) is not None:
            source = "flag --" + name.replace("_", "-")
        elif os.environ.get(variable):
            source = f"environment {variable}"
        elif name in in_file:
            source = f"file {Path(CONFIG_FILE).absolute()}"
        else:
            source = "default"
        value = getattr(settings, name)
        rows.append(Origin(name, mask_url(value.get_secret_value()) if isinstance(value, SecretStr) else value, source))
    return rows


def hidden_keys() -> list[str]:
    """The settings that renderkiln.toml and the environment give different values; those of the environment count."""
    in_file: dict[str, Any] = TomlConfigSettingsSource(Settings)() if Path(CONFIG_FILE).is_file() else {}
    variables = {name: os.environ.get(f"RENDERKILN_{name.upper()}") for name in in_file}
    return [name for name, value in variables.items() if value and value != str(in_file[name])]


def mask_url(url: str) -> str:
    """A URL without its password, fit for a log."""
    url = re.sub(r"([?&]password=)[^&#]*", r"\1***", url)
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, separator, credentials = head.partition("://")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}{colon}{'***' if colon else ''}@{tail}"


def _toml_keys() -> frozenset[str]:
    if not Path(CONFIG_FILE).is_file():
        return frozenset()
    return frozenset(TomlConfigSettingsSource(Settings)())


#: Environment variables that are ours without being settings.
_OTHER_VARIABLES = frozenset({"RENDERKILN_DEBUG"})


def _refuse_unknown_variables() -> None:
    """A misspelt RENDERKILN_REDIS_ULR would silently mean the embedded server; so it is an error."""
    known = {f"RENDERKILN_{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    for variable in os.environ:
        if variable.startswith("RENDERKILN_") and variable not in known:
            raise SettingsError(f"unknown environment variable {variable}.{did_you_mean(variable, known)}")


def _say(finding: Any, flags: dict[str, Any]) -> str:
    name = str(finding["loc"][0]) if finding["loc"] else "settings"
    if finding["type"] == "extra_forbidden":
        return f"{CONFIG_FILE}: unknown key {name!r}.{did_you_mean(name, Settings.model_fields)}"
    origin = f"--{name.replace('_', '-')}" if name in flags else f"RENDERKILN_{name.upper()} or {CONFIG_FILE}"
    said = f"{finding['msg'][0].lower()}{finding['msg'][1:]}"
    if "byte" in finding["type"]:
        said = "a size is a number and a unit, such as 6GB or 500MB"
    return f"{name} = {finding['input']!r} (from {origin}): {said}"
