"""Networks that give less than they take: the same masks as on a mirrored frame, tiled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from segbatch.infer.decide import sigmoid
from segbatch.infer.engine.manifest import Fixed, Model
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.infer.tiles import mirrored
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes
from segbatch.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Valid(nn.Module):
    """The U-Net of 2015, narrow: convolutions without padding, skips cropped to fit.

    With ``strict``, skips are cropped by the paper's constants, so that sizes which a pooling
    would cut do not fit; else to whatever size is left.
    """

    def __init__(self, depth: int, base: int = 4, strict: bool = True) -> None:
        super().__init__()
        widths = [base << level for level in range(depth + 1)]
        self.strict, self.depth = strict, depth
        self.down = nn.ModuleList(
            self._block(1 if not level else widths[level - 1], width)
            for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(self._block(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(base, 1, 1)

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(2):
            layers += [nn.Conv2d(channels_out if i else channels_in, channels_out, 3), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of the middle of ``x``."""
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < self.depth:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        cut = 4
        for upsample, merge in zip(self.up, self.merge):  # noqa: B905 - not in TorchScript
            x, skip = upsample(x), skips.pop()
            if self.strict:
                skip = skip[:, :, cut : skip.shape[2] - cut, cut : skip.shape[3] - cut]
                cut = 8 + 2 * cut
            else:
                top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
                skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = merge(torch.cat((skip, x), 1))
        return self.head(x)  # type: ignore[no-any-return]


def valid(depth: int, **options: Any) -> nn.Module:
    """Return such a network with random weights of useful spread."""
    torch.manual_seed(1)
    net = Valid(depth, **options)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    return net.eval()


def taken(net: nn.Module, side: int, folder: Path) -> Model:
    """Take a network in that is written as a program of one size, without normalisation."""
    file = folder / "net.onnx"
    free = {2: "y", 3: "x"}
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, side, side),),
        file,
        dynamo=False,
        opset_version=17,
        input_names=["in"],
        output_names=["out"],
        dynamic_axes={"in": {0: "n", **free}, "out": {0: "n", **free}},
    )
    wishes = Wishes(normalisation=Fixed(0.0, 1 / 1000))
    return open_model(load_network(file, folder / "model", wishes=wishes))


def bare(net: nn.Module, frame: NDArray[Any], before: int, stride: int) -> NDArray[np.float32]:
    """Run the network itself on the frame, mirrored out on all sides to a size that it takes."""
    after = [before - length % stride + 2 * stride for length in frame.shape]
    rows, columns = (
        [mirrored(at, length) for at in range(-before, length + more)]
        for length, more in zip(frame.shape, after, strict=True)
    )
    wide = frame[np.ix_(rows, columns)].astype(np.float32) / 1000
    with torch.inference_mode():
        answer = net(torch.from_numpy(wide)[None, None])[0, 0].numpy()
    return np.asarray(answer[: frame.shape[0], : frame.shape[1]])


def frame_of(*shape: int) -> NDArray[np.uint16]:
    """Return a frame of noise and squares."""
    rng = np.random.default_rng(6)
    frame = rng.integers(100, 400, shape)
    for y, x in rng.integers(0, max(1, min(shape) - 6), (12, 2)):
        frame[y : y + 6, x : x + 6] += 500
    return frame.astype(np.uint16)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("depth", "shrink"), [(1, 16), (2, 40), (4, 184)])
def test_the_margin_is_found(depth: int, shrink: int, strict: bool, tmp_path: Path) -> None:
    """Half of what the network takes off is mirrored out before the frame: 92 px in the paper."""
    net = valid(depth, base=2, strict=strict)
    manifest = taken(net, 572 if depth == 4 else 92, tmp_path).manifest

    assert manifest.stride == 1 << depth
    assert shrink // 2 <= manifest.margin_px < shrink // 2 + manifest.stride
    assert manifest.exact_tiling
    assert manifest.halo_px is not None
    assert manifest.halo_px >= manifest.margin_px


@pytest.mark.parametrize(
    "shape", [(96, 128), (97, 131), (1, 1), (5, 40), (20, 20), (21, 300), (64, 19)]
)
def test_masks_are_those_of_the_mirrored_frame(shape: tuple[int, int], tmp_path: Path) -> None:
    """A frame of any size gives what the bare network gives on the frame mirrored on all sides."""
    net = valid(2)
    model = taken(net, 92, tmp_path)
    frame = frame_of(*shape)
    with Segmenter(model, Settings(threads=1)) as segmenter:
        found = segmenter.segment(frame, 10, probabilities=True)
    wanted = sigmoid(bare(net, frame, 20, 4))

    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    np.testing.assert_array_equal(found.mask, (found.probabilities >= 0.5).astype(np.uint8))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_tiles_equal_the_whole_frame(engine: str, tmp_path: Path) -> None:
    """Cut into tiles, a network without padding gives the mask of the whole frame."""
    net = valid(2)
    model = taken(net, 92, tmp_path)
    frame = frame_of(237, 301)
    threshold = float(np.median(sigmoid(bare(net, frame, 20, 4))))
    results = []
    for tile in ("auto", 2 * (model.manifest.halo_px or 0) + 24):
        given = {"threads": 1, "engine": engine, "tile_px": tile, "threshold": threshold}
        settings = msgspec.convert(given, Settings)
        with Segmenter(model, settings) as segmenter:
            results.append(segmenter.segment(frame, 10, probabilities=True))
    whole, tiled = results

    assert 0 < whole.foreground_fraction < 1
    np.testing.assert_array_equal(whole.mask, tiled.mask)
    np.testing.assert_allclose(whole.probabilities, tiled.probabilities, atol=1e-5)


@pytest.mark.parametrize("kind", ["traced", "program"])
def test_other_forms_without_padding_are_read(kind: str, tmp_path: Path) -> None:
    """TorchScript and exported programs without padding are taken in as well."""
    net = valid(1, strict=kind == "traced")
    if kind == "traced":
        torch.jit.trace(net, torch.zeros(2, 1, 40, 44)).save(tmp_path / "net.pt")
        file = tmp_path / "net.pt"
    else:
        free = {i: 2 * torch.export.Dim(f"side{i}", min=12) for i in (2, 3)}
        program = torch.export.export(net, (torch.zeros(1, 1, 40, 44),), dynamic_shapes=(free,))
        file = tmp_path / "net.pt2"
        torch.export.save(program, file)
    wishes = Wishes(normalisation=Fixed(0.0, 1 / 1000))
    model = open_model(load_network(file, tmp_path / "model", wishes=wishes))
    frame = frame_of(50, 61)
    with Segmenter(model, Settings(threads=1)) as segmenter:
        found = segmenter.segment(frame, 10, probabilities=True)

    np.testing.assert_allclose(found.probabilities, sigmoid(bare(net, frame, 8, 2)), atol=1e-5)
