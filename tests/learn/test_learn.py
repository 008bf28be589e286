"""Networks learn what they are shown, the same way every time, and leave in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
import torch

from segbatch.acquire.simulate import write_run
from segbatch.errors import ModelError, UsageError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import ZScore, load_model
from segbatch.learn.checkpoint import Card, load_checkpoint, save_checkpoint
from segbatch.learn.data import Example, Patches, hold_out, read_examples
from segbatch.learn.export.network import export, measure_parity, to_onnx
from segbatch.learn.fit import fit
from segbatch.learn.metrics import Counts, count, summarise
from segbatch.learn.nets import BEADS, LARGE, Architecture, UNet, build
from segbatch.learn.sweep import scenes
from segbatch.learn.train import Recipe, dice_bce, evaluate, predict, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.learn

TINY = Architecture(base=4, depth=2, convolutions=1)
QUICK = Recipe(steps=120, batch=8, patch_px=32, threads=1, learning_rate=1e-2)


def squares(frames: int, seed: int = 0) -> list[Example]:
    """Return frames of noise with brighter squares, (64, 80), and their truth."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(frames):
        truth = np.zeros((64, 80), np.uint8)
        for y, x in rng.integers(0, (56, 72), (6, 2)):
            truth[y : y + 8, x : x + 8] = 1
        pixels = (rng.normal(100, 5, truth.shape) + 60 * truth).astype(np.uint16)
        made.append(Example(f"{i}", pixels, truth, 100.0, 1 / 20))
    return made


def card(architecture: Architecture) -> Card:
    """Return the card of a network that finds squares."""
    return Card(
        name="squares", classes=["square"], architecture=architecture, normalisation=ZScore()
    )


@pytest.mark.parametrize(
    ("architecture", "millions"),
    [
        (LARGE, 7.76),
        (msgspec.structs.replace(LARGE, up="bilinear"), 7.24),
        (BEADS, 0.12),
    ],
)
def test_the_networks_have_the_size_that_is_quoted(
    architecture: Architecture, millions: float
) -> None:
    """The large network has 7.76 million weights, 7.24 bilinear, the shipped one 0.12."""
    weights = sum(p.numel() for p in UNet(architecture).parameters())
    assert weights / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("up", ["transpose", "bilinear"])
def test_logits_have_the_size_of_the_input(up: str) -> None:
    """A network answers every pixel, for each class, at any multiple of its stride."""
    net = build(
        msgspec.convert({**msgspec.to_builtins(TINY), "classes": 3, "up": up}, Architecture), 1
    )
    assert net.eval()(torch.zeros(2, 1, 12, 20)).shape == (2, 3, 12, 20)


def test_weights_follow_from_the_seed() -> None:
    """One seed builds one network, whatever was drawn before."""
    first = build(TINY, 3).state_dict()
    torch.rand(5)
    assert all(torch.equal(first[k], v) for k, v in build(TINY, 3).state_dict().items())
    assert not torch.equal(first["head.weight"], build(TINY, 4).state_dict()["head.weight"])


def test_training_learns_and_repeats() -> None:
    """Few steps find squares in frames never seen, and a second training gives the same bits."""
    first, second = (train(squares(8), TINY, QUICK) for _ in range(2))
    iou = summarise(evaluate(first, squares(4, seed=9)))["iou"]
    assert iou > 0.95
    weights = second.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in first.state_dict().items())


def test_a_perfect_answer_costs_nothing() -> None:
    """The loss is near zero for the truth, also for a truth without objects, and larger else."""
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 1
    for wanted in (truth, torch.zeros_like(truth)):
        assert dice_bce((wanted - 0.5) * 60, wanted) < 1e-3
        assert dice_bce((0.5 - wanted) * 60, wanted) > 1


def test_counts_come_before_ratios() -> None:
    """Hits and misses are counted, and overlaps follow from the counts."""
    mask, truth = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    found = count(mask, truth)
    assert found == Counts(tp=1, fp=1, fn=1, tn=1)
    assert found.iou == pytest.approx(1 / 3)
    assert found.dice == pytest.approx(1 / 2)


def test_nothing_against_nothing_has_no_overlap() -> None:
    """An empty mask of an empty truth is counted apart and moves no ratio."""
    nothing = Counts(tn=4)
    assert nothing.iou is None
    assert nothing.dice is None
    summary = summarise([nothing, Counts(fp=1, tn=3), Counts(tp=2, fn=2)])
    assert summary["empty_frames"] == 2
    assert summary["empty_frames_kept_empty"] == 1
    assert summary["iou"] == pytest.approx(2 / 5)
    assert summary["iou_median"] == pytest.approx(1 / 2)


def test_frames_are_split_whole() -> None:
    """Held-out frames and training frames are disjoint and together all."""
    learnt, held = hold_out(squares(10), 0.2, np.random.default_rng(1))
    assert len(held) == 2
    assert {e.name for e in learnt} | {e.name for e in held} == {str(i) for i in range(10)}


def test_one_frame_cannot_be_split() -> None:
    """A single frame is refused, since nothing would be left to test on."""
    with pytest.raises(UsageError, match="at least 2"):
        hold_out(squares(1), 0.2, np.random.default_rng(1))


def test_patches_keep_truth_on_its_pixels() -> None:
    """However a patch is turned and mirrored, its truth moves with its image."""
    images, truths = Patches(squares(3), 32, np.random.default_rng(1)).batch(32)
    assert images.shape == truths.shape == (32, 1, 32, 32)
    inside = images[truths > 0].mean() - images[truths == 0].mean()
    assert inside > 2  # 60 counts over 20, less what the light varies


