"""Jobs go in at one end and pictures come out at the other, through real processes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from renderkiln.home.pictures.read import read_metadata
from renderkiln.producer import RenderQueue
from renderkiln.schema.jobs import JobStatus

from .conftest import House


def test_a_job_becomes_pictures_rows_and_a_result(house: House) -> None:
    job = house.submit(seed=7, num_images=2)
    worker = house.start_worker("--burst")
    result = house.queue.wait(job, timeout=90)

    assert [image.seed for image in result.images] == [7, 8]
    for image in result.images:
        data = Path(image.url).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image.sha256
        assert len(data) == image.size_bytes
        spec = read_metadata(data).spec
        assert spec is not None
        assert spec.digest == image.digest
        assert (spec.prompt, spec.seed) == ("a red circle", image.seed)
    assert worker.wait(30) == 0
    ledger = house.ledger()
    recorded = ledger.result(job.id)
    assert recorded is not None
    assert recorded.status is JobStatus.FINISHED
    assert recorded.images == result.images
    assert {image.notes for image in recorded.images} == {()}
    counts = ledger.counts()
    assert (counts["jobs"], counts["attempts"], counts["images"], counts["workers"]) == (1, 1, 2, 1)
    ledger.close()


def test_the_same_job_anew_gives_the_same_bytes_and_is_not_rendered_twice(house: House) -> None:
    first = house.submit(seed=3)
    house.start_worker()
    before = house.queue.wait(first, timeout=90).images[0]
    assert house.submit(seed=3).outcome == "done"

    anew = house.submit(seed=3, again=True)
    after = house.queue.wait(anew, timeout=60).images[0]
    assert anew.id != first.id
    assert after.url != before.url
    assert Path(after.url).read_bytes() == Path(before.url).read_bytes()

    # A job that asks for one picture more takes over the one that is there, and renders the other.
    more = house.queue.wait(house.submit(seed=3, num_images=2), timeout=60)
    assert more.images[0].url in (before.url, after.url)
    ledger = house.ledger()
    assert ledger.counts()["images"] == 4
    ledger.close()

    # A file that is gone is rendered again, and only that one.
    Path(more.images[1].url).unlink()
    missing = house.submit(seed=3, num_images=2)
    assert missing.outcome == "queued"
    back = house.queue.wait(missing, timeout=60)
    assert hashlib.sha256(Path(back.images[1].url).read_bytes()).hexdigest() == more.images[1].sha256


def test_a_worker_elsewhere_renders_what_a_url_submits(house: House) -> None:
    url = f"unix://{house.folder.socket}"
    client = RenderQueue(url)
    batch = client.submit_many({"prompt": f"shape {n}", "model": "tiny", "num_inference_steps": 1} for n in range(5))
    house.start_worker(pretends=True)
    results = list(client.as_completed(batch, timeout=90))
    assert len(results) == 5
    assert {result.status for result in results} == {JobStatus.FINISHED}
    names = sorted(Path(result.images[0].url).name for result in results)
    assert [name[:5] for name in names] == ["00000", "00001", "00002", "00003", "00004"]
    assert client.status(batch).finished == 5  # type: ignore[union-attr]
    client.close()


def test_the_supervisor_never_loads_torch(house: House) -> None:
    job = house.submit()
    worker = house.start_worker()
    house.queue.wait(job, timeout=90)
    (renderer,) = house.children(worker)
    supervisor_maps = Path(f"/proc/{worker.pid}/maps")
    if not supervisor_maps.exists():  # macOS has no /proc; import-linter holds there as well
        return
    assert "libtorch" not in supervisor_maps.read_text()
    assert "libtorch" in Path(f"/proc/{renderer}/maps").read_text()


def test_a_model_that_gives_nan_fails_and_never_finishes(house: House) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from tests.engine import models

    broken = house.folder.models / "broken"
    models.save_sd(broken)
    weights = next((broken / "vae").glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(name for name in tensors if name.startswith("decoder.conv_out"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, weights)

    job = house.queue.submit(prompt="a red circle", model="broken", num_inference_steps=1)
    good = house.submit()
    house.start_worker("--model", "broken")
    results = {result.job_id: result for result in house.queue.as_completed([job, good], timeout=90)}
    bad = results[job.id]
    assert bad.status is JobStatus.FAILED
    assert bad.images == ()
    assert bad.failure is not None
    assert bad.failure.kind == "bad_image"
    assert results[good.id].status is JobStatus.FINISHED
    assert not list(house.pictures.rglob(f"*{job.batch}*/*.png"))
