"""An engine that was made beforehand, open: requests fill pinned memory and get masks back."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segbatch.errors import EngineError
from segbatch.infer.engine.decided import DECIDED, Decided
from segbatch.infer.engine.tensorrt.device import CudaDevice, Device
from segbatch.infer.engine.tensorrt.fits import fitting_bytes, flavour_of
from segbatch.infer.engine.tensorrt.program import TrtProgram
from segbatch.infer.engine.tensorrt.ring import Ring
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from segbatch.infer.engine.made.artifact import Artifact, Shape
    from segbatch.infer.engine.tensorrt.ring import Program, Slot

LOGITS: Final = "logits"
# One is filled, one computed, one read.
SLOTS: Final = 3
log = get_logger(__name__)


class TensorRtEngine:
    """An engine on the GPU with its ring of buffers; see ``door.Engine``.

    Parameters
    ----------
    artifact
        The engine's file and manifest.
    source_sha256
        Of the network that is to run; None where the caller has compared it.
    slots
        Inputs in flight.

    Raises
    ------
    EngineError
        It does not fit this machine or network (``fits.fitting_bytes``), or does not open.
    DeviceMemoryError
        There is no room for it on the GPU; ``build_largest`` tries smaller batches.
    """

    def __init__(
        self, artifact: Artifact, source_sha256: str | None = None, slots: int = SLOTS
    ) -> None:
        manifest = artifact.manifest
        if manifest.input_shape is None:
            raise EngineError(f"engine {artifact.file} of any shape", "one (N, C, Y, X)")
        content, gpu = fitting_bytes(artifact, source_sha256)
        self.name: str = manifest.engine
        self.version = manifest.version
        self.precision: str = manifest.precision
        self.input_shape: Shape | None = manifest.input_shape
        device = CudaDevice()
        program = None
        try:
            program = TrtProgram(content, flavour_of(artifact), artifact, gpu, device)
            runner = Runner(device, program, slots)
            runner.warm_up()
            program.keep_compiled()
        except BaseException:
            _tear_down(program, device)
            raise
        self._device, self._program, self._runner = device, program, runner
        self.decides = runner.decides
        log.info("engine on the GPU", engine=self.name, gpu=gpu.name, shape=self.input_shape)

    @contextmanager
    def request(self, shape: Shape, streams: int) -> Iterator[Request]:
        """Lend a request for (N, C, Y, X) input, N at most the engine's; waits for a slot.

        ``streams`` is for engines that share a processor; a GPU has its own order.
        """
        with self._runner.request(shape) as request:
            yield request

    def close(self) -> None:
        """Wait for what runs; give contexts, engine, streams and memory back, in this order."""
        self._runner.close()
        _tear_down(self._program, self._device)


def _tear_down(program: TrtProgram | None, device: Device) -> None:
    if program is not None:
        program.close()
    device.close()


class Runner:
    """Requests on a ring, whatever its program and device.

    Parameters
    ----------
    device, program, slots
        As in ``Ring``; outputs are named as in ``learn.export.head``.

    Raises
    ------
    EngineError
        The outputs are none that a mask can be had from.
    """

    def __init__(self, device: Device, program: Program, slots: int) -> None:
        names = {each.name for each in program.outputs}
        self.decides = names >= set(DECIDED)
        if not self.decides and len(names) != 1:
            raise EngineError(
                f"an engine with outputs {sorted(names)}", "logits alone, or with a decision"
            )
        # A network without a decision has one output, whatever it is called.
        logits = LOGITS if self.decides else next(iter(names))
        self._logits = logits if logits in names else None
        self._ring = Ring(device, program, slots)
        self._shape = program.input.shape
        self._slots = slots

    def warm_up(self) -> None:
        """Run every slot once: kernels are compiled and graphs captured before the first frame."""
        with ExitStack() as lent:
            for slot in [lent.enter_context(self._ring.lend()) for _ in range(self._slots)]:
                slot.run(())

    @contextmanager
    def request(self, shape: Shape) -> Iterator[Request]:
        """Lend a request for (N, C, Y, X) input; waits while all slots are lent.

        Raises
        ------
        EngineError
            The engine is for another shape.
        """
        if shape[1:] != self._shape[1:] or not 1 <= shape[0] <= self._shape[0]:
            raise EngineError(
                f"input of shape {shape}",
                f"{self._shape}, for which the engine was built, or a smaller batch",
                "export the engine for this shape: segbatch export-engine",
            )
        with self._ring.lend() as slot:
            yield Request(slot, shape[0], self._logits)

    def close(self) -> None:
        """Wait for what runs."""
        self._ring.close()


class Request:
    """One lent slot: fill ``input``, call ``infer`` or ``decide``.

    ``input`` is (N, C, Y, X) of the engine's own type, pinned; ``normalise.fill`` writes half
    precision as well as single. A batch smaller than the engine's leaves the places behind it
    as they are: they are computed, and never returned.
    """

    def __init__(self, slot: Slot, count: int, logits: str | None) -> None:
        self._slot = slot
        self._count = count
        self._logits = logits
        self.input: NDArray[Any] = slot.input[:count]

    def infer(self) -> NDArray[np.float32]:
        """Return float32 logits (N, K, Y, X), read-only, valid while the request is lent.

        Raises
        ------
        EngineError
            The engine gives nothing but the decision, or it failed.
        """
        if self._logits is None:
            raise EngineError(
                "logits of an engine that gives the mask alone",
                "an engine that was exported with its logits",
                "leave out --save-probabilities, or use --engine openvino",
            )
        logits = self._slot.run((self._logits,))[self._logits][: self._count]
        found = logits.astype(np.float32, copy=False)
        found.flags.writeable = False
        return found

    def decide(self) -> Decided:
        """Return the masks and how sure they are, read-only, valid while the request is lent."""
        found = self._slot.run(DECIDED)
        mask, confidence, entropy = (found[name][: self._count] for name in DECIDED)
        return Decided(mask, confidence, entropy)
