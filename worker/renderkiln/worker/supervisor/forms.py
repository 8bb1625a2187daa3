"""In which form this worker renders each of its models, and what that means for jobs. Loads no model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from renderkiln.home.settings import Settings
from renderkiln.schema.errors import LedgerError, RenderkilnError
from renderkiln.schema.spec import TextEncoder
from renderkiln.worker.models.choosing import Form, Wishes, pick_form
from renderkiln.worker.protocol import FULL_PRECISION, FormName
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.apple.system import why_no_text_encoder
from renderkiln.worker.runtimes.base import ComputeUnit
from renderkiln.worker.runtimes.naming import PROJECTION, controlnet_names

log = logging.getLogger("renderkiln.supervisor")
#: What is used where a unit does not render a model rightly, in this order.
_INSTEAD: tuple[ComputeUnit, ...] = ("cpu_and_gpu", "cpu_and_ne", "cpu_only")


@dataclass(frozen=True)
class Limits:
    """What can be rendered with each model, for the worker's announcement."""

    #: The sizes, (width, height), of each model that has fixed ones.
    sizes: Mapping[str, tuple[tuple[int, int], ...]]
    #: The ControlNets of each model.
    controlnets: Mapping[str, tuple[str, ...]]
    #: Who can read the prompts of each model; see `WorkerInfo`.
    text_encoders: Mapping[str, tuple[TextEncoder, ...]]


class Forms:
    """Picks the form of a model when a job for it comes, so that a new tuning counts from the next job on.

    Args:
        find_model: a model's folder by its name; raises ModelNotFoundError.
        tuned: the variant and compute unit that the ledger has for a model; raises LedgerError.
    """

    def __init__(
        self, settings: Settings, find_model: Callable[[str], Path], tuned: Callable[[str], FormName | None]
    ) -> None:
        self._wishes = Wishes(settings.engine, settings.compute_unit, settings.variant)
        self._find_model, self._tuned = find_model, tuned
        #: The units on which a model has made broken pictures, by the model.
        self._broken: dict[str, set[str]] = {}
        #: Whether torch may be computing in half precision: what `auto` is on an accelerator, only the renderer knows.
        self._may_be_half = settings.dtype in ("float16", "bfloat16") or (
            settings.dtype == "auto" and settings.device != "cpu"
        )
        #: The models that torch renders in full precision.
        self._full: set[str] = set()

    def of(self, model: str) -> FormName | None:
        """The form, or None where torch renders the model as it is set to, or the renderer will say what is wrong."""
        try:
            form = self._pick(model)
        except RenderkilnError:
            return None
        if form is None:
            return FULL_PRECISION if model in self._full else None
        return form.variant, form.unit

    def give_up(self, model: str, why: str) -> bool:
        """Uses a model in the form that it has been in no more, if there is another to use; whether there is.

        A converted model goes to another unit; one that torch renders in half precision, to full.

        Args:
            why: what became of it.
        """
        form = self.of(model)
        if form is None and self._may_be_half:
            self._full.add(model)
            log.warning("%s is not rendered in half precision any more, but in float32: %s", model, why)
            return True
        if form is None or form == FULL_PRECISION:
            return False
        broken = self._broken.setdefault(model, set())
        if not [unit for unit in _INSTEAD if unit not in (*broken, form[1])] or form[1] == "reference":
            return False
        broken.add(form[1])
        instead = self.of(model) or form
        log.warning("%s is not rendered on %s any more, but on %s: %s", model, form[1], instead[1], why)
        return True

    def limits(self, models: Iterable[str], stored_controlnets: Sequence[str]) -> Limits:
        """What can be said of the models before they are loaded; of one that cannot be read, nothing is.

        Args:
            stored_controlnets: the names of those that torch renders with.
        """
        sizes: dict[str, tuple[tuple[int, int], ...]] = {}
        controlnets: dict[str, tuple[str, ...]] = {}
        text_encoders: dict[str, tuple[TextEncoder, ...]] = {}
        for model in models:
            try:
                form = self._pick(model)
                converted = None if form is None else manifest.read(form.folder)
            except RenderkilnError as error:
                log.warning("%s: %s", model, error)
                continue
            if converted is None:
                controlnets[model] = tuple(stored_controlnets)
                text_encoders[model] = ("model",)
            else:
                sizes[model] = converted.sizes
                controlnets[model] = controlnet_names(converted.stages)
                text_encoders[model] = _text_encoders(converted)
        return Limits(sizes, controlnets, text_encoders)

    def _pick(self, model: str) -> Form | None:
        try:
            tuned = self._tuned(model)
        except LedgerError as error:
            log.warning("what suits %s best is not known: %s", model, error)
            tuned = None
        form = pick_form(self._find_model(model), self._wishes, tuned)
        broken = self._broken.get(model, ())
        if form is not None and form.unit in broken:
            return form._replace(unit=next(unit for unit in _INSTEAD if unit not in broken))
        return form


def _text_encoders(converted: manifest.Manifest) -> tuple[TextEncoder, ...]:
    if PROJECTION not in converted.stages:
        return ("model",)
    return () if why_no_text_encoder() else ("system-multilingual",)
