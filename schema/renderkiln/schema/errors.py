"""Every error that renderkiln raises on purpose, under one root.

A message says what happened, to what, and what to do about it. `kind` is the stable name that crosses process and
machine boundaries (in events, in the ledger, in `--json`); `exit_code` is what the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import ClassVar

#: Exit codes of the command line.
EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class RenderkilnError(Exception):
    """The root: raised only through its subclasses."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_FAILED


class BadInputError(RenderkilnError):
    """Raised when what was asked for cannot be done as it stands; nothing was queued or overwritten."""

    kind = "bad_input"
    exit_code = EXIT_BAD_INPUT


class InvalidSpecError(BadInputError):
    """Raised when a field of a render spec or a job is unknown, missing, or outside its limits."""

    kind = "invalid_spec"


class PromptListError(BadInputError):
    """Raised when a prompt list cannot be read; knows where: file, line and column (both from 1)."""

    kind = "prompt_list"

    def __init__(self, message: str, *, source: str, line: int | None = None, column: int | None = None) -> None:
        self.source, self.line, self.column = source, line, column
        where = ":".join(str(part) for part in (source, line, column) if part is not None)
        super().__init__(f"{where}: {message}")


class RecipeError(BadInputError):
    """Raised when a compression recipe cannot be read or does not fit its model; knows the field and the line."""

    kind = "recipe"

    def __init__(
        self, message: str, *, source: str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        self.message, self.source, self.line, self.field = message, source, line, field
        place = ":".join(str(part) for part in (source, line) if part is not None)
        where = ", ".join(part for part in (place, field) if part)
        super().__init__(f"{where}: {message}" if where else message)


class ModelNotFoundError(BadInputError):
    """Raised when no model of that name is on this machine, or on any worker that is up."""

    kind = "model_not_found"


class RevisionNotFoundError(ModelNotFoundError):
    """Raised when a model is known and the revision that was asked for is not, or is not the one that is here."""

    kind = "revision_not_found"


class ModelFetchError(RenderkilnError):
    """Raised when a model cannot be fetched from the Hub; what has arrived is kept for the next try."""

    kind = "model_fetch"


class HubUnavailableError(ModelFetchError):
    """Raised when the Hub cannot be reached, or must not be (HF_HUB_OFFLINE)."""

    kind = "hub_unavailable"
    exit_code = EXIT_UNAVAILABLE


class ModelAccessError(ModelFetchError):
    """Raised when the Hub refuses a model to us: no token, or one that is not valid or may not read it."""

    kind = "model_access"
    exit_code = EXIT_BAD_INPUT


class ModelGatedError(ModelAccessError):
    """Raised when a model's owner wants its terms agreed to first."""

    kind = "model_gated"


class CorruptFileError(ModelFetchError):
    """Raised when a file is not what the Hub, or our own record of it, says it is."""

    kind = "corrupt_file"


class DiskFullError(RenderkilnError):
    """Raised when a disk has, or would have, no room for what is to be written."""

    kind = "disk_full"


class UnsupportedModelError(BadInputError):
    """Raised when a model is of a kind that cannot be converted, or in a format that is not read, such as a pickle."""

    kind = "unsupported_model"


class ImageInputError(BadInputError):
    """Raised when a picture that a job starts from is missing, too large, or not a picture."""

    kind = "image_input"


class SettingsError(BadInputError):
    """Raised when a setting, from the environment or from renderkiln.toml, is not valid."""

    kind = "settings"


class NotFoundError(BadInputError):
    """Raised when a job, a batch or a picture that was named is not known."""

    kind = "not_found"


class ServerUnavailableError(RenderkilnError):
    """Raised when Redis (or the embedded server) cannot be reached or refuses us."""

    kind = "server_unavailable"
    exit_code = EXIT_UNAVAILABLE


class LedgerError(RenderkilnError):
    """Raised when the ledger cannot be opened, migrated or written.

    Attributes:
        is_full: its disk has no room, which is no fault of the ledger and over when there is some.
    """

    kind = "ledger"
    exit_code = EXIT_UNAVAILABLE

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        self.is_full = is_full
        super().__init__(message)


class StoreError(RenderkilnError):
    """Raised when the store, where pictures go, cannot be read or written.

    Attributes:
        is_full: its disk has no room, or its quota is used up: it will take pictures again when there is some.
    """

    kind = "store"

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        self.is_full = is_full
        super().__init__(message)


class WorkerUnavailableError(RenderkilnError):
    """Raised when a worker is needed on this machine and cannot be started."""

    kind = "worker_unavailable"
    exit_code = EXIT_UNAVAILABLE


class MissingExtraError(RenderkilnError):
    """Raised when something needs a library that the base install leaves out; says which extra brings it."""

    kind = "missing_extra"
    exit_code = EXIT_UNAVAILABLE


class RenderFailedError(RenderkilnError):
    """Raised when rendering went wrong in a way that no other type names."""

    kind = "render_failed"


class BadImageError(RenderFailedError):
    """Raised when the model gave NaN or an all-black picture: a failure, never a result."""

    kind = "bad_image"


class SafetyFilteredError(RenderFailedError):
    """Raised when the model's safety checker hid the picture."""

    kind = "safety_filtered"


class OutOfMemoryError(RenderFailedError):
    """Raised when memory, the machine's or the accelerator's, ran out."""

    kind = "out_of_memory"


class ModelTooLargeError(OutOfMemoryError):
    """Raised when a model could not be rendered in the memory that there is, even stage by stage; nothing was tried."""

    kind = "model_too_large"
    exit_code = EXIT_BAD_INPUT


class ModelLoadError(RenderFailedError):
    """Raised when a model folder is there but cannot be loaded: a file is missing, truncated or of no known kind."""

    kind = "model_load"


class PredictionError(RenderFailedError):
    """Raised when a converted model cannot be run on what it was given: a wrong name, shape or dtype."""

    kind = "prediction"


class UnsupportedOpError(ModelLoadError):
    """Raised when a converted model holds an operation that this runtime does not know; names it, never guesses."""

    kind = "unsupported_op"


class ConversionError(RenderkilnError):
    """Raised when a model cannot be converted; nothing half-written is left."""

    kind = "conversion"


class ConversionCheckError(ConversionError):
    """Raised when a converted stage differs too much from its original; names the stage, the number and the output."""

    kind = "conversion_check"


class CompressionError(ConversionError):
    """Raised when a converted model cannot be made smaller; nothing half-written is left."""

    kind = "compression"


class MeasurementError(RenderkilnError):
    """Raised when a model was to be measured and does not render rightly here in any form that was tried."""

    kind = "measurement"


class RendererDiedError(RenderFailedError):
    """Raised when the renderer process ended in mid-job, by a crash or by the system's memory killer.

    Attributes:
        signal: the number of the signal that ended it, if one did.
    """

    kind = "renderer_died"

    def __init__(self, message: str, *, signal: int | None = None) -> None:
        self.signal = signal
        super().__init__(message)


class DeadlinePassedError(RenderFailedError):
    """Raised when a job took longer than its timeout."""

    kind = "deadline_passed"


class JobFailedError(RenderFailedError):
    """Raised to a waiting client when its job failed; carries the failure's kind in `failure_kind`."""

    kind = "job_failed"

    def __init__(self, message: str, failure_kind: str) -> None:
        self.failure_kind = failure_kind
        super().__init__(message)


class CanceledError(RenderkilnError):
    """Raised when a person canceled the job."""

    kind = "canceled"


class WaitTimeoutError(RenderkilnError):
    """Raised when a wait for jobs ended before they did."""

    kind = "wait_timeout"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to a misspelt one, best first; may be empty."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    hits = difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.4)
    return [by_folded[hit] for hit in hits]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean …?` with the nearest names, or an empty string."""
    names = nearest(name, known)
    return f" Did you mean {' or '.join(repr(hit) for hit in names)}?" if names else ""


def error_of(kind: str, otherwise: type[RenderkilnError]) -> type[RenderkilnError]:
    """The type of error that another process named; `otherwise` if there is none, or it wants more than a message."""
    error = next((cls for cls in _with_subclasses(RenderkilnError) if cls.kind == kind), otherwise)
    return otherwise if error in (PromptListError, JobFailedError) else error


def _with_subclasses(cls: type[RenderkilnError]) -> Iterator[type[RenderkilnError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _with_subclasses(child)
