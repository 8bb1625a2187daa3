"""Help: every command has it, with an example, and the options are the schema's own names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer

from renderkiln.producer.cli.app import app
from renderkiln.schema import JobOptions, RenderSpec

from .conftest import Run


def commands() -> Iterator[list[str]]:
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ([name, each] for each in inner) if inner else [[name]]


COMMANDS = list(commands())


def test_the_commands_of_the_issue_are_there() -> None:
    wanted = ["render", "submit", "status", "watch", "results", "cancel", "retry", "show", "worker", "config", "schema"]
    assert [[name] for name in wanted if [name] not in COMMANDS] == []
    assert ["models", "list"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_has_help_with_an_example_of_itself(run: Run, command: list[str]) -> None:
    for flag in ("--help", "-h"):
        said = run(*command, flag)
        assert (said.code, said.err) == (0, "")
        example = said.out.partition("Example:")[2].split("\n\n")[0]
        assert f"renderkiln {' '.join(command)}" in " ".join(example.split())


def test_the_list_of_commands_says_each_in_a_whole_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = run("--help")
    listed = said.out.partition("Commands:")[2].partition("Start with:")[0]
    assert listed.count(".\n") == len({command[0] for command in COMMANDS})
    assert "..." not in listed


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    assert run().out.startswith("Usage: renderkiln ")
    assert run("--version").out.startswith("renderkiln 0.")


@pytest.mark.parametrize("command", ["render", "submit"])
def test_options_are_the_fields_of_spec_and_job_under_their_own_names(run: Run, command: str) -> None:
    help_text = run(command, "--help").out
    elsewhere = {"prompt", "labels", "store", "controlnets"}
    for name in (set(RenderSpec.model_fields) | set(JobOptions.model_fields)) - elsewhere:
        assert f"--{name.replace('_', '-')} " in help_text
    for flag in (
        "--label ",
        "--controlnet ",
        "--out ",
        "--data-dir ",
        "--sweep ",
        "--wildcards ",
        "--again ",
        "--dry-run ",
        "--json ",
    ):
        assert flag in help_text
