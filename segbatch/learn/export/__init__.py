"""A trained network on its way to frames: ONNX, precisions, engines, and the gate between."""
