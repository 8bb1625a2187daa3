"""The planner: what it promises for any layers and any budget, and that its choices are the best there are."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema.errors import BadInputError
from renderkiln.worker.convert.compress.planner import (
    Choice,
    Layer,
    Plan,
    error_of,
    plan_for_cost,
    plan_for_psnr,
    psnr_of,
)

WIDTHS = (2, 4, 6, 8, 16)


@st.composite
def layers(draw: st.DrawFn, most: int = 12, biggest: int = 10**9) -> list[Layer]:
    """Layers as measured ones are: dearer with more bits; mostly, not always, better with more bits."""
    found = []
    for number in range(draw(st.integers(1, most))):
        widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=len(WIDTHS), unique=True))
        elements = draw(st.integers(1, biggest))
        choices = tuple(
            Choice(nbits, elements * nbits, 0.0 if nbits == 16 else draw(st.floats(0, 1, allow_subnormal=False)))
            for nbits in widths
        )
        found.append(Layer(f"layer_{number}", choices))
    return found


def check_is_whole(plan: Plan, given_layers: list[Layer]) -> None:
    """The plan names each layer once, with a width that it has, and its sums are those of its choices."""
    assert list(plan.bits) == [layer.name for layer in given_layers]
    chosen = [next(c for c in layer.choices if c.nbits == plan.bits[layer.name]) for layer in given_layers]
    assert plan.cost == sum(choice.cost for choice in chosen)
    assert plan.error == pytest.approx(sum(choice.error for choice in chosen))


def cheapest(given_layers: list[Layer]) -> int:
    return sum(min(choice.cost for choice in layer.choices) for layer in given_layers)


def dearest(given_layers: list[Layer]) -> int:
    return sum(max(choice.cost for choice in layer.choices) for layer in given_layers)


@given(layers(), st.floats(0, 1.2))
def test_a_budget_is_never_exceeded(given_layers: list[Layer], part: float) -> None:
    low, high = cheapest(given_layers), dearest(given_layers)
    budget = low + int((high - low) * part)
    plan = plan_for_cost(given_layers, budget)
    check_is_whole(plan, given_layers)
    assert plan.cost <= budget


@given(layers(), st.floats(0, 1.2), st.floats(0, 1.2))
def test_more_budget_never_gives_a_worse_prediction(given_layers: list[Layer], one: float, other: float) -> None:
    low, high = cheapest(given_layers), dearest(given_layers)
    small, big = sorted(low + int((high - low) * part) for part in (one, other))
    assert plan_for_cost(given_layers, big).error <= plan_for_cost(given_layers, small).error


@given(layers(), st.floats(-5, 150))
def test_a_reachable_quality_is_met_by_prediction(given_layers: list[Layer], psnr: float) -> None:
    best = sum(min(choice.error for choice in layer.choices) for layer in given_layers)
    if psnr_of(best) < psnr:
        # A hair's breadth between the two sums may be either.
        if psnr_of(best) < psnr - 1e-6:
            with pytest.raises(BadInputError, match="dB"):
                plan_for_psnr(given_layers, psnr)
        return
    plan = plan_for_psnr(given_layers, psnr)
    check_is_whole(plan, given_layers)
    assert plan.psnr >= psnr


@given(layers(), st.floats(-5, 150), st.floats(-5, 150))
def test_asking_for_less_quality_never_costs_more(given_layers: list[Layer], one: float, other: float) -> None:
    low, high = sorted((one, other))
    try:
        dear = plan_for_psnr(given_layers, high)
    except BadInputError:
        return
    assert plan_for_psnr(given_layers, low).cost <= dear.cost


@given(layers(most=4, biggest=500), st.floats(0, 1))
def test_where_nothing_is_rounded_no_other_choice_is_better(given_layers: list[Layer], part: float) -> None:
    low, high = cheapest(given_layers), dearest(given_layers)
    budget = low + int((high - low) * part)
    others = [
        sum(choice.error for choice in choices)
        for choices in itertools.product(*(layer.choices for layer in given_layers))
        if sum(choice.cost for choice in choices) <= budget
    ]
    assert plan_for_cost(given_layers, budget).error == pytest.approx(min(others))


@given(layers(most=4, biggest=500), st.floats(0, 1))
def test_where_nothing_is_rounded_no_cheaper_choice_reaches_the_quality(given_layers: list[Layer], part: float) -> None:
    everything = [
        (sum(choice.cost for choice in choices), sum(choice.error for choice in choices))
        for choices in itertools.product(*(layer.choices for layer in given_layers))
    ]
    worst, best = max(error for _, error in everything), min(error for _, error in everything)
    allowed = best + (worst - best) * part
    if allowed <= 0:
        return
    plan = plan_for_psnr(given_layers, psnr_of(allowed) - 1e-9)
    assert plan.cost <= min(cost for cost, error in everything if error <= allowed)


@given(layers(), st.floats(0, 1))
def test_the_same_numbers_give_the_same_plan(given_layers: list[Layer], part: float) -> None:
    budget = cheapest(given_layers) + int((dearest(given_layers) - cheapest(given_layers)) * part)
    assert plan_for_cost(given_layers, budget) == plan_for_cost(given_layers, budget)


@given(
    st.lists(st.tuples(st.integers(2049, 10**7), st.floats(1e-9, 1)), min_size=1, max_size=40),
    st.sampled_from((2, 4, 6, 8)),
)
def test_a_mixed_plan_is_never_worse_than_a_plain_width_of_its_size(sizes: list[tuple[int, float]], width: int) -> None:
    given_layers = [
        Layer(f"layer_{number}", tuple(Choice(bits, elements * bits, error * 4.0**-bits) for bits in (2, 4, 6, 8)))
        for number, (elements, error) in enumerate(sizes)
    ]
    plain_cost = sum(elements * width for elements, _ in sizes)
    plain_error = sum(error * 4.0**-width for _, error in sizes)
    assert plan_for_cost(given_layers, plain_cost).error <= plain_error * (1 + 1e-12)


def test_a_budget_below_the_smallest_says_what_the_smallest_is() -> None:
    given_layers = [Layer("a", (Choice(2, 200, 0.1), Choice(4, 400, 0.01)))]
    with pytest.raises(BadInputError, match="200"):
        plan_for_cost(given_layers, 199)


def test_three_hundred_layers_of_a_real_model_lose_little_by_rounding() -> None:
    given_layers = [
        Layer(
            f"layer_{number}",
            tuple(
                Choice(bits, 3_000_000 * bits // 8, 0.0 if bits == 16 else 1e-2 / (1 + number) * 4.0**-bits)
                for bits in WIDTHS
            ),
        )
        for number in range(300)
    ]
    budget = 300 * 3_000_000 * 5 // 8
    plan = plan_for_cost(given_layers, budget)
    assert 0.98 * budget < plan.cost <= budget
    assert plan.bits["layer_0"] > plan.bits["layer_299"]


@given(st.floats(-50, 150))
def test_psnr_and_error_are_each_others_inverse(psnr: float) -> None:
    assert psnr_of(error_of(psnr)) == pytest.approx(psnr)


def test_no_error_is_an_infinite_psnr() -> None:
    assert psnr_of(0.0) == math.inf
