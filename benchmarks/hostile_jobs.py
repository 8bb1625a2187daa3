"""Hostile jobs, and what else can be written into Redis to a worker's harm: seeded, each with what may come of it."""

from __future__ import annotations

import json
import os
import pickle
import random
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from renderkiln.schema import make_job, names, parse_options, parse_spec
from renderkiln.schema.jobs import Job

#: Named in the environment of whoever might execute a payload; a file in it says that one was.
MARKERS = "HOSTILE_MARKERS"

Values = dict[str, str | bytes | int]


def canary(*arguments: object, **keywords: object) -> None:
    """What hostile payloads name: an importable function that leaves a file behind."""
    (Path(os.environ[MARKERS]) / "called").write_text(repr((arguments, keywords))[:200])


class Bomb:
    """Opened by pickle, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


@dataclass(frozen=True)
class Planted:
    """One hostile entry of a queue. `may` says what may become of it: refused, run, or dropped as nobody's to run."""

    kind: str
    raw: bytes
    may: frozenset[str]


@dataclass
class Gardener:
    """Plants hostile jobs in one queue."""

    connection: Any
    model: str
    markers: Path
    random: random.Random
    #: MiB that a decompression bomb becomes.
    bombs: tuple[int, ...] = (2, 16)
    planted: list[Planted] = field(default_factory=list)

    @property
    def queue(self) -> str:
        return names.queue("normal", self.model)

    def plant(self) -> Planted:
        """One more, of any kind, at the end of the queue."""
        name = self.random.choice(sorted(KINDS))
        raw, may = KINDS[name](self)
        planted = Planted(name, raw, frozenset(may))
        self.planted.append(planted)
        self.connection.rpush(f"rq:queue:{self.queue}", raw)
        return planted

    def new_id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def store(self, data: bytes | None, **fields: Any) -> bytes:
        """A job's hash as RQ has it, with what is said otherwise; None leaves a field out. Its id."""
        job_id = fields.pop("id", None) or self.new_id()
        values: dict[str, Any] = {
            "data": data,
            "status": "queued",
            "origin": self.queue,
            "created_at": "2026-01-01T00:00:00.000000Z",
            "timeout": "-1",
        } | fields
        kept = {name: value for name, value in values.items() if value is not None}
        if kept:
            self.connection.hset(f"rq:job:{job_id}", mapping=kept)
        return bytes(job_id.encode())

    def job(self) -> Job:
        """A good one, unlike all before."""
        fields = {"prompt": f"a cat {self.random.getrandbits(64)}", "model": self.model}
        return make_job(parse_spec(fields), parse_options({}), batch="hostile", index=0)

    def value(self, depth: int = 2) -> Any:
        """Any JSON value."""
        pick = self.random.randrange(12 if depth else 9)
        if pick > 9:
            return {self.text(8): self.value(depth - 1) for _ in range(self.random.randrange(4))}
        if pick > 8:
            return [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        number = self.random.choice([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 0.1, 1e-320])
        odd = self.random.choice(["", "nan", "os.system", "../../etc/passwd", "\x1b[2J\x07", "\u202e", "sha256:0", "~"])
        return self.random.choice([None, True, False, number, number, odd, odd, self.text(20), self.text(2000)])

    def text(self, length: int) -> str:
        alphabet = string.printable + "\x00\x1b\x9b\u202e\u2028é猫\U0001f642"
        return "".join(self.random.choices(alphabet, k=self.random.randrange(length + 1)))

    def bytes(self, length: int) -> bytes:
        return self.random.randbytes(self.random.randrange(length + 1))


def call(
    function: Any = names.RENDER_FUNCTION, arguments: Any = (), instance: Any = None, keywords: Any = None
) -> bytes:
    return json.dumps([function, instance, arguments, {} if keywords is None else keywords]).encode()


@cache
def bomb(megabytes: int, fill: bytes) -> bytes:
    return zlib.compress(fill * (megabytes << 20), 9)


_REFUSED, _DROPPED, _RUN, _EITHER = {"refused"}, {"dropped"}, {"run"}, {"refused", "run"}
_FUNCTIONS = ("os.system", "subprocess.check_output", "builtins.eval", "builtins.exec", "posix.system", "shutil.rmtree")


def _foreign_function(g: Gardener) -> tuple[bytes, set[str]]:
    marker = f"touch {g.markers / 'function'}"
    name = g.random.choice([*_FUNCTIONS, "benchmarks.hostile_jobs.canary", "renderkiln.render.__call__", g.text(50)])
    return g.store(zlib.compress(call(name, [marker], instance=g.random.choice([None, "os"])))), _REFUSED


def _pickle(g: Gardener) -> tuple[bytes, set[str]]:
    arguments: Any = (names.RENDER_FUNCTION, None, (Bomb(g.markers / "pickle"),), {})
    data = pickle.dumps(g.random.choice([arguments, arguments[2][0]]), protocol=g.random.randrange(6))
    fields = g.random.choice([{}, {"meta": data}, {"result": data}, {"meta": zlib.compress(data)}])
    return g.store(g.random.choice([data, zlib.compress(data), zlib.compress(zlib.compress(data))]), **fields), _REFUSED


def _decompression_bomb(g: Gardener) -> tuple[bytes, set[str]]:
    packed = bomb(g.random.choice(g.bombs), g.random.choice([b"\0", b" ", b"["]))
    packed = g.random.choice([packed, zlib.compress(packed), packed[: g.random.randrange(len(packed))]])
    return g.store(packed, **g.random.choice([{}, {"exc_info": packed}, {"meta": packed}])), _REFUSED


def _too_large(g: Gardener) -> tuple[bytes, set[str]]:
    text = "x" * g.random.choice([1 << 20, 2 << 20, 3 << 20])
    which = g.random.randrange(4)
    if which == 0:
        return g.store(call(arguments=[text])), _REFUSED
    if which == 1:
        return g.store(zlib.compress(call(arguments=[g.job().to_json()])), description=text), _REFUSED
    if which == 2:
        return g.store(zlib.compress(call(arguments=[g.job().to_json()])), origin=text), _REFUSED
    return g.store(zlib.compress(call(arguments=[json.dumps({"spec": {"prompt": text}})]))), _REFUSED


def _garbage(g: Gardener) -> tuple[bytes, set[str]]:
    data = g.bytes(300)
    return g.store(g.random.choice([data, zlib.compress(data), b"", b"\0", zlib.compress(b"")])), _REFUSED


def _no_call(g: Gardener) -> tuple[bytes, set[str]]:
    data = g.random.choice(
        [
            json.dumps(g.value()).encode(),
            call(g.value(), g.value(), g.value(), g.value()),
            call(arguments=g.value()),
            call(arguments=[g.text(200)]),
            call(arguments=[g.job().to_json(), "more"]),
            call(arguments=[g.job().to_json()], instance="os"),
            call(arguments=[g.job().to_json()], keywords={"x": 1}),
        ]
    )
    return g.store(zlib.compress(data)), _REFUSED


def _deep(g: Gardener) -> tuple[bytes, set[str]]:
    depth = g.random.choice([100, 900, 1000, 5000, 200_000])
    deep = g.random.choice(["[", '{"a":']) * depth
    data = g.random.choice([deep.encode(), call(arguments=[deep]), f'[{deep}1,null,["x"],{{}}]'.encode()])
    return g.store(zlib.compress(data), meta=g.random.choice([None, deep])), _REFUSED


def _changed_job(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    fields = json.loads(job.to_json())
    for _ in range(g.random.randrange(1, 4)):
        target = g.random.choice([fields, fields["spec"]]) if isinstance(fields.get("spec"), dict) else fields
        target[g.random.choice([*Job.model_fields, *fields, "prompt", "model", "width", g.text(10)])] = g.value()
    return g.store(zlib.compress(call(arguments=[json.dumps(fields)])), id=job.id), _EITHER


def _flipped_bits(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    data = bytearray(zlib.compress(call(arguments=[job.to_json()])))
    if g.random.random() < 0.5:
        data = bytearray(call(arguments=[job.to_json()]))
    for _ in range(g.random.randrange(1, 6)):
        data[g.random.randrange(len(data))] ^= 1 << g.random.randrange(8)
    return g.store(bytes(data), id=job.id), _EITHER


def _another_type(g: Gardener) -> tuple[bytes, set[str]]:
    job_id = g.new_id()
    key = f"rq:job:{job_id}"
    g.random.choice(
        [
            lambda: g.connection.set(key, g.bytes(100) or b"x"),
            lambda: g.connection.rpush(key, "x", "y"),
            lambda: g.connection.sadd(key, "x"),
            lambda: g.connection.zadd(key, {"x": 1}),
            lambda: g.connection.xadd(key, {"x": "y"}),
        ]
    )()
    return job_id.encode(), _REFUSED


_RQ_FIELDS = (
    *("meta", "meta", "timeout", "created_at", "started_at", "enqueued_at", "last_heartbeat", "worker_name"),
    *("description", "result_ttl", "failure_ttl", "ttl", "retries_left", "number_of_retries", "ended_at"),
)
_ODD_VALUES = (
    *(b"\xff\xfe", b"nan", b"-1", b"9" * 5000, b"[1]", b'{"attempts": {}}', b'{"rescues": 1e999}', b'"\\ud800"'),
    *(b'{"attempts": -5, "failures": "x", "result": [], "rescues": 99}', b"9999-99-99T99:99:99.999999Z"),
)


def _odd_fields(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    name = g.random.choice(_RQ_FIELDS)
    value: Any = g.random.choice([g.bytes(40), *_ODD_VALUES])
    return g.store(zlib.compress(call(arguments=[job.to_json()])), id=job.id, **{name: value}), _EITHER


def _callbacks(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    canary_name = "benchmarks.hostile_jobs.canary"
    fields: dict[str, Any] = {
        f"{when}_callback_name": g.random.choice([canary_name, "os.system", b"\xff"])
        for when in ("success", "failure", "stopped")
    }
    fields |= {"webhooks": '[{"url": "http://127.0.0.1:9/"}]', "dependency_ids": g.bytes(20), "group_id": "x"}
    fields |= {"success_callback_timeout": "x", "repeats_left": "5", "repeat_intervals": "[1]", "result": b"\xff"}
    return g.store(zlib.compress(call(arguments=[job.to_json()])), id=job.id, **fields), _RUN


def _terminal_escapes(g: Gardener) -> tuple[bytes, set[str]]:
    text = "a \x1b]0;title\x07\x1b[2J\x9b31m \u202e cat " + str(g.random.getrandbits(64))
    job = make_job(
        parse_spec({"prompt": text, "model": g.model}), parse_options({"labels": {text: text}}), batch="h", index=0
    )
    return g.store(zlib.compress(call(arguments=[job.to_json()])), id=job.id, description=text), _RUN


def _no_id(g: Gardener) -> tuple[bytes, set[str]]:
    odd = [
        b"\xff\xfe",
        b"a:b",
        b"a b",
        b"\x1b[2J",
        b"",
        b"x" * 201,
        b"x" * 100_000,
        b"../x",
        b"a\nb",
        g.bytes(50) + b"\0",
    ]
    raw = g.random.choice(odd) + b"\0" + g.random.randbytes(8)
    if g.random.random() < 0.5:
        g.connection.hset(b"rq:job:" + raw, mapping={"status": "queued", "data": "x"})
    return raw, {"counted"}


def _nothing_there(g: Gardener) -> tuple[bytes, set[str]]:
    return g.new_id().encode(), _DROPPED


def _does_not_wait(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    data = zlib.compress(call(arguments=[job.to_json()]))
    status = g.random.choice(["started", "finished", "failed", "canceled", "deferred", "scheduled", "stopped"])
    return g.store(data, id=job.id, status=status), _DROPPED


def _of_another_queue(g: Gardener) -> tuple[bytes, set[str]]:
    job = g.job()
    origin = g.random.choice(["", "default", g.queue + "x", names.queue("high", g.model), b"\xff"])
    data = zlib.compress(call(arguments=[job.to_json()]))
    return g.store(data, id=job.id, origin=origin), {"dropped", "refused"}


def _parts_missing(g: Gardener) -> tuple[bytes, set[str]]:
    if g.random.random() < 0.5:
        return g.store(None), _REFUSED
    return g.store(zlib.compress(call(arguments=[g.job().to_json()])), status=None), _REFUSED


def _another_jobs_id(g: Gardener) -> tuple[bytes, set[str]]:
    return g.store(zlib.compress(call(arguments=[g.job().to_json()]))), _REFUSED


KINDS: dict[str, Callable[[Gardener], tuple[bytes, set[str]]]] = {
    "a function that is not ours": _foreign_function,
    "a pickle that executes": _pickle,
    "a decompression bomb": _decompression_bomb,
    "a field over its limit": _too_large,
    "garbage": _garbage,
    "JSON that is no call of ours": _no_call,
    "deeply nested JSON": _deep,
    "a job with changed fields": _changed_job,
    "a job with flipped bits": _flipped_bits,
    "a key that is no hash": _another_type,
    "odd values in RQ's fields": _odd_fields,
    "callbacks and webhooks": _callbacks,
    "a terminal's escapes in texts": _terminal_escapes,
    "an id that is none": _no_id,
    "an id without a job": _nothing_there,
    "a job that does not wait": _does_not_wait,
    "a job of another queue": _of_another_queue,
    "data or status missing": _parts_missing,
    "a job under another's id": _another_jobs_id,
}


def disrupt(g: Gardener, worker: str, huge: bool) -> str:
    """Writes something to a running worker's harm besides jobs; says what."""
    connection, queue, rng = g.connection, g.queue, g.random
    wip, intermediate = f"rq:wip:{queue}", f"rq:queue:{queue}:intermediate"

    def replace(key: str) -> Callable[[], object]:
        def write() -> None:
            with connection.pipeline() as pipe:
                pipe.delete(key)
                pipe.set(key, "hostile")
                pipe.execute()

        return write

    def ghosts() -> None:
        """Started jobs of a worker whose record is nonsense."""
        dead = g.store(zlib.compress(call(arguments=[g.text(20)])), status="started", worker_name="ghost")
        connection.hset(
            "rq:worker:ghost", mapping={"hostname": os.uname().nodename, "pid": rng.choice(["x", "9" * 30, "-1", "\0"])}
        )
        connection.zadd(wip, {dead + b":e": 1e12, b"\xff\xfe:\xff": 1.0, b"no-such-job:e": 1.0, b"": 1.0})

    acts: dict[str, Callable[[], object]] = {
        "the stream is a string": replace(names.EVENTS),
        "the registry of started jobs is a string": replace(wip),
        "the intermediate list is a string": replace(intermediate),
        "the worker's own record is a string": replace(f"rq:worker:{worker}"),
        "the set of workers is a string": replace("rq:workers"),
        "the queue's set of workers is a string": replace(f"rq:workers:{queue}"),
        "the groups of RQ are a string": replace("rq:groups"),
        "groups and workers that are no text": lambda: (
            connection.delete("rq:groups"),
            connection.sadd("rq:groups", b"\xff"),
            connection.type(f"rq:workers:{queue}") == b"set" and connection.sadd(f"rq:workers:{queue}", b"\xff\xfe"),
        ),
        "ghosts among the started jobs": ghosts,
        "ids that are none in the intermediate list": lambda: connection.rpush(intermediate, b"\xff", b"", b"a:b"),
        "messages on the channel": lambda: [
            connection.publish(f"rq:pubsub:{worker}", said)
            for said in (
                g.bytes(100),
                b"[" * 100_000,
                b'{"command": "shutdown"}',
                b'{"command": "kill-horse"}',
                b'{"command": "stop-job", "job_id": ["x"]}',
                b'{"command": "stop-job", "job_id": "x"}',
                json.dumps(g.value()).encode(),
                b"x" * (1 << 20),
            )
        ],
        "events that are none": lambda: [
            connection.type(names.EVENTS) in (b"stream", b"none")
            and connection.xadd(names.EVENTS, {b"event": g.bytes(200) or b"x", b"\xff": b"\xff"})
            for _ in range(20)
        ],
    }
    if huge:
        big = b"x" * (65 << 20)
        acts = {
            "an event of 65 MiB": lambda: connection.xadd(names.EVENTS, {"event": big}),
            "an id of 65 MiB": lambda: connection.rpush(f"rq:queue:{queue}", big),
            "65 MiB among the started jobs": lambda: connection.zadd(wip, {big: 1.0}),
            "a message of 65 MiB": lambda: connection.publish(f"rq:pubsub:{worker}", big),
            "a field of 65 MiB": lambda: connection.rpush(f"rq:queue:{queue}", g.store(big)),
        }
    name = rng.choice(sorted(acts))
    try:
        acts[name]()
    except Exception as error:  # another of these acts is in the way, and the worker has not mended it yet
        if "WRONGTYPE" not in str(error):
            raise
    return name
