"""Bad input: exit code 2, a message that says what to do, and nothing queued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes import announce_worker, job_keys

from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings

from .conftest import Run


def line_seven(folder: Path) -> list[str]:
    lines = [json.dumps({"prompt": f"cat {number}"}) for number in range(10)]
    lines[6] = json.dumps({"prompt": "cat", "guidence_scale": 5})
    (folder / "list.jsonl").write_text("\n".join(lines))
    return ["list.jsonl"]


def huge_picture(folder: Path) -> list[str]:
    with (folder / "huge.png").open("wb") as file:
        file.truncate(200_000_000)
    return ["a cat", "--init-image", "huge.png"]


def folder_as_list(folder: Path) -> list[str]:
    (folder / "prompts.txt").mkdir()
    return ["prompts.txt"]


def store_in_a_list(folder: Path) -> list[str]:
    (folder / "list.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "store": "nowhere://x"}\n')
    return ["list.jsonl"]


def empty_list(folder: Path) -> list[str]:
    (folder / "empty.txt").write_text("# nothing but a remark\n\n")
    return ["empty.txt"]


def not_a_picture(folder: Path) -> list[str]:
    (folder / "cat.png").write_text("meow")
    return ["a cat", "--init-image", "cat.png"]


def words(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda _folder: list(arguments)


CASES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "unknown field in line 7": (line_seven, ["list.jsonl:7:", "'guidence_scale'", "Did you mean 'guidance_scale'"]),
    "seed of -1": (words("a cat", "--seed", "-1"), ["seed", "-1", "greater than or equal to 0"]),
    "seed that is no number": (words("a cat", "--seed", "seven"), ["--seed 'seven'", "0 to 4294967295", "random"]),
    "missing init image": (words("a cat", "--init-image", "no.png"), ["'no.png' does not exist"]),
    "200 MB picture": (huge_picture, ["'huge.png' has 200.0 MB", "32.0 MB"]),
    "text as a picture": (not_a_picture, ["cat.png", "not a picture"]),
    "home of nobody": (words("a cat", "--init-image", "~nobody-of-that-name/x.png"), ["nobody-of-that-name"]),
    "unknown scheduler": (words("a cat", "--scheduler", "eulr a"), ["unknown scheduler 'eulr a'", "'euler a'"]),
    "folder as a list": (folder_as_list, ["prompts.txt", "is a folder"]),
    "list that is not there": (words("nowhere.txt"), ["nowhere.txt", "no such file"]),
    "empty list": (empty_list, ["empty.txt", "no prompts"]),
    "no prompt at all": (words(), ["nothing to render"]),
    "side of 12": (words("a cat", "--width", "12"), ["width = 12", "multiple of 8"]),
    "1001 steps": (words("a cat", "--num-inference-steps", "1001"), ["num_inference_steps = 1001", "1000"]),
    "60 steps of LCM": (
        words("a cat", "--scheduler", "lcm", "--sweep", "num_inference_steps=4,60"),
        ["prompt:1:1:", "'lcm' makes at most 50 steps"],
    ),
    "unknown field of a sweep": (words("a cat", "--sweep", "guidence_scale=1,2"), ["guidence_scale"]),
    "label without a value": (words("a cat", "--label", "mine"), ["--label 'mine'", "NAME=VALUE"]),
    "unknown priority": (words("a cat", "--priority", "urgent"), ["priority", "'high', 'normal' or 'low'"]),
    "model that is a path": (words("a cat", "--model", "../x"), ["model = '../x'"]),
    "bytes that are no text": (words(os.fsdecode(b"caf\xe9")), ["prompt"]),
    "store of nobody": (words("a cat", "--out", "~nobody-of-that-name/x"), ["nobody-of-that-name"]),
    "store of no file system": (words("a cat", "--out", "s4://me:secret@x/y"), ["s4://me:***@x/y", "'s3'"]),
    "store of no file system in a list": (store_in_a_list, ["list.jsonl:2:", "store: ", "'nowhere'"]),
    "picture to go by that is missing": (words("--like", "no.png"), ["'no.png' does not exist"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["submit", "render"])
def test_it_is_refused_before_a_server_is_even_started(
    run: Run, alone: EmbeddedServer, no_settings: Path, case: str, command: str
) -> None:
    make, expected = CASES[case]
    arguments = make(no_settings)
    if command == "render" and ("--like" in arguments or not arguments):
        arguments = ["--scheduler", "x", *[each for each in arguments if each != "--like"], "a cat"]
        expected = ["scheduler"]
    said = run(command, *arguments)
    assert said.code == 2
    assert said.out == ""
    for words in expected:
        assert words in said.err
    assert not alone.status().running


def test_a_store_that_cannot_be_written_is_said_before_anything_is_queued(
    run: Run, alone: EmbeddedServer, no_settings: Path
) -> None:
    (no_settings / "file").write_text("in the way")
    said = run("render", "a cat", "--out", "file/pictures")
    assert (said.code, said.out) == (1, "")
    assert "a file is where a folder should be" in said.err
    assert not alone.status().running


def test_a_model_that_is_not_there_is_refused_and_nothing_queued(run: Run, alone: EmbeddedServer) -> None:
    said = run("submit", "a cat", "--model", "nowhere-to-be-found")
    assert (said.code, said.out) == (2, "")
    assert "model 'nowhere-to-be-found' is not on this machine" in said.err
    assert alone.status().keys == 0


def test_a_model_that_no_worker_of_the_fleet_has_is_refused(run: Run, fleet: Settings, server: EmbeddedServer) -> None:
    announce_worker(server.client(), "dreamshaper-8")
    said = run("submit", "a cat", "--model", "dreamshaper8")
    assert said.code == 2
    assert "Did you mean 'dreamshaper-8'" in said.err
    assert job_keys(server.client()) == []


def test_one_wrong_line_among_many_keeps_all_of_them_back(
    run: Run, fleet: Settings, server: EmbeddedServer, no_settings: Path
) -> None:
    lines = [json.dumps({"prompt": f"cat {number}"}) for number in range(1500)]
    (no_settings / "list.jsonl").write_text("\n".join([*lines, '{"prompt": "x", "seed": -1}']))
    said = run("submit", "list.jsonl")
    assert said.code == 2
    assert "list.jsonl:1501:" in said.err
    assert server.status().keys == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sumbit", "a cat"], "Did you mean 'submit'"),
        (["submit", "a cat", "--sede", "7"], "--seed"),
        (["schema", "spek"], "Did you mean 'spec'"),
        (["submit", "a cat", "--num-images", "many"], "'--num-images'"),
        (["status", "--data-dir", "~nobody-of-that-name/x"], "nobody-of-that-name"),
    ],
)
def test_a_misspelt_command_option_or_name_is_said_with_the_nearest(
    run: Run, alone: EmbeddedServer, arguments: list[str], expected: str
) -> None:
    said = run(*arguments)
    assert said.code == 2
    assert expected in said.err
    assert not alone.status().running


@pytest.mark.parametrize("command", ["status", "results", "cancel", "retry", "watch"])
def test_a_batch_that_nobody_knows_is_an_error(run: Run, fleet: Settings, command: str) -> None:
    said = run(command, "cats-1")
    assert said.code == 2
    assert "'cats-1'" in said.err
    assert "renderkiln status" in said.err


def test_a_server_that_is_not_there_ends_with_3(run: Run, no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERKILN_REDIS_URL", f"unix://{no_settings}/nobody.sock")
    said = run("status")
    assert said.code == 3
    assert "does not answer" in said.err


def test_a_redis_that_fails_in_mid_command_ends_with_3_and_one_line(
    run: Run, fleet: Settings, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It answers, and then refuses what the command needs.
    allowed = ["+ping", "+hello", "+select", "+client"]
    server.client().acl_setuser("weak", enabled=True, passwords=["+pw"], commands=allowed, keys=["*"])
    monkeypatch.setenv("RENDERKILN_REDIS_URL", f"unix://weak:pw@{server.status().socket}")
    said = run("status")
    server.client().acl_deluser("weak")
    assert said.code == 3
    assert said.err.startswith("renderkiln: Redis failed: ")
    assert said.err.count("\n") == 1
