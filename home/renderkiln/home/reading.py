"""Reading what stands in Redis without trusting it: of any size, of any type, by anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import redis

from renderkiln.schema.limits import MAX_MEMBERS

from .replies import ReplyTooLargeError

_PAGE = 1000


def is_wrong_type(error: BaseException) -> bool:
    """Whether Redis says that something else stands at a key than what was asked for."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def read_hashes(connection: Any, keys: Sequence[str], *fields: str) -> list[list[bytes | None] | None]:
    """Some fields of many hashes; None for what is no hash, or too large to be read.

    Raises:
        redis.RedisError: Redis does not answer, or refuses us.
    """
    return _each(connection, keys, lambda pipe, key: pipe.hmget(key, fields))


def read_strings(connection: Any, keys: Sequence[str], limit: int) -> list[bytes | None]:
    """Many strings; None for what is not there, is no string, or has more than `limit` bytes. Raises like that."""
    found: list[bytes | None] = _each(connection, keys, lambda pipe, key: pipe.getrange(key, 0, limit))
    return [text if text and len(text) <= limit else None for text in found]


def _each(connection: Any, keys: Sequence[str], ask: Callable[[Any, str], object]) -> list[Any]:
    if not keys:
        return []
    try:
        # A MULTI, so that the bound on a reply holds for all of them together.
        with connection.pipeline() as pipe:
            for key in keys:
                ask(pipe, key)
            found = pipe.execute(raise_on_error=False)
    except ReplyTooLargeError:
        if len(keys) == 1:
            return [None]
        half = len(keys) // 2
        return _each(connection, keys[:half], ask) + _each(connection, keys[half:], ask)
    for answer in found:
        if isinstance(answer, Exception) and not is_wrong_type(answer):
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in found]


def members_of_list(connection: Any, key: str) -> list[bytes]:
    """The first `MAX_MEMBERS` of a list; those that are too large to be read are removed from it."""

    def remove(pipe: Any, at: int) -> None:
        pipe.lset(key, at, b"")
        pipe.lrem(key, 1, b"")

    found: list[bytes] = _members(connection, key, connection.lrange, remove)
    return found


def members_of_sorted_set(connection: Any, key: str) -> list[tuple[bytes, float]]:
    """The `MAX_MEMBERS` with the lowest scores; those that are too large to be read are removed."""

    def read(key: str, start: int, end: int) -> Any:
        return connection.zrange(key, start, end, withscores=True)

    found: list[tuple[bytes, float]] = _members(
        connection, key, read, lambda pipe, at: pipe.zremrangebyrank(key, at, at)
    )
    return found


def _members(
    connection: Any, key: str, read: Callable[[str, int, int], Any], remove: Callable[[Any, int], object]
) -> list[Any]:
    found: list[Any] = []
    page = _PAGE
    while len(found) < MAX_MEMBERS:
        at = len(found)
        try:
            rows = read(key, at, at + page - 1)
        except ReplyTooLargeError:
            if page == 1:
                _remove_large(connection, key, at, read, remove)
            page = max(1, page // 32)
            continue
        found += rows
        if len(rows) < page:
            break
    return found


def _remove_large(
    connection: Any,
    key: str,
    at: int,
    read: Callable[[str, int, int], Any],
    remove: Callable[[Any, int], object],
) -> None:
    with connection.pipeline() as pipe:
        pipe.watch(key)  # it is removed by its place, which may be another's by now
        try:
            read(key, at, at)
        except ReplyTooLargeError:
            pipe.multi()
            remove(pipe, at)
            with contextlib.suppress(redis.WatchError):
                pipe.execute()
