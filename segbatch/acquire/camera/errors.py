"""What can be wrong with a camera, by what is to be done next."""

from __future__ import annotations

from segbatch.errors import SegbatchError, StorageError


class CameraError(SegbatchError):
    """The camera or Micro-Manager refused something, or is gone: try again later."""


class CameraBusyError(CameraError):
    """Somebody else's acquisition is under way: wait until it is over."""


class CameraSilentError(CameraError):
    """The camera or Micro-Manager did not answer within its time."""


class NoRoomError(StorageError):
    """The disk has less room than is to be left free: go on when there is some."""
