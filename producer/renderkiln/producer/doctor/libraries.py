"""The libraries: which are here, whether their versions are those that we ask for, and which extras are missing.

All of it comes from the metadata of installed packages; nothing is imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from renderkiln.home.checkup import Finding, ok, problem, warning
from renderkiln.home.settings import Settings

#: `numpy<2.4,>=1.26; extra == 'worker'`, as the metadata of an installed package has it.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_SYSTEM = re.compile(r"""sys_platform\s*==\s*['"]([^'"]+)['"]""")
_CLAUSE = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)")
#: What the extras that a user may want are for.
EXTRAS = {
    "worker": "rendering here",
    "coreml": "converting models to Core ML, and running these",
    "coreai": "converting models to Core AI, and running these (macOS 26 and later, Linux; Python 3.11 and later)",
    "report": "pictures of what workers have in memory",
    "hub": "the hub of a fleet",
    "postgres": "a ledger in Postgres",
}


@dataclass(frozen=True)
class Requirement:
    """A library that we need, or that an extra does."""

    name: str
    #: Such as `>=1.26,<2.4`.
    versions: str
    extra: str | None


def check_libraries(_settings: Settings) -> list[Finding]:
    """The libraries of this Python."""
    wanted = parse_requirements(requires("renderkiln") or ())
    return judge_libraries(wanted, {each.name: _installed(each.name) for each in wanted})


def parse_requirements(lines: Iterable[str], system: str = sys.platform) -> list[Requirement]:
    """Requirements as metadata writes them. Those that hang on anything but an extra and the system are left out."""
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            continue
        name, versions, marker = match.groups()
        extra, systems = _EXTRA.search(marker or ""), _SYSTEM.findall(marker or "")
        if (marker is None or extra is not None) and (not systems or system in systems):
            found.append(Requirement(name, versions.strip(), extra[1] if extra else None))
    return found


def judge_libraries(wanted: Iterable[Requirement], installed: Mapping[str, str | None]) -> list[Finding]:
    """Whether the base install is whole, and each extra.

    Args:
        installed: versions by name; None where a library is not there.
    """
    by_extra: dict[str | None, list[Requirement]] = {}
    for each in wanted:
        by_extra.setdefault(each.extra, []).append(each)
    findings = [_judge("libraries", "renderkiln", by_extra.pop(None, []), installed)]
    for extra, purpose in EXTRAS.items():
        needed = by_extra.get(extra, [])
        if not needed:
            continue
        about, pip = f"extra {extra}", f"renderkiln[{extra}]"
        if any(installed[each.name] for each in needed):
            findings.append(_judge(about, pip, needed, installed))
        else:
            says = f"not installed; it is for {purpose}: pip install '{pip}'"
            findings.append(ok(about, says, installed={}, missing=[each.name for each in needed]))
    return findings


def fits(number: str, versions: str) -> bool:
    """Whether a version is in a range such as `>=1.26,<2.4`. Numbers alone are compared."""
    have = _numbers(number)
    for operator, limit in _CLAUSE.findall(versions):
        want = _numbers(limit)
        length = max(len(have), len(want))
        left, right = (each + (0,) * (length - len(each)) for each in (have, want))
        fine = {
            ">=": left >= right,
            "<=": left <= right,
            ">": left > right,
            "<": left < right,
            "==": left == right,
            "!=": left != right,
        }
        if not fine[operator]:
            return False
    return True


def _judge(about: str, pip: str, needed: list[Requirement], installed: Mapping[str, str | None]) -> Finding:
    there = {each.name: number for each in needed if (number := installed[each.name])}
    missing = [each.name for each in needed if each.name not in there]
    odd = [each for each in needed if each.name in there and not fits(there[each.name], each.versions)]
    facts = {"installed": there, "missing": missing}
    do = f"pip install '{pip}'"
    if missing:
        # An extra that is here in part is most often another one's share of it.
        state = problem if about == "libraries" else warning
        return state(about, f"missing: {', '.join(missing)}", do, **facts)
    if odd:
        said = ", ".join(f"{each.name} is {there[each.name]}, not {each.versions}" for each in odd)
        return warning(about, said, f"pip install --upgrade '{pip}'", **facts)
    return ok(about, ", ".join(f"{name} {number}" for name, number in sorted(there.items())), **facts)


def _numbers(text: str) -> tuple[int, ...]:
    """`2.13.0+cu128` is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
