"""The renderer begins an image when the one before is recorded: what a kill can cost is one, and not two."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from renderkiln.home.store.folder import Folder
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.protocol import Cancel, GoOn, Render
from renderkiln.worker.renderer.loop import Orders
from renderkiln.worker.renderer.memory_link import MemoryLink
from renderkiln.worker.supervisor import attempt, delivery

from .attempts import AttemptBench, a_job, is_done


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AttemptBench]:
    made = AttemptBench(tmp_path)
    yield made
    made.close()


def test_the_next_image_begins_when_the_last_is_recorded(bench: AttemptBench) -> None:
    job, recorded = a_job(3), []
    bench.renderer.on_go_on = lambda: recorded.append(len(bench.rows(job)))
    assert is_done(bench.attempt(job), job)
    assert recorded == [1, 2], "and after the last there is nothing to begin"
    bench.check(job)


def test_a_store_that_is_slow_does_not_hold_up_rendering_for_long(
    bench: AttemptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, write, went_on, recorded = a_job(3), Folder.write, threading.Event(), []
    monkeypatch.setattr(attempt, "_LONGEST_HOLD", 0.05)

    def slow(place: Folder, relative: str, data: bytes) -> None:
        assert went_on.wait(30)
        write(place, relative, data)

    def go_on() -> None:
        recorded.append(len(bench.rows(job)))
        went_on.set()

    monkeypatch.setattr(Folder, "write", slow)
    bench.renderer.on_go_on = go_on
    assert is_done(bench.attempt(job), job)
    assert recorded[0] == 0
    assert len(recorded) == 2
    bench.check(job)


def test_while_the_disk_is_full_nothing_more_is_rendered(bench: AttemptBench, monkeypatch: pytest.MonkeyPatch) -> None:
    job, write, recorded, refused = a_job(3), Folder.write, [], []
    monkeypatch.setattr(attempt, "_LONGEST_HOLD", 0.05)
    monkeypatch.setattr(delivery, "_LOOK_FOR_ROOM", 0.02)

    def full_at_first(place: Folder, relative: str, data: bytes) -> None:
        if len(refused) < 20:  # for eight times as long as a slow store may hold it up
            refused.append(relative)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, relative, data)

    monkeypatch.setattr(Folder, "write", full_at_first)
    bench.renderer.on_go_on = lambda: recorded.append(len(bench.rows(job)))
    assert is_done(bench.attempt(job), job)
    assert len(set(refused)) == 1, "the first picture alone was there to be kept"
    assert recorded == [1, 2]
    bench.check(job)


def test_however_much_there_is_to_say_of_a_picture_it_is_kept(bench: AttemptBench) -> None:
    job = a_job(1)
    bench.renderer.notes = tuple(f"{number} {'x' * 1000}" for number in range(10))
    assert is_done(bench.attempt(job), job)
    (image,) = bench.ledger.images_of(job.id)
    assert [note[:3] for note in image.notes] == ["0 x", "1 x", "2 x", "3 x"]
    bench.check(job)


class TestOrders:
    @pytest.fixture
    def talk(self) -> Iterator[tuple[Orders, Callable[..., None]]]:
        ours, theirs = Pipe()
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs, one, other:

            def say(*orders: object) -> None:
                for order in orders:
                    ours.send(order)

            yield Orders(theirs, MemoryLink(one, Residency())), say

    def test_what_comes_instead_of_leave_is_kept_for_later(self, talk: tuple[Orders, Callable[..., None]]) -> None:
        orders, say = talk
        render = Render("{}", {}, ())
        say(render, GoOn())
        assert orders.go_on() is None
        assert orders.next() == render

    def test_a_cancel_is_heard_while_waiting(self, talk: tuple[Orders, Callable[..., None]]) -> None:
        orders, say = talk
        say(Cancel(after_image=True))
        assert orders.go_on() == Cancel(after_image=True)

    def test_leave_that_came_too_late_is_no_leave_for_the_next(self, talk: tuple[Orders, Callable[..., None]]) -> None:
        orders, say = talk
        say(GoOn(), Cancel())
        assert orders.cancel() == Cancel()
        say(Cancel())
        assert orders.go_on() == Cancel(), "the leave was for an image of the job before"
