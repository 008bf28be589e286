"""What a signal sets: a storm of them cannot stop whoever waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from segbatch.service.signals import Flag

STORM = 6000
WAITING = f"""
import signal
from segbatch.service.signals import stop_on_signals
heard = 0
with stop_on_signals() as stopper:
    def handle(*_):
        global heard
        heard += 1
        stopper.event.set()
    signal.signal(signal.SIGUSR1, handle)
    print("ready", flush=True)
    while heard < {STORM}:
        stopper.event.wait(0.001)
        stopper.event.clear()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the storm goes on until this has ended
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_a_storm_of_signals_does_not_stop_a_waiting_loop() -> None:
    """A loop that waits for what signals set hears thousands of them and comes to its end."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            end = time.monotonic() + 60
            while child.poll() is None:
                assert time.monotonic() < end, "the loop waits for ever"
                child.send_signal(signal.SIGUSR1)
                time.sleep(0.0001)
        finally:
            child.kill()

    assert child.returncode == 0


def test_a_flag_is_an_event() -> None:
    """A flag that another thread sets ends a wait, and one that nobody sets lets it pass."""
    flag = Flag()
    assert not flag.wait(0.01)
    threading.Timer(0.05, flag.set).start()

    assert flag.wait()
    assert flag.is_set()
    flag.clear()
    assert not flag.is_set()
