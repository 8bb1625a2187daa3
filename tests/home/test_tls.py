"""A Redis behind TLS: reached by `rediss://`, as the fleet's is, and not where its certificate is nobody's we trust."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from renderkiln.home.connect import connect
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings, load
from renderkiln.producer import RenderQueue
from renderkiln.schema.errors import ServerUnavailableError

pytestmark = pytest.mark.usefixtures("no_settings")


class Terminator:
    """Speaks TLS on a port of this machine, and passes what comes to a server's socket; so do stunnel and HAProxy."""

    def __init__(self, target: Path, certificate: trustme.LeafCert) -> None:
        self._target = str(target)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            near = self._context.wrap_socket(plain, server_side=True)
        except OSError:  # whoever it was does not trust us
            plain.close()
            return
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._target)
        back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
        back.start()
        self._pass_on(near, far)
        back.join()
        near.close()
        far.close()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return made


@pytest.fixture
def behind(
    tmp_path: Path, own_server: Callable[[Path], EmbeddedServer], authority: trustme.CA
) -> Iterator[Callable[[str], str]]:
    """The URL of a server behind TLS whose certificate is for a name or an address."""
    server = own_server(tmp_path / "data")
    connect(load(data_dir=tmp_path / "data")).redis.close()
    made: list[Terminator] = []

    def url(name: str) -> str:
        made.append(Terminator(server.status().socket, authority.issue_cert(name)))
        return f"rediss://127.0.0.1:{made[-1].port}/0"

    yield url
    for each in made:
        each.close()


def test_a_queue_is_reached_over_tls(behind: Callable[[str], str], tmp_path: Path) -> None:
    url = f"{behind('127.0.0.1')}?ssl_ca_certs={tmp_path / 'ca.pem'}"
    queue = RenderQueue(settings=Settings(data_dir=tmp_path / "here", redis_url=url))
    job = queue.submit(prompt="a cat")
    assert queue.status(job).value == "queued"
    with connect(load(data_dir=tmp_path / "data")).redis as direct:
        assert direct.exists(f"rq:job:{job.id}")
    queue.close()


@pytest.mark.parametrize(
    ("name", "is_known"), [("127.0.0.1", False), ("mini-1.example", True)], ids=["nobody's", "another's"]
)
def test_a_certificate_that_proves_nothing_is_refused(
    behind: Callable[[str], str], tmp_path: Path, name: str, is_known: bool
) -> None:
    url = behind(name) + (f"?ssl_ca_certs={tmp_path / 'ca.pem'}" if is_known else "")
    with pytest.raises(ServerUnavailableError, match="certificate"):
        connect(Settings(data_dir=tmp_path / "here", redis_url=url))
