"""Keeping the pictures that waiting jobs start from: Redis holds the only other copy."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import redis
import sqlalchemy as sa

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.pictures.inputs import check_input_bytes
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError, InvalidSpecError, StoreError
from renderkiln.schema.spec import parse_spec
from renderkiln.schema.tables import JobRow

log = logging.getLogger("renderkiln.hub")


def keep_pictures(ledger: Ledger, connection: redis.Redis, folder: DataFolder, job_ids: Sequence[str]) -> int:
    """Copies the pictures of these jobs from Redis into the data folder, by their content; how many were new.

    One that cannot be kept is said in the log: the job itself goes on.
    """
    with ledger.reading() as session:
        specs = session.scalars(sa.select(JobRow.job["spec"]).where(JobRow.id.in_(job_ids))).all()
    wanted: set[str] = set()
    for spec in specs:
        if any(spec.get(name) for name in ("init_image", "mask_image", "controlnets")):
            try:
                wanted.update(parse_spec(spec).pictures)
            except InvalidSpecError:
                continue
    kept = 0
    for reference in sorted(wanted):
        sha256 = reference.removeprefix("sha256:")
        try:
            store = Store(folder.blobs)
            if store.matches(store.url_of(sha256), sha256=sha256):
                continue
            data = connection.get(names.blob(sha256))
            if isinstance(data, bytes) and check_input_bytes(data, reference[:23]).ref == reference:
                store.put(sha256, data)
                kept += 1
        except (ImageInputError, StoreError) as error:
            log.warning("the picture %s… cannot be kept: %s", reference[:23], error)
    return kept
