"""The command `doctor`: what `producer.doctor` finds, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from renderkiln.schema.errors import EXIT_FAILED, SettingsError

from .options import AsJson, DataDir, Out
from .wording import count

if TYPE_CHECKING:
    from renderkiln.home.checkup import Finding

_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}


def add_commands(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(data_dir: DataDir = None, out: Out = None, as_json: AsJson = False) -> None:
    """Look over this machine: what is wrong, and what to type.

    Starts nothing and changes nothing. Ends with 0 if there is no problem (warnings are none), and with 1 if there is
    one. No password is shown, so that what it says can be pasted into a report.

    Example: renderkiln doctor --json
    """
    from renderkiln.home.checkup import problem
    from renderkiln.home.settings import Settings, load
    from renderkiln.producer.doctor.examining import ALWAYS, all_checkups, examine

    try:
        settings = load(data_dir=data_dir, out=out)
    except SettingsError as error:
        # What hangs on no setting is looked at all the same.
        findings = examine(Settings.model_construct(), ALWAYS)
        findings.append(problem("settings", str(error), "put that right; what hangs on settings was not looked at"))
    else:
        findings = examine(settings, all_checkups())
    is_well = all(finding.state != "problem" for finding in findings)
    if as_json:
        print(json.dumps({"ok": is_well, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _show(findings)
    if not is_well:
        raise typer.Exit(EXIT_FAILED)


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        state = typer.style(f"{finding.state:<7}", fg=_COLOURS[finding.state])
        typer.echo(f"{state}  {finding.about:<{width}}  {finding.says}")
        if finding.do:
            typer.echo(f"{'':<{width + 9}}  → {finding.do}")
    numbers = [sum(finding.state == state for finding in findings) for state in ("problem", "warning")]
    typer.echo(f"\n{count(numbers[0], 'problem')}, {count(numbers[1], 'warning')}")
