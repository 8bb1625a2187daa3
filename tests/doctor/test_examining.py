"""Checkups are run side by side, and none of them can hold up or break the others."""

from __future__ import annotations

import threading

import pytest

from renderkiln.home.checkup import Finding, ok
from renderkiln.home.settings import Settings, load
from renderkiln.producer.doctor.examining import all_checkups, examine
from renderkiln.schema.errors import StoreError

from .conftest import states

pytestmark = pytest.mark.usefixtures("no_settings")


def test_findings_come_in_the_order_of_the_checkups_though_they_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)

    def meeting(about: str) -> list[Finding]:
        both.wait()
        return [ok(about, "met")]

    found = examine(load(), {"b": lambda _: meeting("b"), "a": lambda _: meeting("a")})
    assert [(each.about, each.says) for each in found] == [("b", "met"), ("a", "met")]


def test_what_hangs_is_left_alone_and_said() -> None:
    release = threading.Event()

    def hang(_settings: Settings) -> list[Finding]:
        release.wait(60)
        return []

    found = examine(load(), {"disk": hang, "store": lambda _: [ok("store", "fine")]}, patience=0.2)
    release.set()
    assert [(each.about, each.state) for each in found] == [("disk", "problem"), ("store", "ok")]
    assert "did not answer within 0.2 s" in found[0].says


def test_what_is_raised_becomes_a_finding_that_holds_no_secret() -> None:
    def refuse(_settings: Settings) -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/d")

    def fail(_settings: Settings) -> list[Finding]:
        raise ValueError("redis://:secret@mini")

    def complain(_settings: Settings) -> list[Finding]:
        raise StoreError("there is no store")

    found = examine(load(), {"a": refuse, "b": fail, "c": complain})
    assert states(found) == ["problem"] * 3
    assert [each.says for each in found] == [
        "the system refused: Permission denied (/d)",
        "could not be looked at: ValueError",
        "there is no store",
    ]


def test_the_workers_checkups_join_in() -> None:
    assert list(all_checkups())[-2:] == ["rendering", "compiled models"]
