"""What GPU there is and whether a flavour can use it, asked in a process of its own.

Full TensorRT ends the process (SIGSEGV) instead of raising where no driver answers, and a
broken driver may do so anywhere. So a process of its own imports the library, asks the driver
and makes the library's runtime, in this order, and its death is an answer too.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from typing import Any, Final

import msgspec

from segbatch.errors import UsageError
from segbatch.infer.engine.answers import ask_apart, last_answer
from segbatch.infer.engine.tensorrt.flavour import FLAVOURS, INSTALL, Flavour, installed, load

TIMEOUT_S: Final = 120.0
# A process takes half a second to say what the last one said.
REMEMBERED_S: Final = 60.0
LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# TensorRT 10 and 11: Turing and newer; the RTX flavour lists its own in its enumeration.
OLDEST_CAPABILITY: Final = (7, 5)
# Anything from here on is taken by the RTX flavour whether it is listed or not.
OPEN_ENDED_CAPABILITY: Final = (12, 0)
_CU_ATTRIBUTES: Final = {"major": 75, "minor": 76, "processors": 16}
_CUDA_NO_DEVICE: Final = 100


class Gpu(msgspec.Struct, frozen=True):
    """A GPU as its driver describes it.

    ``driver`` is the driver's version (``580.65``; empty where it does not say), ``cuda`` the
    newest CUDA that it serves (``13.0``).
    """

    name: str
    compute_capability: str
    processors: int
    memory_bytes: int
    driver: str
    cuda: str


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process found; ``why`` is empty where the flavour can be used."""

    why: str = ""
    gpu: Gpu | None = None
    version: str = ""


_answers: dict[Flavour, tuple[float, Answer]] = {}
_asking = threading.Lock()


def why_unusable(flavour: Flavour | None = None) -> str | None:
    """Say why no engine of this flavour can run here, with a remedy; None where one can.

    Parameters
    ----------
    flavour
        None: any that is installed; the first's reason is given where none can be used.
    """
    if flavour is not None:
        return lately(flavour).why or None
    reasons = [why_unusable(each) for each in installed()]
    if not reasons:
        return f"no TensorRT is installed; remedy: {INSTALL['tensorrt_rtx']}"
    return None if None in reasons else reasons[0]


