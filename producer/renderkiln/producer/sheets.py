"""The contact sheet of a batch: its pictures side by side with their prompts, as a picture in the store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from renderkiln.home.pictures.naming import batch_folder
from renderkiln.home.pictures.read import read_metadata
from renderkiln.home.pictures.sheet import SheetEntry, contact_sheets
from renderkiln.home.store import Store
from renderkiln.schema.errors import BadInputError, StoreError

from .pictures import read
from .queue import RenderQueue


def write_contact_sheets(queue: RenderQueue, batch: str, store: str) -> list[str]:
    """Writes `contact-sheet.png` (and `-2`, `-3` … for large batches) beside the batch's pictures; their URLs.

    A batch of which nothing has ended yet gets none.
    """
    target = Store(store)
    entries = _entries(queue, batch, target)
    first = next(entries, None)
    if first is None:
        return []
    urls = []
    for page, data in enumerate(contact_sheets(chain([first], entries), title=batch), start=1):
        name = "contact-sheet.png" if page == 1 else f"contact-sheet-{page}.png"
        urls.append(target.put(f"{batch_folder(batch)}/{name}", data).url)
    return urls


def _entries(queue: RenderQueue, batch: str, own: Store) -> Iterator[SheetEntry]:
    for result in queue.results(batch):
        if result.failure is not None:
            yield SheetEntry(None, caption=f"job {result.job_id[:8]}", failed=result.failure.kind)
        for image in result.images:
            try:
                data = read(image, own)
                spec = read_metadata(data).spec
            except (StoreError, BadInputError) as error:
                yield SheetEntry(None, caption=f"image {image.index}", failed=str(error)[:60])
                continue
            yield SheetEntry(data, caption=spec.prompt if spec else "", seed=image.seed)
