"""Open a camera: start Micro-Manager's core in this process, or attach to one that runs."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbatch.acquire.camera.calls import CoreCalls
from segbatch.acquire.camera.camera import Camera
from segbatch.acquire.camera.core import Core, JavaCore, PythonCore
from segbatch.acquire.camera.errors import CameraBusyError, CameraError, CameraSilentError
from segbatch.errors import SettingsError, UsageError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.settings.sections import CameraSettings

HOST, PORT = "127.0.0.1", 4827  # of Micro-Manager's server for pycromanager; it has no other host
KNOCK_S = 1.0
RING_MIB = 512  # 172 full frames of the Zelux, 5 s at its full rate
_ADAPTERS = (
    "/usr/local/lib/micro-manager",
    r"C:\Program Files\Micro-Manager-2.0",
    r"C:\Program Files\Micro-Manager",
)
_logger = get_logger(__name__)
# Adapters keep their state in the process: two cores would load the same camera twice.
_one_core = threading.Lock()
_held: list[CoreCalls] = []


def open_camera(settings: CameraSettings, *, port: int = PORT, ring_mib: int = RING_MIB) -> Camera:
    """Open the camera that the settings name.

    Parameters
    ----------
    port
        Of Micro-Manager's server.
    ring_mib
        Size of the ring buffer of a core that is started here.

    Raises
    ------
    UsageError
        The camera extra is not installed.
    SettingsError
        The settings name no camera, or one that the backend does not have.
    CameraError
        Micro-Manager refused, is not there, or does not answer in time.
    """
    for package in ("pycromanager", "pymmcore"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"{package} is not installed",
                "the camera extra",
                "pip install 'segbatch[camera]'",
            )
    backend = settings.backend
    if backend == "auto":
        backend = "java" if _listens(port) else "python"
    if backend == "java":
        return _attach(settings, port)
    return _start(settings, ring_mib)


def hanging_core() -> str:
    """Return what a core in this process was asked and does not answer; empty where it answers."""
    with _one_core:
        return next((calls.silent for calls in _held if calls.silent), "")


def _start(settings: CameraSettings, ring_mib: int) -> Camera:
    if not settings.config_file and not settings.device:
        raise SettingsError(
            "camera.config_file and camera.device are both empty",
            "a Micro-Manager configuration, or a camera as LIBRARY/DEVICE",
            "camera.device = 'DemoCamera/DCam' is Micro-Manager's own simulated camera",
        )
    adapters = _adapters(settings)
    with _one_core:
        for calls in _held:
            if calls.silent:
                raise CameraSilentError(
                    f"Micro-Manager's core still hangs: {calls.silent}",
                    "an answer",
                    "look at the camera's cable and power; at last, start this program again",
                )
            raise CameraBusyError(
                "this process drives a camera already", "one camera", "stop the other one first"
            )
        calls = CoreCalls(settings.timeout_s)
        _held.append(calls)
    cores: list[Core] = []  # also of a core that hangs while it loads

    def load() -> str:
        import pymmcore

        core = PythonCore(pymmcore.CMMCore())
        cores.append(core)
        core.api.setDeviceAdapterSearchPaths([str(adapters)])
        label = _load(core.api, settings, adapters)
        core.api.setCircularBufferMemoryFootprint(ring_mib)
        return label

    def let_go() -> None:
        try:
            for core in cores:
                core.let_go()
        finally:
            with _one_core:
                _held.remove(calls)

    what = f"loading {settings.config_file or settings.device}"
    try:
        label = calls.ask(what, load)
    except CameraError as error:
        calls.end(let_go)
        if isinstance(error, CameraSilentError):
            raise
        raise CameraError(
            error.got,
            f"adapters in {adapters} that load, and a camera that is on",
            error.remedy or "check camera.device, camera.micro_manager_dir, cable and power",
        ) from error
    except BaseException:
        calls.end(let_go)
        raise
    return Camera(cores[0], calls, label, let_go)


def _load(api: Any, settings: CameraSettings, adapters: Path) -> str:
    """Load the hardware configuration or the one device; return the camera's label."""
    if settings.config_file:
        file = Path(settings.config_file)
        if not file.is_absolute() and not file.is_file():
            file = adapters / file  # Micro-Manager keeps its own configurations there
        if not file.is_file():
            raise SettingsError(
                f"camera.config_file = {settings.config_file}: no such file",
                "a Micro-Manager hardware configuration",
                "give its whole path",
            )
        api.loadSystemConfiguration(str(file))
        label = api.getCameraDevice()
        return _find(PythonCore(api), settings.device) if settings.device else _some(label)
    library, _, device = settings.device.partition("/")
    if not library or not device:
        raise SettingsError(
            f"camera.device = {settings.device!r}", "LIBRARY/DEVICE", "as in TSI/TSICam"
        )
    api.loadDevice(device, library, device)
    for name, value in settings.properties.items():
        if api.hasProperty(device, name) and api.isPropertyPreInit(device, name):
            api.setProperty(device, name, str(value))
    api.initializeDevice(device)
    api.setCameraDevice(device)
    return device


