"""Stores on their way to a worker, which runs in another folder or on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes import job_keys, stored
from tests.prompts.helpers import asked

from renderkiln.producer import RenderQueue
from renderkiln.producer.stores import store_for_jobs
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.payload import read_payload


@pytest.mark.parametrize("url", ["s3://bucket/x", "simplecache::s3://bucket/x", "file:///tmp/x", "memory://x"])
def test_a_url_stays_as_it_is(url: str) -> None:
    assert store_for_jobs(url) == url


@pytest.mark.parametrize("url", ["s4://bucket/x", "simplecash::s3://bucket/x", "nowhere::x", "://x"])
def test_a_url_that_no_file_system_has_is_refused(url: str) -> None:
    with pytest.raises(InvalidSpecError, match="is no store: no file system is called"):
        store_for_jobs(url)


def test_a_scripts_relative_store_begins_where_the_script_runs(queue: RenderQueue, no_settings: Path) -> None:
    job = queue.submit(prompt="a cat", store="pictures")
    assert read_payload(stored(queue.connection, job.id).data).store == str(no_settings / "pictures")
    with pytest.raises(InvalidSpecError, match="'s4'"):
        queue.submit(prompt="a cat", store="s4://bucket")
    with pytest.raises(InvalidSpecError, match="request 1: store = ''"):
        queue.submit_many([{"prompt": "a cat", "store": ""}])
    assert len(job_keys(queue.connection)) == 1


def test_a_lists_relative_store_begins_at_the_list_and_a_flags_where_one_is(tmp_path: Path, no_settings: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a", "store": "pictures"}\n{"prompt": "b", "store": "~/pictures"}\n{"prompt": "c"}\n')
    found = [request.options.store for request in asked(path, defaults={"store": "flag"})]
    assert found == [str(tmp_path / "pictures"), str(Path.home() / "pictures"), str(no_settings / "flag")]
