"""What measures on a GPU loses nothing to a part that fails, and measures the right networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segbatch.infer import decide
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.network.models import open_model
from tests.house.places import ROOT

SCRIPT = ROOT / "bench" / "gpu.py"


@pytest.fixture
def bench() -> Iterator[None]:
    """Let modules of bench/ be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield


def part(folder: Path, name: str, body: str) -> Any:
    """Return a part that notes ``before``, and then does what ``body`` says."""
    from gpu_run import Part

    script = folder / f"{name}.py"
    script.write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        f"sys.path.append({str(ROOT / 'bench')!r})\n"
        "from gpu_run import Notes\nnotes = Notes(Path(sys.argv[-1]))\n"
        f"notes.put(before=1, doing='the hard thing')\n{body}\n",
        encoding="utf-8",
    )
    return Part(name, (str(script),), 1)


@pytest.mark.usefixtures("bench")
def test_a_part_that_dies_costs_itself_alone(tmp_path: Path) -> None:
    """Faults, errors and hangs are told in words, and what was found before them is kept."""
    from gpu_run import run_all

    parts = [
        part(tmp_path, "faults", "os.abort()"),
        part(tmp_path, "raises", "raise ValueError('odd')"),
        part(tmp_path, "hangs", "time.sleep(600)"),
        part(tmp_path, "works", "notes.put(after=2)"),
    ]

    found: dict[str, Any] = {}
    run_all(parts, tmp_path, 20.0, found.update)

    assert [each["before"] for each in found.values()] == [1, 1, 1, 1]
    assert found["works"]["after"] == 2
    assert found["works"]["outcome"] == "done"
    assert "SIGABRT, while: the hard thing" in found["faults"]["outcome"]
    assert "said last: ValueError: odd" in found["raises"]["outcome"]
    assert "ended after" in found["hangs"]["outcome"]


@pytest.mark.usefixtures("bench")
def test_what_fails_is_noted(tmp_path: Path) -> None:
    """An error inside a part is noted by what was tried, and the part goes on."""
    from gpu_run import Notes

    notes = Notes(tmp_path / "notes.json")

    assert notes.attempt("a division", lambda: 1 // 0) is None
    assert notes.attempt("a sum", lambda: 1 + 1) == 2
    kept = json.loads((tmp_path / "notes.json").read_text(encoding="utf-8"))
    assert "ZeroDivisionError" in kept["failed"]["a division"]


@pytest.mark.usefixtures("bench")
def test_little_time_means_few_rounds() -> None:
    """Without time there are the fewest rounds, with much of it the most."""
    from gpu_run import Rounds

    hurried, leisurely = Rounds(-1.0, 2, 9), Rounds(1e6, 2, 9)

    assert sum(iter(hurried.another, False)) == 2
    assert sum(iter(leisurely.another, False)) == 9


@pytest.mark.usefixtures("bench")
def test_operations_are_counted() -> None:
    """The shipped network's operations are those of its convolutions, layer by layer."""
    pytest.importorskip("onnx")
    from gpu_flops import operations

    pixels, base = 64 * 96, 8
    # Per pixel of full resolution: channels in x channels out x 9, at a quarter of the pixels
    # each level further down; transposed convolutions spread each pixel by 2 x 2.
    widths = [base * 2**level for level in range(4)]
    products = 9.0 * (1 * base + base * base)
    products += sum(9 * (w // 2 * w + w * w) / 4**i for i, w in enumerate(widths) if i)
    products += sum(4 * 2 * w * w / 4 ** (i + 1) for i, w in enumerate(widths[:-1]))
    products += sum(9 * (2 * w * w + w * w) / 4**i for i, w in enumerate(widths[:-1]))
    products += base

    found = operations(open_model("").file.read_bytes(), (1, 1, 64, 96))

    assert found == pytest.approx(2 * products * pixels)


@pytest.mark.learn
@pytest.mark.usefixtures("bench")
def test_torch_runs_the_very_network() -> None:
    """As trained, folded, or by calls of cuDNN, torch gives the logits of the ONNX file."""
    import torch
    from gpu_nets import CudnnUNet, as_trained, folded

    model = open_model("")
    image = np.random.default_rng(0).random((1, 1, 64, 96), np.float32)
    engine = OnnxRuntimeEngine(model.file, 1)
    wanted = engine.run(image)
    engine.close()

    net = as_trained(model)
    for each in (net, folded(net), CudnnUNet(folded(net))):
        with torch.no_grad():
            np.testing.assert_allclose(each(torch.from_numpy(image)), wanted, atol=1e-4)


@pytest.mark.learn
@pytest.mark.usefixtures("bench")
def test_torch_decides_as_the_processor_does() -> None:
    """Mask, confidence and entropy are those of ``segbatch.infer.decide``."""
    import torch
    from gpu_nets import deciding

    logits = np.random.default_rng(1).normal(0, 5, (1, 1, 32, 48)).astype(np.float32)
    mask = np.empty((32, 48), np.uint8)
    counted = decide.counted_rows(mask.size, 0)
    confidence, entropy, pixels = decide.decide_binary(logits[0, 0], 0.3, mask, counted)

    _, found, sure, unsure = deciding(lambda image: image, 8, 0.3)(torch.from_numpy(logits))

    np.testing.assert_array_equal(found[0], mask)
    assert float(sure.mean()) == pytest.approx(confidence / pixels, abs=2e-4)
    assert float(unsure.mean()) == pytest.approx(entropy / pixels, abs=2e-4)


@pytest.mark.usefixtures("bench")
def test_a_page_of_nothing_says_so() -> None:
    """Where every part failed, the page names each with its reason."""
    from gpu_report import page

    results = {
        name: {"outcome": "died of SIGSEGV, while: it began", "took_s": 1.0}
        for name in ("facts", "material", "ceiling", "tensorrt-tensorrt_rtx-large", "speed-large")
    }

    text = page(results, "2000-01-01", "python bench/gpu.py", tiny=False)

    assert "The ceiling was not measured" in text
    assert "- speed-large: died of SIGSEGV" in text


@pytest.mark.learn
def test_without_a_gpu_nothing_is_measured() -> None:
    """Where torch finds no GPU, the script says so and how to try it all the same."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, env=hidden
    )

    assert done.returncode == 3
    assert "--dry-run" in done.stderr
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.learn
def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """A dry run measures every contender that needs no GPU, and says that it is none."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--dry-run", "--minutes", "9", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)

    assert done.returncode == 0, done.stderr
    assert "DRY RUN" in done.stdout
    (kept,) = tmp_path.glob("*.json")
    found = json.loads(kept.read_text(encoding="utf-8"))
    for network in ("large", "shipped"):
        alone = found[f"speed-{network}"]["contenders"]
        for engine in ("torch, eager, fp32", "torch, eager, half", "cuDNN calls", "torch.compile"):
            assert alone[engine]["parity"]["real"]["mask_agreement"] > 0.999
            assert alone[engine]["rates"]
        runs = found[f"files-{network}"]["runs"]
        assert {"host alone", "cuDNN calls", "torch.compile"} <= set(runs)
        assert all(each["under_way"] > 0 for each in runs.values())
