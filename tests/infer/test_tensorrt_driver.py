"""No driver, a strange GPU and a crash are answers in words, never the end of this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from segbatch.infer.engine.tensorrt import driver
from segbatch.infer.engine.tensorrt.driver import (
    Answer,
    Gpu,
    ask,
    ask_driver,
    lately,
    unsupported,
    why_unusable,
)
from segbatch.infer.engine.tensorrt.flavour import load
from tests.infer.rtx import needs_rtx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

here = ask_driver()
needs_no_driver = pytest.mark.skipif(
    not isinstance(here, str), reason="this machine has an NVIDIA driver"
)


def put_on_path(package: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes started from here find ``package``, which does ``code`` on import."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@needs_rtx
@needs_no_driver
def test_no_driver_is_said() -> None:
    """Where no driver is, that is why no engine can run, and what to install is said."""
    why = why_unusable("tensorrt_rtx")

    assert why is not None
    assert "NVIDIA driver" in why
    assert "remedy" in why
    assert why_unusable() is not None


@needs_rtx
@needs_no_driver
def test_the_version_is_told_all_the_same() -> None:
    """The library's version is told even where no driver is."""
    assert ask("tensorrt_rtx").version == load("tensorrt_rtx").__version__


@needs_no_driver
@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_a_crash_becomes_words(
    package: driver.Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that ends its process by a fault is reported with the fault's name."""
    put_on_path(package, "import ctypes; ctypes.string_at(0)", tmp_path, monkeypatch)

    why = why_unusable(package)

    assert why is not None
    assert "SIGSEGV" in why
    assert "remedy" in why


def test_a_broken_library_becomes_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose native parts are missing is reported with what it said."""
    code = "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')"
    put_on_path("tensorrt", code, tmp_path, monkeypatch)

    assert "libnvonnxparser.so.11" in (why_unusable("tensorrt") or "")


def test_a_library_that_hangs_becomes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library or driver that does not answer is given up and said to be silent."""
    put_on_path("tensorrt", "import time; time.sleep(600)", tmp_path, monkeypatch)
    monkeypatch.setattr(driver, "TIMEOUT_S", 1.0)

    assert "no answer within" in (why_unusable("tensorrt") or "")


def test_an_interpreter_that_is_gone_becomes_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be started is an answer, too."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    assert "cannot be started" in (why_unusable("tensorrt_rtx") or "")


def leave_with(code: str, answer: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a library's process write ``answer`` to standard output, do ``code`` and end."""
    wholly = f"import os\nos.write(1, {answer!r})\n{code}\nos._exit(0)\n"
    put_on_path("tensorrt", wholly, folder, monkeypatch)


def test_a_signal_without_a_name_becomes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is ended by a signal of no name is reported with the signal's number."""
    leave_with("os.kill(os.getpid(), 40)", b"", tmp_path, monkeypatch)

    assert "signal 40" in ask("tensorrt").why


@pytest.mark.parametrize(
    "noise",
    [b"", b"bye\n", b"[unloaded] \xff\n", b'{"level": "info"}\n', b"{\n", b"{}x\n", b"[]\n7\n"],
)
def test_what_a_library_prints_is_no_answer(
    noise: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may print before and after the answer whatever it likes."""
    found = Answer("the NVIDIA driver shows no GPU", version="11.0")
    said = noise + b"\n" + msgspec.json.encode(found) + b"\n" + noise
    leave_with("", said, tmp_path, monkeypatch)

    assert ask("tensorrt") == found


@pytest.mark.parametrize("said", [b"", b"bye\n", b'{"level": "info"}\n', b'{"why": 3}\n', b"\xff"])
def test_no_answer_becomes_words(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends well without an answer is one that cannot be relied on."""
    leave_with("", said, tmp_path, monkeypatch)

    assert "cannot be tried" in ask("tensorrt").why


def count_askers(
    answer: Answer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Let whoever asks be given ``answer`` by a process of its own; return what counts those."""
    said = msgspec.json.encode(answer).decode()
    code = f"""import os
os.write(os.open({str(folder / "asked")!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY), b".")
os.write(1, b"\\n" + {said!r}.encode() + b"\\n")
os._exit(0)
"""
    put_on_path("tensorrt", code, folder, monkeypatch)
    monkeypatch.setattr(driver, "_answers", {})
    return lambda: (folder / "asked").stat().st_size


def test_a_gpu_is_asked_once_for_choosing_and_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that can be used is remembered for a moment, and asked again after that."""
    found = Answer(gpu=Gpu("RTX 4070", "8.9", 46, 12 << 30, "580.65", "13.0"), version="11.0")
    asked = count_askers(found, tmp_path, monkeypatch)

    assert why_unusable("tensorrt") is None
    assert [lately("tensorrt"), lately("tensorrt")] == [found, found]
    assert asked() == 1
    monkeypatch.setattr(driver, "REMEMBERED_S", 0.0)
    assert lately("tensorrt") == found
    assert asked() == 2


def test_a_gpu_that_is_missing_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That no GPU can be used is asked anew each time: it may be there by now."""
    missing = Answer("the NVIDIA driver shows no GPU")
    asked = count_askers(missing, tmp_path, monkeypatch)

    assert [lately("tensorrt"), lately("tensorrt")] == [missing, missing]
    assert asked() == 2


@pytest.mark.parametrize(
    ("flavour", "capability", "taken"),
    [
        ("tensorrt_rtx", "8.9", True),
        ("tensorrt_rtx", "12.0", True),
        ("tensorrt_rtx", "13.0", True),
        ("tensorrt_rtx", "9.0", False),
        ("tensorrt_rtx", "7.0", False),
        ("tensorrt", "9.0", True),
        ("tensorrt", "7.5", True),
        ("tensorrt", "6.1", False),
    ],
)
@needs_rtx
def test_a_gpu_that_is_not_taken(flavour: driver.Flavour, capability: str, taken: bool) -> None:
    """A GPU that a flavour does not list is refused with the way out, others are taken."""
    listed = driver.listed_capabilities(load("tensorrt_rtx"))

    why = unsupported(flavour, capability, listed if flavour == "tensorrt_rtx" else set())

    assert (why == "") == taken
    assert taken or (capability in why and "remedy" in why)


@needs_rtx
def test_the_library_lists_its_gpus() -> None:
    """The RTX flavour names the GPUs that it is for: Ada is among them, Hopper is not."""
    listed = driver.listed_capabilities(load("tensorrt_rtx"))

    assert {"7.5", "8.6", "8.9", "12.0"} <= listed
    assert "9.0" not in listed


@pytest.mark.gpu
def test_the_gpu_is_described() -> None:
    """The driver names the GPU, its compute capability and its memory."""
    found = ask_driver()

    assert isinstance(found, driver.Gpu)
    assert found.memory_bytes > 1 << 30
    assert float(found.compute_capability) >= 7.0
    assert found.driver
