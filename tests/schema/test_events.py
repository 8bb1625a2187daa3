"""Events, errors and names: what other processes and scripts rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from renderkiln.schema import JobResult, JobStatus, errors
from renderkiln.schema.events import Ended, Event, Progress, Returned, Started, Submitted, parse_event

RESULT = JobResult(job_id="0" * 32, batch="cats-1", status=JobStatus.FINISHED)
COMMON: dict[str, Any] = {"time": 1.5, "job_id": "0" * 32, "batch": "cats-1", "worker": "mini-1"}
EVENTS: list[Event] = [
    Submitted(time=1.5, batch="cats-1", jobs=("0" * 32,)),
    Started(**COMMON, attempt=1, execution_id="e1"),
    Ended(time=1.5, result=RESULT),
    Returned(**COMMON),
    Progress(**COMMON, k=0, num_images=2, step=3, num_steps=20),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.type))
def test_an_event_comes_back_from_its_json_as_it_was(event: Event) -> None:
    assert parse_event(event.model_dump_json()) == event
    assert json.loads(event.model_dump_json())["schema_version"] == 1


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"type": "dance"}', b"\xff", b'{"type": "ended", "time": 1}'])
def test_what_is_no_event_is_refused(text: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_event(text)


def test_the_schema_of_events_tells_them_apart_by_type() -> None:
    schema = TypeAdapter(Event).json_schema()
    assert schema["discriminator"]["propertyName"] == "type"
    assert set(schema["discriminator"]["mapping"]) == {"submitted", "started", "image", "ended", "returned", "progress"}


def test_only_the_last_three_statuses_are_final() -> None:
    assert [status.value for status in JobStatus if status.is_final] == ["finished", "failed", "canceled"]


def _all_errors(root: type[errors.RenderkilnError]) -> list[type[errors.RenderkilnError]]:
    return [root, *(each for child in root.__subclasses__() for each in _all_errors(child))]


def test_every_error_has_a_kind_of_its_own_and_a_known_exit_code() -> None:
    ours = [each for each in _all_errors(errors.RenderkilnError) if each.__module__ == errors.__name__]
    kinds = [each.kind for each in ours]
    assert len(ours) > 15
    assert len(set(kinds)) == len(kinds)
    assert {each.exit_code for each in ours} == {1, 2, 3}
    assert all(each.exit_code == 2 for each in ours if issubclass(each, errors.BadInputError))


def test_the_nearest_names_come_best_first_whatever_their_capitals() -> None:
    assert errors.nearest("EULER", ["ddim", "Euler a", "euler"])[0] == "euler"
    assert errors.nearest("zzz", ["ddim"]) == []
    assert errors.did_you_mean("zzz", ["ddim"]) == ""
    assert errors.did_you_mean("ddin", ["ddim"]) == " Did you mean 'ddim'?"


def test_a_prompt_list_error_says_where_as_editors_read_it() -> None:
    error = errors.PromptListError("unknown field", source="list.jsonl", line=7, column=3)
    assert str(error) == "list.jsonl:7:3: unknown field"
