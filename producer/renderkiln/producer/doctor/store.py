"""The store: whether pictures can be written where they go."""

from __future__ import annotations

from renderkiln.home.checkup import Finding, ok, problem
from renderkiln.home.settings import Settings
from renderkiln.home.store import Store
from renderkiln.schema.errors import StoreError

from .folder import Place, look_at


def check_store(settings: Settings) -> list[Finding]:
    """Writes, reads and removes a small file where the store is there; makes no folder."""
    try:
        store = Store(settings.out)
        if store.folder is not None:
            place = look_at(store.folder)
            if not place.exists:
                return [judge_missing(place)]
        store.check()
    except StoreError as error:
        return [problem("store", str(error), "give another with --out, or set RENDERKILN_OUT")]
    return [ok("store", f"{store.url} can be written", url=store.url)]


def judge_missing(place: Place) -> Finding:
    """A folder that is to be a store, and is not there yet."""
    facts = {"url": str(place.wanted)}
    if place.is_folder and place.is_writable:
        return ok("store", f"{place.wanted} is made when it is needed", **facts)
    why = "cannot be written" if place.is_folder else "is a file"
    says = f"{place.wanted} cannot be made: {place.there} {why}"
    return problem("store", says, "give another with --out, or set RENDERKILN_OUT", **facts)
