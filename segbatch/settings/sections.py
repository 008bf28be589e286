"""The sections of the settings: one table of the TOML file each."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Count = Annotated[int, Meta(ge=1)]


class QualitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of the frame judgement (measures: ``segbatch.infer.quality.measures``).

    Attributes
    ----------
    enabled
        Judge frames at all; if not, every frame is accepted.
    torn_zero_rows
        Rows of zeros at the end from which a frame counts as not written to its end.
    torn_columns_fraction
        Fraction of columns that break at one row from which two exposures are joined there.
    torn_rival_ratio
        That fraction must be this many times the highest at any other row.
    torn_step_z
        Robust standard deviations by which the step of the level at a row must exceed those at
        other rows for two exposures to be joined there.
    saturated_fraction
        Fraction of all pixels at the converter's ceiling above which a frame is overexposed.
    saturated_bright_fraction, saturated_object_fraction
        It also is where both are exceeded: pixels at the ceiling among those brighter
        than half-way to it, and objects that reach it among all objects.
    underexposed_signal_counts
        Contrast of typical structure below which it spans too few counts.
    empty_structure_cells
        Cells of 16x16 px with structure above the noise below which a frame is empty.
    empty_signal_counts
        Contrast of typical structure below which it is one step of the converter, and nothing.
    fine_snr
        Energy of structure over noise at wavelengths of 8 to 16 px below which there is
        no fine detail to tell focus by, and contrast is compared instead.
    noise_z
        Robust standard deviations by which log2 of the noise may exceed the median of its group.
    noise_spread_octaves
        Least standard deviation assumed for that, octaves.
    noise_clear_snr
        Signal-to-noise ratio below which a frame noisier than its group is rejected; where noise
        is more than 4 times the group's, it grows with the octaves of it, to twice at 16 times.
    noise_snr_loss
        It is also rejected where its ratio is this many times lower than the group's median.
    snr
        Signal-to-noise ratio below which any frame is noisy.
    focus_octaves
        Focus below which any frame is blurred.
    blur_z
        Robust standard deviations by which focus may stay below the sharp frames of its group.
    blur_drop_octaves
        Least drop of focus, octaves, that counts as blur by comparison.
    blur_third_z, blur_third_drop_octaves
        The same two for the least sharp third of the objects, where the median object falls
        by at least half of its own limit, or contrast below half of the group's median.
    blur_drop_most_octaves
        Drop of focus that counts as blur however much the group scatters.
    blur_signal_loss
        A frame without fine detail, or sharper than any in focus, is blurred where its contrast
        is this many times lower than its group's median.
    warm_up_frames
        Frames needed before frames are compared with each other.
    """

    enabled: bool = True
    torn_zero_rows: Count = 2
    torn_columns_fraction: Fraction = 0.05
    torn_rival_ratio: Annotated[float, Meta(ge=1.0)] = 4.0
    torn_step_z: Positive = 7.5
    saturated_fraction: Fraction = 0.01
    saturated_bright_fraction: Fraction = 0.4
    saturated_object_fraction: Fraction = 0.25
    underexposed_signal_counts: Annotated[float, Meta(ge=0.0)] = 8.0
    empty_structure_cells: Count = 2
    empty_signal_counts: Annotated[float, Meta(ge=0.0)] = 1.5
    fine_snr: Annotated[float, Meta(ge=0.0)] = 1.0
    noise_z: Positive = 4.0
    noise_spread_octaves: Positive = 0.1
    noise_clear_snr: Annotated[float, Meta(ge=0.0)] = 12.0
    noise_snr_loss: Annotated[float, Meta(ge=1.0)] = 5.0
    snr: Annotated[float, Meta(ge=0.0)] = 4.0
    focus_octaves: float = -7.0
    blur_z: Positive = 7.0
    blur_drop_octaves: Positive = 0.75
    blur_third_z: Positive = 7.0
    blur_third_drop_octaves: Positive = 0.9
    blur_drop_most_octaves: Positive = 2.5
    blur_signal_loss: Annotated[float, Meta(ge=1.0)] = 4.0
    warm_up_frames: Annotated[int, Meta(ge=2)] = 10


class WatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One watched tree: a ``[[watch]]`` table.

    Attributes
    ----------
    path
        The folder; it may appear later.
    out
        Folder that mirrors the tree for the results; empty: beside the raw files.
    run_depth
        Folders this many levels below ``path`` are the runs, each with all below it; frames
        higher up belong to a run of the folder that they lie in. 0: the tree is one run.
    """

    path: str
    out: str = ""
    run_depth: Annotated[int, Meta(ge=0, le=16)] = 1


class ServeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How ``segbatch serve`` watches, ends runs, and is watched.

    Attributes
    ----------
    settle_s
        A file whose format does not say when it is complete is taken when it is whole and has
        not changed for this long.
    rescan_s
        Time between two looks through every watched tree; longer where a look takes long.
    run_quiet_s
        A run without new frames for this long is over: it is judged again as a whole.
    drain_s
        Longest time that frames under way may take when the service stops.
    min_free_gib
        Free space of the results' disk below which nothing new is taken in.
    listen
        Address and port of the pages for people and Prometheus; empty: none.
    """

    settle_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 5.0
    rescan_s: Annotated[float, Meta(ge=0.1, le=86400.0)] = 30.0
    run_quiet_s: Annotated[float, Meta(gt=0.0, le=604800.0)] = 120.0
    drain_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 60.0
    min_free_gib: Annotated[float, Meta(ge=0.0, le=1e6)] = 2.0
    listen: str = "127.0.0.1:9417"


class CameraSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The camera that ``segbatch serve`` and ``segbatch acquire`` drive through Micro-Manager.

    Attributes
    ----------
    enabled
        Whether ``serve`` drives it; ``acquire`` does so in any case.
    backend
        ``python``: start Micro-Manager's core in this process (pymmcore); ``java``: attach to a
        running Micro-Manager; ``auto``: the second where one answers, else the first.
    micro_manager_dir
        Folder of the device adapters, for the Python backend; empty: those that are installed.
    config_file
        Micro-Manager's hardware configuration (``.cfg``), or
    device
        one camera without it, as ``LIBRARY/DEVICE``: ``TSI/TSICam``, ``DemoCamera/DCam``.
    exposure_ms, gain_db, binning, trigger_mode, hot_pixel_threshold
        Set where given; a camera that has no such property refuses by name.
    roi_px
        ``x, y, width, height`` on the sensor; empty: the whole sensor.
    properties
        Any other property of the camera, by its exact name.
    frames
        Frames to take; 0: until it is stopped.
    frames_per_run
        After so many, a new folder; the camera does not stop for it. 0: all in one.
    interval_ms
        From one frame's start to the next's; 0: as fast as the camera goes.
    out
        Folder in which every acquisition makes a run of its own.
    format
        ``ome-tiff`` (one file a frame) or ``ndtiff`` (one growing stack).
    timeout_s
        Longest time that the core may take to answer.
    """

    enabled: bool = False
    backend: Literal["auto", "python", "java"] = "auto"
    micro_manager_dir: str = ""
    config_file: str = ""
    device: str = ""
    exposure_ms: Annotated[float, Meta(gt=0.0, le=1e7)] | None = None
    gain_db: Annotated[float, Meta(ge=0.0, le=1e3)] | None = None
    binning: Annotated[int, Meta(ge=1, le=64)] | None = None
    trigger_mode: str = ""
    hot_pixel_threshold: Annotated[int, Meta(ge=0)] | None = None
    roi_px: Annotated[tuple[int, ...], Meta(max_length=4)] = ()
    properties: dict[str, str | int | float] = {}
    frames: Annotated[int, Meta(ge=0)] = 0
    frames_per_run: Annotated[int, Meta(ge=0)] = 20_000
    interval_ms: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    out: str = ""
    format: Literal["ome-tiff", "ndtiff"] = "ome-tiff"
    timeout_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 20.0
