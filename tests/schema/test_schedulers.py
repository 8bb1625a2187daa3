"""Schedulers by the names that people know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema import parse_spec
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.schedulers import (
    _ALIASES,
    CLASS_NAMES,
    FAMILIAR,
    canonical_name,
    known_names,
    resolve,
)


@pytest.mark.parametrize("name", known_names())
def test_a_known_name_is_its_own_canonical_name_and_resolves_to_a_class(name: str) -> None:
    assert canonical_name(name) == name
    assert resolve(name).class_name in CLASS_NAMES


@pytest.mark.parametrize(("alias", "meant"), sorted(_ALIASES.items()))
def test_an_alias_means_a_familiar_name(alias: str, meant: str) -> None:
    assert meant in FAMILIAR
    assert resolve(alias) == FAMILIAR[meant]


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_class_name_may_leave_out_the_word_scheduler_and_its_capitals(name: str) -> None:
    for written in (name, name.lower(), name.removesuffix("Scheduler")):
        assert resolve(written).class_name == name


@given(st.sampled_from([*FAMILIAR, *_ALIASES]), st.randoms(use_true_random=False))
def test_capitals_and_spaces_do_not_matter(name: str, dice: object) -> None:
    choose = dice.choice  # type: ignore[attr-defined]
    written = "".join(choose([char.upper(), char]) for char in name).replace(" ", choose([" ", "  ", "\t"]))
    assert canonical_name(f"  {written} ") == canonical_name(name)


def test_spellings_of_one_scheduler_give_one_digest() -> None:
    digests = {
        parse_spec({"prompt": "a cat", "scheduler": name}).digest for name in ("Euler a", "euler_a", "k_euler_a")
    }
    assert len(digests) == 1


def test_the_names_of_the_issue_are_there() -> None:
    for name in ("ddim", "dpm++ 2m karras", "euler a", "unipc", "lcm"):
        assert resolve(name).class_name in CLASS_NAMES
    assert resolve("DPM++ 2M Karras").options["use_karras_sigmas"] is True


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("eulr a", "euler a"), ("dpm++ 2m karas", "dpm++ 2m karras"), ("DDIMSchedular", "DDIMScheduler")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(InvalidSpecError, match="unknown scheduler") as caught:
        canonical_name(wrong)
    assert repr(near) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_either_resolves_or_is_refused_as_a_bad_spec(text: str) -> None:
    try:
        found = resolve(text).class_name
    except InvalidSpecError as error:
        found = str(error)
    assert found in CLASS_NAMES or found.startswith("unknown scheduler")