def ask(flavour: Flavour) -> Answer:
    """Ask in a process of its own what a flavour and the driver say; never raises."""
    try:
        done = ask_apart("segbatch.infer.engine.tensorrt.driver", [flavour], TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Answer(
            f"{flavour} and the NVIDIA driver gave no answer within {TIMEOUT_S:.0f} s; "
            "remedy: see whether nvidia-smi answers, and restart the machine if it does not"
        )
    except OSError as error:
        return Answer(f"the process that asks the NVIDIA driver cannot be started: {error}")
    answer = last_answer(done.stdout, Answer)
    if done.returncode == 0 and answer is not None:
        return answer
    if done.returncode < 0:
        return Answer(
            f"{flavour} ended the process that tried it ({_signal_name(-done.returncode)}); "
            f"remedy: install the NVIDIA driver again, then {flavour}: {INSTALL[flavour]}"
        )
    told = done.stderr.strip().splitlines()
    return Answer(
        f"{flavour} cannot be tried: {told[-1] if told else f'exit code {done.returncode}'}"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of those for real time only the first and the last have a name
        return f"signal {number}"


def lately(flavour: Flavour) -> Answer:
    """Return what ``ask`` found within the last minute, and else ask; never raises.

    To choose an engine and to open it are two questions of one moment. Only a GPU that can be
    used is remembered: what is missing may be there in a second.
    """
    with _asking:
        asked_at, answer = _answers.get(flavour, (float("-inf"), Answer("not asked yet")))
        if answer.why or time.monotonic() - asked_at > REMEMBERED_S:
            answer = ask(flavour)
            _answers[flavour] = time.monotonic(), answer
        return answer


def unsupported(flavour: Flavour, capability: str, listed: set[str]) -> str:
    """Say that a flavour does not take GPUs of a compute capability; empty where it does.

    Parameters
    ----------
    capability
        As in ``8.9``.
    listed
        The library's own list; empty for full TensorRT, which has none.
    """
    found = tuple(int(part) for part in capability.split("."))
    if flavour == "tensorrt_rtx":
        if capability in listed or found >= OPEN_ENDED_CAPABILITY:
            return ""
        return (
            f"a GPU of compute capability {capability}, which tensorrt_rtx does not list "
            f"({', '.join(sorted(listed, key=float))}); remedy: {INSTALL['tensorrt']}"
        )
    if found >= OLDEST_CAPABILITY:
        return ""
    return (
        f"a GPU of compute capability {capability}, and TensorRT wants 7.5 or newer; "
        "remedy: use --engine openvino"
    )


def listed_capabilities(trt: Any) -> set[str]:
    """Return the compute capabilities that a library lists, as in ``8.9``; empty without a list."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    numbers = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return {f"{number[:-1]}.{number[-1]}" for number in numbers}


def driver_there() -> bool:
    """Tell whether a driver is installed, working or not; nothing in it is called."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def ask_driver() -> Gpu | str:
    """Return the first GPU that the driver shows this process, or why there is none."""
    if not driver_there():
        return (
            f"no NVIDIA driver is installed ({LIBRARY}); "
            "remedy: where this PC has an NVIDIA GPU, install its driver"
        )
    cuda = ctypes.CDLL(LIBRARY)
    status = cuda.cuInit(0)
    count = ctypes.c_int()
    if status in (0, _CUDA_NO_DEVICE):
        cuda.cuDeviceGetCount(ctypes.byref(count))
    if status == _CUDA_NO_DEVICE or (status == 0 and not count.value):
        return (
            "the NVIDIA driver shows no GPU; remedy: see what nvidia-smi says, "
            "and whether CUDA_VISIBLE_DEVICES hides it"
        )
    if status != 0:
        return (
            f"the NVIDIA driver does not start (cuInit: error {status}); "
            "remedy: see what nvidia-smi says; after an update of the driver, restart the machine"
        )
    return _describe(cuda)


def _describe(cuda: Any) -> Gpu:
    device, number = ctypes.c_int(), ctypes.c_int()
    text, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(text, len(text), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    facts = {}
    for fact, attribute in _CU_ATTRIBUTES.items():
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        facts[fact] = number.value
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return Gpu(
        name=text.value.decode(),
        compute_capability=f"{facts['major']}.{facts['minor']}",
        processors=facts["processors"],
        memory_bytes=size.value,
        driver=_driver_version(),
        cuda=f"{number.value // 1000}.{number.value % 1000 // 10}",
    )


def _driver_version() -> str:
    """Return the driver's own version from its management library, empty where it is absent."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    text = ctypes.create_string_buffer(80)
    try:
        management = ctypes.CDLL(name)
    except OSError:
        return ""
    if management.nvmlInit_v2() != 0:
        return ""
    management.nvmlSystemGetDriverVersion(text, len(text))
    management.nvmlShutdown()
    return text.value.decode()


def _try(flavour: Flavour) -> Answer:
    """Do what ``ask`` asks for; only in a process that may die of it."""
    try:
        trt = load(flavour)
    except UsageError as error:
        return Answer(f"{error.got}; remedy: {error.remedy}")
    version = str(trt.__version__)
    found = ask_driver()
    if isinstance(found, str):
        return Answer(found, version=version)
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return Answer(
            "cuda-bindings is not installed; remedy: pip install 'segbatch[gpu]'", found, version
        )
    why = unsupported(flavour, found.compute_capability, listed_capabilities(trt))
    if not why and trt.Runtime(trt.Logger(trt.Logger.ERROR)) is None:
        why = f"{flavour} {version} makes no runtime on this driver; remedy: update the driver"
    return Answer(why, found, version)


if __name__ == "__main__":
    wanted = next(each for each in FLAVOURS if each == sys.argv[1])
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(_try(wanted)) + b"\n")
