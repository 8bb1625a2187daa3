"""What samples mean: judged one by one, and followed over time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.memory.pressure import Level, Sample, Thresholds, Verdict, Watch, judge

GIGA = 1_000_000_000
CALM, WARN, CRITICAL = Level
USUAL = Thresholds()


def sample(
    available: float = 50.0,
    *,
    at: float = 0.0,
    swap: int = 0,
    system: Level | None = None,
    stall: float | None = None,
) -> Sample:
    """Of a machine with 16 GB, of which so many percent are available."""
    return Sample(at, 16 * GIGA, int(16 * GIGA * available / 100), swap, system, stall, stall)


@pytest.mark.parametrize(
    ("found", "grown", "verdict"),
    [
        (sample(62.4), 0, Verdict(CALM, "62 % of memory (10.0 GB) is available")),
        (sample(10.0), 0, Verdict(CALM, "10 % of memory (1.6 GB) is available")),
        (sample(9.5), 0, Verdict(WARN, "9.5 % of memory (1.5 GB) is available")),
        (sample(5.0), 0, Verdict(WARN, "5.0 % of memory (0.8 GB) is available")),
        (sample(4.1), 0, Verdict(CRITICAL, "4.1 % of memory (0.7 GB) is available")),
        (sample(stall=9.9), 0, Verdict(CALM, "50 % of memory (8.0 GB) is available")),
        (sample(stall=14.2), 0, Verdict(WARN, "processes waited 14 % of the time for memory")),
        (sample(stall=40.0), 0, Verdict(CRITICAL, "processes waited 40 % of the time for memory")),
        (sample(), 255_999_999, Verdict(CALM, "50 % of memory (8.0 GB) is available")),
        (sample(), 300_000_000, Verdict(WARN, "swap grew by 0.3 GB within a minute")),
        (sample(system=CALM), 0, Verdict(CALM, "macOS reports no memory pressure")),
        # Which knows better than what is called available there.
        (sample(4.1, system=CALM), 0, Verdict(CALM, "macOS reports no memory pressure")),
        (sample(system=WARN), 0, Verdict(WARN, "macOS reports memory pressure")),
        (sample(system=CRITICAL), 0, Verdict(CRITICAL, "macOS reports critical memory pressure")),
        # The worst counts, whatever it is.
        (sample(9.5, stall=41.0, system=WARN), 0, Verdict(CRITICAL, "processes waited 41 % of the time for memory")),
        (sample(4.1, stall=14.0), GIGA, Verdict(CRITICAL, "4.1 % of memory (0.7 GB) is available")),
    ],
)
def test_what_a_sample_means(found: Sample, grown: int, verdict: Verdict) -> None:
    assert judge(found, grown, USUAL) == verdict


def test_thresholds_can_be_others() -> None:
    others = Thresholds(available_warn=30, available_critical=20, swap_growth_bytes=100)
    assert judge(sample(25), 0, others).level is WARN
    assert judge(sample(19), 0, others).level is CRITICAL
    assert judge(sample(50), 100, others).level is WARN


def test_nothing_known_is_no_alarm() -> None:
    nothing = Sample(0.0, 0, 0, 0, None, None, None)
    assert judge(nothing, 0, USUAL) == Verdict(CALM, "how much memory is available is not known")


shares = st.floats(0, 100)
levels = st.sampled_from(Level)
samples = st.builds(sample, shares, swap=st.integers(0, 10**12), system=st.none() | levels, stall=st.none() | shares)
grown = st.integers(0, GIGA)


@given(samples, grown, st.integers(0, 16 * GIGA))
def test_more_available_is_never_worse(found: Sample, grown: int, available: int) -> None:
    less, more = sorted([found.available_bytes, available])
    having = [judge(dataclasses.replace(found, available_bytes=count), grown, USUAL).level for count in (less, more)]
    assert having[0] >= having[1]


@given(samples, grown)
def test_each_finding_alone_is_never_worse_than_all(found: Sample, grown: int) -> None:
    calm = sample(100)
    alone = [
        judge(dataclasses.replace(calm, available_bytes=found.available_bytes, system=found.system), 0, USUAL),
        judge(dataclasses.replace(calm, stall=found.stall), 0, USUAL),
        judge(dataclasses.replace(calm, system=found.system), 0, USUAL),
        judge(calm, grown, USUAL),
    ]
    whole = judge(found, grown, USUAL)
    assert whole.level == max(verdict.level for verdict in alone)
    assert whole.level is CALM or whole in alone


AVAILABLE = {CALM: 50.0, WARN: 8.0, CRITICAL: 2.0}


def follow(*found: tuple[float, Level], thresholds: Thresholds = USUAL) -> list[Level]:
    watch = Watch(thresholds)
    return [watch.feed(sample(AVAILABLE[level], at=at)).level for at, level in found]


def test_it_rises_at_once_and_falls_after_the_calm_time() -> None:
    found = [(0, CALM), (1, WARN), (2, CRITICAL), (3, CALM), (62.9, CALM), (63, CALM)]
    assert follow(*found) == [CALM, WARN, CRITICAL, CRITICAL, CRITICAL, CALM]


def test_the_calm_time_begins_anew_with_every_bad_sample() -> None:
    found = [(0, WARN), (1, CALM), (60, CALM), (60.5, WARN), (61.5, CALM), (121, CALM), (121.5, CALM)]
    assert follow(*found) == [WARN, WARN, WARN, WARN, WARN, WARN, CALM]


def test_a_fall_goes_to_the_highest_level_of_the_calm_time() -> None:
    found = [(0, CRITICAL), (1, WARN), (2, CALM), (60, CALM), (61, CALM), (61.5, CALM), (62, CALM)]
    assert follow(*found) == [CRITICAL, CRITICAL, CRITICAL, CRITICAL, WARN, WARN, CALM]


def test_after_a_gap_one_good_sample_is_not_enough() -> None:
    assert follow((0, CRITICAL), (1000, CALM), (1059, CALM), (1060, CALM)) == [CRITICAL, CRITICAL, CRITICAL, CALM]


def test_no_calm_time() -> None:
    assert follow((0, CRITICAL), (1, WARN), (2, CALM), thresholds=Thresholds(calm=0)) == [CRITICAL, WARN, CALM]


def test_the_reason_is_that_of_the_level() -> None:
    watch = Watch(USUAL)
    assert watch.feed(sample(4.1)).why == "4.1 % of memory (0.7 GB) is available"
    assert watch.feed(sample(3.0, at=1)).why == "3.0 % of memory (0.5 GB) is available"
    assert watch.feed(sample(8.0, at=2)) == Verdict(CRITICAL, "3.0 % of memory (0.5 GB) is available")
    assert watch.feed(sample(50, at=62)) == Verdict(WARN, "8.0 % of memory (1.3 GB) is available")
    assert watch.feed(sample(50, at=122)) == Verdict(CALM, "50 % of memory (8.0 GB) is available")


def test_only_growth_of_swap_within_a_minute_counts() -> None:
    watch = Watch(Thresholds(calm=0))
    # In use from the start on; slowly growing; less and then more again; and what is older than a minute.
    found = [(0, 5.0), (30, 5.2), (61, 5.4), (62, 4.0), (63, 4.3), (122, 4.3), (123, 4.3)]
    levels = [watch.feed(sample(at=at, swap=int(swap * GIGA))).level for at, swap in found]
    assert levels == [CALM, CALM, CALM, CALM, WARN, WARN, CALM]
    assert watch.feed(sample(at=124, swap=5 * GIGA)).why == "swap grew by 0.7 GB within a minute"


@st.composite
def days(draw: st.DrawFn) -> Sequence[Sample]:
    """Samples in their order, some close together and some not."""
    at, found = 0.0, []
    for one in draw(st.lists(samples, min_size=1, max_size=40)):
        at += draw(st.floats(0.01, 5) | st.floats(5, 100))
        # Mostly small changes of swap, or it would be what counts in nearly all.
        found.append(dataclasses.replace(one, at=at, swap_used_bytes=one.swap_used_bytes % (GIGA // 2)))
    return found


def judged(day: Sequence[Sample]) -> list[Level]:
    """What each sample means by itself; growth of swap is counted here in the plainest way."""
    levels = []
    for now in day:
        minute = [one.swap_used_bytes for one in day if now.at - 60 <= one.at <= now.at]
        levels.append(judge(now, now.swap_used_bytes - min(minute), USUAL).level)
    return levels


@given(days())
def test_over_any_time(day: Sequence[Sample]) -> None:
    watch = Watch(USUAL)
    held = [watch.feed(one).level for one in day]
    alone = judged(day)
    for index, (now, level) in enumerate(zip(day, held, strict=True)):
        assert level >= alone[index], "it rises at once"
        recent = [alone[other] for other in range(index + 1) if day[other].at > now.at - USUAL.calm]
        assert level >= max(recent), "it never falls within the calm time after a higher sample"
        if index and level > held[index - 1]:
            assert level == alone[index], "it rises only to what was found"
        if index and level < held[index - 1]:
            before = held[index - 1]
            first = max(other for other in range(index) if alone[other] >= before) + 1
            assert now.at - day[first].at >= USUAL.calm, "it falls after the calm time"
            assert level == max(alone[first : index + 1]), "to the highest level in it"


@given(days())
def test_it_always_calms_down(day: Sequence[Sample]) -> None:
    watch = Watch(USUAL)
    for one in day:
        watch.feed(one)
    # Two levels to fall, and swap's last minute.
    end, swap = day[-1].at, day[-1].swap_used_bytes
    after = [watch.feed(sample(at=end + second, swap=swap)).level for second in range(1, 200)]
    assert after == sorted(after, reverse=True)
    assert after[-1] is CALM
