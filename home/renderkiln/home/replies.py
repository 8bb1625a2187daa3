"""A bound on what one reply of Redis may bring into memory, whoever wrote what it holds.

A value may have 512 MB and a stream millions of entries, and redis-py reads all of a reply before anybody can look at
its size. This parser counts while it reads. It stands on two names of redis-py that are not public, since there is no
public place for it.
"""

from __future__ import annotations

from typing import Any

import redis
from redis._parsers import _RESP2Parser
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


class BoundedParser(_RESP2Parser):
    """redis-py's own, in the protocol that it speaks unless told."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._connection = connection
        old = self._buffer
        self._buffer = _CountingBuffer(old._sock, old.socket_read_size, old.socket_timeout)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        if self._buffer is not None:
            self._buffer.left = MAX_REPLY
        try:
            return super().read_response(*args, **kwargs)
        except ReplyTooLargeError:
            self._connection.disconnect()  # the rest of the reply is on its way, and must not be taken for the next
            raise


def bounded(client: redis.Redis) -> redis.Redis:
    """The same client, none of whose replies is larger than `MAX_REPLY`. It must not have connected yet."""
    client.connection_pool.connection_kwargs.update(parser_class=BoundedParser, protocol=2)
    return client
