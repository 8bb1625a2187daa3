"""Converts whole models in this process, without a start of libraries for each stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.convert.conftest import convert_here, plan_of

from renderkiln.worker.convert.small_files import copy_small_files
from renderkiln.worker.runtimes import manifest


def convert_model(
    folder: Path,
    model: Path | str,
    *,
    like: Path | None = None,
    source: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A folder as `renderkiln convert MODEL -o FOLDER` writes it; stages are not checked unless told.

    Args:
        like: a folder that was made of the same model; stages that would come out the same are copied from there.
        source: keywords of `find_source`.
        unet: options for the UNet alone.
        options: of the conversion.
    """
    options = {"check": False, **options}
    found, plan, chosen = plan_of(model, source=source, **options)
    folder.mkdir(parents=True)
    there = manifest.read(like).stages if like is not None else {}
    stages = {}
    for stage in plan.stages:
        own = unet or {} if stage.stage == "unet" else {}
        before = there.get(stage.stage)
        if like is not None and before is not None and before.settings_digest == stage.settings_digest and not own:
            for package in before.packages:
                shutil.copytree(like / package.file, folder / package.file)
            stages[stage.stage] = before
            continue
        made = convert_here(folder, model, stage.stage, source=source, **{**options, **own}).done
        stages[stage.stage] = manifest.StageInfo(
            stage=stage.stage,
            packages=made.packages,
            bits=made.bits,
            attention=stage.attention,
            settings_digest=stage.settings_digest,
            seconds=made.seconds,
            check=made.check,
        )
    copy_small_files(found, folder, tuple(stage.stage for stage in plan.stages if stage.kind == "controlnet"))
    is_large = (found.folder / "text_encoder_2").is_dir()
    manifest.save(
        manifest.Manifest(
            model=found.name,
            pipeline="StableDiffusionXLPipeline" if is_large else "StableDiffusionPipeline",
            family="sdxl" if is_large else "sd",
            variant="coreai" if chosen.format == "coreai" else chosen.attention,
            sizes=plan.sizes,
            stages=stages,
            versions={"test": "1"},
        ),
        folder,
    )
    return folder
