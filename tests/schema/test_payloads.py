"""Payloads out of the queue are not trusted: whatever they hold, they are a job or they are refused."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from renderkiln.schema import Job, make_job, names, parse_options, parse_spec
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.payload import MAX_PAYLOAD, read_payload

from .strategies import options, specs

JOB = make_job(parse_spec({"prompt": "a cat"}), parse_options({}), batch="cats-1", index=0)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def call(
    function: Any = names.RENDER_FUNCTION, instance: Any = None, arguments: Any = None, keywords: Any = None
) -> bytes:
    arguments = [JOB.to_json()] if arguments is None else arguments
    return json.dumps([function, instance, arguments, {} if keywords is None else keywords]).encode()


def refused(data: bytes) -> str:
    with pytest.raises(InvalidSpecError) as caught:
        read_payload(data)
    return str(caught.value)


@given(specs(), options)
def test_a_job_comes_out_of_its_payload_as_it_went_in(spec: Any, how: Any) -> None:
    job = make_job(spec, how, batch="cats-1", index=3)
    assert read_payload(call(arguments=[job.to_json()])) == job


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe[")
@example(pickle.dumps(print))
def test_bytes_that_are_no_call_are_refused(data: bytes) -> None:
    assert refused(data)


@given(values)
def test_json_that_is_no_call_is_refused(value: Any) -> None:
    assert refused(json.dumps(value).encode())


@given(values, values, values, values)
def test_calls_of_anything_with_anything_are_refused(
    function: Any, instance: Any, arguments: Any, keywords: Any
) -> None:
    assert refused(json.dumps([function, instance, arguments, keywords]).encode())


@given(st.text(max_size=100))
def test_the_right_function_with_any_text_is_refused(text: str) -> None:
    assert "not a job" in refused(call(arguments=[text]))


@given(st.sampled_from(list(Job.model_fields)), values)
def test_a_job_with_any_value_in_any_field_is_a_job_or_refused(field: str, value: Any) -> None:
    data = call(arguments=[json.dumps(json.loads(JOB.to_json()) | {field: value})])
    try:
        said = read_payload(data).to_json()
    except InvalidSpecError as error:
        said = str(error)
    assert 0 < len(said) < 2000


@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "renderkiln.render.again", "", None, 5, ["os"], {}])
def test_no_other_function_is_let_through(function: Any) -> None:
    assert "is not 'renderkiln.render', the only one run here" in refused(call(function=function))


def test_a_pickle_is_refused_and_not_opened() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was opened",)

    assert refused(pickle.dumps((names.RENDER_FUNCTION, None, (Bomb(),), {}))) == "the payload is not JSON"


@pytest.mark.parametrize(
    "data",
    [
        call(instance="x"),
        call(keywords={"x": 1}),
        call(arguments=[]),
        call(arguments=["{}", "{}"]),
        call(arguments={"0": "{}"}),
        call(arguments=[{}]),
        call(arguments=["\ud800"]),
        call(arguments=[json.dumps({"spec": {"prompt": "\ud800"}})]),
    ],
)
def test_other_arguments_are_refused(data: bytes) -> None:
    assert refused(data)


@pytest.mark.parametrize("depth", [50, 200, 480, 900, 990, 2000, 100_000])
def test_deeply_nested_json_is_refused_wherever_it_stands(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    assert refused(deep.encode())
    assert refused(f'[{deep},null,["x"],{{}}]'.encode())
    assert refused(call(arguments=[deep]))
    assert refused(call(arguments=[f'{{"spec": {deep}}}']))


def test_a_payload_over_the_limit_is_refused_by_its_size() -> None:
    assert f"over the limit of {MAX_PAYLOAD:,}" in refused(b" " * (MAX_PAYLOAD + 1))


def test_a_job_of_the_longest_texts_is_within_the_limit() -> None:
    spec = parse_spec({"prompt": "\U0001f642" * 10_000, "negative_prompt": '"\\' * 5_000})
    labels = {f"{number}" * 90: "\n" * 200 for number in range(32)}
    job = make_job(spec, parse_options({"labels": labels}), batch="b", index=0)
    assert read_payload(call(arguments=[job.to_json()])) == job
