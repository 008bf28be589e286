"""ONNX files made to harm are refused before they can, and the error names what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segbatch.infer.engine.network.models import open_model
from tests.infer.networks import draw_unet
from tests.learn.hostile import refused

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def external(file: Path, location: str, **more: str) -> Path:
    """Write a network whose weights lie in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 3, 3])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weights.external_data.add(key=key, value=value)
    free = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "network",
        [free("x", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [free("y", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize(
    "location", ["../../../../etc/passwd", "/etc/passwd", "sub/../../secret", "", "missing.bin"]
)
def test_external_weights_stay_in_their_folder(location: str, tmp_path: Path) -> None:
    """Weights in a file outside the network's folder, or in none, are refused by that name."""
    refused(external(tmp_path / "net.onnx", location), tmp_path, repr(location))


def test_external_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    """A link in the folder that leads out of it is no file of the folder."""
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")

    refused(external(tmp_path / "net.onnx", "weights.bin"), tmp_path, "weights.bin")


@pytest.mark.parametrize("more", [{"offset": "-4"}, {"offset": "36"}, {"length": "1e9"}])
def test_external_weights_beyond_their_file_are_refused(
    more: dict[str, str], tmp_path: Path
) -> None:
    """An offset or a length that does not lie in the file is refused."""
    (tmp_path / "weights.bin").write_bytes(bytes(36))
    more = {"length": "36", **more}

    refused(external(tmp_path / "net.onnx", "weights.bin", **more), tmp_path, "36 bytes")


def test_external_weights_beside_it_are_read(tmp_path: Path) -> None:
    """Weights in a file of the network's own folder are read, and become part of the model."""
    (tmp_path / "weights.bin").write_bytes(np.ones(9, np.float32).tobytes())
    external(tmp_path / "net.onnx", "weights.bin", length="36")
    model = open_model(tmp_path / "net.onnx")
    first = model.manifest.sha256
    (tmp_path / "weights.bin").write_bytes(np.full(9, 2, np.float32).tobytes())

    assert model.manifest.halo_px == 1
    assert open_model(tmp_path / "net.onnx").manifest.sha256 != first


@pytest.mark.parametrize(
    ("kind", "domain"), [("Evil", "com.evil"), ("FusedConv", "com.microsoft"), ("Nonsense", "")]
)
def test_operators_of_others_are_refused(kind: str, domain: str, tmp_path: Path) -> None:
    """An ONNX operator outside the standard is refused by its name and domain."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = kind, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, tmp_path / "net.onnx")

    refused(tmp_path / "net.onnx", tmp_path, kind, domain)
