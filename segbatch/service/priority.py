"""Which threads go first when there are not processors enough for all."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

_STEPS = 10  # of 19: about a tenth of the processor time of a thread that did not give way


def give_way() -> None:
    """Let all other threads go before this one, and before those that it starts from now on.

    A camera delivers when it delivers, and its frames are lost where nobody
    takes them; a frame on the disk can wait. Does nothing but on Linux, where
    each thread has a priority of its own.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        with suppress(PermissionError):  # the unit allows it only where it drives a camera
            os.setpriority(os.PRIO_PROCESS, thread, min(now + _STEPS, 19))
