"""What a converted model is said to take before it is opened is what the engine finds."""

from __future__ import annotations

from typing import Any

import pytest

from renderkiln.schema import JobOptions, RenderSpec, make_job
from renderkiln.worker.engine.converted.model_stages import ConvertedModelStages
from renderkiln.worker.engine.pipelines import Pipelines
from renderkiln.worker.engine.requests import check
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.models.choosing import Wishes, pick_form
from renderkiln.worker.models.memory import model_costs

from .conftest import Library


def nothing_is_loaded(*_: Any) -> Any:
    raise AssertionError("a package was loaded")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["tiny", "tiny-one", "tiny-controls", "tiny-sizes", "xl-pictures"])
def test_stages_and_sizes_are_those_that_the_engine_finds(library: Library, name: str) -> None:
    folder = library.converted(name)
    form = pick_form(folder, Wishes(engine="coreml"))
    assert form is not None
    residency = Residency()
    stages = ConvertedModelStages(folder, form, nothing_is_loaded)
    pipelines = Pipelines("m", folder, stages, residency, lambda _: None)
    request = check(make_job(RenderSpec(prompt="a", model="m"), JobOptions(), batch="b", index=0), pipelines, {})
    residency.begin_job(request.order, request.pixels)

    costs = model_costs("m", folder, form, "float16")
    assert costs.size == request.size
    # Where a UNet for ControlNets renders without them, the engine calls it the UNet.
    found = [
        (each.key.stage.replace("control-unet", "unet"), each.size_bytes, each.working_bytes) for each in costs.stages
    ]
    assert found == [(each.key.stage, each.size_bytes, each.working_bytes) for each in residency.costs()]
