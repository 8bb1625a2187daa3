"""`renderkiln report` on a ledger that a night has filled: the picture, the numbers, and what it says without any."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords, MemorySample
from renderkiln.producer.cli.report import parse_since
from renderkiln.producer.report.picture import DPI, HEIGHT, WIDTH, draw, stage_colour
from renderkiln.producer.report.reading import MemoryReport
from renderkiln.schema import Failure, JobStatus, make_job, parse_options, parse_spec
from renderkiln.schema.errors import BadInputError

from .conftest import Run

GB = 10**9
#: 2024-05-12 21:00 UTC.
BEGIN = 1_715_547_600.0
EVENTS = {200: "tightened: one stage at a time", 203: "renderer ended", 204: "renderer started", 700: "calm again"}
STAGES = {"text_encoder": GB // 4, "unet": 5 * GB, "vae_decoder": GB // 10}
#: After so many samples nobody looked for an hour.
PAUSE = 600


def samples(count: int = 1000, every: float = 10.0) -> list[MemorySample]:
    """A night that begins with all stages in memory, and goes on with one at a time."""
    found = []
    for number in range(count):
        turn = number % 20
        one = "text_encoder" if turn < 2 else "unet" if turn < 18 else "vae_decoder"
        stages = [("dreamy", name, size) for name, size in STAGES.items() if number < 200 or name == one]
        used = sum(size for _, _, size in stages) + GB // 2 + number * 10**5
        level = "critical" if 190 <= number < 200 or number == 800 else "warn" if 150 <= number < 230 else "calm"
        at = BEGIN + number * every + (3600 if number >= PAUSE else 0)
        found.append(MemorySample(at, used, 9 * GB - used, level, tuple(stages), EVENTS.get(number)))
    return found


@pytest.fixture
def data(no_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a machine that has a ledger with nothing in it."""
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    Ledger(tmp_path / "data" / "ledger.db").close()
    return tmp_path / "data"


