"""The table of a run, and the same as JSON."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from .harm import Record
from .run import Outcome


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row for each kind of fault, in the order of their names, and one for all."""
    by_kind: dict[str, list[Record]] = defaultdict(list)
    for record in outcome.records:
        by_kind[record.instead or record.fault.kind].append(record)
    found = [_row(kind, records, outcome) for kind, records in sorted(by_kind.items())]
    total = _row("all", outcome.records, outcome)
    verdict = outcome.verdict
    total |= {"lost": len(verdict.lost), "twice": len(verdict.twice)}
    total["wasted"] = round(sum(verdict.wasted.values()), 2)
    return [*found, total]


def costly_kills(outcome: Outcome) -> list[tuple[str, float]]:
    """What was killed, and the images that it cost, where that was more than the one at hand."""
    wasted = outcome.verdict.wasted
    found = [(each.fault.kind, wasted.get(each.fault.id, 0.0)) for each in outcome.records if each.killed]
    return [(kind, images) for kind, images in found if round(images, 2) > 1]


def _row(kind: str, records: list[Record], outcome: Outcome) -> dict[str, Any]:
    verdict, jobs = outcome.verdict, {record.job for record in records}
    by_fault = verdict.wasted
    wasted = [by_fault.get(record.fault.id, 0.0) for record in records]
    recoveries = [verdict.recoveries[each.fault.id] for each in records if each.fault.id in verdict.recoveries]
    return {
        "fault": kind,
        "times": len(records),
        "lost": sum(said.split(":")[0] in jobs for said in verdict.lost),
        "twice": sum(said.split()[0] in jobs for said in verdict.twice),
        "wasted": round(sum(wasted), 2),
        "wasted_most": round(max(wasted, default=0.0), 2),
        "recovery_median": round(statistics.median(recoveries), 2) if recoveries else None,
        "recovery_most": round(max(recoveries), 2) if recoveries else None,
    }


def as_table(outcome: Outcome) -> str:
    lines = [
        "| fault | times | lost | twice | wasted images (most by one) | recovery, s: median (most) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows(outcome):
        recovery = (
            "" if row["recovery_median"] is None else f"{row['recovery_median']:.1f} ({row['recovery_most']:.1f})"
        )
        lines.append(
            f"| {row['fault']} | {row['times']} | {row['lost']} | {row['twice']} | "
            f"{row['wasted']:.1f} ({row['wasted_most']:.1f}) | {recovery} |"
        )
    return "\n".join(lines)


def as_text(outcome: Outcome) -> str:
    """The table, and in words what stands in none."""
    verdict, order = outcome.verdict, outcome.order
    said = [
        f"seed {order.seed}: {len(outcome.records)} faults over {verdict.jobs} jobs of {verdict.images} images, "
        f"{order.workers} workers, lease {order.lease:g} s, in {outcome.seconds:.0f} s",
        "",
        as_table(outcome),
        "",
        f"files without a row: {len(verdict.files_without_row)}; "
        f"rows without a file: {len(verdict.rows_without_file)}; wrong results: {len(verdict.wrong_results)}; "
        f"in two lists: {len(verdict.in_two_lists)}; half-written files "
        f"removed by cleaning: {verdict.cleaned}, left: {len(verdict.leftovers)}; renderers left: "
        f"{verdict.renderers_left}; rows whose file was replaced: {verdict.overwritten}; "
        f"ends that Redis did not hear: {verdict.unheard}; done again after Redis was emptied: {verdict.again}; "
        f"wasted without a fault: {verdict.wasted.get('', 0.0):.1f}",
        f"kills that wasted more than one image: {len(costly_kills(outcome))} of "
        f"{sum(record.killed for record in outcome.records)}",
        *(f"  {wasted:.2f}: {kind}" for kind, wasted in costly_kills(outcome)),
        f"set aside and asked for again: {len(outcome.failures)}",
    ]
    said += _counted(f"{kind}: {message}" for kind, message, _ in outcome.failures)
    said += [f"refused to start, or to go on: {len(outcome.refusals)}", *_counted(outcome.refusals)]
    for title, lines in (("wrong", outcome.wrong), ("crashes", outcome.crashes)):
        said += [f"{title}: {len(lines)}", *(f"  {line}" for line in lines[:20])] if lines else []
    for title in ("lost", "twice", "files_without_row", "rows_without_file", "wrong_results", "in_two_lists"):
        said += [f"  {title}: {each}" for each in getattr(verdict, title)[:10]]
    return "\n".join(said)


def _counted(said: Iterable[str]) -> list[str]:
    """Each once, with how often it was said; names that chance made are left out."""
    counts = Counter(re.sub(r"probe-[0-9a-f]+|/tmp/[^/]*|worker-\d|\d+ MB", "…", each)[:160] for each in said)
    return [f"  {count} × {each}" for each, count in counts.most_common()]


def as_json(outcome: Outcome) -> dict[str, Any]:
    verdict, order = outcome.verdict, outcome.order
    wasted, goes = verdict.wasted, defaultdict(list)
    for one in verdict.waste:
        goes[one.culprit.fault.id if one.culprit else ""].append(one.as_json())
    return {
        "seed": order.seed,
        "faults": len(outcome.records),
        "jobs": verdict.jobs,
        "images": verdict.images,
        "workers": order.workers,
        "lease": order.lease,
        "seconds": round(outcome.seconds, 1),
        "kills": sum(record.killed for record in outcome.records),
        "costly_kills": costly_kills(outcome),
        "rows": rows(outcome),
        "each": [
            {
                "id": each.fault.id,
                "fault": each.instead or each.fault.kind,
                "life": each.life,
                "job": each.job,
                "struck_at": round(each.struck_at, 3),
                "over_at": round(each.over_at, 3),
                "wasted": round(wasted.get(each.fault.id, 0.0), 2),
                "wasted_goes": goes[each.fault.id],
                "recovery": verdict.recoveries.get(each.fault.id),
            }
            for each in outcome.records
        ],
        "lost": verdict.lost,
        "twice": verdict.twice,
        "files_without_row": verdict.files_without_row,
        "rows_without_file": verdict.rows_without_file,
        "wrong_results": verdict.wrong_results,
        "in_two_lists": verdict.in_two_lists,
        "leftovers": verdict.leftovers,
        "failures": [{"kind": kind, "message": message, "job": job} for kind, message, job in outcome.failures],
        "refusals": outcome.refusals,
        "crashes": outcome.crashes,
        "wrong": outcome.wrong,
    }
