"""coremltools checks its programs less often, and still notices what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.compress.conftest import make_package

from renderkiln.worker.convert.compress.coremltools_quietly import checking_itself_less, quietly
from renderkiln.worker.runtimes.mlpackage import open_package

PASS = "tests::break_a_program"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by one with each look that coremltools takes at a whole program."""
    from coremltools.converters.mil.mil import Program

    seen: list[bool] = []
    validate = Program.validate

    def look(program: Any, check_essential_scope: bool = False) -> None:
        seen.append(check_essential_scope)
        validate(program, check_essential_scope=check_essential_scope)

    monkeypatch.setattr(Program, "validate", look)
    return seen


@pytest.fixture
def break_a_program() -> Iterator[Callable[[], None]]:
    """Has coremltools' passes run over a small program, with one among them that forgets who uses an input."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline, PassPipelineManager
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    @register_pass(namespace="tests", name="break_a_program")  # type: ignore[untyped-decorator]
    class Forgetful(AbstractGraphPass):  # type: ignore[misc]
        def apply(self, prog: Any) -> None:
            [given] = prog.functions["main"].inputs.values()
            given.child_ops.clear()

    def run() -> None:
        @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])  # type: ignore[untyped-decorator]
        def program(x: Any) -> Any:
            return mb.relu(x=x)

        PassPipelineManager.apply_pipeline(program, PassPipeline([PASS, "common::noop_elimination"]))

    yield run
    del PASS_REGISTRY.passes[PASS]


def test_what_is_written_is_the_same_with_far_fewer_checks(tmp_path: Path, checked: list[bool]) -> None:
    often = make_package(tmp_path / "often.mlpackage")
    many = len(checked)
    checked.clear()
    with checking_itself_less():
        seldom = make_package(tmp_path / "seldom.mlpackage")
    assert many > 50 > len(checked) >= 6  # at both ends of each of three pipelines
    packages = open_package(often), open_package(seldom)
    assert packages[0].read_spec() == packages[1].read_spec()
    weights = [next(package.path.rglob("weight.bin")).read_bytes() for package in packages]
    assert weights[0] == weights[1]


def test_a_broken_program_is_noticed_and_afterwards_all_is_checked_as_ever(
    break_a_program: Callable[[], None], checked: list[bool]
) -> None:
    with quietly():
        for _ in range(2):
            with checking_itself_less(), pytest.raises(Exception, match="should be consumed by op"):
                break_a_program()
        assert checked == [False, False] * 2
        checked.clear()
        with pytest.raises(Exception, match="should be consumed by op"):
            break_a_program()
    assert checked == [False, False]
