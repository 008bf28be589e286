"""With --json an error is one document on stdout, whoever found it."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from segbatch.cli import main
from segbatch.cli.program import OF_RUNS

OF_JSON = sorted(
    name
    for name, command in main.commands.items()
    if any("--json" in option.opts for option in command.params)
)


@pytest.mark.parametrize("name", OF_JSON)
@pytest.mark.parametrize("before", [False, True])
def test_a_flag_that_is_not_known_is_told_as_json(name: str, before: bool) -> None:
    """A flag that the command does not know is an error document, and exit code 2."""
    words = [name, "--no-such-flag"]
    done = CliRunner().invoke(main, ["--json", *words] if before else [*words, "--json"])
    assert done.exit_code == 2
    answer = json.loads(done.stdout)
    assert "--no-such-flag" in answer["error"]["got"] or before
    assert answer["error"]["exit_code"] == 2
    assert f"{name} --help" in answer["error"]["remedy"] or before
    assert ("runs" in answer) == (name in OF_RUNS)
    assert "Usage:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["process", "--json"], "PATH"),
        (["export-engine", "--engine", "abacus", "--json"], "abacus"),
        (["export-engine", "--frame-shape", "96", "--json"], "--frame-shape 96"),
        (["export-engine", "--tolerance", "7", "--json"], "7"),
        (["engine-info", "gone.json", "--json"], "gone.json"),
        (["train", "--json"], "DATA"),
        (["process", "x", "--set", "nothing", "--json"], "--set nothing"),
    ],
)
def test_a_value_that_is_refused_is_told_as_json(arguments: list[str], said: str) -> None:
    """Missing arguments and values that are refused are told like any other error."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert said in error["got"]
    assert error["wanted"]
    assert error["remedy"]
    assert error["exit_code"] == 2


@pytest.mark.parametrize(
    "arguments", [["simulate", "--json"], ["process", "--", "--json"], ["no-such-command"]]
)
def test_where_no_json_was_asked_for_stdout_is_empty(arguments: list[str]) -> None:
    """Commands without the flag, and a path of its name, leave stdout to nobody."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert done.stdout == ""


def test_help_is_help_all_the_same() -> None:
    """Asked for help, a command gives it and no error."""
    done = CliRunner().invoke(main, ["process", "--json", "--help"])
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage:")
    assert isinstance(main, click.Group)
