"""The form of a model that `renderkiln tune` found to be best here."""

from __future__ import annotations

from renderkiln.home.folder import DataFolder


def tuned_form(data: DataFolder, model: str) -> tuple[str, str] | None:
    """Variant and compute unit as the machine's ledger has them, None where nothing was measured.

    A ledger that is not there is not made. Raises LedgerError.
    """
    from renderkiln.home.ledger import Ledger  # imports SQLAlchemy

    if not data.ledger.exists():
        return None
    ledger = Ledger(data.ledger)
    try:
        return ledger.tuned_form(model)
    finally:
        ledger.close()
