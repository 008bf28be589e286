"""Tiles and batches that the settings name are met, or refused as settings."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from segbatch.errors import SettingsError
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.infer.tiles import axis
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"batch": 100_000}, "tile_px = auto, batch = 100000"),
        ({"tile_px": 96, "batch": 100_000}, "tile_px = 96, batch = 100000"),
    ],
)
def test_tiles_that_memory_cannot_hold_are_wrong_settings(
    given: dict[str, Any], named: str, make_model: MakeModel
) -> None:
    """A tile_px or batch that wants more than memory_gib is named with what it would take."""
    model = open_model(make_model().file)
    settings = msgspec.convert({"threads": 1, **given}, Settings)
    with (
        Segmenter(model, settings) as segmenter,
        pytest.raises(SettingsError, match=named) as caught,
    ):
        segmenter.segment(np.zeros((200, 300), np.uint16), 10)

    assert "GiB left of memory_gib" in caught.value.wanted
    assert "lower tile_px or batch" in caught.value.remedy


def test_the_tile_size_is_told_as_it_was_set() -> None:
    """A tile_px that is no multiple of the stride is named as it was given."""
    with pytest.raises(SettingsError, match=r"tile_px = 50: tiles of 48 px"):
        axis(300, 16, 32, 50)
