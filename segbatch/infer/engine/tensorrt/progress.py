"""How far a build is, told while it goes on, and the way to stop it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is: the library's name of a phase, and steps of it that are done."""

    phase: str
    done: int
    steps: int


def listener(trt: Any, progress: Callable[[Progress], None]) -> Any:
    """Return the library's kind of listener, which calls ``progress``.

    What ``progress`` raises, an interrupt by the keyboard above all, stops the build at its next
    step and stands in the listener's ``raised``: the library itself would print and forget it.
    """

    class _Listener(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return self.raised is None

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, self._steps.get(phase, 1))
            self._steps.pop(phase, None)

        def _tell(self, phase: str, done: int) -> None:
            try:
                progress(Progress(phase, done, self._steps.get(phase, max(done, 1))))
            except BaseException as error:  # noqa: BLE001 - raised again when the build is over
                self.raised = self.raised or error

    return _Listener()
