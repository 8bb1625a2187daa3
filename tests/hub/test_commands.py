"""`renderkiln models` as a person and a script use it, each command in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import ModelFetchError

from . import repositories
from .conftest import Command, Pull, own
from .repositories import ORIGINAL, PALETTIZED
from .server import HubServer

GIVEN = ("--format", "compiled", "--variant", "SPLIT_EINSUM_V2")


def test_a_pull_says_size_and_room_first_and_the_folder_last(
    hub: HubServer, command: Command, data: DataFolder
) -> None:
    said = command("models", "pull", PALETTIZED, *GIVEN)
    assert (said.returncode, said.stdout.strip()) == (0, str(data.models / PALETTIZED))
    first, *others, last = said.stderr.splitlines()
    assert first.startswith(
        f"{PALETTIZED}, split-einsum-v2, at commit {hub.repositories[PALETTIZED].commit[:12]}: 23 files"
    )
    assert "MB are free on the disk" in first
    assert f"tokenizer, scheduler and configs from {ORIGINAL}" in others
    assert "it has original, split-einsum-v2; --variant takes another one" in others
    assert ("compiled models run on macOS alone; --format packages runs here, too" in others) == (
        sys.platform == "linux"
    )
    assert last == f"{PALETTIZED} is complete and verified, at commit {hub.repositories[PALETTIZED].commit}"
    again = command("models", "pull", PALETTIZED, *GIVEN, "--json")
    assert (again.returncode, json.loads(again.stdout)["path"]) == (0, str(data.models / PALETTIZED))
    assert "is here already" in again.stderr


def test_what_a_process_has_of_a_file_the_next_one_goes_on_from(hub: HubServer, command: Command) -> None:
    name = "split_einsum_v2/compiled/Unet.mlmodelc/weights/weight.bin"
    hub.add(PALETTIZED, {**hub.repositories[PALETTIZED].files, name: bytes(300_000)})
    hub.breaks[name] = (100_000, 1)
    hub.refuse_after_break = True
    said = command("models", "pull", PALETTIZED, *GIVEN)
    assert (said.returncode, "could not be fetched" in said.stderr) == (1, True)
    assert "not on this machine" in command("models", "show", PALETTIZED).stderr
    hub.refuse_after_break = False
    assert command("models", "pull", PALETTIZED, *GIVEN).returncode == 0
    assert hub.ranges()[-1] == "bytes=100000-"


def test_ctrl_c_ends_a_pull_and_keeps_what_it_has(
    hub: HubServer, command: Command, environment: dict[str, str], data: DataFolder
) -> None:
    name = "split_einsum_v2/compiled/Unet.mlmodelc/weights/weight.bin"
    asked, answer = threading.Event(), threading.Event()

    def hold(file: str) -> None:
        if file == name:
            asked.set()
            answer.wait(60)

    hub.before_bytes = hold
    line = [sys.executable, "-m", "renderkiln.producer", "models", "pull", PALETTIZED, *GIVEN]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as pulling:
        try:
            assert asked.wait(60)
            pulling.send_signal(signal.SIGINT)
            _, said = pulling.communicate(timeout=60)
        finally:
            answer.set()
    assert (pulling.returncode, "Traceback" in said) == (130, False)
    assert own(data) == []
    hub.before_bytes = lambda _: None
    hub.seen.clear()
    assert command("models", "pull", PALETTIZED, *GIVEN).returncode == 0
    assert "split_einsum_v2/compiled/TextEncoder.mlmodelc/weights/weight.bin" not in hub.fetched()
    assert name in hub.fetched()


def test_what_was_begun_can_be_removed(hub: HubServer, pull: Pull, command: Command, data: DataFolder) -> None:
    hub.corrupted["split_einsum_v2/compiled/Unet.mlmodelc/weights/weight.bin"] = b"short"
    for name in ("mine", "mine2"):
        with pytest.raises(ModelFetchError):
            pull(variant="split-einsum-v2", name=name)
    for name in ("*", "m", "mine*"):
        assert command("models", "rm", name, "--yes").returncode == 2
    assert command("models", "rm", "mine", "--yes").returncode == 0
    assert [path.name.split("@")[0] for path in (data.models / ".coming").iterdir()] == ["mine2"]


def test_each_refusal_has_its_exit_code_and_one_line(hub: HubServer, command: Command) -> None:
    hub.repositories[ORIGINAL].token = "hf_secret"
    hub.add("owner/gated", repositories.diffusers(), gate="hf_agreed")
    for arguments, variables, code, message in (
        ([ORIGINAL], {}, 2, "private"),
        (["owner/gated"], {"HF_TOKEN": "hf_x"}, 2, "agree to its terms"),
        (["owner/gated", "--revision", "v9"], {}, 2, "no revision 'v9'"),
        (["owner/gated"], {"HF_HUB_OFFLINE": "1"}, 3, "HF_HUB_OFFLINE is set"),
        (["owner/gated"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, 3, "cannot be reached"),
        ([PALETTIZED, "--variant", "einsum"], {}, 2, "Did you mean"),
        ([PALETTIZED, "--format", "zip"], {}, 2, "packages and compiled"),
    ):
        said = command("models", "pull", *arguments, **variables)
        assert (said.returncode, message in said.stderr.splitlines()[-1]) == (code, True), said.stderr
        assert "Traceback" not in said.stderr


def test_a_model_is_listed_shown_verified_and_removed(pull: Pull, command: Command) -> None:
    folder = pull(variant="original")
    rows = {row["name"]: row for row in json.loads(command("models", "list", "--json").stdout)}
    assert (rows[PALETTIZED]["variants"], rows[PALETTIZED]["weights"]) == (["original"], False)
    assert rows["shapes"]["weights"]
    assert f"{PALETTIZED}" in command("models", "list").stdout

    shown = json.loads(command("models", "show", PALETTIZED, "--json").stdout)
    stages = {stage["stage"]: stage for stage in shown["variants"]["original"]["stages"]}
    assert (shown["repository"], shown["original"], shown["asked_for"]) == (PALETTIZED, ORIGINAL, "main")
    assert stages["unet"]["inputs"][0] == {"name": "sample", "dtype": "float16", "shapes": [[2, 4, 8, 8]]}
    assert "sample 2x4x8x8" in command("models", "show", PALETTIZED).stdout

    assert command("models", "path", PALETTIZED).stdout.strip() == str(folder)
    assert command("models", "verify", PALETTIZED).stdout == f"{PALETTIZED} is complete and unchanged\n"
    weights = folder / "original" / "Unet.mlmodelc" / "weights" / "weight.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    damaged = command("models", "verify", PALETTIZED)
    assert (damaged.returncode, "Unet.mlmodelc/weights/weight.bin is not what it was" in damaged.stderr) == (1, True)

    asked = command("models", "rm", PALETTIZED)
    assert (asked.returncode, "--yes" in asked.stderr, folder.exists()) == (2, True, True)
    assert command("models", "rm", PALETTIZED, "--yes").returncode == 0
    assert not folder.parent.exists()
    assert command("models", "rm", "shapes", "--yes").returncode == 2
    gone = command("models", "show", PALETTIZED)
    assert (gone.returncode, "not on this machine" in gone.stderr) == (2, True)


def test_the_packaged_model_is_verified_as_far_as_it_can_be(command: Command) -> None:
    said = command("models", "verify", "shapes")
    assert said.stdout.startswith("shapes is complete\nnothing is recorded")


def test_a_damaged_folder_is_listed_as_damaged(pull: Pull, command: Command, tmp_path: Path) -> None:
    (pull(variant="original") / "original" / "manifest.json").write_text("{")
    row = next(row for row in json.loads(command("models", "list", "--json").stdout) if row["name"] == PALETTIZED)
    assert "manifest.json cannot be read" in row["problem"]
    assert "damaged" in command("models", "list").stdout
    assert command("models", "show", PALETTIZED).returncode == 1
