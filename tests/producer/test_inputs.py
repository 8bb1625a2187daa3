"""Init images and masks: checked, named by their content, and in Redis before the job that needs them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image
from tests.fakes import FakeWorker, job_keys

from renderkiln.home.folder import DataFolder
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.producer.inputs import InputCarrier
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError, SettingsError


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(png())
    return path


def test_a_picture_travels_beside_its_job_under_its_digest(queue: RenderQueue, picture: Path) -> None:
    queue.submit(prompt="a cat", init_image=picture, mask_image=png("white"), strength=0.5)
    job = FakeWorker(queue.connection).take()
    assert job is not None
    assert job.spec.task == "inpaint"
    for reference, data in ((job.spec.init_image, png()), (job.spec.mask_image, png("white"))):
        assert reference is not None
        key = names.blob(reference.removeprefix("sha256:"))
        assert queue.connection.get(key) == data
        assert 0 < queue.connection.ttl(key) <= names.BLOB_TTL
        assert (queue.folder.blobs / reference.removeprefix("sha256:")).read_bytes() == data  # for --like


def test_the_same_picture_is_sent_once_and_before_the_first_job_that_needs_it(
    queue: RenderQueue, picture: Path
) -> None:
    sent: list[Any] = []
    write = queue.connection.set

    def watched(name: str, *arguments: Any, **options: Any) -> Any:
        sent.append((name, len(job_keys(queue.connection))))
        return write(name, *arguments, **options)

    queue.connection.set = watched  # type: ignore[method-assign]
    queue.submit_many({"prompt": f"cat {number}", "init_image": str(picture)} for number in range(600))
    assert len(sent) == 1
    assert sent[0][1] == 0


def test_a_picture_that_changes_in_between_is_another_picture(queue: RenderQueue, picture: Path) -> None:
    first = queue.inputs.add(picture)
    picture.write_bytes(png("blue") + b" ")
    assert queue.inputs.add(picture) != first


def test_a_reference_stands_for_a_picture_that_was_sent_from_here_before(queue: RenderQueue, picture: Path) -> None:
    queue.submit(prompt="a cat", init_image=picture)
    reference = queue.inputs.add(picture)
    queue.connection.flushall()
    later = InputCarrier(DataFolder(queue.settings.data_dir))
    assert later.add(reference) == reference
    later.send(queue.connection)
    assert queue.connection.get(names.blob(reference.removeprefix("sha256:"))) == png()


def test_a_reference_to_a_picture_that_is_not_here_is_refused(queue: RenderQueue) -> None:
    for reference in ("sha256:" + "0" * 64, "sha256:../../ledger.db", "sha256:"):
        with pytest.raises(ImageInputError, match="not on this machine"):
            queue.submit(prompt="a cat", init_image=reference)


def test_a_kept_picture_that_was_changed_is_refused(queue: RenderQueue, picture: Path) -> None:
    queue.submit(prompt="a cat", init_image=picture)
    (kept,) = queue.folder.blobs.iterdir()
    kept.write_bytes(png("blue"))
    with pytest.raises(ImageInputError, match="does not hold the picture"):
        InputCarrier(queue.folder).add(f"sha256:{kept.name}")


@pytest.mark.parametrize("wrong", ["missing.png", "~nobody-of-that-name/cat.png", "a\x00b", b"", b"meow", 5, "."])
def test_what_is_no_picture_is_refused_and_nothing_queued(queue: RenderQueue, wrong: Any, no_settings: Path) -> None:
    with pytest.raises(ImageInputError):
        queue.submit(prompt="a cat", init_image=wrong)
    assert queue.connection.dbsize() == 0


def test_a_list_names_the_request_whose_picture_is_missing(queue: RenderQueue, picture: Path) -> None:
    def requests() -> Iterator[dict[str, Any]]:
        yield {"prompt": "a cat", "init_image": picture}
        yield {"prompt": "a cat", "init_image": "missing.png"}

    with pytest.raises(ImageInputError, match=r"request 2: .*missing\.png"):
        queue.submit_many(requests())
    assert job_keys(queue.connection) == []


def test_a_data_folder_that_cannot_be_written_is_said_and_nothing_queued(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    client = RenderQueue(settings=settings.model_copy(update={"data_dir": tmp_path / "file" / "data"}))
    with pytest.raises(SettingsError, match=r"cannot be made.*--data-dir"):
        client.submit(prompt="a cat", init_image=png(), strength=0.5)
    assert job_keys(connection) == []
    client.close()


def test_a_kept_picture_that_a_power_cut_emptied_is_written_anew(queue: RenderQueue, picture: Path) -> None:
    queue.submit(prompt="a cat", init_image=picture, strength=0.5)
    (kept,) = queue.folder.blobs.iterdir()
    kept.write_bytes(b"")
    queue.submit(prompt="a dog", init_image=png(), strength=0.5)
    assert kept.read_bytes() == png()