@pytest.fixture
def night(data: Path) -> Path:
    """A worker's night of 1,000 samples and five attempts, two of which memory ended; and another worker's noon."""
    with contextlib.closing(Ledger(data / "ledger.db")) as ledger:
        records = MemoryRecords(ledger)
        records.add_samples("mini-1", samples())
        records.add_samples("mini-0", [MemorySample(BEGIN - 9 * 3600, GB, GB, "calm", (), "noon")])
        ledger.worker_started("mini-1", "mini", 7, {})
        for number, failed in enumerate(["", "out_of_memory", "", "renderer_died", "bad_image"]):
            job = make_job(parse_spec({"prompt": f"cat {number}"}), parse_options({}), batch="cats", index=number)
            ledger.attempt_started(job, f"e{number}", 1, "mini-1")
            ledger.attempt_ended(
                job.id,
                f"e{number}",
                "failed" if failed else "finished",
                status=JobStatus.FAILED if failed else JobStatus.FINISHED,
                failure=Failure(kind=failed, message="…") if failed else None,
                timings={"load_seconds": 2.5},
                memory={"peak_bytes": 6 * GB + number, "loads": 3, "evictions": number} if number else None,
            )
    with sqlite3.connect(data / "ledger.db") as raw:
        for number in range(5):
            begin, end = (BEGIN + 2000.0 * number + more for more in (10, 40))
            times = [datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S") for at in (begin, end)]
            raw.execute(
                "update attempts set started_at = ?, ended_at = ? where number = 1 and execution_id = ?",
                (*times, f"e{number}"),
            )
    raw.close()
    return data


def svg_of(path: Path) -> tuple[str, set[str]]:
    """The whole of an SVG file, and the texts in it."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(each.itertext()).strip() for each in root.iter("{http://www.w3.org/2000/svg}text")}
    return path.read_text(encoding="utf-8"), texts


def test_the_picture_is_an_svg_with_stages_levels_events_and_failures_in_words(
    run: Run, night: Path, no_settings: Path
) -> None:
    said = run("report")
    assert said.code == 0
    assert said.out.splitlines()[-1] == "memory.svg"
    svg, texts = svg_of(no_settings / "memory.svg")
    assert {*STAGES, *EVENTS.values()} <= texts
    assert {"Memory of worker mini-1", "renderer", "available to all", "GB", "time of day", "no samples"} <= texts
    assert {"memory is short (warn)", "memory is critical", "event", "out of memory or renderer died"} <= texts
    assert any("peak 5.87 GB" in text and "5 attempts" in text for text in texts)
    for stage in STAGES:
        assert svg.count(stage_colour(stage)) >= 2  # in the picture and in the legend
    assert "noon" not in texts


def test_the_same_night_gives_the_same_picture(run: Run, night: Path, no_settings: Path) -> None:
    run("report", "--out", "a.svg")
    run("report", "--out", "b.svg")
    assert (no_settings / "a.svg").read_bytes() == (no_settings / "b.svg").read_bytes()


def test_the_picture_is_a_png_where_its_name_says_so(run: Run, night: Path, no_settings: Path) -> None:
    assert run("report", "--out", "night.PNG").out.splitlines()[-1] == "night.PNG"
    with Image.open(no_settings / "night.PNG") as picture:
        assert (picture.format, picture.size) == ("PNG", (WIDTH * DPI, HEIGHT * DPI))
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    for colour in (*map(stage_colour, STAGES), "#fff0c2", "#fbd0cb", "#d0021b"):
        assert tuple(bytes.fromhex(colour[1:])) in colours


def test_the_summary_says_what_the_picture_is_of(run: Run, night: Path) -> None:
    rows = dict(line.split("  ", 1) for line in run("report").out.splitlines() if "  " in line)
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["worker"] == "mini-1"
    assert rows["samples"] == "1,000"
    assert rows["attempts"] == "5 (1 out_of_memory, 1 renderer_died)"
    assert rows["renderer"] == "peak 5.87 GB, median 5.56 GB"
    assert rows["peak in an attempt"] == "6.00 GB"
    assert rows["level"] == "warn for 11 min 40 s, critical for 1 min 50 s"
    assert rows["stages loaded"] == "12 in 12 s"
    assert rows["dropped for room"] == "10"
    when = datetime.fromtimestamp(BEGIN + 2000).strftime("%Y-%m-%d %H:%M:%S")
    assert rows[when] == "tightened: one stage at a time"


def test_json_has_the_numbers_and_no_picture_is_made(run: Run, night: Path, no_settings: Path) -> None:
    said = run("report", "--json")
    assert (said.code, said.err, list(no_settings.iterdir())) == (0, "", [])
    found = said.json
    assert (found["worker"], found["since"], found["until"]) == ("mini-1", BEGIN, BEGIN + 9990 + 3600)
    assert len(found["samples"]) == 1000
    assert found["samples"][199]["stages"][1] == {"model": "dreamy", "stage": "unet", "size_bytes": 5 * GB}
    assert found["samples"][199]["level"] == "critical"
    assert [each["event"] for each in found["events"]] == list(EVENTS.values())
    assert [each["failure_kind"] for each in found["attempts"]][:2] == [None, "out_of_memory"]
    summary = found["summary"]
    assert (summary["attempts"], summary["loads"], summary["load_seconds"], summary["evictions"]) == (5, 12, 12.5, 10)
    assert summary["failures"] == {"out_of_memory": 1, "renderer_died": 1}


def test_a_worker_and_a_time_can_be_asked_for(run: Run, night: Path) -> None:
    other = run("report", "--worker", "mini-0", "--json").json
    assert ([each["event"] for each in other["samples"]], other["summary"]["loads"]) == (["noon"], None)
    since = datetime.fromtimestamp(BEGIN + 7000 + 3600).strftime("%Y-%m-%dT%H:%M")
    late = run("report", "--since", since, "--json").json
    assert [each["event"] for each in late["events"]] == ["calm again"]
    assert len(late["attempts"]) == 0
    said = run("report", "--since", f"{(time.time() - BEGIN) / 3600 + 1:.3f}h", "--json").json
    assert len(said["samples"]) == 1000


def test_a_single_sample_is_drawn(run: Run, night: Path, no_settings: Path) -> None:
    assert run("report", "--worker", "mini-0").code == 0
    assert "noon" in svg_of(no_settings / "memory.svg")[1]


@pytest.mark.parametrize("has_ledger", [True, False])
def test_without_samples_it_says_how_to_get_some(run: Run, data: Path, no_settings: Path, has_ledger: bool) -> None:
    if not has_ledger:
        (data / "ledger.db").unlink()
    said = run("report")
    assert (said.code, said.out) == (2, "")
    assert "renderkiln worker" in said.err
    assert list(no_settings.iterdir()) == []
    assert (data / "ledger.db").exists() == has_ledger


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--worker", "mimi-1"], "Did you mean 'mini-1'"),
        (["--since", "30m"], "Try --since 2024-05-1"),
        (["--since", "yesterday"], "YYYY-MM-DDTHH:MM"),
        (["--out", "night.pdf"], ".svg or .png"),
        (["--out", "nowhere/night.svg"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_can(
    run: Run, night: Path, no_settings: Path, arguments: list[str], expected: str
) -> None:
    said = run("report", *arguments)
    assert (said.code, said.out) == (2, "")
    assert expected in said.err
    assert list(no_settings.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5 H", 5400), ("1d", 86400), ("9" * 30 + "h", 2e9)],
)
def test_since_may_be_so_long_ago(text: str, seconds: float) -> None:
    assert parse_since(text, 2e9) == 2e9 - seconds


def test_since_may_be_a_time_of_this_machine() -> None:
    assert parse_since("2026-05-12T21:04", 0.0) == datetime(2026, 5, 12, 21, 4).timestamp()
    assert parse_since("2026-05-12", 0.0) == datetime(2026, 5, 12).timestamp()
    for wrong in ("", "h", "-2h", "2 weeks", "2026-13-01T00:00", "21:04"):
        with pytest.raises(BadInputError, match="--since"):
            parse_since(wrong, 0.0)


def report_of(events: list[str], worker: str = "mini-1", **fields: Any) -> MemoryReport:
    values = {"process_bytes": GB, "available_bytes": 2 * GB, "level": "calm"} | fields
    return MemoryReport(worker, [MemorySample(BEGIN + n, event=each, **values) for n, each in enumerate(events)], [])


def test_what_xml_cannot_hold_and_mathematics_do_not_spoil_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(
        draw(report_of(["a\x00b\x1b[1m", "$x^$ & <b>", "猫\ud800"], "mini $1$ <猫>"), "svg")
    )
    _, texts = svg_of(tmp_path / "a.svg")
    assert {"a b [1m", "$x^$ & <b>", "猫", "Memory of worker mini $1$ <猫>"} <= texts


def test_labels_for_which_there_is_no_room_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(draw(report_of([f"event {number}" for number in range(40)]), "svg"))
    _, texts = svg_of(tmp_path / "a.svg")
    labels = [text for text in texts if text.startswith("event ") and text[6:].isdigit()]
    assert 12 <= len(labels) < 40
    assert f"event ({40 - len(labels)} without a label)" in texts


def test_far_more_memory_than_the_renderer_takes_is_said_and_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(draw(report_of(["", ""], available_bytes=100 * GB), "svg"))
    _, texts = svg_of(tmp_path / "a.svg")
    assert "available to all (up to 100.0 GB)" in texts
    assert "100" not in texts
