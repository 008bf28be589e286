"""The forms that torch gives networks, each on its way to ONNX."""
