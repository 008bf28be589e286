"""Packages that cannot be tried, fail their own test, or name and describe what is not theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from segbatch.errors import ModelError
from segbatch.learn.intake import load_network
from tests.learn.packages import plain, taken

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_a_wrong_test_output_is_refused(tmp_path: Path) -> None:
    """A package whose test output its network does not give is not used, and leaves no model."""
    package = plain(tmp_path / "p")
    np.save(tmp_path / "p" / "test_output.npy", np.full((1, 1, 32, 32), 0.5, np.float32))

    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stated_tolerance_is_kept_to_within_reason(tmp_path: Path) -> None:
    """A package may allow a little more than usual, and no more than its format does."""
    package = plain(tmp_path / "p")
    answer = np.load(tmp_path / "p" / "test_output.npy")
    np.save(tmp_path / "p" / "test_output.npy", answer + 0.005)
    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")
    lenient = {"absolute_tolerance": 0.01, "relative_tolerance": 0.0}
    package.told["config"] = {"bioimageio": {"reproducibility_tolerance": [lenient]}}
    manifest = taken(package.write(), tmp_path / "out")
    np.save(tmp_path / "p" / "test_output.npy", answer + 0.5)
    lenient["absolute_tolerance"] = 1e9

    assert manifest.metrics["own_test"]["absolute_tolerance"] == 0.01
    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")


def test_a_package_without_test_is_refused(tmp_path: Path) -> None:
    """A package that cannot be tried is not used."""
    package = plain(tmp_path / "p", "0.4.9")
    package.told["test_inputs"] = []

    with pytest.raises(ModelError, match="no test array"):
        load_network(package.write(), tmp_path / "out")


def test_a_test_array_with_code_is_refused(tmp_path: Path) -> None:
    """A test array of Python objects is not unpickled."""
    package = plain(tmp_path / "p", "0.4.9")
    np.save(tmp_path / "p" / "test_input.npy", np.array([{}], object), allow_pickle=True)

    with pytest.raises(ModelError, match=r"test_input\.npy"):
        load_network(package.write(), tmp_path / "out")


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a\\b", "missing.onnx"])
def test_files_of_a_package_lie_inside_it(name: str, tmp_path: Path) -> None:
    """A description that names a file elsewhere, or a missing one, is refused by that name."""
    package = plain(tmp_path / "p")
    (tmp_path / "secret.onnx").write_bytes((tmp_path / "p" / "weights.onnx").read_bytes())
    package.told["weights"]["onnx"]["source"] = name

    with pytest.raises(ModelError) as caught:
        load_network(package.write(), tmp_path / "out")
    assert (
        "weights as onnx" in caught.value.got
        or name in caught.value.got
        or repr(name) in (caught.value.got)
    )


def test_a_changed_file_of_a_package_is_refused(tmp_path: Path) -> None:
    """Weights that are not the ones that a package describes are refused."""
    package = plain(tmp_path / "p")
    package.told["weights"]["onnx"]["sha256"] = "0" * 64

    with pytest.raises(ModelError, match="SHA-256"):
        load_network(package.write(), tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "a: [b",
        "- a list",
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{8 * f'*a{i - 1}, '}]\n" for i in range(1, 9)),
        "a: &a [*a]\n",
        "type: model\nformat_version: 9.9.9\n",
        "type: dataset\nformat_version: 0.5.4\n",
        "type: model\nformat_version: 0.5.4\n",
    ],
)
def test_descriptions_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    """YAML with code, without end, or of something else than a model is refused."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "rdf.yaml").write_text(text)

    with pytest.raises(ModelError):
        load_network(tmp_path / "p", tmp_path / "out")


@pytest.mark.parametrize("axes", ["byxc", "bczyx", "yx"])
def test_other_axes_are_refused(axes: str, tmp_path: Path) -> None:
    """A network of three dimensions, or of another order of axes, is refused by its axes."""
    package = plain(tmp_path / "p", "0.4.9")
    package.told["inputs"][0]["axes"] = axes

    with pytest.raises(ModelError, match=axes):
        load_network(package.write(), tmp_path / "out")
