"""Pulls a model from the Hub into the store: first what would be fetched, then fetching it.

Of a repository in Apple's layout one variant is fetched, and the small files from the original model's repository; of
one that `renderkiln convert` wrote, or in diffusers' layout, all that rendering needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from renderkiln.home.folder import DataFolder
from renderkiln.home.origin import Origin, read_origin
from renderkiln.schema.errors import BadInputError, ModelLoadError, RevisionNotFoundError

from ..runtimes import manifest as manifests
from .adopt import adopt, check_specs, say_what_reading_needs
from .apple import ORIGINALS
from .fetch import Wanted, bytes_to_fetch, fetch, full_disk_as_ours
from .hub import INDEX, REPOSITORY, Listing, list_files, safe_path, small_files
from .layout import Variant, variants
from .machine import advice
from .picking import Choice, Form, choose_files
from .store import check_complete, check_name, check_room, coming, coming_of, forget, is_held, publish, write_origin

_SHORT = 12


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    repository: str
    #: In the store; the repository's unless told.
    name: str | None = None
    revision: str | None = None
    #: The machine's unless told.
    variant: Variant | None = None
    form: Form = "packages"
    #: The repository of the small files, where ours has none and is not one of Apple's.
    original: str | None = None


@dataclass(frozen=True)
class PullPlan:
    """What would be fetched."""

    request: Request
    name: str
    listing: Listing
    choice: Choice
    wanted: tuple[Wanted, ...]
    #: Of the small files, where they are another repository's.
    original: Listing | None
    #: Whether the model is here already, and gets one more variant.
    adds: bool

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(each.file.size_bytes for each in self.wanted)

    @property
    def key(self) -> str:
        """What the folder is called that this is put together in: another commit or variant has another."""
        what = [self.listing.commit[:_SHORT], self.choice.variant or self.choice.kind, self.request.form]
        return f"{self.name}@{'-'.join(what)}"


def plan_pull(request: Request, data: DataFolder) -> PullPlan | None:
    """Asks the Hub what there is, and chooses; writes nothing. None where all of it is here already.

    Raises:
        BadInputError: there is no such model, revision or variant, or the store has another model of that name.
        ModelFetchError: the Hub cannot be reached, or refuses.
        WorkerUnavailableError: a library is missing.
    """
    check_repository(request.repository)
    name = request.name or request.repository
    check_name(data, name)
    target = data.models / name
    is_here = (target / INDEX).exists()
    if is_here:
        request = _at_what_is_here(request, name, target)
        if _is_known_to_be_here(request, target):
            return None
    listing = list_files(request.repository, request.revision)
    choice = choose_files(request.repository, listing.files, request.variant, request.form, advice().variant)
    say_what_reading_needs(map(str, choice.files.values()))
    if is_here and choice.variant in variants(target):
        return None
    wanted = [
        Wanted(listing.repository, listing.commit, listing.files[file], to) for file, to in sorted(choice.files.items())
    ]
    original = None
    if choice.kind == "apple" and not is_here:
        original = _list_original(request)
        wanted = [*wanted_small(original), *wanted]
    return PullPlan(request, name, listing, choice, tuple(wanted), original, adds=is_here)


def run_pull(
    plan: PullPlan, data: DataFolder, begin: Callable[[int, int], None], on_bytes: Callable[[int], None]
) -> Path:
    """Fetches a model and puts it into the store once it is complete and verified.

    Args:
        begin: is told how many bytes are yet to come, and how many are free, before the first is fetched.
        on_bytes: see `fetch.fetch`.

    Returns:
        The model's folder.

    Raises:
        DiskFullError: there is no room, or none was left.
        ModelFetchError: the Hub cannot be reached or refuses, or a file arrived damaged. What has arrived is kept.
        ModelLoadError: what the repository holds is no complete model, or is not what it says of itself.
    """
    target = data.models / plan.name
    with coming(data, plan.key) as folder, full_disk_as_ours(folder):
        left = bytes_to_fetch(plan.wanted, folder)
        begin(left, check_room(folder, left))
        # A manifest says whether the rest is what was asked for.
        first = [each for each in plan.wanted if each.target.name == manifests.FILE_NAME]
        files = fetch(first, folder, on_bytes)
        _check_variant(plan, folder)
        files |= fetch([each for each in plan.wanted if each not in first], folder, on_bytes)
        try:
            _check(plan, folder, target)
        except ModelLoadError:
            forget(folder)  # it is as the Hub has it, and fetching it again will not help
            raise
        origin = Origin(
            repository=plan.listing.repository,
            revision=plan.listing.commit,
            asked_for=plan.request.revision or "main",
            original=plan.original.repository if plan.original else None,
            original_revision=plan.original.commit if plan.original else None,
            files=files,
        )
        if (target / INDEX).exists():  # also where another process has put one variant there meanwhile
            _add_variant(plan, folder, target, origin)
        else:
            write_origin(origin, folder)
            publish(folder, target)
    for other in coming_of(data, plan.name):
        # Another variant of the same commit may be gone on with.
        if f"@{plan.listing.commit[:_SHORT]}" not in other.name and not is_held(other):
            forget(other)
    return target


def check_repository(name: str) -> None:
    """Sees that a repository may be called so. Raises BadInputError."""
    if not REPOSITORY.fullmatch(name):
        raise BadInputError(f"{name!r} is no name of a repository on the Hugging Face Hub; write OWNER/NAME")


def _at_what_is_here(request: Request, name: str, target: Path) -> Request:
    """The request at the commit that is here: a model's variants are all of one."""
    origin = read_origin(target)
    if origin is None or origin.repository != request.repository or origin.revision is None:
        raise BadInputError(
            f"{name} is here already, and did not come from {request.repository}; give another --name, or remove it "
            f"with `renderkiln models rm {name}`"
        )
    if request.revision is not None and not origin.is_revision(request.revision):
        raise RevisionNotFoundError(
            f"{name} is here in revision {origin.revision}; give another --name for {request.revision!r}, or remove it "
            f"with `renderkiln models rm {name}`"
        )
    return replace(request, revision=origin.revision)


