"""The queue: the fleet's Redis, or the embedded server. Neither is started, and nothing is written to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from renderkiln.home.checkup import Finding, ok, problem, size, warning
from renderkiln.home.connect import complaint_about_url
from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer, server_binary
from renderkiln.home.settings import Settings, mask_url
from renderkiln.home.workers import live_workers
from renderkiln.schema.errors import ServerUnavailableError

#: Seconds for each question to Redis.
_PATIENCE = 3.0
#: LMOVE, with which jobs are taken safely, came with it.
_OLDEST = (6, 2)
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_EXAMPLE = "export RENDERKILN_REDIS_URL=redis://:PASSWORD@HOST:6379"


@dataclass(frozen=True)
class Answer:
    """What a Redis that answered says of itself; what it keeps to itself is None."""

    version: str | None
    #: Whether what is queued outlives a restart.
    is_kept: bool | None
    #: What happens to keys when memory is full.
    eviction: str | None
    #: Bytes.
    memory: int | None
    workers: int


def check_server(settings: Settings) -> list[Finding]:
    """Whether jobs can be queued."""
    server = EmbeddedServer(DataFolder(settings.data_dir))
    if settings.redis_url is None:
        return [_embedded(server)]
    findings = [_fleet(settings.redis_url.get_secret_value())]
    status = server.status()
    if status.running and status.keys:
        says = f"runs beside that Redis and holds {status.keys:,} keys, which no command sees now"
        do = "unset RENDERKILN_REDIS_URL to work on what is queued there, or `renderkiln server stop`"
        findings.append(warning("embedded server", says, do, keys=status.keys))
    return findings


def judge_answer(where: str, url: str, answer: Answer) -> Finding:
    """Whether a Redis that answers is fit to hold a queue.

    Args:
        where: the URL, without its password.
    """
    facts = {
        "url": where,
        "version": answer.version,
        "append_only": answer.is_kept,
        "maxmemory_policy": answer.eviction,
        "memory_bytes": answer.memory,
        "workers": answer.workers,
    }
    if answer.version and _number(answer.version) < _OLDEST:
        says = f"{where} is version {answer.version}; renderkiln needs 6.2 or later"
        return problem("queue", says, "update Redis", **facts)
    if answer.eviction not in (None, "noeviction"):
        says = f"{where} throws keys away when its memory is full ({answer.eviction}): jobs would be lost"
        return warning("queue", says, "redis-cli config set maxmemory-policy noeviction", **facts)
    if answer.is_kept is False:
        says = f"{where} keeps no append-only file: a restart loses what is queued since its last snapshot"
        return warning("queue", says, "redis-cli config set appendonly yes", **facts)
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss") and parts.hostname not in _LOCAL and not _has_password(url):
        says = f"{where} takes no password: whoever reaches it can queue jobs and read prompts"
        return warning("queue", says, f"set `requirepass` there, and {_EXAMPLE} here", **facts)
    version = f", version {answer.version}" if answer.version else ""
    up = f"{answer.workers} worker{'' if answer.workers == 1 else 's'} up"
    return ok("queue", f"{where} answers{version}; {up}", **facts)


def judge_failure(where: str, error: Exception) -> Finding:
    """What a Redis that cannot be used says, in plain words."""
    facts = {"url": where}
    if isinstance(error, redis.AuthenticationError):
        says = f"{where} refuses us: wrong password, none given, or an unknown user"
        return problem("queue", says, _EXAMPLE, **facts)
    if isinstance(error, NoPermissionError):
        says = f"{where} lets us in, and forbids what we need: {error}"
        return problem("queue", says, "let the user do all on all keys: ACL SETUSER NAME ~* +@all", **facts)
    if isinstance(error, redis.BusyLoadingError):
        return warning("queue", f"{where} is reading its data", "wait, and look again", **facts)
    what = f"does not answer within {_PATIENCE:g} s" if isinstance(error, redis.TimeoutError) else "cannot be reached"
    says = f"{where} {what}: {error}"
    return problem("queue", says, f"see that it is up and that this machine may reach it; {_EXAMPLE}", **facts)


def _fleet(url: str) -> Finding:
    complaint = complaint_about_url(url)
    if complaint:
        return problem("queue", f"RENDERKILN_REDIS_URL {complaint}", _EXAMPLE)
    where = mask_url(url)
    limits = {"socket_connect_timeout": _PATIENCE, "socket_timeout": _PATIENCE, "retry": Retry(NoBackoff(), 0)}
    try:
        with redis.Redis.from_url(url, **limits) as client:
            client.ping()
            return judge_answer(where, url, _ask(client))
    except (ValueError, TypeError):  # an option in the URL that redis-py does not have
        return problem("queue", f"{where} is not a Redis URL", _EXAMPLE, url=where)
    except redis.RedisError as error:
        return judge_failure(where, error)


def _ask(client: redis.Redis) -> Answer:
    info: Mapping[str, Any] = {}
    eviction = None
    try:
        info = client.info()
        eviction = info.get("maxmemory_policy")
    except redis.ResponseError:  # forbidden to us, as some hosters do; what matters is that it answers
        pass
    enabled = info.get("aof_enabled")
    return Answer(
        version=info.get("valkey_version") or info.get("redis_version"),
        is_kept=None if enabled is None else bool(enabled),
        eviction=eviction,
        memory=info.get("used_memory"),
        workers=len(live_workers(client)),
    )


def _embedded(server: EmbeddedServer) -> Finding:
    status = server.status()
    if status.running:
        says = f"the embedded server answers: {status.keys:,} keys, {size(status.memory_bytes)} in memory"
        return ok("queue", says, socket=str(status.socket), pid=status.pid, keys=status.keys)
    if server.is_held():
        says = "an embedded server runs, and does not answer: it is starting, or hangs"
        return warning("queue", says, "wait, and look again; then `renderkiln server stop`", socket=str(status.socket))
    try:
        server_binary()
    except ServerUnavailableError:
        says = "there is no embedded server for this system, and no Redis is named"
        return problem("queue", says, f"start a Redis 6.2 or later, and {_EXAMPLE}")
    return ok("queue", "no Redis is named: the embedded server is started when it is needed", running=False)


def _has_password(url: str) -> bool:
    return urlsplit(url).password is not None or "password=" in urlsplit(url).query


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
