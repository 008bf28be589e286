"""bioimage.io packages: read in every form, by weights that need no code, and run on frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from segbatch.errors import ModelError
from segbatch.infer.engine.manifest import ZScore
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.learn.intake import load_network
from segbatch.settings import Settings
from tests.learn.packages import SIGMOID, Package, Steps, counts, plain, run, sigmoid, taken, zscore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("version", ["0.3.6", "0.4.9", "0.5.4"])
@pytest.mark.parametrize("form", ["folder", "zip", "yaml"])
def test_packages_are_read_in_every_form(version: str, form: str, tmp_path: Path) -> None:
    """A folder, an archive and a description beside its files give the same model."""
    package = plain(tmp_path / "package", version)
    source = package.zipped() if form == "zip" else package.write()
    manifest = taken(source / "rdf.yaml" if form == "yaml" else source, tmp_path / "out")

    assert (manifest.name, manifest.output) == ("a_test_network", "sigmoid")
    assert manifest.normalisation == ZScore(1e-6)
    assert manifest.metrics["own_test"]["max_difference"] < 1e-5
    assert manifest.pixel_size_um == (0.345 if version == "0.5.4" else None)


def test_torchscript_stands_in_for_onnx_that_is_refused(tmp_path: Path) -> None:
    """Where the preferred weights are refused the next are read, and the manifest says so."""
    package = plain(tmp_path / "p", kinds=("onnx", "torchscript"))
    model = onnx.load(tmp_path / "p" / "weights.onnx")
    model.graph.node[0].domain = "com.evil"
    onnx.save(model, tmp_path / "p" / "weights.onnx")
    del package.told["weights"]["onnx"]["sha256"]
    manifest = taken(package.write(), tmp_path / "out")

    assert manifest.training["weights"] == "torchscript"
    assert manifest.source is not None
    assert any("com.evil" in each for each in manifest.source.assumed)


def test_weights_that_need_python_code_are_refused(tmp_path: Path) -> None:
    """Weights of an architecture in a package's own Python file are refused by that name."""
    package = plain(tmp_path / "p", kinds=("pytorch_state_dict",))
    given = package.told["weights"]["pytorch_state_dict"]
    given["architecture"] = {"source": "evil.py", "callable": "Net", "kwargs": {}}
    (tmp_path / "p" / "evil.py").write_text("raise SystemExit('ran')\n")

    with pytest.raises(ModelError, match=r"Net|without their network"):
        load_network(package.write(), tmp_path / "out")
    assert taken(package.write(), tmp_path / "out", arch="segbatch-unet").stride == 2


@pytest.mark.slow
def test_weights_of_an_architecture_that_is_known_are_read(tmp_path: Path) -> None:
    """Weights that name an architecture of segmentation-models-pytorch are loaded into ours."""
    from segbatch.learn.intake.forms.smp import SmpUnet

    widths = [16, 8, 8]
    torch.manual_seed(0)
    net = SmpUnet("resnet34", 1, 1, widths).eval()
    image = counts(side=64)
    answer = sigmoid(run(net, zscore(image.astype(np.float64))))
    before: Steps = [("zero_mean_unit_variance", {})]
    package = Package(
        tmp_path / "p", "0.5.4", net, before, SIGMOID, image, answer, ("pytorch_state_dict",)
    )
    package.told["weights"]["pytorch_state_dict"]["architecture"] = {
        "import_from": "segmentation_models_pytorch",
        "callable": "Unet",
        "kwargs": {
            "encoder_name": "resnet34",
            "encoder_depth": len(widths),
            "decoder_channels": widths,
        },
    }

    assert taken(package.write(), tmp_path / "out").stride == 8


def test_a_package_segments_frames(tmp_path: Path) -> None:
    """A package named as model gives, on a frame of counts, the mask that it describes."""
    package = plain(tmp_path / "p")
    frame = counts()[0, 0].astype(np.uint16)
    wanted = np.load(tmp_path / "p" / "test_output.npy")[0, 0] >= 0.5
    with Segmenter(open_model(package.zipped()), Settings(threads=1)) as segmenter:
        found = segmenter.segment(frame, 10)

    np.testing.assert_array_equal(found.mask, wanted)
