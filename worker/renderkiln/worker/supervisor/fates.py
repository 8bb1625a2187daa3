"""What becomes of a job after a failure, by the failure's kind."""

from __future__ import annotations

from renderkiln.schema import errors

#: Failures that another try may not meet again. All others are the job's own fault, and final.
_PASSING = frozenset(
    error.kind
    for error in (
        errors.OutOfMemoryError,
        errors.RendererDiedError,
        errors.StoreError,
        errors.LedgerError,
    )
)

#: A job whose worker died this many times is set aside: it may be what kills them.
MAX_RESCUES = 3


def tries_again(kind: str, failures: int, max_attempts: int) -> bool:
    """Whether a job that has now failed `failures` times, last with `kind`, goes back to its queue."""
    return kind in _PASSING and failures < max_attempts
