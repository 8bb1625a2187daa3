"""How long a renderer may take to hear of a cancel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.supervisor.grace import GRACE, LEAST, RECENT, Silences, grace_after

SECONDS = st.floats(0, 1000)


@given(st.lists(SECONDS, min_size=1))
def test_it_is_as_long_as_the_longest_silence_within_its_limits(silences: list[float]) -> None:
    grace = grace_after(silences)
    assert LEAST <= grace <= GRACE
    assert all(grace >= min(each, GRACE) for each in silences)
    assert grace == LEAST or any(grace <= each for each in silences)


def test_who_has_not_said_anything_may_be_loading() -> None:
    assert grace_after([]) == GRACE
    silences = Silences()
    silences.waited(100.0)
    assert silences.grace == GRACE
    silences.heard(0.0)
    silences.restarted()
    assert silences.grace == GRACE


@given(st.lists(SECONDS, min_size=1, max_size=3 * RECENT), st.lists(SECONDS, max_size=5))
def test_what_is_long_ago_and_what_was_waited_through_in_pieces(before: list[float], pieces: list[float]) -> None:
    silences = Silences()
    for each in before:
        silences.heard(each)
    assert silences.grace == grace_after(before[-RECENT:])
    for each in pieces:
        silences.waited(each)
    assert silences.grace == grace_after(before[-RECENT:]), "one that lasts says nothing yet: it may be a hang"
    silences.heard(0.5)
    assert silences.grace == grace_after([*before, sum(pieces) + 0.5][-RECENT:])


@given(SECONDS, SECONDS)
def test_time_before_an_order_is_no_silence(idle: float, at_work: float) -> None:
    silences = Silences()
    silences.waited(idle)
    silences.asked()
    silences.heard(at_work)
    assert silences.grace == grace_after([at_work])
