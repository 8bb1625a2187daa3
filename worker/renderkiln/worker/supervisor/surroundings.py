"""What attempts need besides their job, and how they open a job's store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store, named_store
from renderkiln.schema.errors import UnsupportedHereError
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.worker.protocol import FormName, MemoryOrder, Ready, Step

from .child import Renderer
from .delivery import Places
from .outcomes import Beat
from .pausing import Pause
from .signals import Signals


@dataclass(frozen=True)
class Surroundings:
    """What attempts need besides the job: made once per worker."""

    ledger: Ledger
    renderer: Renderer
    signals: Signals
    store: str
    may_name_store: bool
    job_timeout: float
    #: Where pictures wait, and for how long store, ledger and Redis are tried again.
    places: Places
    pause: Pause
    #: Has what is in the spool brought to its store, if that is there.
    urge: Callable[[], None]
    inputs: Callable[[Job], Mapping[str, bytes]]
    #: Which of these images of a job, which somebody may have begun before, were left in a store: see `handover`.
    left_by_others: Callable[[bool, Job, Store, Sequence[int]], Iterable[ImageResult]]
    #: In which form a model is to be rendered now; None where that is for the renderer to say.
    form_of: Callable[[str], FormName | None]
    #: Told that a model's pictures came out broken; whether there is another form to try.
    give_up_form: Callable[[str, str], bool]
    #: How much memory a model may take, in a form.
    memory_of: Callable[[str, FormName | None], MemoryOrder]
    #: The specs, as JSON, of jobs that wait for the same model.
    ahead_of: Callable[[Job], tuple[str, ...]]
    #: Told that memory ran out while a model was loaded before there was a job for it, and how that showed.
    warm_up_ran_out: Callable[[str], None]
    on_ready: Callable[[Ready], None]
    on_step: Callable[[Job, Step], None]
    on_image: Callable[[Job, ImageResult], None]
    #: Called about every second.
    heartbeat: Callable[[], Beat]

    def is_own(self, store: str | None) -> bool:
        """Whether a job's `store` is the worker's own."""
        return store is None or store == self.store

    def open_store(self, store: str | None) -> Store:
        """The store that a job names; None: the worker's own. Nothing is looked at yet.

        Raises:
            UnsupportedHereError: this worker may not write there. StoreError: nothing knows such a store.
        """
        if not self.is_own(store) and not self.may_name_store:
            raise UnsupportedHereError(
                f"this worker writes to its own store only, not to {store!r} (its setting store_policy is 'own')."
            )
        return Store(self.store) if store is None or store == self.store else named_store(store)
