"""What holds for every test: its surroundings, and which tests this machine can run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# Slow machines are no failures, and a run that gates a change must be repeatable.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")
# In the background of a shell without job control SIGINT is ignored, by every child as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, the tests that this machine cannot run."""
    marked = {mark.name for item in items for mark in item.iter_markers()}
    missing = {}
    if "gpu" in marked and (reason := _why_no_gpu()):
        missing["gpu"] = reason
    if "learn" in marked and importlib.util.find_spec("torch") is None:
        missing["learn"] = "torch is not installed (make test-learn installs it)"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str:
    """Say why no NVIDIA GPU can be used; empty where one can.

    The driver is asked in a process of its own: a broken one can end the process it is loaded in.
    """
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL('libcuda.so.1').cuInit(0))"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    return "" if answer.returncode == 0 else "no NVIDIA driver answers (libcuda.so.1, cuInit)"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the caller's own settings out of the environment."""
    for variable in [name for name in os.environ if name.startswith("SEGBATCH_")]:
        monkeypatch.delenv(variable)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what engines find out about this machine in a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
