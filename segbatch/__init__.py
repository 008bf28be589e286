"""segbatch: a microscope's frames in, masks and verdicts out, unattended."""

__version__ = "0.1.0"
