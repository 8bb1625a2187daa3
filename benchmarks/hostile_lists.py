"""Hostile prompt lists in front of the readers: each must end as a list or in an error of ours, and soon.

`python -m benchmarks.hostile_lists FOLDER COUNT SEED FILE` is the process that reads them.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from renderkiln.home.folder import DataFolder
from renderkiln.producer.inputs import InputCarrier
from renderkiln.producer.prompts import ListOptions, parse_sweep, read, requests
from renderkiln.schema.errors import RenderkilnError

from .hostile_jobs import MARKERS, Bomb

#: Seconds of a processor that one list may take, seconds by the clock, and items of it that are asked for.
TIME, CLOCK, ITEMS = 10, 120, 500
#: MiB that the reading process may have in all.
MEMORY = 1500
FORMS = ("txt", "csv", "jsonl", "yaml")


@dataclass
class Readers:
    """What came of a siege of the readers."""

    hostile: int
    #: By kind: how many were lists, and how many ended in each type of error.
    fates: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    crashes: int = 0
    slowest: float = 0.0
    peak_mib: int = 0
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        counted = sum(sum(each.values()) for each in self.fates.values())
        return not (self.wrong or self.executed or self.crashes) and counted == self.hostile

    def show(self) -> None:
        """The table."""
        print(f"\n| into the readers: {self.hostile:,} hostile lists | a valid list | an error of ours |")
        print("|---|---|---|")
        for kind, fates in sorted(self.fates.items()):
            print(f"| {kind} | {fates['a list']:,} | {sum(fates.values()) - fates['a list']:,} |")
        total = sum(self.fates.values(), Counter())
        print(f"| **all** | {total['a list']:,} | {sum(total.values()) - total['a list']:,} |")
        print(f"\nexecuted: {len(self.executed)}; crashes: {self.crashes}; other errors: {len(self.wrong)}")
        print(f"slowest: {self.slowest:.2f} s of a processor; peak memory: {self.peak_mib} MiB; {self.seconds:.1f} s")
        for line in self.wrong[:20]:
            print(f"WRONG: {line}")


@dataclass(frozen=True)
class Hostile:
    """A list: its bytes and form, and how it is to be read."""

    data: bytes
    form: str
    options: dict[str, Any] = field(default_factory=dict)
    sweeps: tuple[str, ...] = ()


class Maker:
    """Makes hostile lists in a folder."""

    def __init__(self, folder: Path, markers: Path, rng: random.Random, huge: bool) -> None:
        self.folder, self.markers, self.random, self.huge = folder, markers, rng, huge
        self.wildcards = folder / "wildcards"
        self.wildcards.mkdir()
        self._plant_wildcards()

    def make(self) -> tuple[str, Hostile]:
        kind = self.random.choice(sorted(KINDS))
        return kind, KINDS[kind](self)

    def pieces(self, pieces: tuple[str, ...], most: int) -> str:
        return "".join(self.random.choices(pieces, k=self.random.randrange(1, most)))

    def _plant_wildcards(self) -> None:
        secret = self.folder / "secret.txt"
        secret.write_text("SECRET\n")
        (self.wildcards / "out.txt").symlink_to(secret)
        (self.wildcards / "loop.txt").symlink_to(self.wildcards / "loop.txt")
        (self.wildcards / "zero.txt").symlink_to("/dev/zero")
        (self.wildcards / "self.txt").write_text("__self__\n")
        for n in range(40):
            (self.wildcards / f"chain{n}.txt").write_text(f"__chain{n + 1}__ __chain{n + 1}__\n")
        (self.wildcards / "many.txt").write_text("".join(f"{{{n}|a|b}}\n" for n in range(20_000)))
        (self.wildcards / "bytes.txt").write_bytes(b"\xff\xfe\0")
        os.mkfifo(self.wildcards / "fifo.txt")
        for level in range(12):
            (self.wildcards / f"more{level}.txt").write_text(f"__more{level + 1}__ __more{level + 1}__\n" * 2)
        (self.wildcards / "more12.txt").write_text("x\n" * 100)


def _any_bytes(m: Maker) -> Hostile:
    return Hostile(m.random.randbytes(m.random.randrange(400)), m.random.choice(FORMS))


_TOKENS = (
    *(
        "prompt",
        "seed",
        "negative_prompt",
        "labels.a",
        "init_image",
        "controlnets",
        "store",
        "num_images",
        "x",
        "a cat",
    ),
    *("{", "}", "[", "]", '"', "'", ":", ",", ";", "\t", "\n", "\n- ", "- ", "--", "  ", "|", "__a__", "::", "$$", "#"),
    *(
        "&a ",
        "*a",
        "<<",
        "!!python/object/apply:os.system",
        "!",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "? ",
        ">\n",
        "\\",
        "=",
    ),
    *(
        "1e999",
        "nan",
        "-1",
        "9" * 400,
        "\0",
        "\x1b[2J",
        "\u202e",
        "\u2028",
        "\x85",
        "\ufeff",
        "é",
        "\U0001f642",
        "null",
    ),
    *("--steps 5", "--prompt ", "--seed ", "--batch_size 99999", "--controlnet a=b", "~root/x", "/dev/zero", "../../x"),
)


def _tokens(m: Maker) -> Hostile:
    return Hostile(m.pieces(_TOKENS, 60).encode(), m.random.choice(FORMS), {"combinations": m.random.random() < 0.5})


_GOOD = {
    "txt": "a cat\n--prompt a {red|blue} dog --steps 5 --cfg_scale 7\n# no\n",
    "csv": 'prompt,seed,labels.a\na cat,1,x\n"a, b",2,y\n',
    "jsonl": '{"prompt": "a cat", "seed": 1, "labels": {"a": "b"}}\n{"prompt": "b", "width": 64}\n',
    "yaml": "defaults:\n  seed: 1\nprompts:\n- a cat\n- prompt: b\n  labels: {a: b}\n",
}


def _mutated(m: Maker) -> Hostile:
    form = m.random.choice(FORMS)
    data = bytearray(_GOOD[form].encode())
    for _ in range(m.random.randrange(1, 8)):
        at = m.random.randrange(len(data) + 1)
        which = m.random.randrange(3)
        if which == 0:
            data[at : at + m.random.randrange(6)] = b""
        elif which == 1:
            data[at:at] = m.random.choice(_TOKENS).encode()
        elif at < len(data):
            data[at] = m.random.randrange(256)
    return Hostile(bytes(data), form)


def _encodings(m: Maker) -> Hostile:
    form = m.random.choice(FORMS)
    text = _GOOD[form]
    odd = (b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xff", b"\0", "\u202e\u2066".encode(), b"\xc2\x9b31m")
    data = m.random.choice(
        [text.encode("utf-16"), text.encode("utf-32"), b"\xef\xbb\xbf" * 3 + text.encode(), text.encode("utf-7")]
        + [text.encode().replace(b"cat", each) for each in odd]
    )
    return Hostile(data, form)


def _deep(m: Maker) -> Hostile:
    depth = m.random.choice([50, 500, 1000, 5000, 100_000])
    text = m.random.choice(["[", "{", '{"a":', "- ", "- - ", "{a: ", "[[", "? ", "(", "'", '"']) * depth
    form = m.random.choice(FORMS)
    prefix = {"jsonl": '{"prompt": ', "yaml": "- prompt: ", "csv": "prompt\n", "txt": ""}[form]
    return Hostile((prefix + text).encode(), form)


def _laughs(m: Maker) -> Hostile:
    width, levels = m.random.choice([(9, 9), (50, 5), (2, 60)])
    kind = m.random.randrange(4)
    lines = ["a0: &a0 [lol]"]
    for n in range(1, levels):
        many = ", ".join([f"*a{n - 1}"] * width)
        lines.append(f"a{n}: &a{n} [{many}]" if kind < 2 else f"a{n}: &a{n} {{labels: {{x: *a{n - 1}}}}}")
    text = "\n".join(lines) + f"\nprompts: *a{levels - 1}\n"
    if kind == 1:
        text = "- &a {prompt: x}\n" + "- *a\n" * 100_000
    if kind == 3:
        text = "- &a [*a]\n- *a\n"
    return Hostile(text.encode(), "yaml")


def _tags(m: Maker) -> Hostile:
    marker = m.markers / "yaml"
    text = m.random.choice(
        [
            f"- !!python/object/apply:os.system ['touch {marker}']\n",
            f"prompts: !!python/object/new:os.system [touch {marker}]\n",
            "- prompt: !!python/name:os.system x\n  seed: !!python/object/apply:eval ['1']\n",
            "- !!binary aGVsbG8=\n- !!timestamp 2026-01-01\n- !!set {a, b}\n",
            "- !<tag:yaml.org,2002:python/module:os> x\n",
        ]
    )
    data = text.encode()
    if m.random.random() < 0.2:
        data = pickle.dumps(Bomb(m.markers / "pickle"), protocol=m.random.randrange(6))
    return Hostile(data, m.random.choice(["yaml", "yaml", *FORMS]))


def _numbers(m: Maker) -> Hostile:
    number = m.random.choice(["1e999", "-1e999", "9" * 5000, "1" + "0" * 100_000, "0x" + "f" * 4000, "1e-400", "NaN"])
    number = m.random.choice([number, number, "Infinity", "1_000", "٣", "1" * 20, "-0", ".inf", "12:30:45", "0o17"])
    name = m.random.choice(
        ["seed", "width", "num_inference_steps", "guidance_scale", "num_images", "timeout", "strength"]
    )
    form = m.random.choice(FORMS)
    text = {
        "txt": f"--prompt a --{name} {number}",
        "csv": f"prompt,{name}\na,{number}\n",
        "jsonl": f'{{"prompt": "a", "{name}": {number}}}',
        "yaml": f"- prompt: a\n  {name}: {number}\n",
    }[form]
    return Hostile(text.encode(), form)


def _long(m: Maker) -> Hostile:
    form = m.random.choice(FORMS)
    which = m.random.randrange(5)
    if which == 0:
        return Hostile(b"x" * m.random.choice([200_000, 1 << 20, 3 << 20]), form)
    if which == 1:
        return Hostile(("prompt" + ",labels.a" * 50_000 + "\n").encode(), "csv")
    if which == 2:
        return Hostile(("{" + ",".join(f'"k{n}": 1' for n in range(20_000)) + "}").encode(), "jsonl")
    if which == 3:
        return Hostile(("- {" + ",".join(f"k{n}: 1" for n in range(5_000)) + "}").encode(), "yaml")
    return Hostile(b'prompt\n"' + b"a\n" * 300_000, "csv")


_WILD = (
    *("__out__", "__loop__", "__zero__", "__self__", "__chain0__", "__many__", "__bytes__", "__fifo__", "__more0__"),
    *("__../secret__", "__/etc/passwd__", "__~root/x__", "__..\\secret__", "__C:/x__", "__*__", "__wildcards/../out__"),
    *("{a|b}", "{", "}", "|", "{|}", "{a|{b|{c|d}}}", "{2$$a|b}", "${x=1}", "{0.5::a|b}", "\\{", "a ", "{__many__|x}"),
)


def _templates(m: Maker) -> Hostile:
    text = m.pieces(_WILD, 12)
    if m.random.random() < 0.3:
        text = m.random.choice(["{a|b}" * 300, "{" * 40 + "}" * 40, "{" + "a|" * 50_000 + "b}", "{__many__|x}" * 200])
    options = {"combinations": m.random.random() < 0.5, "wildcards": m.random.choice([m.wildcards, m.wildcards, None])}
    return Hostile(text.encode(), "txt", options)


def _sweeps(m: Maker) -> Hostile:
    known = (
        *(
            "seed=0..1e12",
            "seed=0..4294967295",
            "seed=1..1000000",
            "width=8..4096..8",
            "guidance_scale=0..1..0.0000001",
        ),
        *("seed=1..8..0", "seed=nan..inf", "seed=1..", "seed=..", "prompt=" + "a," * 20_000, "labels=x", "x=1", "seed"),
        *(
            "num_images=1..10000",
            "scheduler=ddim,lcm",
            "init_image=/etc/passwd,/dev/zero",
            "seed=" + "1" * 9999 + "..2",
        ),
        *(
            "guidance_scale=1e-999..1",
            "model=../../x",
            "store=/etc",
            "seed='1",
            "controlnets=a=b;c=d",
            "timeout=1..1e11",
        ),
    )
    chosen = tuple(m.random.choices(known, k=m.random.randrange(1, 4)))
    return Hostile(b"a cat\n" * 3, "txt", {"combinations": True}, chosen)


_PLACES = (
    *(
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "../secret.txt",
        "~root/.ssh/id",
        "http://127.0.0.1:9/x.png",
        "\\\\a\\b",
    ),
    *("file:///etc/passwd", "s3://a/b", "wildcards", "wildcards/fifo.txt", "a" * 5000, "sha256:" + "0" * 64, ".", ""),
    *("x\u202e.png", "sha256:..", "sha256:../../secret.txt", "/proc/self/mem", "/proc/self/environ"),
)


def _paths(m: Maker) -> Hostile:
    place = m.random.choice(_PLACES)
    field_name = m.random.choice(["init_image", "mask_image", "controlnets", "model", "revision", "store"])
    value: Any = [{"model": "canny", "image": place}] if field_name == "controlnets" else place
    row: dict[str, Any] = {"prompt": "a", field_name: value}
    if m.random.random() < 0.5:
        return Hostile(json.dumps(row).encode(), "jsonl")
    value = f"canny={place}" if field_name == "controlnets" else place
    return Hostile(f"--prompt a --{field_name} '{value}'".encode(), "txt")


KINDS: dict[str, Callable[[Maker], Hostile]] = {
    "any bytes": _any_bytes,
    "tokens in any order": _tokens,
    "good lists with errors": _mutated,
    "other encodings, bidi, NUL": _encodings,
    "deep nesting": _deep,
    "YAML that multiplies": _laughs,
    "YAML tags and pickles": _tags,
    "numbers of any size": _numbers,
    "long lines, many fields": _long,
    "templates and wildcards": _templates,
    "sweeps": _sweeps,
    "paths and URLs": _paths,
}


def siege(count: int, seed: int, root: Path, *, huge: bool = True) -> Readers:
    """Has a process of its own read hostile lists, some of which take seconds where `huge`; what came of each."""
    readers, report = Readers(count), root / "report.json"
    (root / "markers").mkdir()
    command = [sys.executable, "-m", "benchmarks.hostile_lists", str(root), str(count), str(seed), str(report)]
    command += ["huge"] if huge else []
    began = time.monotonic()
    process = subprocess.run(
        command, stdin=subprocess.DEVNULL, env=os.environ | {MARKERS: str(root / "markers")}, check=False
    )
    readers.seconds = time.monotonic() - began
    readers.crashes = int(process.returncode != 0)
    found = json.loads(report.read_text()) if report.is_file() else {}
    readers.fates = {kind: Counter(fates) for kind, fates in found.get("fates", {}).items()}
    readers.wrong, readers.slowest = found.get("wrong", []), found.get("slowest", 0.0)
    readers.peak_mib = found.get("peak_mib", 0)
    readers.executed = sorted(path.name for path in (root / "markers").iterdir())
    return readers


def _read_all(root: Path, count: int, seed: int, huge: bool) -> dict[str, Any]:
    maker = Maker(root, root / "markers", random.Random(seed), huge)
    fates: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    slowest = 0.0
    for number in range(count):
        kind, hostile = maker.make()
        path = root / f"list{number}.{hostile.form}"
        path.write_bytes(hostile.data)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, TIME)
        signal.alarm(CLOCK)
        try:
            options = ListOptions(sweeps=tuple(map(parse_sweep, hostile.sweeps)), **hostile.options)
            carrier = InputCarrier(DataFolder(root / "data"))
            found = list(islice(requests([read(str(path), options)], carrier.add), ITEMS))
            fate = "a list"
            if any("SECRET" in request.spec.prompt for request in found):
                wrong.append(f"{kind}, number {number}: a file outside of the folder was read")
        except RenderkilnError as error:
            fate = type(error).__name__
            str(error).encode()
        except BaseException as error:
            fate = "another error"
            wrong.append(f"{kind}, number {number}: {type(error).__name__}: {str(error)[:200]}")
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - began)
        fates.setdefault(kind, Counter())[fate] += 1
        path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"fates": fates, "wrong": wrong, "slowest": slowest, "peak_mib": peak}


def _too_slow(signum: int, frame: Any) -> None:
    raise TimeoutError(f"a list took more than {TIME} s of a processor, or {CLOCK} s by the clock")


def main() -> None:
    root, count, seed, report, *huge = sys.argv[1:]
    signal.signal(signal.SIGALRM, _too_slow)
    signal.signal(signal.SIGPROF, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY << 20, MEMORY << 20))
    Path(report).write_text(json.dumps(_read_all(Path(root), int(count), int(seed), bool(huge))))


if __name__ == "__main__":
    main()
