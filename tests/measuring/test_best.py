"""Which of the measured forms is chosen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from renderkiln.worker.measuring.best import NEAR, best
from renderkiln.worker.measuring.records import Measurement

from .made import failed, measured

seconds = st.floats(min_value=0.01, max_value=1000)
# Few different values, so that ties and near ties are many.
forms = st.builds(
    measured,
    seconds | st.sampled_from([1.0, 1.02, 1.03, 1.031, 2.0]),
    st.integers(1, 4),
    st.sampled_from(["original", "split-einsum", "split-einsum-v2"]),
    st.sampled_from(["cpu_and_ne", "cpu_and_gpu", "cpu_only"]),
)
lists = st.lists(forms | st.builds(failed), max_size=8, unique_by=lambda each: each.candidate)


def test_the_fastest() -> None:
    slow, fast = measured(3.0, 1), measured(2.0, 9, "split-einsum", "cpu_and_ne")
    assert best([slow, fast]) is fast


def test_within_three_percent_the_one_with_less_memory() -> None:
    fastest, near, far = measured(1.0, 9), measured(1.03, 2, "split-einsum"), measured(1.031, 1, "split-einsum-v2")
    assert best([fastest, near, far]) is near
    assert best([fastest, far]) is fastest


def test_what_failed_is_never_chosen() -> None:
    slow = measured(1000.0, 10**12)
    assert best([failed(), slow]) is slow
    assert best([failed()]) is None
    assert best([]) is None


@given(lists)
def test_the_rule(measurements: list[Measurement]) -> None:
    chosen = best(measurements)
    fit = [each.numbers for each in measurements if each.numbers is not None]
    assert (chosen is None) == (not fit)
    if chosen is None or chosen.numbers is None:
        return
    fastest = min(numbers.latency_seconds for numbers in fit)
    assert chosen.numbers.latency_seconds <= fastest * (1 + NEAR)
    rivals = [numbers for numbers in fit if numbers.latency_seconds <= fastest * (1 + NEAR)]
    assert all(chosen.numbers.peak_bytes <= numbers.peak_bytes for numbers in rivals)
    equal = [numbers for numbers in rivals if numbers.peak_bytes == chosen.numbers.peak_bytes]
    assert all(chosen.numbers.latency_seconds <= numbers.latency_seconds for numbers in equal)


@given(lists.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_the_order_does_not_count(pair: tuple[list[Measurement], list[Measurement]]) -> None:
    assert best(pair[0]) == best(pair[1])
