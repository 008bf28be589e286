"""An engine that does not fit is refused with what was found, what fits, and what to do."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from segbatch.errors import EngineError
from segbatch.infer.engine.made.artifact import Artifact, Hardware, load_artifact, write_artifact
from segbatch.infer.engine.tensorrt import fits
from segbatch.infer.engine.tensorrt.driver import Gpu
from segbatch.infer.engine.tensorrt.flavour import installed
from tests.infer.rtx import SOURCE, needs_rtx, small_engine
from tests.infer.test_tensorrt_driver import needs_no_driver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_rtx
GPU = Gpu(
    name="NVIDIA GeForce RTX 4070",
    compute_capability="8.9",
    processors=46,
    memory_bytes=12 << 30,
    driver="580.65.06",
    cuda="13.0",
)
BUILT = Hardware(
    gpu=GPU.name, compute_capability=GPU.compute_capability, driver=GPU.driver, cuda=GPU.cuda
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """Return a sound engine."""
    return small_engine(tmp_path)


def changed(artifact: Artifact, **changes: Any) -> Artifact:
    """Return the engine with another manifest, written and read back."""
    manifest = msgspec.structs.replace(artifact.manifest, **changes)
    write_artifact(manifest, artifact.manifest_file)
    return load_artifact(artifact.manifest_file)


def assert_rebuilds(error: EngineError, artifact: Artifact) -> None:
    """Check that an error says what was found, what was wanted, and how to build again."""
    assert error.got
    assert error.wanted
    assert f"segbatch export-engine --rebuild {artifact.manifest_file}" in error.remedy


def test_a_sound_engine_fits(artifact: Artifact) -> None:
    """An engine of the installed version, this network and any GPU is refused by nothing."""
    fits.refuse_origin(artifact, SOURCE.sha256)
    fits.refuse_hardware(artifact, GPU)
    fits.refuse_header(artifact, artifact.file.read_bytes())


def test_another_version_is_refused(artifact: Artifact) -> None:
    """An engine of another version of the library is refused."""
    old = changed(artifact, version="1.6.0.1")

    with pytest.raises(EngineError, match=r"built by tensorrt_rtx 1\.6\.0\.1") as refused:
        fits.fitting_bytes(old, SOURCE.sha256)
    assert_rebuilds(refused.value, old)


def test_another_network_is_refused(artifact: Artifact) -> None:
    """An engine of another network than the one that is to run is refused."""
    with pytest.raises(EngineError, match="5555") as refused:
        fits.fitting_bytes(artifact, "6" * 64)
    assert_rebuilds(refused.value, artifact)


@pytest.mark.skipif("tensorrt" in installed(), reason="full TensorRT is installed")
def test_a_missing_flavour_is_refused(artifact: Artifact) -> None:
    """An engine of a flavour that is not installed is refused, what to install named."""
    foreign = changed(artifact, engine="tensorrt")

    with pytest.raises(EngineError, match="needs tensorrt, which is not installed") as refused:
        fits.fitting_bytes(foreign)
    assert_rebuilds(refused.value, foreign)
    assert "pip install" in refused.value.remedy


def test_another_kind_is_refused(artifact: Artifact) -> None:
    """An engine that is none of TensorRT is refused."""
    with pytest.raises(EngineError, match="of openvino"):
        fits.fitting_bytes(changed(artifact, engine="openvino"))


def test_a_file_changed_after_it_was_verified_is_refused(artifact: Artifact) -> None:
    """An engine whose file changed since its manifest was read is refused."""
    content = bytearray(artifact.file.read_bytes())
    content[1000] ^= 1
    artifact.file.write_bytes(content)

    with pytest.raises(EngineError, match="SHA-256") as refused:
        fits.fitting_bytes(artifact)
    assert_rebuilds(refused.value, artifact)


def test_a_file_that_is_gone_is_refused(artifact: Artifact) -> None:
    """An engine whose file is gone is refused."""
    artifact.file.unlink()

    with pytest.raises(EngineError, match="No such file") as refused:
        fits.fitting_bytes(artifact)
    assert_rebuilds(refused.value, artifact)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not an engine at all" * 10])
def test_a_header_that_is_none_is_refused(content: bytes, artifact: Artifact) -> None:
    """Bytes that the library does not know as an engine are refused though their hash is right."""
    artifact.file.write_bytes(content)
    forged = changed(artifact, sha256=hashlib.sha256(content).hexdigest())

    with pytest.raises(EngineError, match="malformed engine") as refused:
        fits.refuse_header(forged, content)
    assert_rebuilds(refused.value, forged)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"name": "NVIDIA GeForce RTX 4060"}, "GPU NVIDIA GeForce RTX 4060"),
        ({"compute_capability": "8.6"}, r"compute capability 8\.6"),
        ({"driver": "550.54.14"}, r"driver 550\.54\.14"),
        ({"driver": "", "cuda": "12.4"}, r"CUDA 12\.4"),
    ],
    ids=["gpu", "capability", "driver", "cuda"],
)
def test_another_machine_is_refused(found: dict[str, str], named: str, artifact: Artifact) -> None:
    """An engine tuned for another GPU, or built under a newer driver, is refused."""
    tuned = changed(artifact, hardware=BUILT)

    with pytest.raises(EngineError, match=named) as refused:
        fits.refuse_hardware(tuned, msgspec.structs.replace(GPU, **found))
    assert_rebuilds(refused.value, tuned)


def test_a_newer_driver_is_taken(artifact: Artifact) -> None:
    """A driver newer than the one that an engine was built under is taken."""
    tuned = changed(artifact, hardware=BUILT)

    fits.refuse_hardware(tuned, msgspec.structs.replace(GPU, driver="600.1", cuda="14.0"))


@needs_no_driver
def test_no_driver_is_refused_in_words(artifact: Artifact) -> None:
    """A sound engine is refused where no driver answers, with what to do without one."""
    with pytest.raises(EngineError, match="no NVIDIA driver") as refused:
        fits.fitting_bytes(artifact, SOURCE.sha256)
    assert "openvino" in refused.value.remedy
