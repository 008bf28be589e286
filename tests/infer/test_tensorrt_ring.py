"""Buffers are used again and again, many at a time, and no frame gets another's mask.

The GPU is pretended (see ``pretend_gpu``); order, memory and what is copied are as on a real one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segbatch.errors import EngineError
from segbatch.infer.engine.tensorrt.ring import Ring
from segbatch.infer.engine.tensorrt.runtime import Runner
from tests.infer.pretend_gpu import PretendDevice, PretendProgram

SHAPE = (2, 1, 8, 12)
PATIENCE_S = 20.0
# Much longer than it takes to go past a slot that is lent.
A_WHILE_S = 0.3


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    """Return a device whose streams take their time."""
    made = PretendDevice(delay_s=0.002)
    yield made
    made.close()


def run(runner: Runner, number: float) -> tuple[float, float]:
    """Send a frame of one number through and return what its logits and its certainty say."""
    with runner.request(SHAPE) as request:
        request.input[...] = number
        logits = float(request.infer().max())
    with runner.request(SHAPE) as request:
        request.input[...] = number
        return logits, float(request.decide().confidence.max())


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_each_frame_gets_its_own_answer(slots: int, device: PretendDevice) -> None:
    """However many threads share however few slots, every answer is that of its own frame."""
    runner = Runner(device, PretendProgram(device, SHAPE), slots)

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda number: run(runner, number), range(60)))

    assert found == [(2 * number, 2 * number) for number in range(60)]
    runner.close()


def test_slots_overlap(device: PretendDevice) -> None:
    """A frame is taken in while another still computes."""
    ring = Ring(device, PretendProgram(device, SHAPE), 2)
    hold = threading.Event()
    device.give(ring.compute, hold.wait)

    with ThreadPoolExecutor(2) as threads, ring.lend() as first, ring.lend() as second:
        first.input[...], second.input[...] = 1, 2
        waiting = [threads.submit(slot.run, ("logits",)) for slot in (first, second)]
        give_up_at = time.monotonic() + PATIENCE_S
        taken_in: set[float] = set()
        while taken_in != {1.0, 2.0} and time.monotonic() < give_up_at:
            arrays = [memory.view(np.float32) for memory in device.memory.values()]
            taken_in = {float(each[0]) for each in arrays if each.size == 2 * 96} - {0.0}
        hold.set()
        found = [each.result()["logits"].max() for each in waiting]

    assert taken_in == {1.0, 2.0}
    assert found == [2.0, 4.0]
    ring.close()


def test_memory_is_taken_once(device: PretendDevice) -> None:
    """However many frames are run, memory on the device is what the slots took at the start."""
    runner = Runner(device, PretendProgram(device, SHAPE), 3)
    before = len(device.memory)

    for number in range(20):
        run(runner, number)

    assert len(device.memory) == before == 3 * 5
    runner.close()


def test_only_what_is_asked_for_crosses_the_bus(device: PretendDevice) -> None:
    """Deciding copies the mask and the blocks back, one byte a pixel and no logits."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)

    with runner.request(SHAPE) as request:
        request.decide()

    down = [size for way, size in device.copied if way == "down"]
    assert sum(down) == 2 * 96 + 2 * (2 * 6 * 4)
    runner.close()


def test_outputs_cannot_be_written(device: PretendDevice) -> None:
    """Who scales an output in place is stopped, so that the next frame's is not scaled."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)

    with runner.request(SHAPE) as request:
        request.input[...] = 3
        logits, mask = request.infer(), request.decide().mask
        with pytest.raises(ValueError, match="read-only"):
            logits *= 2
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = 7
        np.testing.assert_array_equal(logits, 6)
    runner.close()


def test_half_comes_out_as_single(device: PretendDevice) -> None:
    """Logits of an engine that computes in half precision are given in single."""
    runner = Runner(device, PretendProgram(device, SHAPE, "float16"), 1)

    with runner.request(SHAPE) as request:
        request.input[...] = 0.25
        assert request.input.dtype == np.float16
        logits = request.infer()

    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, 0.5)
    assert not logits.flags.writeable
    runner.close()


def test_a_batch_that_is_not_full(device: PretendDevice) -> None:
    """A smaller batch is padded for the engine, and only its own places come back."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)

    with runner.request((1, 1, 8, 12)) as request:
        request.input[...] = 2
        assert request.input.shape == (1, 1, 8, 12)
        assert request.infer().shape == (1, 1, 8, 12)
        assert request.decide().mask.shape == (1, 8, 12)
        assert request.decide().entropy.shape == (1, 2, 3)
    runner.close()


