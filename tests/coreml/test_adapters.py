"""What stands between diffusers and a model of a fixed batch: splitting, padding, casting, naming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.convert.conftest import convert_here
from tests.engine import models

from renderkiln.worker.engine.converted.adapters import SafetyChecker, UNet, residual_names, run
from renderkiln.worker.runtimes.base import Array, TensorInfo
from renderkiln.worker.runtimes.reference import ReferenceRuntime


class Doubler:
    """A runtime whose output is twice its input, row by row; it insists on its batch and dtype."""

    def __init__(self, batch: int, **others: tuple[int, ...]) -> None:
        shapes = {"sample": (batch, 3), **others}
        self.inputs = {name: TensorInfo(name=name, dtype="float16", shapes=(shape,)) for name, shape in shapes.items()}
        self.outputs = {"twice": TensorInfo(name="twice", dtype="float16", shapes=((batch, 3),))}
        self.calls: list[Mapping[str, Array]] = []

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, info in self.inputs.items():
            assert info.complaint(inputs[name]) is None
        self.calls.append(inputs)
        return {"twice": inputs["sample"] * np.float16(2)}


@given(batch=st.integers(1, 7), fixed=st.integers(1, 4))
def test_any_batch_goes_through_a_model_of_any_batch(batch: int, fixed: int) -> None:
    runtime = Doubler(fixed)
    rows = torch.arange(3.0 * batch).reshape(batch, 3)
    found = run(runtime, {"sample": rows}, batch)["twice"]
    assert torch.equal(found, 2 * rows)
    assert found.dtype == torch.float32
    assert len(runtime.calls) == -(-batch // fixed)


@given(count=st.integers(0, 30), data=st.data())
def test_residuals_are_in_the_order_of_their_numbers(count: int, data: st.DataObject) -> None:
    names = [f"additional_residual_{number}" for number in range(count)]
    shuffled = data.draw(st.permutations([*names, "sample"]))
    assert residual_names({name: TensorInfo(name=name, dtype="float16") for name in shuffled}) == names


class Residuals:
    """A runtime that keeps what it was given."""

    def __init__(self) -> None:
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            "sample": ((2, 4, 8, 8), (2, 4, 8, 12)),
            "timestep": ((2,),),
            "encoder_hidden_states": ((2, 6, 1, 5),),
            "additional_residual_0": ((2, 3, 8, 8), (2, 3, 8, 12)),
            "additional_residual_1": ((2, 3, 4, 4), (2, 3, 4, 6)),
        }
        self.inputs = {name: TensorInfo(name=name, dtype="float16", shapes=each) for name, each in shapes.items()}
        self.outputs = {"noise_pred": TensorInfo(name="noise_pred", dtype="float32")}
        self.given: Mapping[str, Array] = {}

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, info in self.inputs.items():
            assert info.complaint(inputs[name]) is None
        self.given = inputs
        return {"noise_pred": inputs["sample"].astype(np.float32)}


@pytest.mark.parametrize("width", [8, 12])
def test_no_residuals_are_zeros_of_the_size_at_hand(width: int) -> None:
    runtime = Residuals()
    text = torch.randn(1, 5, 6)
    (noise,) = UNet(runtime)(torch.ones(1, 4, 8, width), torch.tensor(946.42), encoder_hidden_states=text)
    assert noise.shape == (1, 4, 8, width)
    assert not runtime.given["additional_residual_0"].any()
    assert runtime.given["additional_residual_1"].shape == (2, 3, 4, width // 2)
    # Half precision has a step of a half up there.
    assert runtime.given["timestep"].tolist() == [946.5, 946.5]
    assert np.array_equal(runtime.given["encoder_hidden_states"][0, :, 0, :], text[0].T.numpy().astype(np.float16))


def test_residuals_reach_the_model_by_their_numbers() -> None:
    runtime = Residuals()
    skip, middle = torch.full((2, 3, 8, 8), 2.0), torch.full((2, 3, 4, 4), 3.0)
    UNet(runtime)(
        torch.ones(2, 4, 8, 8),
        1.0,
        encoder_hidden_states=torch.zeros(2, 5, 6),
        down_block_additional_residuals=[skip],
        mid_block_additional_residual=middle,
    )
    assert (runtime.given["additional_residual_0"] == 2).all()
    assert (runtime.given["additional_residual_1"] == 3).all()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("threshold", "hides"), [(-1.5, True), (0.99, False)])
def test_the_safety_checker_says_what_is_to_be_hidden(tmp_path: Path, threshold: float, hides: bool) -> None:
    models.save_sd(tmp_path / "model", threshold=threshold)
    made: Any = convert_here(tmp_path / "stage", tmp_path / "model", "safety_checker", check=False)
    checker = SafetyChecker(ReferenceRuntime.load(made.packages[0]))
    images = torch.rand(1, 3, 32, 32)
    shown, flags = checker(images=images, clip_input=torch.randn(1, 3, 32, 32))
    assert flags == [hides]
    assert torch.equal(shown, torch.zeros_like(images) if hides else images)