def _is_known_to_be_here(request: Request, target: Path) -> bool:
    """Whether what is wanted is here, as far as that can be told without asking the Hub.

    Raises:
        BadInputError: the model that is here has no place for another variant.
    """
    here = variants(target)
    if here and target not in here.values():
        return (request.variant or advice().variant) in here
    if request.variant not in (None, *here):
        what = f"{', '.join(here)} beside its small files" if here else "weights, and no converted models"
        raise BadInputError(f"--variant {request.variant}: what is here of {request.repository} is {what}")
    return True


def _list_original(request: Request) -> Listing:
    repository = request.original or ORIGINALS.get(request.repository)
    if repository is None:
        raise BadInputError(
            f"{request.repository} holds Core ML models without tokenizer, scheduler and configs; say with --original "
            "OWNER/NAME which model it was made of"
        )
    check_repository(repository)
    try:
        listing = list_files(repository, None)
    except BadInputError as error:
        raise type(error)(
            f"{error}. Its tokenizer, scheduler and configs are needed; --original takes another"
        ) from error
    if INDEX not in listing.files:
        raise BadInputError(f"--original {repository} is no model in diffusers' layout: it has no {INDEX}")
    return listing


def wanted_small(original: Listing) -> list[Wanted]:
    """The small files of a repository in diffusers' layout."""
    repository = original.repository
    return [
        Wanted(repository, original.commit, original.files[name], safe_path(repository, name))
        for name in sorted(small_files(original.files))
    ]


def _check_variant(plan: PullPlan, folder: Path) -> None:
    """Sees that a folder that `renderkiln convert` wrote has the variant that was asked for."""
    if plan.choice.kind != "converted":
        return
    found = manifests.read(folder / (plan.choice.variant or "")).variant
    wish = plan.choice.variant or plan.request.variant
    if wish is not None and wish != found:
        raise BadInputError(f"--variant {wish}: {plan.listing.repository} does not have it; it has {found}")


def _check(plan: PullPlan, folder: Path, target: Path) -> None:
    """Sees that what has arrived is a model, and describes what has no manifest."""
    choice, listing = plan.choice, plan.listing
    if choice.kind == "apple" and choice.variant is not None:
        converted = folder / choice.variant
        (converted / manifests.FILE_NAME).unlink(missing_ok=True)  # of a run that was interrupted here
        adopt(
            converted,
            target if plan.adds else folder,
            model=listing.repository,
            revision=listing.commit,
            variant=choice.variant,
        )
    elif choice.kind == "converted":
        converted = folder / (choice.variant or "")
        manifests.load(converted, digests=True)
        check_specs(converted, folder)
    if not plan.adds:
        check_complete(folder)


def _add_variant(plan: PullPlan, folder: Path, target: Path, new: Origin) -> None:
    """Puts one more variant into a model that is here; its small files stay as they are."""
    variant, before = plan.choice.variant, read_origin(target)
    if variant is None or before is None or before.revision != new.revision or variant in variants(target):
        raise BadInputError(f"{plan.name} came to be here meanwhile; look at it with `renderkiln models show`")
    own = {name: record for name, record in new.files.items() if PurePosixPath(name).parts[0] == variant}
    # The record first: if this ends in between, verifying says what is missing, and pulling again puts it there.
    write_origin(before.model_copy(update={"files": {**before.files, **own}}), target)
    if (target / variant).exists():
        shutil.rmtree(target / variant)
    publish(folder / variant, target / variant)
    forget(folder)
