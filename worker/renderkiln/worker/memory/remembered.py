"""Under which names the ledger keeps what was learned of memory on this machine, and what these mean in words."""

from __future__ import annotations

from renderkiln.home.settings import Settings

from .sizes import default_budget

#: What each step of `planning.tighten` does, as the rest of a sentence.
STEPS = {
    1: "a quarter less is kept in memory",
    2: "only the stage at work is kept in memory",
    3: "only the stage at work is kept in memory, and pictures are decoded in tiles",
}


def budget_of(settings: Settings, total_bytes: int) -> int:
    """What a renderer may take, in bytes. `total_bytes`: of this machine, or of the part of it that may be used."""
    return int(settings.memory_budget) if settings.memory_budget else default_budget(total_bytes)


def learned_under(policy: str, budget_bytes: int) -> str:
    """Under which settings a step was learned: more memory, or another policy, makes it void."""
    return f"{policy} {budget_bytes}"


def in_words(learned: str) -> str:
    """What `learned_under` wrote, for people: `auto with 6.0 GB`."""
    policy, _, budget = learned.partition(" ")
    return f"{policy} with {int(budget) / 1e9:.1f} GB" if budget.isascii() and budget.isdigit() else learned


def form_text(settings: Settings, form: tuple[str, str] | None) -> str:
    """The form in which stages were measured: variant and compute unit, or, where it is None, how torch was set."""
    return f"torch {settings.dtype} {settings.device}" if form is None else " ".join(form)
