"""What a picture's file is called: sorted by its place in the batch, told apart by seed and digest.

A name is made of digits, lowercase ASCII letters and hyphens alone, whatever the prompt holds: it is the same
on every file system and can never lead out of its folder.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from renderkiln.schema.errors import BadInputError
from renderkiln.schema.jobs import ImageFormat, Job

MAX_SLUG = 60
UNTITLED = "untitled"
SUFFIXES: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}

#: Characters of a prompt that are looked at: far more than a slug needs, far less than a prompt may have.
_PROMPT_HEAD = 1000
_BATCH = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
#: Device names that Windows, and so a share that Windows serves, will not have as a folder, with any suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def slug(prompt: str) -> str:
    """The prompt's first words in lowercase ASCII, joined by hyphens: 1 to 60 characters of `[a-z0-9-]`."""
    folded = unicodedata.normalize("NFKD", prompt[:_PROMPT_HEAD].casefold())
    # Marks go first, so that an accent cannot split a word; what is left and is not ASCII separates words.
    bare = "".join(char for char in folded if not unicodedata.combining(char))
    kept = ""
    for word in re.findall(r"[a-z0-9]+", bare):
        longer = f"{kept}-{word}" if kept else word
        if len(longer) > MAX_SLUG:
            break
        kept = longer
    if kept:
        return kept
    first = re.search(r"[a-z0-9]+", bare)
    return first.group()[:MAX_SLUG] if first else UNTITLED


def batch_name(text: str) -> str:
    """The beginning of a batch's id, made of a prompt or a list's name: 1 to 40 characters of `[a-z0-9-]`."""
    return slug(text)[:40].strip("-")


def file_name(index: int, seed: int, digest: str, prompt: str, image_format: ImageFormat) -> str:
    """`00012-4711-a-small-red-heart-1f2e3d4c.png`: the same for one image of a batch, other for any other.

    `index` is the image's number in its batch; `seed` and `digest` (64 hex digits) are those of its spec.
    """
    return f"{index:05d}-{seed}-{slug(prompt)}-{digest[:8]}.{SUFFIXES[image_format]}"


def batch_folder(batch_id: str) -> str:
    """The folder of a batch within a store: its id, made safe where a file system would not take it as it is.

    Raises:
        BadInputError: it is no batch id.
    """
    if not _BATCH.fullmatch(batch_id):
        raise BadInputError(f"{batch_id!r} is not a batch id: at most 80 of a-z, 0-9, '.', '_', '-'")
    if not batch_id.endswith(".") and not _DEVICE.fullmatch(batch_id):
        return batch_id
    # The hash keeps `a.` apart from `a`; a plain suffix might be another batch's id.
    return f"{batch_id.rstrip('.').replace('.', '-')}-{hashlib.sha256(batch_id.encode()).hexdigest()[:8]}"


def picture_name(job: Job, k: int) -> str:
    """Where image `k` of a job lies within a store. Raises BadInputError where the job's batch is none."""
    spec = job.image_spec(k)
    name = file_name(job.index + k, spec.seed, spec.digest, spec.prompt, job.image_format)
    return f"{batch_folder(job.batch)}/{name}"
