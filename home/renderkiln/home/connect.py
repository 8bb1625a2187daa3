"""The one way to a Redis: the fleet's, where RENDERKILN_REDIS_URL names it, else the embedded server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from renderkiln.schema.errors import ServerUnavailableError, SettingsError

from .folder import DataFolder
from .replies import ReplyTooLargeError, bounded
from .server import SOCKET_TIMEOUT, EmbeddedServer
from .settings import Settings, mask_url


@dataclass(frozen=True)
class Connection:
    """A client that has answered, and how it was reached."""

    redis: redis.Redis
    where: str
    #: The embedded server, where that is what we reached.
    embedded: EmbeddedServer | None = None
    #: Whether this call started it.
    started: bool = False


class _Strict(AbstractConnection):
    """A connection over which nonsense is as good as none: it ends, and what was asked is asked again.

    redis-py raises whatever its parser trips over (ValueError, InvalidResponse, …), which no caller awaits.
    """

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        with self._understanding():
            return super().read_response(*args, **kwargs)

    def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        with self._understanding():
            super().on_connect_check_health(*args, **kwargs)

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        except ReplyTooLargeError:
            raise  # it is an answer, and the next one may be as large
        except (redis.InvalidResponse, AttributeError, IndexError, TypeError, ValueError) as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError(f"what came is not an answer of Redis ({error})") from error


class _Tcp(_Strict, redis.Connection):
    pass


class _Tls(_Strict, redis.SSLConnection):
    pass


class _Unix(_Strict, redis.UnixDomainSocketConnection):
    pass


_CONNECTIONS: Mapping[str, type[_Tcp | _Tls | _Unix]] = {"redis": _Tcp, "rediss": _Tls, "unix": _Unix}


def connect(settings: Settings) -> Connection:
    """Connects, starting the embedded server where no Redis is named.

    Raises:
        ServerUnavailableError: nobody answers, or we are refused; says who and what to do.
        SettingsError: the URL is not one.
    """
    if settings.redis_url is None:
        server = EmbeddedServer(DataFolder(settings.data_dir))
        started = server.ensure_running()
        return Connection(server.client(), f"embedded server in {settings.data_dir}", server, started)
    url = settings.redis_url.get_secret_value()
    shown = mask_url(url)
    complaint = complaint_about_url(url)
    if complaint:
        raise SettingsError(f"redis_url {shown!r} is not a Redis URL: it {complaint}")
    try:
        client = bounded(
            redis.Redis.from_url(
                url,
                connection_class=_CONNECTIONS[url.partition("://")[0]],
                socket_connect_timeout=10,
                socket_timeout=SOCKET_TIMEOUT,
                health_check_interval=30,
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3),
            )
        )
    except ValueError as error:
        raise SettingsError(f"redis_url {shown!r} is not a Redis URL: {error}") from None
    try:
        client.ping()
    except TypeError as error:  # an option in the URL that redis-py does not have
        raise SettingsError(f"redis_url {shown!r} is not a Redis URL: {error}") from None
    except redis.AuthenticationError as error:
        raise ServerUnavailableError(f"Redis at {shown} refuses us: {error}. Check user and password.") from None
    except redis.RedisError as error:
        raise ServerUnavailableError(
            f"Redis at {shown} does not answer: {error}. Is it up, and is RENDERKILN_REDIS_URL right?"
        ) from None
    return Connection(client, f"Redis at {shown}")


def complaint_about_url(url: str) -> str | None:
    """What is wrong with a Redis URL, without a word of it: what is taken for a port may be half of a password."""
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in ("redis", "rediss", "unix"):
        return "does not begin with redis://, rediss:// or unix://"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "is no URL; /, #, ? and @ in a password are written %2F, %23, %3F and %40"
    if scheme != "unix" and "@" in url and "@" not in parts.netloc:
        return "has a password that holds /, # or ?, which are written %2F, %23 and %3F there"
    return None


@contextmanager
def answering() -> Iterator[None]:
    """Turns what redis-py raises inside into ServerUnavailableError, so that callers know one root of errors alone."""
    try:
        yield
    except redis.RedisError as error:
        raise ServerUnavailableError(f"Redis failed: {error}. Is it up, and not full?") from error
