"""Who is there to render: what a submission needs is compared with what live workers announce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import announce_worker, job_keys

from renderkiln.home.folder import DataFolder
from renderkiln.home.workers import live_workers
from renderkiln.producer import RenderQueue
from renderkiln.producer.fleet import Need, can_render, check_needs
from renderkiln.schema import names, parse_spec
from renderkiln.schema.errors import BadInputError, InvalidSpecError, ModelNotFoundError
from renderkiln.schema.workers import WorkerInfo

from .test_inputs import png

NOWHERE = DataFolder(Path("/nonexistent"))


def worker(*models: str, **more: Any) -> WorkerInfo:
    about = {"host": "mini", "pid": 1, "engine": "coreml", "device": "cpu", "store": "/renders", "started_at": 0}
    return WorkerInfo.model_validate({"name": "mini-1", "models": models, **about, **more})


def check(workers: list[WorkerInfo], need: Need, place: str = "") -> None:
    check_needs(workers, NOWHERE, {need: place}, local=False)


def test_live_workers_are_those_whose_sign_stands(queue: RenderQueue) -> None:
    assert live_workers(queue.connection) == []
    b = announce_worker(queue.connection, "shapes", name="b", sizes={"shapes": [[64, 64]]})
    a = announce_worker(queue.connection, name="a")
    queue.connection.set(names.worker("c"), '{"schema_version": 99}')  # a later version's
    queue.connection.zadd(names.WORKERS, {"c": 1})
    assert live_workers(queue.connection) == [a, b]
    assert b.sizes == {"shapes": ((64, 64),)}
    queue.connection.delete(names.worker("a"))
    assert live_workers(queue.connection) == [b]


@pytest.mark.parametrize(
    "sizes",
    [5, [], {"sd15": 5}, {"sd15": [[512]]}, {"sd15": [[512, 0]]}, {"../x": [[8, 8]]}, {"sd15": [["a", "b"]]}],
    ids=str,
)
def test_sizes_that_are_none_are_not_taken_and_the_worker_is_passed_over(queue: RenderQueue, sizes: Any) -> None:
    good = announce_worker(queue.connection, "sd15", name="a")
    fields = json.loads(good.model_dump_json()) | {"name": "b", "sizes": sizes}
    queue.connection.set(names.worker("b"), json.dumps(fields))
    queue.connection.zadd(names.WORKERS, {"b": 1})
    assert live_workers(queue.connection) == [good]


def test_a_model_counts_where_a_live_worker_has_it_or_this_machine_would_render(tmp_path: Path) -> None:
    folder, need = DataFolder(tmp_path), {Need("unheard-of"): ""}
    check_needs([], folder, need, local=False)
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        check_needs([], folder, need, local=True)
    check_needs([worker("unheard-of")], folder, need, local=True)
    with pytest.raises(ModelNotFoundError, match="They have: unheard-of"):
        check_needs([worker("unheard-of")], folder, {Need("another"): ""}, local=False)


def test_a_controlnet_counts_where_a_worker_that_has_the_model_has_it_too() -> None:
    need = Need("sd15", ("canny", "owner/depth"))
    both = worker("sd15", controlnets={"sd15": ["depth", "canny", "owner_depth"]})
    canny, depth = (worker("sd15", controlnets={"sd15": [name]}) for name in ("canny", "owner/depth"))
    other_model = worker("sdxl", controlnets={"sdxl": ["canny", "owner/depth"]})
    check([both], need)
    check([canny, worker("sd15")], need)  # the second does not say what it has
    check([worker("sdxl"), both], need)
    with pytest.raises(ModelNotFoundError, match=r"none of the 2 workers that have 'sd15' has all of canny, owner/dep"):
        check([canny, depth], need)
    with pytest.raises(ModelNotFoundError, match=r"ControlNet 'owner/depth' is on none of the 1 workers with 'sd15'"):
        check([canny, other_model], need)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean 'canny'\? They have: canny\."):
        check([canny], Need("sd15", ("cany",)))
    with pytest.raises(ModelNotFoundError, match="They have: none"):
        check([worker("sd15", controlnets={"sd15": []})], Need("sd15", ("canny",)))
    assert [can_render(each, need) for each in (both, canny, worker("sd15"), other_model)] == [True, False, True, False]


def test_a_controlnet_has_to_be_in_the_store_of_the_machine_that_will_render(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    for name, file in (("sd15", "model_index.json"), ("canny", "config.json"), ("apple", "model_index.json")):
        (folder.models / name).mkdir(parents=True)
        (folder.models / name / file).write_text('{"_class_name": "ControlNetModel"}')
    check_needs([], folder, {Need("sd15", ("canny",)): ""}, local=True)
    with pytest.raises(ModelNotFoundError, match=r"ControlNet 'cany' is not on this machine\. Did you mean 'canny'"):
        check_needs([], folder, {Need("sd15", ("cany",)): ""}, local=True)
    # A converted model has ControlNets of its own.
    (folder.models / "apple" / "original").mkdir()
    (folder.models / "apple" / "original" / "manifest.json").write_text("{}")
    check_needs([], folder, {Need("apple", ("owner/depth",)): ""}, local=True)


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (None, None, True),
        (512, 512, True),
        (768, 512, True),
        (512, 768, False),
        (768, 768, False),
        (512, None, True),
        (None, 512, True),
        (768, None, True),
        (None, 768, False),
        (1024, None, False),
    ],
)
def test_a_size_is_one_of_those_that_exist_and_a_side_left_out_is_the_model_s_own(
    width: int | None, height: int | None, fits: bool
) -> None:
    info = worker("sd15", sizes={"sd15": [[512, 512], [768, 512]]})
    need = Need("sd15", (), width, height)
    assert can_render(info, need) == fits
    if fits:
        check([info], need)
        return
    with pytest.raises(InvalidSpecError, match=r"renders 'sd15' in this size\. There are: 512 × 512, 768 × 512\.$"):
        check([info], need)


def test_a_size_is_refused_only_where_every_worker_that_has_the_model_is_known_not_to_have_it() -> None:
    small = worker("sd15", "shapes", sizes={"sd15": [[512, 512]]})
    large = worker("sd15", sizes={"sd15": [[768, 768], [512, 512]]})
    need = Need("sd15", (), 768, 768)
    check([small, large], need)
    check([small, worker("sd15")], need)
    check([small, worker("sd15", sizes={"sd15": []})], need)
    check([small], Need("shapes", (), 768, 768))
    with pytest.raises(InvalidSpecError, match=r"^768 × 512: .* There are: 512 × 512, 768 × 768\.$"):
        check([small, large, worker("sdxl")], Need("sd15", (), 768, 512))
    with pytest.raises(InvalidSpecError, match=r"^width 64: "):
        check([small], Need("sd15", (), 64))
    with pytest.raises(InvalidSpecError, match=r"^night\.jsonl:7:1: height 64: "):
        check([small], Need("sd15", (), None, 64), "night.jsonl:7:1")


def test_a_worker_with_the_size_but_without_the_controlnet_does_not_help() -> None:
    plain = worker("sd15", controlnets={"sd15": []})
    fixed = worker("sd15", sizes={"sd15": [[512, 512]]}, controlnets={"sd15": ["canny"]})
    check([plain, fixed], Need("sd15", ("canny",), 512, 512))
    with pytest.raises(InvalidSpecError, match="There are: 512 × 512"):
        check([plain, fixed], Need("sd15", ("canny",), 768, 768))


def test_a_text_encoder_is_refused_only_where_every_worker_with_the_model_is_known_not_to_have_it() -> None:
    mac, old = (worker("sd15", text_encoders={"sd15": each}) for each in (["system-multilingual"], []))
    plain = worker("sd15", text_encoders={"sd15": ["model"]})
    multilingual, own = Need("sd15", text_encoder="system-multilingual"), Need("sd15")
    check([old, mac], multilingual)
    check([mac, plain], own)
    check([old, worker("sd15")], multilingual)  # the second does not say
    with pytest.raises(InvalidSpecError, match=r"^text_encoder: .*'sd15' with macOS's text encoder, which takes macOS"):
        check([old, plain], multilingual)
    with pytest.raises(InvalidSpecError, match=r"^1: text_encoder: .* ask for system-multilingual\.$"):
        check([mac, old], own, "1")
    assert [can_render(each, multilingual) for each in (mac, old, plain, worker("sd15"))] == [True, False, False, True]


sides = st.none() | st.sampled_from([256, 512, 768])
sizes = st.lists(st.tuples(st.sampled_from([256, 512, 768]), st.sampled_from([256, 512, 768])), max_size=3)
nets = st.lists(st.sampled_from(["canny", "depth"]), unique=True).map(tuple)


@pytest.mark.parametrize("system", ["Darwin", "Linux"])
def test_macos_s_text_encoder_is_refused_where_the_machine_that_will_render_is_no_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    folder = DataFolder(tmp_path)
    (folder.models / "mine").mkdir(parents=True)
    (folder.models / "mine" / "model_index.json").write_text("{}")
    need = {Need("mine", text_encoder="system-multilingual"): ""}
    check_needs([], folder, need, local=False)
    if system == "Darwin":
        check_needs([], folder, need, local=True)
    else:
        with pytest.raises(InvalidSpecError, match="this machine cannot render 'mine' with macOS's text encoder"):
            check_needs([], folder, need, local=True)


encoders = st.sampled_from(["model", "system-multilingual"])
workers = st.builds(
    lambda model, size, offered, readers: worker(
        model,
        sizes={model: size},
        controlnets={} if offered is None else {model: offered},
        text_encoders={model: readers},
    ),
    st.sampled_from(["sd15", "sdxl"]),
    sizes,
    st.none() | nets,
    st.lists(encoders, unique=True),
)


@given(st.lists(workers, min_size=1, max_size=4), st.builds(Need, st.just("sd15"), nets, sides, sides, encoders))
def test_what_is_refused_is_what_no_live_worker_can_render(there: list[WorkerInfo], need: Need) -> None:
    try:
        check(there, need)
    except BadInputError:
        refused = True
    else:
        refused = False
    assert refused == (not any(can_render(each, need) for each in there))


def test_a_need_is_what_the_spec_says() -> None:
    picture = "sha256:" + "0" * 64
    asked = [{"model": name, "image": picture} for name in ("canny", "depth", "canny")]
    spec = parse_spec({"prompt": "a cat", "model": "sd15", "width": 512, "controlnets": asked})
    assert Need.of(spec) == Need("sd15", ("canny", "depth"), 512, None)
    assert Need.of(parse_spec({"prompt": "a", "text_encoder": "system-multilingual"})).text_encoder != "model"


def test_submitting_refuses_a_size_that_nobody_has_and_queues_nothing(queue: RenderQueue) -> None:
    announce_worker(queue.connection, "shapes", sizes={"shapes": [[64, 64]]}, controlnets={"shapes": ["edges"]})
    queue.submit(prompt="a cat", width=64, height=64, seed=1)
    before = job_keys(queue.connection)
    with pytest.raises(InvalidSpecError, match=r"^128 × 64: .*There are: 64 × 64"):
        queue.submit(prompt="a cat", width=128, height=64)
    with pytest.raises(InvalidSpecError, match=r"^request 2: 128 × 64"):
        queue.submit_many(
            [{"prompt": "a cat", "width": 64, "seed": 1}, {"prompt": "a dog", "width": 128, "height": 64}]
        )
    with pytest.raises(ModelNotFoundError, match="ControlNet 'depth' is on none"):
        queue.submit(prompt="a cat", controlnets=[{"model": "depth", "image": png()}])
    assert job_keys(queue.connection) == before


def test_what_this_machine_would_render_is_held_to_the_sizes_that_it_was_converted_for(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    for name in ("flat", "nested", "both", "odd"):
        (folder.models / name / "unet").mkdir(parents=True)
        (folder.models / name / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder.models / "nested" / "original").mkdir()
    for path, sizes in (("flat", [[64, 64], [96, 64]]), ("nested/original", [[64, 64]]), ("both", [[64, 64]])):
        (folder.models / path / "manifest.json").write_text(json.dumps({"sizes": sizes}))
    (folder.models / "both" / "unet" / "model.safetensors").touch()
    (folder.models / "odd" / "manifest.json").write_text('{"sizes": "large"}')

    def ask(model: str, width: int | None, height: int | None) -> None:
        check_needs([], folder, {Need(model, width=width, height=height): "list.txt:3"}, local=True)

    for model, width, height in (("flat", 96, 64), ("flat", None, None), ("both", 512, 512), ("odd", 512, 512)):
        ask(model, width, height)
    with pytest.raises(InvalidSpecError, match=r"list.txt:3: 512 × 512: 'flat' .* There are: 64 × 64, 96 × 64"):
        ask("flat", 512, 512)
    with pytest.raises(InvalidSpecError, match=r"There are: 64 × 64\."):
        ask("nested", 96, 64)


def test_an_engine_that_has_nothing_of_a_model_is_refused_where_the_worker_will_be_here(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    for name, variants in {"both": ("original", "coreai"), "plain": ()}.items():
        path = folder.models / name
        (path / "unet").mkdir(parents=True)
        (path / "model_index.json").write_text("{}")
        (path / "unet" / "diffusion_pytorch_model.safetensors").touch()
        for variant in variants:
            (path / variant).mkdir()
            (path / variant / "manifest.json").write_text(json.dumps({"variant": variant, "sizes": [[64, 64]]}))
    for engine in ("auto", "torch", "coreml", "coreai"):
        check_needs([], folder, {Need("both"): ""}, local=True, engine=engine)
        check_needs([], folder, {Need("plain"): ""}, local=False, engine=engine)
    with pytest.raises(InvalidSpecError, match=r"'plain' has something for torch only.*convert --format coreai"):
        check_needs([], folder, {Need("plain"): ""}, local=True, engine="coreai")
    (folder.models / "both" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidSpecError, match=r"has something for coreai and coreml only.*weights in diffusers"):
        check_needs([], folder, {Need("both"): ""}, local=True, engine="torch")
