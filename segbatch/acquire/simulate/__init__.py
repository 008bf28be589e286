"""A simulated fluorescent-bead experiment on a Thorlabs Zelux CS165MU.

``optics`` forms a bead's image, ``scene`` says what is in front of the camera,
``camera`` turns light into counts, ``kinds`` spoils frames, ``run`` writes
folders of frames with true masks beside them.
"""

from segbatch.acquire.simulate.kinds import KINDS, any_scene
from segbatch.acquire.simulate.run import write_run, write_varied
from segbatch.acquire.simulate.scene import Beads, Scene, draw, expose, place

__all__ = [
    "KINDS",
    "Beads",
    "Scene",
    "any_scene",
    "draw",
    "expose",
    "place",
    "write_run",
    "write_varied",
]
