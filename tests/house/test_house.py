"""Rules about the project itself that no reader should have to check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import segbatch
from segbatch.settings import known_keys
from tests.house.places import ROOT, written

TEST_FILES = [file for file in written(".py") if file.name.startswith("test_")]
CONSTRAINTS = sorted((ROOT / "constraints").glob("*.txt"))
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")


def functions_of(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions of a module, methods included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, functions) and node.name.startswith("test_")
    ]


def pins(file: Path) -> dict[str, str]:
    """Return the version of each package that a constraint file names."""
    lines = file.read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    return {match[1].lower().replace("_", "-"): match[2] for match in matches if match}


def test_changelog_and_version_agree() -> None:
    """The newest version in the changelog is the version of the package."""
    headings = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == segbatch.__version__


def test_imports_only_look_down() -> None:
    """The import contracts of pyproject.toml are kept."""
    linter = Path(sys.executable).parent / "lint-imports"
    answer = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_state_a_truth(file: Path) -> None:
    """Every test has a docstring of one sentence."""
    found = {test.name: ast.get_docstring(test) or "" for test in functions_of(file)}
    wrong = [
        name
        for name, text in found.items()
        if not text.endswith(".") or "\n\n" in text or re.search(r"[.!?] [A-Z]", text)
    ]

    assert wrong == []


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.name)
def test_pins_are_exact_and_without_addresses(file: Path) -> None:
    """A constraint file holds exact versions and nothing about where they come from."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]

    assert [line for line in lines if not PIN.fullmatch(line)] == []


def test_pins_agree() -> None:
    """No two constraint files ask for different versions of a package."""
    merged: dict[str, str] = {}
    for file in CONSTRAINTS:
        for name, version in pins(file).items():
            assert merged.setdefault(name, version) == version, f"{name} in {file.name}"


def test_processing_is_pinned_without_torch() -> None:
    """Neither running nor testing the processing of frames installs torch."""
    pinned = {file.stem for file in CONSTRAINTS if "torch" in pins(file)}

    assert pinned == {"learn"}


def test_readme_lists_every_setting() -> None:
    """The README's table of settings has one row for each key, and no other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Settings$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section 'Settings'"
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", section[1], re.MULTILINE)

    assert sorted(rows) == sorted(known_keys())
