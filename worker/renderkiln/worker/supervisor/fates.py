"""What becomes of a job after a failure, by the failure's kind; and which error a kind stands for."""

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


def error_of(kind: str) -> type[errors.RenderkilnError]:
    """The type that stands for what a renderer said: that of its kind, where a message alone makes one."""
    error = {cls.kind: cls for cls in _with_subclasses(errors.RenderkilnError)}.get(kind, errors.RenderFailedError)
    return errors.RenderFailedError if error in (errors.PromptListError, errors.JobFailedError) else error


def _with_subclasses(cls: type[errors.RenderkilnError]) -> list[type[errors.RenderkilnError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _with_subclasses(child))]