def _attach(settings: CameraSettings, port: int) -> Camera:
    """Attach to a running Micro-Manager; its configuration is left as it is."""
    _shake_hands(port, settings.timeout_s)
    if settings.config_file:
        _logger.info("configuration of the running Micro-Manager is used", not_loaded="config_file")
    calls = CoreCalls(settings.timeout_s)
    core = JavaCore(port)

    def connect() -> str:
        core.connect(settings.timeout_s)
        if settings.device:
            label = _find(core, settings.device)
            core.api.setCameraDevice(label)
            return label
        return _some(core.api.getCameraDevice())

    try:
        label = calls.ask(f"attaching to Micro-Manager at port {port}", connect)
    except BaseException:
        if not calls.end(core.let_go):
            core.abandon()
        raise
    return Camera(core, calls, label, core.let_go)


def _some(label: str) -> str:
    if not label:
        raise SettingsError(
            "Micro-Manager's configuration names no camera",
            "a default camera",
            "set it in the Hardware Configuration Wizard, or give camera.device",
        )
    return label


def _find(core: Core, device: str) -> str:
    """Return the label of the loaded camera that is ``LIBRARY/DEVICE``, or has that label."""
    camera_type = 2  # MM::CameraDevice
    cameras = {}
    for label in core.texts(core.api.getLoadedDevicesOfType(camera_type)):
        cameras[label] = f"{core.api.getDeviceLibrary(label)}/{core.api.getDeviceName(label)}"
    for label, named in cameras.items():
        if device in (named, label):
            return label
    raise SettingsError(
        f"camera.device = {device!r}: Micro-Manager has no such camera loaded",
        "one of " + ", ".join(f"{named} ({label})" for label, named in cameras.items()),
        "load it in Micro-Manager, or leave camera.device empty for its default camera",
    )


def _adapters(settings: CameraSettings) -> Path:
    """Return the folder of the device adapters."""
    named = settings.micro_manager_dir
    if named and not Path(named).is_dir():
        raise SettingsError(
            f"camera.micro_manager_dir = {named}: no such folder",
            "the folder of Micro-Manager's device adapters",
            "check the path",
        )
    folder = named or next((place for place in _ADAPTERS if Path(place).is_dir()), "")
    if not folder:
        if importlib.util.find_spec("mm_test_adapters") is None:
            raise SettingsError(
                "no device adapters of Micro-Manager were found",
                "the folder that Micro-Manager is installed in",
                "set camera.micro_manager_dir; pip install mm-test-adapters brings the DemoCamera",
            )
        import mm_test_adapters

        folder = mm_test_adapters.device_adapter_path()
    if os.name == "nt" and folder not in os.environ["PATH"]:
        os.environ["PATH"] += os.pathsep + folder  # the adapters' own libraries stand there
    return Path(folder)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), KNOCK_S).close()
    except OSError:
        return False
    return True


def _shake_hands(port: int, timeout_s: float) -> None:
    """Make sure that a Micro-Manager answers at ``port``.

    pycromanager's own attempt prints a traceback from a thread of its own
    where nobody answers, and says nothing of why.
    """
    remedy = (
        "start Micro-Manager, tick Tools > Options > Run server on port 4827; "
        "it answers on its own computer only"
    )
    if not _listens(port):
        raise CameraError(
            f"nothing listens at {HOST}:{port}", "a running Micro-Manager with its server", remedy
        )
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as knock:
        knock.setsockopt(zmq.LINGER, 0)
        knock.connect(f"tcp://{HOST}:{port}")
        knock.send_json({"command": "connect", "debug": False})
        if not knock.poll(int(1000 * timeout_s)):
            raise CameraSilentError(
                f"what listens at {HOST}:{port} does not answer within {timeout_s:g} s",
                "Micro-Manager's server",
                remedy,
            )
        knock.recv()
