"""The bead network that ships with the package: ``beads.onnx`` and its manifest."""