@pytest.mark.parametrize("shape", [(3, 1, 8, 12), (2, 1, 8, 16), (2, 3, 8, 12), (0, 1, 8, 12)])
def test_another_shape_is_refused(shape: tuple[int, int, int, int], device: PretendDevice) -> None:
    """Input of another shape than the engine's is refused, both shapes named."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)

    with (
        pytest.raises(EngineError, match=r"2, 1, 8, 12.*export-engine"),
        runner.request(shape),
    ):
        pass
    runner.close()


def test_an_engine_of_logits_alone(device: PretendDevice) -> None:
    """An engine without a decision gives logits, and says that it does not decide."""
    runner = Runner(device, PretendProgram(device, SHAPE, outputs=("logits",)), 1)

    assert not runner.decides
    with runner.request(SHAPE) as request:
        request.input[...] = 1
        np.testing.assert_array_equal(request.infer(), 2)
    runner.close()


def test_an_engine_of_the_decision_alone(device: PretendDevice) -> None:
    """An engine that gives the mask alone refuses to give logits, and says what does."""
    outputs = ("mask", "confidence", "entropy")
    runner = Runner(device, PretendProgram(device, SHAPE, outputs=outputs), 1)

    with runner.request(SHAPE) as request, pytest.raises(EngineError, match="mask alone"):
        request.infer()
    runner.close()


def test_outputs_of_no_use_are_refused(device: PretendDevice) -> None:
    """An engine with several outputs that are no decision is refused, its outputs named."""
    program = PretendProgram(device, SHAPE, outputs=("mask", "logits"))

    with pytest.raises(EngineError, match="'logits', 'mask'"):
        Runner(device, program, 1)


def test_a_failure_leaves_the_slot_usable(device: PretendDevice) -> None:
    """A run that fails is an error of that frame; the next one on the slot is right."""
    program = PretendProgram(device, SHAPE)
    runner = Runner(device, program, 1)
    program.fails = True

    with pytest.raises(RuntimeError, match="failed"), runner.request(SHAPE) as request:
        request.infer()
    program.fails = False

    assert run(runner, 5) == (10, 10)
    runner.close()


def test_warming_up_copies_nothing_back(device: PretendDevice) -> None:
    """Warming up runs each slot once."""
    runner = Runner(device, PretendProgram(device, SHAPE), 3)

    runner.warm_up()

    assert [way for way, _ in device.copied] == ["up"] * 3
    runner.close()


def test_closing_waits_for_what_is_lent() -> None:
    """Closing waits until the last frame has its answer, and afterwards nothing is lent."""
    device = PretendDevice()  # one that has nothing left to do, for which closing would wait
    runner = Runner(device, PretendProgram(device, SHAPE), 2)
    closing = threading.Thread(target=runner.close, daemon=True)

    with runner.request(SHAPE) as request:
        request.input[...] = 4
        assert request.infer().max() == 8
        closing.start()
        closing.join(A_WHILE_S)
        assert closing.is_alive()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()

    with pytest.raises(EngineError, match="closed"), runner.request(SHAPE):
        pass
    runner.close()
    device.close()


def ask_until_told(runner: Runner, told: list[str]) -> list[threading.Thread]:
    """Start eight threads that ask for a slot again and again, until one says why there is none."""

    def ask() -> None:
        try:
            while True:
                with runner.request(SHAPE) as request:
                    request.infer()
        except EngineError as error:
            told.append(error.got)

    # Of daemons the test process does not wait for one that is never told.
    asking = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for each in asking:
        each.start()
    return asking


def wait_for(*threads: threading.Thread) -> None:
    """Wait until all have ended, but not for ever."""
    give_up_at = time.monotonic() + PATIENCE_S
    for each in threads:
        each.join(max(0.0, give_up_at - time.monotonic()))


def test_those_who_wait_are_told(device: PretendDevice) -> None:
    """Threads that wait for a slot when the ring is closed are told so, all of them."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)
    told: list[str] = []
    lent = runner.request(SHAPE)
    lent.__enter__()

    def give_back_and_close() -> None:
        lent.__exit__(None, None, None)
        runner.close()

    asking = ask_until_told(runner, told)
    closing = threading.Thread(target=give_back_and_close, daemon=True)
    closing.start()
    wait_for(closing, *asking)

    assert told == ["an engine that was closed"] * 8


def test_closing_has_its_turn(device: PretendDevice) -> None:
    """Threads that ask for a slot again and again do not keep the ring from being closed."""
    runner = Runner(device, PretendProgram(device, SHAPE), 1)
    told: list[str] = []
    asking = ask_until_told(runner, told)
    closing = threading.Thread(target=runner.close, daemon=True)
    closing.start()
    wait_for(closing, *asking)

    assert not closing.is_alive()
    assert told == ["an engine that was closed"] * 8
