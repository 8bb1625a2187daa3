"""What a picture file says about itself, besides its pixels.

Only what is the same whenever a job runs again on a machine goes in: no time, no host, no name of a worker.
That is what makes two runs of a job give byte-identical files.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from renderkiln.schema.jobs import Sha256
from renderkiln.schema.spec import Frozen, RenderSpec

from .infotext import ParsedParameters, parameters_text, parse_parameters_text

__all__ = ["ParsedParameters", "PictureMetadata", "describe", "parameters_text", "parse_parameters_text"]

Short = Annotated[str, StringConstraints(max_length=200)]


class PictureMetadata(Frozen):
    """The JSON inside a picture."""

    schema_version: Literal[1] = 1
    spec: RenderSpec = Field(description="The spec of this picture alone: its own seed, one image.")
    digest: Sha256 = Field(description="Digest of `spec`.")
    model_info: Short = Field("", description="Which model it was: its source, its weights' digest.")
    engine: Short = Field("", description="What rendered it: coreml, coreai or torch.")
    device: Short = Field("", description="What it ran on: mps, cuda, cpu or a Core ML compute unit.")
    versions: dict[Short, Short] = Field(default_factory=dict, description="Libraries that decide the pixels.")

    @model_validator(mode="after")
    def _digest_fits(self) -> Self:
        if self.digest != self.spec.digest:
            raise ValueError("the digest is not that of the spec: the settings were edited later")
        return self

    def to_json(self) -> str:
        """ASCII, keys sorted, no fields at their defaults: `digest` is that of `spec` as it stands."""
        fields = {
            "schema_version": self.schema_version,
            **self.model_dump(mode="json", exclude_defaults=True),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def describe(
    spec: RenderSpec,
    *,
    model_info: str = "",
    engine: str = "",
    device: str = "",
    versions: dict[str, str] | None = None,
) -> PictureMetadata:
    """The metadata of the picture of `spec` (one image's own: `job.image_spec(k)`)."""
    return PictureMetadata(
        spec=spec,
        digest=spec.digest,
        model_info=model_info[:200],
        engine=engine[:200],
        device=device[:200],
        versions=versions or {},
    )
