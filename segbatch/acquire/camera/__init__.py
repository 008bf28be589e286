"""The camera, driven through Micro-Manager: raw frames go to the disk first, and are judged later.

``session`` drives it for weeks, ``run`` takes one run, ``door`` opens the
core, ``calls`` asks it in a thread that can be left behind.
"""
