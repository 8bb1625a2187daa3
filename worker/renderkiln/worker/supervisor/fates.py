"""What becomes of a job after a failure, by the failure's kind: the table of docs/failures.md. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from renderkiln.schema import errors
from renderkiln.schema.errors import RenderkilnError

#: A job whose worker died this many times is set aside: it may be what kills them.
MAX_RESCUES = 3


class Where(Enum):
    """Who tries a job next."""

    NOWHERE = "nowhere"
    ANYWHERE = "anywhere"
    #: For a while its worker alone, which may still hold the pictures that it could not deliver.
    HERE_FIRST = "here first"
    #: A worker that has not failed it, as long as one that has the model is alive; else whoever takes it.
    ELSEWHERE_FIRST = "elsewhere first"
    #: The same, but nobody where there is none: it would fail here again in the same way.
    ELSEWHERE_ONLY = "elsewhere only"


@dataclass(frozen=True)
class Waits:
    """How long a job waits before its next try, in seconds: at most `base`, then `growth` times that, up to `cap`."""

    base: float = 0.0
    growth: float = 1.0
    cap: float = 0.0

    def longest(self, failures: int) -> float:
        """The most that a job waits after so many failures."""
        # The exponent is bounded, as a float is.
        return min(self.cap, self.base * self.growth ** min(max(0, failures - 1), 30))


@dataclass(frozen=True)
class Fate:
    """What one kind of failure means for its job."""

    where: Where
    waits: Waits = Waits()
    #: Failures of the job, of whatever kind, after which this one is final; None: as many as its `max_attempts`.
    at_most: int | None = None
    #: Whether it uses up none of the job's attempts.
    is_free: bool = False

    @property
    def is_jobs_own(self) -> bool:
        """Whether the job is to blame, and no worker."""
        return self.where is Where.NOWHERE

    def is_final(self, failures: int, max_attempts: int, *, elsewhere: bool) -> bool:
        """Whether a job that has now failed `failures` times is given up.

        Args:
            failures: those that used up an attempt, this one among them if it does.
            elsewhere: whether a worker is alive that has the model and has not failed the job.
        """
        if self.where is Where.NOWHERE or (self.where is Where.ELSEWHERE_ONLY and not elsewhere):
            return True
        return not self.is_free and failures >= min(max_attempts, self.at_most or max_attempts)

    def wait(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """Seconds until the next try: all of it is chance, so that jobs that failed at once do not come back at once.

        Args:
            uniform: a random number between two, such as `random.uniform`.
        """
        return uniform(0.0, self.waits.longest(failures))


_SOON = Waits(1.0, 4.0, 60.0)
_FINAL = Fate(Where.NOWHERE)
_NOT_HERE = Fate(Where.ELSEWHERE_ONLY, is_free=True)
_AWAY = Waits(2.0, 4.0, 300.0)

_BY_ERROR: dict[type[RenderkilnError], Fate] = {
    # What was asked for cannot be done.
    errors.BadInputError: _FINAL,
    errors.InvalidSpecError: _FINAL,
    errors.ImageInputError: _FINAL,
    errors.SafetyFilteredError: _FINAL,
    errors.CanceledError: _FINAL,
    # It cannot be done here.
    errors.ModelNotFoundError: _NOT_HERE,
    errors.RevisionNotFoundError: _NOT_HERE,
    errors.ModelLoadError: _NOT_HERE,
    errors.UnsupportedOpError: _NOT_HERE,
    errors.UnsupportedModelError: _NOT_HERE,
    errors.ModelTooLargeError: _NOT_HERE,
    errors.MissingExtraError: _NOT_HERE,
    errors.SettingsError: _NOT_HERE,
    errors.UnsupportedHereError: _NOT_HERE,
    # The same seed gives the same picture in the same form, so nothing is gained by another try here.
    errors.BadImageError: Fate(Where.ELSEWHERE_ONLY),
    # It may well be done another time.
    errors.OutOfMemoryError: Fate(Where.ELSEWHERE_FIRST, Waits(5.0, 3.0, 120.0)),
    errors.RendererDiedError: Fate(Where.ELSEWHERE_FIRST, _SOON),
    errors.DiskFullError: Fate(Where.ELSEWHERE_FIRST, Waits(10.0, 3.0, 300.0)),
    errors.StoreError: Fate(Where.HERE_FIRST, _AWAY),
    errors.LedgerError: Fate(Where.HERE_FIRST, _AWAY),
    errors.ServerUnavailableError: Fate(Where.ANYWHERE, _AWAY),
    # It may, and if it is not, that is known after one more try.
    errors.RenderFailedError: Fate(Where.ELSEWHERE_FIRST, _SOON, at_most=2),
    errors.PredictionError: Fate(Where.ELSEWHERE_FIRST, _SOON, at_most=2),
    errors.DeadlinePassedError: Fate(Where.ELSEWHERE_FIRST, at_most=2),
}

#: By the failure's kind.
FATES: dict[str, Fate] = {error.kind: fate for error, fate in _BY_ERROR.items()}


def _kinds(found: Iterable[type[RenderkilnError]]) -> frozenset[str]:
    return frozenset(error.kind for error in found)


#: Seconds that no failure makes a job wait: whoever finds one that is to wait longer has another clock.
NO_WAIT_IS_LONGER = 2 * max(fate.waits.cap for fate in FATES.values())

#: The kinds that no attempt ends with: they are said to whoever asks, converts, measures or fetches.
NO_ATTEMPT_ENDS_WITH = _kinds(
    (
        errors.RenderkilnError,
        errors.PromptListError,
        errors.RecipeError,
        errors.ModelFetchError,
        errors.HubUnavailableError,
        errors.ModelAccessError,
        errors.ModelGatedError,
        errors.CorruptFileError,
        errors.NotFoundError,
        errors.WorkerUnavailableError,
        errors.ConversionError,
        errors.ConversionCheckError,
        errors.CompressionError,
        errors.MeasurementError,
        errors.JobFailedError,
        errors.WaitTimeoutError,
    )
)


def fate_of(kind: str) -> Fate:
    """The fate of a kind; one that is not in the table is taken for `render_failed`."""
    return FATES.get(kind, FATES[errors.RenderFailedError.kind])
