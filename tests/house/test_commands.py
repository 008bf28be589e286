"""The command line as a newcomer meets it: help, examples, version, speed of the first answer."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import click
import pytest
from click.testing import CliRunner

import segbatch
from segbatch.cli import main
from tests.house.places import COMMAND

HEAVY = {
    "PIL", "cv2", "dask", "imagecodecs", "matplotlib", "numpy", "onnxruntime", "openvino",
    "pycromanager", "rich", "tensorrt", "tifffile", "torch",
}  # fmt: skip
COMMANDS = sorted(main.commands) if isinstance(main, click.Group) else []


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command, with ``environ`` added to the environment."""
    return subprocess.run(
        [COMMAND, *arguments], env=os.environ | environ, capture_output=True, text=True, check=True
    )


def examples(name: str) -> list[str]:
    """Return the lines of a command's help that call the command, the usage line left out."""
    answer = CliRunner().invoke(main, [name, "--help"], prog_name="segbatch")
    assert answer.exit_code == 0, answer.output
    return re.findall(rf"^\s+(?:\$ )?(segbatch {name}\b.*)$", answer.output, re.MULTILINE)


def test_commands_exist() -> None:
    """The commands of the first form are there."""
    assert {"doctor", "process", "qc", "schema", "simulate"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    """Every command shows in its help how it is called."""
    assert examples(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_known_options(name: str) -> None:
    """Every option that an example uses is one of its command's."""
    known = {option for item in main.commands[name].params for option in item.opts}
    known |= {option for item in main.commands[name].params for option in item.secondary_opts}
    used = {
        word.partition("=")[0]
        for line in examples(name)
        for word in shlex.split(line, comments=True)
        if word.startswith("-")
    }

    assert used <= known | {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_explained(name: str) -> None:
    """Every option of every command says what it does."""
    options = [item for item in main.commands[name].params if isinstance(item, click.Option)]

    assert [item.name for item in options if not item.help] == []


def test_help_imports_nothing_heavy() -> None:
    """Asking for help loads no array, image, engine or terminal library."""
    trace = run("--help", PYTHONPROFILEIMPORTTIME="1").stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in trace.splitlines()}

    assert "click" in loaded
    assert HEAVY & loaded == set()


def test_version_stands_alone() -> None:
    """The version is printed without another word."""
    assert run("--version").stdout == f"{segbatch.__version__}\n"
