"""The embedded server: started once, found again, its data kept, and safe from others."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes import kill_server

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.schema.errors import ServerUnavailableError, SettingsError

Make = Callable[[Path], EmbeddedServer]
START = "import sys; from pathlib import Path; from renderkiln.home.folder import DataFolder; "
START += "from renderkiln.home.server import EmbeddedServer; "
START += "print(EmbeddedServer(DataFolder(Path(sys.argv[1]))).ensure_running())"


def test_a_server_starts_once_and_is_found_by_the_next_command(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path / "data")
    assert server.status().running is False
    assert server.ensure_running() is True
    assert server.ensure_running() is False
    other = subprocess.run([sys.executable, "-c", START, tmp_path / "data"], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "False"
    assert server.status().pid == own_server(tmp_path / "data").status().pid


def test_the_server_outlives_the_command_that_started_it(tmp_path: Path, own_server: Make) -> None:
    subprocess.run([sys.executable, "-c", START, tmp_path], check=True, capture_output=True)
    server = own_server(tmp_path)
    assert server.status().running
    assert server.stop() is True
    assert server.status().running is False
    assert server.stop() is False


def test_looking_at_a_server_that_never_ran_makes_nothing(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path / "data")
    assert (server.status().running, server.stop(), (tmp_path / "data").exists()) == (False, False, False)


def test_what_was_queued_yesterday_is_still_there_today(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path)
    server.ensure_running()
    server.client().rpush("list", *range(100))
    assert server.stop()
    assert server.ensure_running() is True
    assert server.client().llen("list") == 100
    assert server.status().append_only_bytes > 0


def test_a_power_cut_keeps_what_was_written_and_the_next_command_starts_it_anew(
    tmp_path: Path, own_server: Make
) -> None:
    server = own_server(tmp_path)
    server.ensure_running()
    client = server.client()
    client.rpush("list", "job")
    client.execute_command("WAITAOF", 1, 0, 5000)  # what `everysec` would have done within a second
    kill_server(server)
    assert (tmp_path / "server" / "valkey.sock").exists()  # stale, as is the pid file
    assert server.status().running is False
    assert server.ensure_running() is True
    assert server.client().lrange("list", 0, -1) == [b"job"]


def test_a_torn_last_write_does_not_keep_the_server_from_starting(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path)
    server.ensure_running()
    server.client().rpush("list", "job")
    server.stop()
    (file,) = (tmp_path / "server" / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as append:
        append.write(b"*3\r\n$5\r\nRPUSH\r\n$4\r\nli")
    assert server.ensure_running() is True
    assert server.client().llen("list") == 1


def test_a_pid_file_that_names_somebody_elses_process_is_no_obstacle(tmp_path: Path, own_server: Make) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "server.pid").write_text(f"{os.getpid()}\n")
    server = own_server(tmp_path)
    assert server.ensure_running() is True
    assert int((tmp_path / "server" / "server.pid").read_text()) == server.status().pid != os.getpid()


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path, own_server: Make) -> None:
    (tmp_path / "server").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "server" / "valkey.sock"))
    server = own_server(tmp_path)
    assert server.ensure_running() is True
    assert server.client().ping()


def test_commands_that_start_it_at_once_get_one_server(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path)
    starters = [
        subprocess.Popen([sys.executable, "-c", START, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [starter.communicate()[0].strip() for starter in starters]
    assert sorted(said) == ["False", "False", "True"]
    assert server.status().running


def test_threads_that_start_it_at_once_get_one_server(tmp_path: Path, own_server: Make) -> None:
    said: list[bool] = []
    servers = [own_server(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=lambda each=each: said.append(each.ensure_running())) for each in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [False, False, False, True]


def test_only_the_owner_can_reach_the_socket(tmp_path: Path, own_server: Make) -> None:
    (tmp_path / "server").mkdir(mode=0o777)
    (tmp_path / "server").chmod(0o777)
    server = own_server(tmp_path)
    server.ensure_running()
    assert stat.S_IMODE((tmp_path / "server").stat().st_mode) == 0o700
    assert stat.S_IMODE(server.status().socket.stat().st_mode) == 0o700
    assert server.client().config_get("port") == {"port": "0"}


def test_a_server_in_somebody_elses_folder_is_not_taken_for_ours(
    tmp_path: Path, own_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_server(tmp_path)
    server.ensure_running()
    with monkeypatch.context() as patch:
        somebody_else = os.getuid() + 1
        patch.setattr(os, "getuid", lambda: somebody_else)
        assert not server.status().running
        with pytest.raises(ServerUnavailableError, match="belongs to another user"):
            server.ensure_running()
    assert server.status().running


def test_a_data_folder_with_a_long_path_gets_its_socket_elsewhere_for_the_owner_alone(
    tmp_path: Path, own_server: Make
) -> None:
    root = tmp_path.joinpath(*["a-long-name-of-a-folder"] * 6)
    server = own_server(root)
    assert server.ensure_running() is True
    where = server.status().socket
    assert not where.is_relative_to(root)
    assert len(os.fsencode(where)) < 100
    assert stat.S_IMODE(where.parent.stat().st_mode) == 0o700
    assert own_server(root).ensure_running() is False
    assert DataFolder(root / "other").socket != where
    server.stop()
    where.parent.rmdir()


def test_it_is_stopped_when_nobody_else_is_connected(tmp_path: Path, own_server: Make) -> None:
    server = own_server(tmp_path)
    assert server.stop_if_unused() is False
    server.ensure_running()
    other = server.client()
    other.ping()
    assert server.stop_if_unused() is False
    assert other.ping()
    other.close()
    assert server.stop_if_unused() is True
    assert server.status().running is False


def test_a_file_where_the_data_folder_should_be_is_said(tmp_path: Path, own_server: Make) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(SettingsError, match=r"cannot be made.*--data-dir"):
        own_server(tmp_path / "data").ensure_running()


def test_a_server_that_cannot_start_says_why_and_where_its_log_is(tmp_path: Path, own_server: Make) -> None:
    (tmp_path / "server" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "server" / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(ServerUnavailableError, match=r"ended at once.*server\.log"):
        own_server(tmp_path).ensure_running()
