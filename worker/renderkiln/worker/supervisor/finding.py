"""The pictures of a job that need not be rendered, since they are there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from renderkiln.home.ledger import Ledger
from renderkiln.home.pictures.naming import SUFFIXES
from renderkiln.home.store import Store
from renderkiln.schema.jobs import ImageResult, Job

from .spool import Spool


def find_pictures(
    job: Job,
    store: Store,
    ledger: Ledger,
    spool: Spool,
    images: dict[int, ImageResult],
    left_by_others: Callable[[Job, Store, Sequence[int]], Iterable[ImageResult]],
) -> set[int]:
    """Takes over what was recorded and is still there: of this job, here or elsewhere, or of one with the same pixels.

    Args:
        images: by k; what is found is added.
        left_by_others: see `handover`.

    Returns:
        The k of those that wait in the spool.

    Raises:
        StoreError, LedgerError: it cannot be seen just now.
    """
    # The spool first: what leaves it meanwhile is in the ledger by then.
    spooled = spool.pictures()
    for image in ledger.images_of(job.id):
        if image.k not in images and _is_there(store, image):
            images[image.k] = image
    missing = {k for k in range(job.num_images) if k not in images}
    waiting = {kept.k for kept in spooled if kept.job_id == job.id} & missing
    missing -= waiting
    for image in left_by_others(job, store, sorted(missing)):
        # Byte for byte: this may be the word of whoever can write to Redis.
        if _is_there(store, image, sha256=image.sha256):
            ledger.image_recorded(job.id, image, None)
            images[image.k] = image
            missing.discard(image.k)
    if job.again or not missing:
        return waiting
    digests = {job.image_spec(k).digest: k for k in missing}
    suffix = SUFFIXES[job.image_format]
    for digest, candidates in ledger.images_by_digest(list(digests)).items():
        for image in candidates:
            if Path(image.url).suffix == f".{suffix}" and _is_there(store, image):
                k = digests[digest]
                found = image.model_copy(update={"k": k, "index": job.index + k})
                ledger.image_recorded(job.id, found, None)
                images[k] = found
                break
    return waiting


def _is_there(store: Store, image: ImageResult, sha256: str | None = None) -> bool:
    """Whether a recorded picture is in this store. Raises StoreError where that cannot be seen now."""
    is_its_own = image.url.startswith(store.url.rstrip("/") + "/")
    return is_its_own and store.matches(image.url, size=image.size_bytes, sha256=sha256)
