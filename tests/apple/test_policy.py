"""Which entries go, for any cache there could be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.runtimes.apple.policy import Entry, to_remove

NOW = 1_000_000.0
ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.uuids().map(str),
        source=st.just("unet.mlpackage"),
        sha256=st.just("0" * 64),
        compute_unit=st.sampled_from(["all", "cpu_only"]),
        build=st.sampled_from(["24G84", "24F74"]),
        size_bytes=st.integers(0, 1000),
        seconds=st.just(1.0),
        last_use=st.floats(0, NOW * 1.1),
        in_use=st.booleans(),
        damaged=st.booleans(),
    ),
    unique_by=lambda entry: entry.name,
    max_size=12,
)


@given(
    entries=ENTRIES,
    older=st.none() | st.floats(0, NOW),
    limit=st.none() | st.integers(0, 5000),
)
def test_what_goes_and_what_stays(entries: list[Entry], older: float | None, limit: int | None) -> None:
    going = to_remove(entries, build="24G84", now=NOW, older_seconds=older, max_bytes=limit)
    assert len({entry.name for entry in going}) == len(going)
    assert set(going) <= set(entries)
    assert not any(entry.in_use for entry in going)
    assert [entry.last_use for entry in going] == sorted(entry.last_use for entry in going)

    staying = [entry for entry in entries if entry not in going]
    free = [entry for entry in staying if not entry.in_use]
    assert not any(entry.damaged or entry.build != "24G84" for entry in free)
    if older is not None:
        assert not any(NOW - entry.last_use > older for entry in free)
    if limit is not None:
        assert sum(entry.size_bytes for entry in staying) <= limit or not free

    # Nothing goes without a reason: the rest had to make room, and the last of it was still needed.
    bound = [
        entry
        for entry in going
        if not entry.damaged and entry.build == "24G84" and not (older is not None and NOW - entry.last_use > older)
    ]
    if limit is None:
        assert not bound
    elif bound:
        assert sum(entry.size_bytes for entry in staying) + bound[-1].size_bytes > limit
        assert all(bound[-1].last_use <= entry.last_use for entry in free)
