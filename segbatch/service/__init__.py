"""From a folder to recorded outcomes: one frame's journey and the run around it."""
