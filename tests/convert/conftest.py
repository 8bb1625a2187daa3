"""Tiny models, made once a session, and a way to convert one stage in this process, without a start of libraries."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import models as engine_models

from renderkiln.home.folder import DataFolder
from renderkiln.worker.convert.jobs import Done, StageJob
from renderkiln.worker.convert.options import make_options
from renderkiln.worker.convert.plan import Plan, StagePlan, make_plan
from renderkiln.worker.convert.source import Source, find_source, read_facts

from . import models


@pytest.fixture(autouse=True)
def _as_in_a_stage_process() -> Any:
    """One thread, as the models are tiny; and gradients on again afterwards: other tests train."""
    torch.set_num_threads(1)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: sd1 (with a safety checker), sd2 (v-prediction), xl, and the ControlNet `edges` for sd1."""
    folder = tmp_path_factory.mktemp("tiny")
    models.save_sd1(folder / "sd1")
    models.save_sd2(folder / "sd2")
    engine_models.save_sdxl(folder / "xl")
    engine_models.save_controlnet(folder / "edges", folder / "sd1")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """A data folder without a model."""
    return DataFolder(tmp_path / "data")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Hub that cannot be reached, and an empty cache of it."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@dataclass(frozen=True)
class Converted:
    """A stage that was converted in this process."""

    done: Done
    plan: StagePlan
    folder: Path
    phases: tuple[str, ...]

    @property
    def packages(self) -> list[Path]:
        return [self.folder / package.file for package in self.done.packages]

    @property
    def worst(self) -> float:
        assert self.done.check is not None
        return self.done.check.worst.decibels


def plan_of(model: Path | str, *, source: dict[str, Any] | None = None, **options: Any) -> tuple[Source, Plan, Any]:
    """A model's source and plan, and the options."""
    chosen = make_options(**options)
    found = find_source(str(model), DataFolder(Path("/nonexistent")), **(source or {}))
    return found, make_plan(read_facts(found, chosen), chosen, {"test": "1"}), chosen


def convert_here(
    folder: Path, model: Path | str, stage: str, *, source: dict[str, Any] | None = None, **options: Any
) -> Converted:
    """Converts one stage of a model into a folder."""
    from renderkiln.worker.convert.stage_work import convert_stage

    found, plan, chosen = plan_of(model, source=source, **options)
    (stage_plan,) = [each for each in plan.stages if each.stage == stage]
    folder.mkdir(parents=True, exist_ok=True)
    phases: list[str] = []
    job = StageJob(
        plan=stage_plan,
        source=found,
        family="sdxl" if (found.folder / "text_encoder_2").is_dir() else "sd",
        loras=chosen.loras,
        recipe=chosen.recipe_for(stage),
        check=chosen.check is not False,
        check_slowly=chosen.check is True,
        folder=folder,
    )
    gc.disable()  # as in the process that has this work to do
    try:
        done = convert_stage(job, lambda phase, *_: phases.append(phase))
    finally:
        gc.enable()
    return Converted(done, stage_plan, folder, tuple(dict.fromkeys(phases)))


Convert = Callable[..., Converted]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """`convert(model, stage, **options)`, each call into a folder of its own."""
    count = 0

    def run(model: Path | str, stage: str, **options: Any) -> Converted:
        nonlocal count
        count += 1
        return convert_here(tmp_path / f"stage-{count}", model, stage, **options)

    return run
