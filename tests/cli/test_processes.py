"""The command as a process: what it loads, how it ends when its reader leaves, and what the base install can do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from tests.fakes import FakeWorker, job_keys

from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings

from .conftest import Run, process

HEAVY = ["torch", "diffusers", "transformers", "numpy", "sqlalchemy", "alembic"]
#: As on a machine where these were never installed.
BLOCK = f"import sys\nfor name in {HEAVY}: sys.modules[name] = None"
TELL = f"import atexit, sys; atexit.register(lambda: print('LOADED', [n for n in {HEAVY} if n in sys.modules]))"
FIVE_LINES = """
from renderkiln.producer import RenderQueue
queue = RenderQueue()
batch = queue.submit_many({"prompt": f"a red circle, number {n}", "seed": n} for n in range(20))
print(batch.num_queued, [queue.status(batch).queued])
"""


def loaded(out: str) -> list[str]:
    return list(json.loads(out.rpartition("LOADED ")[2].replace("'", '"')))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["submit", "--help"], ["render", "-h"], ["config"], ["submit", "a", "--dry-run"]],
)
def test_nothing_heavy_is_loaded_to_ask_for_help_or_to_check_a_list(no_settings: Path, arguments: list[str]) -> None:
    said = process(*arguments, code=TELL)
    assert (said.returncode, said.stderr) == (0, "")
    assert loaded(said.stdout) == []


def test_importing_the_producer_loads_neither_models_nor_clients(no_settings: Path) -> None:
    code = "import sys, renderkiln.producer; print([n for n in sys.argv[1:] if n in sys.modules])"
    names = [*HEAVY, "redis", "rq", "rich", "PIL", "pydantic"]
    said = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_a_five_line_script_queues_jobs_with_the_base_install_alone(
    fleet: Settings, server: EmbeddedServer, no_settings: Path
) -> None:
    said = subprocess.run([sys.executable, "-c", BLOCK + FIVE_LINES], capture_output=True, text=True)
    assert (said.stderr, said.stdout) == ("", "20 [20]\n")
    assert FakeWorker(server.client()).finish_all() == 20


def test_submitting_needs_the_base_install_alone(fleet: Settings, server: EmbeddedServer) -> None:
    said = process("submit", "a cat", "--json", code=BLOCK)
    assert said.returncode == 0, said.stderr
    assert len(job_keys(server.client())) == 1


@pytest.mark.parametrize("command", [["render", "a cat"], ["worker"]])
def test_rendering_without_torch_says_what_to_install(
    fleet: Settings, server: EmbeddedServer, command: list[str]
) -> None:
    said = process(*command, code=BLOCK)
    assert said.returncode == 3
    assert "pip install 'renderkiln[worker]'" in said.stderr
    assert said.stderr.count("\n") == 1
    assert job_keys(server.client()) == []


def test_a_reader_that_leaves_early_is_no_error(no_settings: Path) -> None:
    (no_settings / "list.txt").write_text("".join(f"a cat, number {number}\n" for number in range(3000)))
    command = [sys.executable, "-m", "renderkiln.producer", "submit", "list.txt", "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        out, err = pipe(shown.stdout), pipe(shown.stderr)
        assert out.readline().split()[1:3] == ["a", "cat,"]
        out.close()
        assert err.read() == ""


def test_a_reader_that_never_came_is_no_error_either(no_settings: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "renderkiln.producer", "config"]
        said = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert said.stderr == ""


def test_output_that_cannot_be_written_is_one_line(no_settings: Path) -> None:
    (no_settings / "read-only").touch()
    command = [sys.executable, "-m", "renderkiln.producer", "config"]
    with (no_settings / "read-only").open() as unwritable:
        said = subprocess.run(command, stdout=unwritable, stderr=subprocess.PIPE, text=True)
    assert (said.returncode, said.stderr) == (1, "renderkiln: the system refused: Bad file descriptor\n")


def test_ctrl_c_only_stops_watching(fleet: Settings, server: EmbeddedServer, run: Run) -> None:
    batch = run("submit", "a cat", "--json").json["batch"]
    worker = FakeWorker(server.client())
    job = worker.take()
    assert job is not None
    command = [sys.executable, "-m", "renderkiln.producer", "watch", batch]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        while not worker.connection.pubsub_numsub("renderkiln:progress")[0][1]:
            assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate()
    assert watching.returncode == 130
    assert "Traceback" not in err
    assert run("status", job.id, "--json").json["status"] == "started"


def test_watch_follows_a_batch_until_a_worker_has_finished_it(
    fleet: Settings, server: EmbeddedServer, run: Run
) -> None:
    batch = run("submit", "a cat", "a dog", "--json").json["batch"]
    worker = FakeWorker(server.client())
    command = [sys.executable, "-m", "renderkiln.producer", "watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        while not worker.connection.pubsub_numsub("renderkiln:progress")[0][1]:
            assert watching.poll() is None
        assert worker.finish_all() == 2
        out, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"{batch}: 2 of 2 images, 0 failed, 0 canceled"


def test_a_terminal_that_cannot_show_a_prompt_gets_it_escaped(no_settings: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "20"}
    said = process("submit", "café 🙂", "--dry-run", env=environment)
    assert said.returncode == 0, said.stderr
    assert "caf\\xe9 \\U0001f642" in said.stdout


def test_standard_input_is_a_list(fleet: Settings, server: EmbeddedServer) -> None:
    said = process("submit", "-", "--json", input="a cat\n# not me\na dog\n")
    assert json.loads(said.stdout)["jobs"] == 2
    assert len(job_keys(server.client())) == 2


def test_the_debug_variable_shows_where_an_error_came_from(no_settings: Path) -> None:
    said = process("show", "missing.png", env=os.environ | {"RENDERKILN_DEBUG": "1"})
    assert said.returncode == 1
    assert "Traceback" in said.stderr
    assert "ImageInputError" in said.stderr


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
