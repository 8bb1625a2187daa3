"""A bound on what one reply of Redis may bring into memory, whoever wrote what it holds.

A value may have 512 MB and a stream millions of entries, and redis-py reads all of a reply before anybody can look at
its size. The parsers here count while they read. They stand on names of redis-py that are not public,
since there is no public place for it.
"""

from __future__ import annotations

from typing import Any

import redis
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis._parsers.socket import SocketBuffer

from renderkiln.schema.limits import MAX_REPLY

#: What an entry takes in memory besides its bytes.
_PER_ENTRY = 64


class ReplyTooLargeError(redis.InvalidResponse):
    """Raised when a reply is larger than `MAX_REPLY`. Its connection is closed; the next command opens another."""


class _CountingBuffer(SocketBuffer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.left = MAX_REPLY

    def read(self, length: int, *args: Any, **kwargs: Any) -> bytes:
        self.left -= length
        if self.left < 0:
            raise ReplyTooLargeError(f"a reply of more than {MAX_REPLY >> 20} MiB")
        return super().read(length, *args, **kwargs)

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        self.left -= _PER_ENTRY
        if self.left < 0:
            raise ReplyTooLargeError(f"a reply of more than {MAX_REPLY >> 20} MiB")
        return super().readline(*args, **kwargs)


class _Counting:
    """What a parser of redis-py's is mixed with."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)  # type: ignore[misc]
        self._connection = connection
        old = self._buffer
        self._buffer: Any = _CountingBuffer(old._sock, old.socket_read_size, old.socket_timeout)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        if self._buffer is not None:
            self._buffer.left = MAX_REPLY
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ReplyTooLargeError:
            self._connection.disconnect()  # the rest of the reply is on its way, and must not be taken for the next
            raise


class _Bounded2(_Counting, _RESP2Parser):
    pass


class _Bounded3(_Counting, _RESP3Parser):
    pass


class _BoundedConnection:
    """What a connection of redis-py's is mixed with."""

    def set_parser(self, parser_class: type) -> None:
        """Instead of hiredis, too, which has no bound."""
        is_third = parser_class is _RESP3Parser or (
            parser_class is not _RESP2Parser and str(getattr(self, "protocol", None)) == "3"
        )
        super().set_parser(_Bounded3 if is_third else _Bounded2)  # type: ignore[misc]


def bounded(client: redis.Redis) -> redis.Redis:
    """The same client, none of whose replies is larger than `MAX_REPLY`. It must not have connected yet."""
    pool = client.connection_pool
    kind = pool.connection_class
    pool.connection_class = type(f"Bounded{kind.__name__}", (_BoundedConnection, kind), {})
    return client
