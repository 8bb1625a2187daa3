"""`metadata.json` of a folder of Core AI assets, which makes it a bundle that Apple's Swift pipeline loads.

The schema is that of `coreai.diffusion.export` (apple/coreai-models, metadata_version 0.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..models.weights import read_json
from ..runtimes.coreai.bundle import FILE_NAME, KIND, TYPES, VERSION
from ..runtimes.manifest import Manifest
from .small_files import write_json

#: What the pipeline takes where a model does not say.
_SCALING_FACTOR, _GUIDANCE, _STEPS = 0.18215, 7.5, 50
_SCHEDULER = {
    "training_steps": ("num_train_timesteps", 1000),
    "beta_start": ("beta_start", 0.00085),
    "beta_end": ("beta_end", 0.012),
    "beta_schedule": ("beta_schedule", "scaled_linear"),
}


def write_bundle(folder: Path, manifest: Manifest, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `metadata.json` beside the assets; replaces what is there.

    Args:
        folder: of the assets and the model's small files.
        configs: config.json of each component.
    """
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    factor = configs["vae"].get("scaling_factor") or _SCALING_FACTOR
    bits = {info.bits for info in manifest.stages.values() if info.bits is not None}
    write_json(
        folder / FILE_NAME,
        {
            "metadata_version": VERSION,
            "kind": KIND,
            "name": folder.absolute().name,
            "assets": {name: info.packages[0].file for name, info in manifest.stages.items()},
            "diffusion": {
                "type": TYPES[manifest.family],
                "prediction_type": scheduler.get("prediction_type") or "epsilon",
                "encoder_scale_factor": factor,
                "decoder_scale_factor": factor,
                "decoder_shift_factor": configs["vae"].get("shift_factor") or 0.0,
                "image_size": manifest.sizes[0][0],
                "default_guidance_scale": _GUIDANCE,
                "default_steps": _STEPS,
                "scheduler": {name: scheduler.get(key, default) for name, (key, default) in _SCHEDULER.items()},
            },
            "source": {"model_definition": "torch", "hf_model_id": manifest.model},
            "compression": "4bit" if any(each < 16 for each in bits) else None,
            "compilation": {"date": datetime.now(timezone.utc).isoformat(), "targets": []},
        },
    )
