"""Samples cut up for a picture: nothing is drawn where nobody looked, no peak is lost, and no label hides another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.home.memory_records import MemorySample
from renderkiln.producer.report.spans import (
    Band,
    Span,
    bands,
    label_rows,
    level_spans,
    longest_pause,
    stretches,
    thinned,
)


def sample(at: float, process: int = 5, available: int = 9, level: str = "calm", **fields: Any) -> MemorySample:
    return MemorySample(at, process, available, level, **fields)


SAMPLES = st.lists(
    st.builds(
        sample,
        st.floats(0, 1e6),
        st.integers(0, 10**11),
        st.integers(0, 10**11),
        st.sampled_from(["calm", "warn", "critical"]),
    ),
    min_size=1,
    max_size=60,
).map(lambda found: sorted(found, key=lambda each: each.at))


def test_a_pause_of_ten_usual_ones_and_a_minute_at_least_parts_samples() -> None:
    slow = [sample(at * 10.0) for at in range(10)] + [sample(90 + 100.0), sample(190 + 100.5)]
    assert longest_pause(slow) == 100
    assert [len(part) for part in stretches(slow, longest_pause(slow))] == [11, 1]
    fast = [sample(at / 10) for at in range(10)] + [sample(60.0), sample(121.0)]
    assert longest_pause(fast) == longest_pause([sample(7.0)]) == 60
    assert [len(part) for part in stretches(fast, 60)] == [11, 1]


def test_a_level_lasts_until_the_next_sample_but_not_over_a_pause() -> None:
    levels = ["calm", "calm", "warn", "critical", "warn", "warn"]
    samples = [sample(at * 10.0, level=level) for at, level in enumerate(levels)] + [sample(5000.0, level="critical")]
    assert level_spans(samples) == [
        Span("calm", 0, 20),
        Span("warn", 20, 30),
        Span("critical", 30, 40),
        Span("warn", 40, 50),
        Span("critical", 5000, 5000),
    ]


@given(SAMPLES)
def test_levels_follow_each_other_without_overlap_and_within_the_time(samples: list[MemorySample]) -> None:
    spans = level_spans(samples)
    assert (spans[0].start, spans[-1].end) == (samples[0].at, samples[-1].at)
    for before, after in pairwise(spans):
        assert before.start <= before.end <= after.start
    assert {span.level for span in spans} == {each.level for each in samples}


@given(SAMPLES, st.integers(1, 70))
def test_thinning_loses_no_peak_no_low_and_no_bad_moment(samples: list[MemorySample], most: int) -> None:
    found = thinned(samples, most)
    assert 1 <= len(found) <= max(most, 1)
    if len(samples) <= most:
        assert found == samples
    assert [each.at for each in found] == sorted(each.at for each in found)
    assert max(each.process_bytes for each in found) == max(each.process_bytes for each in samples)
    assert min(each.available_bytes for each in found) == min(each.available_bytes for each in samples)
    for level in ("critical", "warn"):
        if any(each.level == level for each in samples):
            assert {"critical", level} & {each.level for each in found}


def test_bands_are_stacked_in_the_given_order_then_by_name() -> None:
    samples = [
        sample(0, stages=(("a", "vae", 1), ("a", "unet", 10))),
        sample(1, stages=(("b", "unet", 20), ("a", "unet", 10), ("a", "extra", 3))),
        sample(2),
    ]
    assert bands(samples, ["unet", "vae"]) == [
        Band("a", "unet", [0, 0, 0], [10, 10, 0]),
        Band("b", "unet", [10, 10, 0], [10, 30, 0]),
        Band("a", "vae", [10, 30, 0], [11, 30, 0]),
        Band("a", "extra", [11, 30, 0], [11, 33, 0]),
    ]
    assert bands([sample(0)]) == []


@pytest.mark.parametrize(
    ("places", "widths", "most", "rows"),
    [
        ([], [], 5, []),
        ([0, 10, 20], [5, 5, 5], 5, [0, 0, 0]),
        ([0, 1, 2], [5, 5, 5], 5, [2, 1, 0]),
        ([0, 1, 2], [5, 5, 5], 2, [None, 1, 0]),
        ([0, 3, 4], [1, 5, 5], 5, [0, 1, 0]),
        ([7, 7], [1, 1], 5, [1, 0]),
    ],
)
def test_labels_that_would_touch_are_put_in_rows(
    places: list[float], widths: list[float], most: int, rows: list[int | None]
) -> None:
    assert label_rows(places, widths, most) == rows


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 30)), max_size=40), st.integers(1, 12))
def test_no_label_touches_another_nor_its_line(labels: list[tuple[float, float]], most: int) -> None:
    labels.sort()
    rows = label_rows([place for place, _ in labels], [width for _, width in labels], most)
    placed = [(place, width, row) for (place, width), row in zip(labels, rows, strict=True) if row is not None]
    assert all(0 <= row < most for _, _, row in placed)
    for number, (place, width, row) in enumerate(placed):
        for later, _, below in placed[number + 1 :]:
            # Whoever begins under this label stays below it, line and all.
            assert later > place + width or below < row
