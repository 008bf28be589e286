"""The service's counters in the text form of Prometheus."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from segbatch.service.monitor.monitor import STAGE_BUCKETS_S, Monitor, Totals
from segbatch.service.monitor.status import STATES, ServiceStatus
from segbatch.service.record.names import printable

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(monitor: Monitor, status: ServiceStatus) -> bytes:
    """Return all metrics at this moment, UTF-8 text of ``CONTENT_TYPE``."""
    # Made anew each time: nothing is registered for good, so two services in
    # one process, as in tests, do not meet.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(monitor.totals(), status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Snapshot(Collector):
    """One moment's counts and status as metric families."""

    def __init__(self, totals: Totals, status: ServiceStatus) -> None:
        self._totals, self._status = totals, status

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those without a sample yet."""
        yield from self._frames()
        yield from self._service()
        yield from self._surroundings()

    def _frames(self) -> Iterator[Metric]:
        frames = CounterMetricFamily(
            "segbatch_frames", "Frames recorded since the start.", labels=["outcome"]
        )
        for outcome, count in self._totals.frames.items():
            frames.add_metric([outcome], count)
        yield frames
        rejects = CounterMetricFamily(
            "segbatch_rejects", "Frames rejected or failed, by reason.", labels=["reason"]
        )
        for reason, count in self._totals.reasons.items():
            rejects.add_metric([reason], count)
        yield rejects
        stages = HistogramMetricFamily(
            "segbatch_stage_seconds", "Time that a frame spent in each stage.", labels=["stage"]
        )
        bounds = [*map(str, STAGE_BUCKETS_S), "+Inf"]
        for stage, times in self._totals.stages.items():
            counts = itertools.accumulate(map(float, times.counts))
            stages.add_metric([stage], list(zip(bounds, counts, strict=True)), times.total_s)
        yield stages
        yield GaugeMetricFamily(
            "segbatch_last_frame_timestamp_seconds",
            "When the last frame was recorded, Unix time; 0 before the first.",
            self._totals.last_frame_unix_s,
        )

    def _service(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "segbatch_backlog_files", "Files that wait to be recorded.", status.backlog
        )
        state = GaugeMetricFamily("segbatch_state", "1 for the state it is in.", labels=["state"])
        for name in STATES:
            state.add_metric([name], name == status.state)
        yield state
        build = GaugeMetricFamily(
            "segbatch_build_info", "The version that runs.", labels=["version"]
        )
        build.add_metric([status.version], 1)
        yield build
        names = ["engine", "precision", "model", "model_sha256"]
        engine = GaugeMetricFamily(
            "segbatch_engine_info", "The engine and the network that run.", labels=names
        )
        if status.engine is not None:
            running = status.engine
            engine.add_metric(
                [running.name, running.precision, running.model, running.model_sha256], 1
            )
        yield engine

    def _surroundings(self) -> Iterator[Metric]:
        status = self._status
        up = GaugeMetricFamily(
            "segbatch_folder_up", "1 where a watched folder can be watched.", labels=["folder"]
        )
        free = GaugeMetricFamily(
            "segbatch_disk_free_bytes", "Left on the disk of a folder's results.", labels=["folder"]
        )
        for folder in {folder.path: folder for folder in status.folders}.values():
            path = printable(folder.path)
            up.add_metric([path], folder.error is None)
            if folder.disk_free_bytes is not None:
                free.add_metric([path], folder.disk_free_bytes)
        yield up
        yield free
        yield CounterMetricFamily(
            "segbatch_dropped_frames", "Frames that the camera lost.", status.dropped
        )
        camera = GaugeMetricFamily("segbatch_camera_up", "1 unless the camera's session failed.")
        acquiring = GaugeMetricFamily(
            "segbatch_camera_acquiring", "1 while the camera's session takes frames."
        )
        taken = CounterMetricFamily("segbatch_camera_frames", "Frames that the camera gave.")
        if status.camera is not None:
            camera.add_metric([], status.camera.get("state") != "failed")
            acquiring.add_metric([], status.camera.get("state") == "acquiring")
            taken.add_metric([], status.camera.get("frames_taken", 0))
        yield from (camera, acquiring, taken)
