"""Models to run, a frame to run them on, and a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segbatch.infer.engine.manifest import Model, write_manifest
from tests.infer.networks import draw_unet, manifest_for

MakeModel = Callable[..., Model]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep what engines find out in a folder of this test run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Return a maker of models: ``make_model(manifest changes..., net={drawing options})``."""

    def make(name: str = "net", net: dict[str, Any] | None = None, **changes: Any) -> Model:
        options = dict(net or {})
        file = tmp_path / f"{name}.onnx"
        draw_unet(file, **options)
        changes.setdefault("input_channels", options.get("channels", 1))
        outputs = options.get("outputs", 1)
        if outputs > 1:
            changes.setdefault("classes", [f"class{index}" for index in range(1, outputs)])
            changes.setdefault("output", "softmax")
        manifest = manifest_for(file, **changes)
        write_manifest(manifest, file.with_suffix(".json"))
        return Model(manifest, file)

    return make


@pytest.fixture
def frame() -> NDArray[np.uint16]:
    """Return a 10-bit frame of odd sides with spots on a noisy background."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:253, :381]
    light = np.full(y.shape, 60.0)
    for _ in range(60):
        at_y, at_x, peak = rng.uniform(0, 253), rng.uniform(0, 381), rng.uniform(100, 900)
        light += peak * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 18.0)
    return np.minimum(rng.poisson(light), 1023).astype(np.uint16)
