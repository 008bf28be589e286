"""The library: ``tensorrt`` (10, 11) or ``tensorrt_rtx``, which share their names.

``tensorrt`` tunes its kernels on the very GPU and runs on every NVIDIA GPU since Turing;
``tensorrt_rtx`` is for the GPUs of personal computers, builds without one and compiles its
kernels when an engine is opened. docs/gpu.md says which to install where.

Full TensorRT ends the process where there is no driver: nothing but ``load`` may be called
before ``driver.why_unusable`` has answered.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from segbatch.errors import UsageError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: Final[tuple[Flavour, ...]] = ("tensorrt", "tensorrt_rtx")
INSTALL: Final[dict[Flavour, str]] = {
    "tensorrt": "pip install tensorrt-cu12",
    "tensorrt_rtx": "pip install 'segbatch[gpu]'",
}
log = get_logger(__name__)


def installed() -> tuple[Flavour, ...]:
    """Return the flavours whose package is there, the one tuned to its GPU first."""
    return tuple(name for name in FLAVOURS if importlib.util.find_spec(name) is not None)


def load(flavour: Flavour) -> Any:
    """Import a flavour and return its module; nothing of a GPU is touched.

    Raises
    ------
    UsageError
        It is not installed, or its libraries cannot be loaded.
    """
    if importlib.util.find_spec(flavour) is None:
        raise UsageError(
            f"{flavour} is not installed",
            f"the package {flavour}" + (" (the gpu extra)" if flavour == "tensorrt_rtx" else ""),
            INSTALL[flavour],
        )
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise UsageError(
            f"{flavour} cannot be loaded: {error}",
            "the package with its native libraries",
            INSTALL[flavour],
        ) from error


@cache
def logger(flavour: Flavour) -> Any:
    """Return the one logger of a flavour: the library keeps the first that it is given."""
    trt = load(flavour)

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Hands the library's lines to the process log, and keeps errors for who asks."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._listening: list[list[str]] = []

        def log(self, severity: Any, message: str) -> None:
            """Take one line; may be called from the library's own threads."""
            if severity <= trt.ILogger.Severity.ERROR:
                with self._lock:
                    for kept in self._listening:
                        kept.append(message)
                log.debug("library error", engine=flavour, said=message)
            elif severity == trt.ILogger.Severity.WARNING:
                log.debug("library warning", engine=flavour, said=message)

        @contextmanager
        def errors(self) -> Iterator[list[str]]:
            """Collect the errors that are said meanwhile."""
            kept: list[str] = []
            with self._lock:
                self._listening.append(kept)
            try:
                yield kept
            finally:
                with self._lock:
                    # By identity: two empty lists are equal.
                    self._listening = [each for each in self._listening if each is not kept]

    return _Logger()


def said(errors: list[str]) -> str:
    """Return a library's errors as one line: the first says what, the last what became of it."""
    lines = [" ".join(each.split()) for each in errors]
    unique = list(dict.fromkeys(lines))
    return "; ".join(unique[:1] + unique[-1:] if len(unique) > 1 else unique) or "no reason given"
