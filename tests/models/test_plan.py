"""What would be in memory under each policy, whatever the model and the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema.errors import BadInputError
from renderkiln.schema.workers import MemoryPolicy
from renderkiln.worker.memory.planning import StageCost, StageKey
from renderkiln.worker.memory.sizes import EMPTY_RENDERER
from renderkiln.worker.models.memory import ModelCosts
from renderkiln.worker.models.plan import as_json, make_plan
from renderkiln.worker.models.plan_cli import parse_size
from renderkiln.worker.models.plan_display import bar

MB = 10**6
NAMES = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "safety_checker")
megabytes = st.integers(0, 4_000)
budgets = st.integers(1, 20_000).map(lambda each: each * MB)


@st.composite
def models(draw: st.DrawFn) -> ModelCosts:
    """What some model takes: a UNet, a VAE, and what else models have."""
    more = draw(st.sets(st.sampled_from(NAMES)))
    stages = [
        StageCost(
            StageKey("m", name),
            draw(megabytes) * MB,
            draw(megabytes) * MB,
            draw(st.integers(0, 100)) / 10,
            0.0 if name.startswith("text_encoder") else 1.0,
        )
        for name in NAMES
        if name in more or name in ("unet", "vae_decoder")
    ]
    return ModelCosts(tuple(stages), (64, 64), tile_pixels=draw(st.sampled_from([None, 64 * 16, 64 * 64])))


@given(models(), budgets)
def test_each_policy_takes_less_memory_and_more_time_than_the_one_before(costs: ModelCosts, budget: int) -> None:
    plan = make_plan(costs, budget)
    resident, auto, jit = plan.policies
    assert resident.peak_bytes >= auto.peak_bytes >= jit.peak_bytes >= costs.least_bytes
    assert 0 == resident.load_seconds <= auto.load_seconds <= jit.load_seconds
    assert resident.peak_bytes == costs.resident_bytes
    assert set(resident.fates.values()) == {"stays"}
    assert not resident.in_tiles


@given(models(), budgets)
def test_auto_keeps_to_the_budget_unless_a_single_stage_does_not(costs: ModelCosts, budget: int) -> None:
    plan = make_plan(costs, budget)
    auto, jit = plan.under("auto"), plan.under("jit")
    assert auto.peak_bytes <= max(budget, costs.least_bytes)
    assert auto.fits == jit.fits == plan.fits == (costs.least_bytes <= budget)
    if costs.resident_bytes <= budget:
        assert replace(auto, policy="resident") == plan.under("resident")
    # Tiles are for a decoder that cannot be in the budget otherwise, where it has tiles at all.
    decoder = next(each for each in costs.stages if each.key.stage == "vae_decoder")
    alone = EMPTY_RENDERER + decoder.at_work_bytes
    assert auto.in_tiles == jit.in_tiles == (costs.tile_pixels is not None and alone > budget)


@given(models(), budgets)
def test_what_becomes_of_a_stage_is_what_jobs_load(costs: ModelCosts, budget: int) -> None:
    for each in make_plan(costs, budget).policies:
        seconds = {stage.key.stage: stage.load_seconds for stage in costs.stages}
        assert each.load_seconds == pytest.approx(sum(seconds[name] for name in each.loads))
        assert {name for name in each.loads if each.fates[name] != "each job"} == set()
        assert all(name.startswith("text_encoder") for name, fate in each.fates.items() if fate == "once")


@given(models(), budgets, st.integers(1, 3), st.sampled_from(["resident", "auto", "jit"]))
def test_what_was_remembered_changes_the_policy_in_force_alone(
    costs: ModelCosts, budget: int, step: int, policy: MemoryPolicy
) -> None:
    before, after = make_plan(costs, budget, policy), make_plan(costs, budget, policy, step)
    for each in before.policies:
        now = after.under(each.policy)
        if each.policy != policy or policy == "resident":
            assert now == each
        elif policy == "auto" and step == 1:
            most = min(budget, costs.resident_bytes)
            quarter_less = EMPTY_RENDERER + (most - EMPTY_RENDERER) * 3 // 4
            assert now.peak_bytes <= max(costs.least_bytes, quarter_less)
        else:
            assert now.peak_bytes <= each.peak_bytes
            assert now.load_seconds >= each.load_seconds
    if step == 3 and policy != "resident":
        assert after.under(policy).peak_bytes <= before.under("jit").peak_bytes
        assert after.under(policy).in_tiles == (costs.tile_pixels is not None)


def some_model() -> ModelCosts:
    """As Stable Diffusion 1.5 in float16, at 512 × 512."""
    stages = (
        StageCost(StageKey("m", "text_encoder"), 246 * MB, 25 * MB, 0.25, 0.0),
        StageCost(StageKey("m", "unet"), 1_720 * MB, 513 * MB, 1.72),
        StageCost(StageKey("m", "vae_decoder"), 99 * MB, 1_661 * MB, 0.1),
        StageCost(StageKey("m", "safety_checker"), 608 * MB, 61 * MB, 0.61),
    )
    return ModelCosts(stages, (512, 512), frozenset({"unet"}), frozenset(), 256 * 256)


def test_a_budget_in_between_keeps_what_it_has_room_for() -> None:
    auto = make_plan(some_model(), 4_000 * MB).under("auto")
    assert auto.fates == {
        "text_encoder": "once",
        "unet": "stays",
        "vae_decoder": "stays",
        "safety_checker": "each job",
    }
    assert (auto.peak_bytes, auto.loads, auto.load_seconds, auto.in_tiles) == (
        3_930 * MB,
        ("safety_checker",),
        0.61,
        False,
    )


def test_in_tiles_a_decoder_takes_what_its_tiles_take() -> None:
    plan = make_plan(some_model(), 2_000 * MB)
    # Not the decoder, which would take 2,210 MB, but the UNet.
    assert (plan.under("jit").in_tiles, plan.under("jit").peak_bytes) == (True, 2_683 * MB)
    assert (plan.fits, plan.costs.least_bytes) == (False, 2_683 * MB)
    small = replace(
        some_model(), stages=(replace(some_model().stages[1], size_bytes=100 * MB), *some_model().stages[2:])
    )
    assert make_plan(small, 2_000 * MB).under("jit").peak_bytes == (450 + 608 + 61) * MB
    assert make_plan(small, 2_000 * MB).under("auto").peak_bytes == (450 + 99 + 608 + 100 + 513) * MB
    assert make_plan(replace(small, tile_pixels=None), 2_000 * MB).under("jit").peak_bytes == 2_210 * MB


def test_all_numbers_are_in_the_json() -> None:
    said = as_json(make_plan(some_model(), 4_000 * MB))
    assert (said["size"], said["budget_bytes"], said["fits"]) == ([512, 512], 4_000 * MB, True)
    assert (said["renderer_bytes"], said["least_bytes"]) == (EMPTY_RENDERER, 2_683 * MB)
    assert said["stages"][1] == {
        "stage": "unet",
        "size_bytes": 1_720 * MB,
        "working_bytes": 513 * MB,
        "working_measured": True,
        "load_seconds": 1.72,
        "load_measured": False,
        "under_auto": "stays",
    }
    assert [(each["policy"], each["fits"]) for each in said["policies"]] == [
        ("resident", False),
        ("auto", True),
        ("jit", True),
    ]


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_bar_is_full_where_the_budget_is(size: int, budget: int) -> None:
    drawn = bar(size, budget)
    assert (drawn[-1] == "▶") == (size > budget)
    assert len(drawn.rstrip("▶")) == 24
    assert drawn.count("█") >= int(24 * min(size, budget) / budget)


def test_sizes_are_read_and_what_is_none_is_refused() -> None:
    assert parse_size("512x768") == parse_size(" 512X768 ") == parse_size("512×768") == (512, 768)
    for text in ("512", "512x", "x", "-8x8", "8x8x8", "a cat", "512,768"):
        with pytest.raises(BadInputError, match="is no size; write WIDTHxHEIGHT"):
            parse_size(text)
    for text in ("0x64", "8x4097", "99999x8"):
        with pytest.raises(BadInputError, match="from 8 to 4096 pixels"):
            parse_size(text)
