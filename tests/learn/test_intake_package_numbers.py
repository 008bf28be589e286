"""Numbers in a package's description: those of YAML 1.2, in which the format is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from segbatch.infer.engine.manifest import Fixed, ZScore
from segbatch.learn.intake.bioimageio.package import opened_package
from tests.learn.packages import (
    SIGMOID,
    Package,
    Steps,
    counts,
    network,
    run,
    sigmoid,
    taken,
    zscore,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("written", ["1e-6", "1e-06", "1.0e-06", "1E-6", "+1e-6"])
def test_an_epsilon_in_any_notation_is_a_number(written: str, tmp_path: Path) -> None:
    """A package with ``eps: 1e-06`` is the same as one with ``eps: 0.000001``."""
    image = counts()
    answer = sigmoid(run(network(), zscore(image.astype("float64"))))
    before: Steps = [("zero_mean_unit_variance", {"eps": "EPSILON"})]
    package = Package(tmp_path / "p", "0.5.4", network(), before, SIGMOID, image, answer)
    description = package.write() / "rdf.yaml"
    description.write_text(description.read_text().replace("EPSILON", written))

    assert taken(tmp_path / "p", tmp_path / "out").normalisation == ZScore(1e-6)


def test_a_scale_without_a_point_is_a_number(tmp_path: Path) -> None:
    """A package with ``gain: 4e-3`` and ``offset: -5e-1`` is honoured as it is written."""
    image = counts()
    answer = sigmoid(run(network(), 4e-3 * image - 0.5))
    before: Steps = [("scale_linear", {"gain": "GAIN", "offset": "OFFSET"})]
    package = Package(tmp_path / "p", "0.5.4", network(), before, SIGMOID, image, answer)
    description = package.write() / "rdf.yaml"
    text = description.read_text().replace("GAIN", "4e-3").replace("OFFSET", "-5e-1")
    description.write_text(text)

    assert taken(tmp_path / "p", tmp_path / "out").normalisation == Fixed(125.0, 4e-3)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("1e-06", 1e-6),
        ("-5e-1", -0.5),
        ("3.9e-3", 3.9e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.5e+2", -50.0),
        ("-.inf", -float("inf")),
        ("7", 7),
        ("1e", "1e"),
        ("e5", "e5"),
        ("0.5.3", "0.5.3"),
        ("1e5e", "1e5e"),
        ("1e-6 px", "1e-6 px"),
        ("1:30.5", "1:30.5"),
        ("'1e5'", "1e5"),
        ("-", None),
        ("~", None),
        ("true", True),
    ],
)
def test_numbers_are_numbers_and_texts_texts(written: str, wanted: object, tmp_path: Path) -> None:
    """What YAML 1.2 calls a floating-point number is one, and nothing else becomes one."""
    value = "\n  -" if written == "-" else f" {written}"
    (tmp_path / "rdf.yaml").write_text(f"key:{value}\n")
    with opened_package(tmp_path) as package:
        found = package.content["key"]
    found = found[0] if written == "-" else found

    assert found == wanted
    assert type(found) is type(wanted)
