"""A stand-in for Micro-Manager's Java side: its real core, behind the protocol of pycromanager.

    python bridge_server.py PORT [--busy]

The program with the window is not to be had on Linux without a display. What
runs here instead is the core itself with the DemoCamera, answering as the Java
server does (pyjavaz.bridge, version 5.1.0). ``--busy``: somebody's live view is on.
"""

from __future__ import annotations

import json
import sys
from typing import Any, ClassVar

import mm_test_adapters
import numpy as np
import pymmcore
import zmq

TEXT, WHOLE, REAL, TRUTH = "java.lang.String", "int", "double", "boolean"
CORE = {
    "getCameraDevice": [], "setCameraDevice": [TEXT], "getLoadedDevicesOfType": [WHOLE],
    "getDeviceLibrary": [TEXT], "getDeviceName": [TEXT], "getDevicePropertyNames": [TEXT],
    "getProperty": [TEXT, TEXT], "setProperty": [TEXT, TEXT, TEXT],
    "isPropertyReadOnly": [TEXT, TEXT], "isPropertyPreInit": [TEXT, TEXT],
    "hasPropertyLimits": [TEXT, TEXT], "getPropertyLowerLimit": [TEXT, TEXT],
    "getPropertyUpperLimit": [TEXT, TEXT], "getAllowedPropertyValues": [TEXT, TEXT],
    "getExposure": [TEXT], "setExposure": [TEXT, REAL], "getROI": [TEXT], "clearROI": [],
    "setROI": [TEXT, WHOLE, WHOLE, WHOLE, WHOLE], "getNumberOfComponents": [],
    "getImageBitDepth": [], "getImageWidth": [], "getImageHeight": [], "getBytesPerPixel": [],
    "getPixelSizeUm": [], "isSequenceRunning": [], "getRemainingImageCount": [],
    "getBufferTotalCapacity": [], "isBufferOverflowed": [], "stopSequenceAcquisition": [],
    "startSequenceAcquisition": [WHOLE, REAL, TRUTH], "snapImage": [],
    "popNextTaggedImage": [], "getTaggedImage": [],
}  # fmt: skip


class Strings:
    """A vector of strings as Java has it."""

    methods: ClassVar = {"size": [], "get": [WHOLE]}
    fields: tuple[str, ...] = ()

    def __init__(self, texts: Any) -> None:
        self.texts = list(texts)

    def size(self) -> int:
        """Return how many there are."""
        return len(self.texts)

    def get(self, index: int) -> str:
        """Return one of them."""
        return str(self.texts[index])


class Fields:
    """An object with fields and no methods."""

    methods: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, **values: Any) -> None:
        self.fields = tuple(values)
        self.__dict__.update(values)


class Core:
    """The real core; images come tagged, lists as Java's."""

    methods = CORE
    fields: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.core = pymmcore.CMMCore()
        self.core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
        self.core.loadDevice("Cam-1", "DemoCamera", "DCam")
        self.core.initializeDevice("Cam-1")
        self.core.setCameraDevice("Cam-1")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def getROI(self, camera: str) -> Fields:  # noqa: N802 - Java's name
        """Return a rectangle."""
        x, y, width, height = self.core.getROI(camera)
        return Fields(x=x, y=y, width=width, height=height)

    def popNextTaggedImage(self) -> Fields:  # noqa: N802
        """Return pixels in a row, and tags."""
        tags = pymmcore.Metadata()
        pixels = self.core.popNextImageMD(tags)
        keys = tags.GetKeys()
        return self._tagged(pixels, {key: tags.GetSingleTag(key).GetValue() for key in keys})

    def getTaggedImage(self) -> Fields:  # noqa: N802
        """Return the image that was snapped."""
        return self._tagged(self.core.getImage(), {})

    def _tagged(self, pixels: np.ndarray[Any, Any], tags: dict[str, str]) -> Fields:
        height, width = pixels.shape
        return Fields(pix=pixels.ravel(), tags=tags | {"Height": height, "Width": width})


def answer(request: dict[str, Any], objects: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Do what a request says; return the answer and the parts that follow it."""
    command = request["command"]
    if command == "connect":
        return {"type": "none", "version": "5.1.0"}, []
    if command == "get-constructors":
        name = request["classpath"]
        return {"type": "none", "api": [{"name": name, "arguments": []}]}, []
    if command == "constructor":
        return told(objects["core"], objects)
    if command == "destructor":
        if request["hash-code"] != "core":
            objects.pop(request["hash-code"], None)
        return {"type": "none"}, []
    target = objects[request["hash-code"]]
    found = getattr(target, request["name"])
    return told(found if command == "get-field" else found(*request["arguments"]), objects)


def told(value: Any, objects: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Put a value in the protocol's words."""
    if value is None:
        return {"type": "null"}, []
    if isinstance(value, str):
        return {"type": "string", "value": value}, []
    if isinstance(value, bool | int | float):
        return {"type": "primitive", "value": value}, []
    if isinstance(value, dict):
        return {"type": "object", "class": "JSONObject", "value": json.dumps(value)}, []
    if isinstance(value, np.ndarray):
        kind = "short-array" if value.dtype == np.uint16 else "byte-array"
        key = (7).to_bytes(4, sys.byteorder)
        return {"type": kind, "value": "@7"}, [key, value.tobytes()]
    if isinstance(value, tuple | list):
        value = Strings(value)
    name = "core" if isinstance(value, Core) else f"{type(value).__name__}-{id(value)}"
    objects[name] = value
    java = {"core": "mmcorej.CMMCore"}.get(
        name, "java." + "_".join([type(value).__name__, *value.fields])
    )
    api = [
        {"name": method, "arguments": list(arguments), "return-type": "java.lang.Object"}
        for method, arguments in value.methods.items()
    ]
    return {
        "type": "unserialized-object",
        "class": java,
        "hash-code": name,
        "interfaces": [java],
        "fields": list(value.fields),
        "api": api,
    }, []


def main() -> None:
    """Answer until the process is ended."""
    core = Core()
    if "--busy" in sys.argv:
        core.startContinuousSequenceAcquisition(0)
    objects: dict[str, Any] = {"core": core}
    socket = zmq.Context().socket(zmq.REP)
    socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    while True:
        request = json.loads(socket.recv_multipart()[0].decode("iso-8859-1"))
        try:
            reply, parts = answer(request, objects)
        except Exception as error:  # noqa: BLE001 - as the Java server does
            reply, parts = (
                {"type": "exception", "value": f"java.lang.Exception: {error}\n\tat x"},
                [],
            )
        socket.send_multipart([json.dumps(reply).encode("iso-8859-1"), *parts])


if __name__ == "__main__":
    main()