def test_a_patch_larger_than_a_frame_is_refused() -> None:
    """The error names the frame's and the patch's size."""
    with pytest.raises(UsageError, match=r"64 px.*128 px"):
        Patches(squares(1), 128, np.random.default_rng(1))


def test_a_frame_of_any_size_is_predicted() -> None:
    """Sides that are no multiple of the stride are mirrored out and cut back."""
    probability = predict(build(TINY, 1).eval(), np.zeros((33, 47), np.float32))
    assert probability.shape == (33, 47)
    assert probability.min() >= 0
    assert probability.max() <= 1


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    """A saved network and its card are read back equal, without running code from the file."""
    net = build(TINY, 1).eval()
    save_checkpoint(tmp_path / "net.pt", net, card(TINY))
    again, read = load_checkpoint(tmp_path / "net.pt")
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(net(image), again(image))
    assert read == card(TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    """A file that would run code when read is refused, with what to do."""
    torch.save({"manifest": print, "weights": {}}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="plain weights"):
        load_checkpoint(tmp_path / "evil.pt")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A card that names another architecture than the weights belong to is refused."""
    save_checkpoint(tmp_path / "net.pt", build(TINY, 1), card(BEADS))
    with pytest.raises(ModelError, match="checkpoint"):
        load_checkpoint(tmp_path / "net.pt")


def test_onnx_is_the_same_network_for_every_shape(tmp_path: Path) -> None:
    """ONNX Runtime computes what torch does, for any batch and any multiple of the stride."""
    net = train(squares(2), TINY, msgspec.structs.replace(QUICK, steps=3))
    (tmp_path / "net.onnx").write_bytes(to_onnx(net))
    engine = OnnxRuntimeEngine(tmp_path / "net.onnx", 1)
    for shape in ((1, 1, 16, 16), (3, 1, 4, 8), (1, 1, 64, 20)):
        image = np.random.default_rng(1).random(shape, np.float32)
        with torch.inference_mode():
            wanted = net(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(engine.run(image), wanted, atol=1e-5)
    engine.close()


def test_batch_norm_is_folded_away() -> None:
    """The exchanged network holds no normalisation layer, no outside data and opset 20 at most."""
    model = onnx.load_from_string(to_onnx(build(TINY, 1)))
    assert not {n.op_type for n in model.graph.node} & {
        "BatchNormalization",
        "InstanceNormalization",
    }
    assert max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) <= 20
    assert all(not t.external_data for t in model.graph.initializer)


def test_an_exported_model_can_be_opened(tmp_path: Path) -> None:
    """Export writes a manifest with stride, finite halo and parity of every processor engine."""
    net = train(squares(2), TINY, msgspec.structs.replace(QUICK, steps=3))
    export(net, card(TINY), tmp_path / "net.json", squares(2, seed=5), threads=1)
    manifest = load_model(tmp_path / "net.json").manifest
    assert manifest.stride == 4
    assert manifest.exact_tiling
    assert manifest.halo_px
    engines = {(p.engine, p.precision) for p in manifest.parity}
    assert engines == {("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")}
    assert all(p.passed for p in manifest.parity if p.precision == "fp32")


def test_lost_objects_are_no_parity_although_nearly_all_pixels_agree(tmp_path: Path) -> None:
    """Masks that agree in 99.9 % of the pixels do not pass where a tenth of few objects is lost."""
    net = build(TINY, seed=3).eval()
    examples = [
        Example(f"{i}", pixels, pixels.astype(np.uint8), 100.0, 0.1)
        for i, pixels in enumerate(np.random.default_rng(1).poisson(100, (3, 256, 256)))
    ]
    p = np.concatenate([predict(net, each.image()).ravel() for each in examples]).astype(float)
    threshold, higher = np.quantile(p, [0.995, 0.9955])
    shift = np.log(threshold / (1 - threshold)) - np.log(higher / (1 - higher))
    network = onnx.load_from_string(to_onnx(net))
    logits = network.graph.output[0].name
    (last,) = (node for node in network.graph.node if logits in node.output)
    last.output[0] = "before"
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(shift), "shift"))
    network.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], [logits]))
    onnx.save(network, tmp_path / "net.onnx")

    measured = measure_parity(net, tmp_path / "net.onnx", examples, float(threshold), 2)

    assert all(0.999 < each.mask_agreement < 0.9999 for each in measured)
    assert not any(each.passed for each in measured)


def test_a_simulated_folder_becomes_a_checkpoint(tmp_path: Path) -> None:
    """Frames and true masks as simulated are read, learnt and tested on frames held out."""
    write_run(tmp_path / "run", 10, 1, height_px=96, width_px=96)
    recipe = msgspec.structs.replace(QUICK, steps=2)
    made = fit(
        tmp_path / "run", tmp_path / "net.pt", architecture=TINY, recipe=recipe, command="typed"
    )
    assert made.name == "net"
    assert made.training["frames"] == 8
    assert made.metrics["unseen"]["frames"] == 2
    assert load_checkpoint(tmp_path / "net.pt")[1] == made


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    """A folder to train on that holds no true mask is refused, naming how to make one."""
    with pytest.raises(UsageError, match="segbatch simulate"):
        read_examples(tmp_path, ZScore())


def test_the_sweep_changes_one_thing_at_a_time() -> None:
    """Each axis of the sweep holds several scenes, and its middle one is the base or near it."""
    for axis in scenes().values():
        assert len(axis) >= 4
        assert len(set(axis.values())) == len(axis)
