"""segbatch: a microscope's frames in, masks and verdicts out, unattended."""

import os

__version__ = "0.1.0"

# As it is imported, ONNX Runtime writes a device's number and a file of events beside the
# user's caches and sends them to its makers, unless one of these is set by then (it has gone
# by both names): nothing about a lab's runs leaves its machine.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")
