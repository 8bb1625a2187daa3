"""A batch as it is watched: counted once, whatever order news comes in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from tests.fakes import FakeWorker

from renderkiln.producer import RenderQueue
from renderkiln.producer.cli.progress import show
from renderkiln.producer.cli.wording import count, duration, say
from renderkiln.producer.live import BatchView, Watcher


@pytest.fixture
def worker(queue: RenderQueue) -> FakeWorker:
    return FakeWorker(queue.connection)


@pytest.fixture
def watcher(queue: RenderQueue) -> Iterator[Watcher]:
    """Watches a batch of two jobs with two images each."""
    batch = queue.submit_many({"prompt": f"cat {number}", "num_images": 2} for number in range(2))
    found = Watcher(queue.connection, batch.id, batch.num_images, batch.num_jobs)
    yield found
    found.close()


def until(watcher: Watcher, what: Callable[[BatchView], object]) -> BatchView:
    """The view once `what` is true of it."""
    for view in watcher.updates(every=0.05):
        if what(view):
            return view
    raise AssertionError("the batch ended before that was so")


def test_a_job_is_followed_step_by_step_to_its_end(watcher: Watcher, worker: FakeWorker) -> None:
    job = worker.take()
    assert job is not None
    worker.step(job, 3, k=1)
    view = until(watcher, lambda view: [each.step for each in view.running.values()] == [3])
    running = view.running[job.id]
    assert (running.worker, running.about, running.k, running.num_steps) == ("fake", "shapes: cat 0", 1, 20)
    worker.step(job, 20, k=1)
    worker.finish(job)
    view = until(watcher, lambda view: view.jobs_ended == 1)
    assert view.images_done == 2
    assert view.running == {}  # steps that are heard of late do not bring it back
    worker.finish_all()
    assert [view.is_final for view in watcher.updates()][-1]
    assert (watcher.view.images_done, watcher.view.failed, watcher.view.canceled) == (4, [], 0)


def test_what_was_done_before_counts_but_not_for_the_pace(queue: RenderQueue, worker: FakeWorker) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(2))
    job = worker.take()
    assert job is not None
    worker.finish(job)
    watcher = Watcher(queue.connection, batch.id, 2, 2)
    assert (watcher.view.images_done, watcher.view.images_per_minute, watcher.view.seconds_left) == (1, None, None)
    worker.finish_all()
    for _ in watcher.updates():
        pass
    assert watcher.view.images_per_minute is not None
    assert watcher.view.seconds_left == 0
    watcher.close()


def test_failures_cancellations_and_returned_jobs_are_told_apart(
    queue: RenderQueue, watcher: Watcher, worker: FakeWorker
) -> None:
    job = worker.take()
    assert job is not None
    until(watcher, lambda view: view.running)
    worker.give_back(job)
    until(watcher, lambda view: not view.running)
    job = worker.take()
    assert job is not None
    worker.fail(job)
    queue.cancel(watcher.view.batch)
    for _ in watcher.updates():
        pass
    assert [result.job_id for result in watcher.view.failed] == [job.id]
    assert watcher.view.canceled == 1


def test_an_end_that_no_event_told_of_is_found(
    watcher: Watcher, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watcher, "RECHECK", 0.1)
    from renderkiln.schema import JobStatus

    for _ in range(2):
        job = worker.take()
        assert job is not None
        worker.end(job, JobStatus.FINISHED, images=tuple(worker.image(job, k) for k in range(2)), tell=False)
    assert list(watcher.updates(every=0.05))[-1].images_done == 4


def test_jobs_of_other_batches_and_noise_do_not_count(queue: RenderQueue, watcher: Watcher, worker: FakeWorker) -> None:
    queue.connection.publish("renderkiln:progress", b"\xff")
    queue.connection.xadd("renderkiln:events", {"event": "{}"})
    worker.finish_all()
    other = queue.submit(prompt="a dog")
    worker.finish_all()
    for _ in watcher.updates():
        pass
    assert watcher.view.images_done == 4
    assert queue.wait(other).batch == other.batch


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_off_one(watcher: Watcher, worker: FakeWorker, terminal: bool) -> None:
    job = worker.take()
    assert job is not None
    worker.step(job, 1)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)

    def views() -> Iterator[BatchView]:
        for view in watcher.updates(every=0.05):
            yield view
            if view.running and (not terminal or "shapes: cat 0" in screen.getvalue()):
                worker.finish(job)
                worker.finish_all()

    show(console, views())
    out = screen.getvalue()
    assert ("4/4" if terminal else "4 of 4 images") in out
    assert ("steps on fake" in out) is terminal


def test_a_command_to_copy_is_not_broken_into_lines() -> None:
    screen = io.StringIO()
    command = "go on: renderkiln render " + " ".join(f"'[bold]prompt {number}'" for number in range(20))
    say(Console(file=screen, width=40), command)
    assert screen.getvalue() == command + "\n"


def test_numbers_and_durations_in_words() -> None:
    assert [count(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 190, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 10 s",
        "2 h 5 min",
    ]
