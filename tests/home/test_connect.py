"""Connecting: to the embedded server, to a Redis by its URL, and what is said where that fails."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from tests.chaos.proxy import Lines

from renderkiln.home.connect import connect
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings, load
from renderkiln.schema.errors import ServerUnavailableError, SettingsError

pytestmark = pytest.mark.usefixtures("no_settings")


def test_without_a_url_the_embedded_server_is_started_and_then_found(
    tmp_path: Path, own_server: Callable[[Path], EmbeddedServer]
) -> None:
    own_server(tmp_path / "data")
    settings = load(data_dir=tmp_path / "data")
    first, second = connect(settings), connect(settings)
    assert (first.started, second.started) == (True, False)
    assert str(tmp_path / "data") in first.where
    assert first.embedded is not None
    first.redis.set("key", "value")
    assert second.redis.get("key") == b"value"
    first.redis.close()
    second.redis.close()


def test_a_url_leads_to_that_redis_and_no_server_is_started(settings: Settings, tmp_path: Path) -> None:
    found = connect(settings)
    assert found.redis.ping()
    assert (found.embedded, found.started) == (None, False)
    assert not (tmp_path / "data").exists()
    found.redis.close()


@pytest.mark.parametrize(
    "url", ["mini-1:6379", "http://mini-1", "redis://mini-1:port", "", "redis//x", "redis://127.0.0.1?unheard_of=1"]
)
def test_what_is_no_redis_url_is_a_setting_to_correct(url: str) -> None:
    with pytest.raises(SettingsError, match="not a Redis URL"):
        connect(Settings(redis_url=url))


@pytest.mark.parametrize("url", ["redis://:sec/ret@mini", "redis://:sec#ret@mini", "redis://:sec?ret@mini"])
def test_a_password_that_breaks_its_url_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="not a Redis URL") as caught:
        connect(Settings(redis_url=url))
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_where_nobody_listens_that_is_said_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound and not listened on: nobody else gets it, and nobody answers
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"does not answer.*RENDERKILN_REDIS_URL") as caught:
            connect(Settings(redis_url=f"redis://:secret@127.0.0.1:{port}"))
    assert caught.value.exit_code == 3
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_wrong_password_is_told_from_an_absent_server(
    tmp_path: Path, own_server: Callable[[Path], EmbeddedServer]
) -> None:
    server = own_server(tmp_path / "data")
    server.ensure_running()
    server.client().config_set("requirepass", "right")
    path = tmp_path / "data" / "server" / "valkey.sock"
    try:
        for url in (f"unix://:wrong-secret@{path}", f"unix://{path}"):
            with pytest.raises(ServerUnavailableError, match=r"refuses us.*Check user and password") as caught:
                connect(Settings(redis_url=url))
            assert "wrong-secret" not in str(caught.value)
        found = connect(Settings(redis_url=f"unix://:right@{path}"))
        assert found.redis.ping()
    finally:
        redis.Redis(unix_socket_path=str(path), password="right").config_set("requirepass", "")
    found.redis.close()


def test_a_server_that_speaks_something_else_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        import threading

        def talk() -> None:
            while True:
                try:
                    other, _ = listener.accept()
                except OSError:
                    return
                with other:
                    other.recv(100)
                    other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(ServerUnavailableError, match="does not answer"):
            connect(Settings(redis_url=f"redis://127.0.0.1:{listener.getsockname()[1]}"))
        listener.shutdown(socket.SHUT_RDWR)


def test_an_answer_that_makes_no_sense_is_asked_for_again(server: EmbeddedServer) -> None:
    lines = Lines(str(server.status().socket))
    line = lines.open(seed=1)
    lines.harm(line, "garbled", answers=2)
    found = connect(Settings(redis_url=SecretStr(f"redis://127.0.0.1:{line.port}")))
    for answers in (1, 2, 3, 3, 2, 1):
        lines.harm(line, "garbled", answers)
        assert found.redis.set("key", "value")
    lines.harm(line, "garbled", answers=1000)
    with pytest.raises(redis.ConnectionError):
        found.redis.get("key")
    found.redis.close()
    lines.close()
