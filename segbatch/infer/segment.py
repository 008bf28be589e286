"""A frame becomes a mask."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from segbatch.errors import EngineError, UsageError
from segbatch.infer import decide
from segbatch.infer.blend import Blend
from segbatch.infer.engine.door import open_engine
from segbatch.infer.layout import Layout, layout_for, shape_for_engine
from segbatch.infer.normalise import fill, scale_of, seen_by
from segbatch.infer.objects import areas_of, labels_of
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from segbatch.infer.engine.decided import Decided
    from segbatch.infer.engine.door import Deciding, Request
    from segbatch.infer.engine.manifest import Model
    from segbatch.infer.tiles import Span
    from segbatch.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a QC record says of the model that made a mask."""

    name: str
    sha256: str
    engine: str
    precision: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The result for one frame.

    Attributes
    ----------
    mask
        (Y, X) uint8 class indices, 0 background.
    foreground_fraction
        Part of the pixels that is not background.
    object_count, object_area_px_median
        Objects connected by sides or corners, each of one class; None without
        any.
    mean_confidence
        Mean over pixels of the winning class's probability.
    mean_entropy
        Mean over pixels of the entropy of the class probabilities, bits. Both
        means are over every fourth row in frames of a megapixel and more; where
        the engine itself makes the mask, over all blocks of stride x stride
        pixels that lie inside what is kept of a tile.
    probabilities
        None unless asked for: float32 (Y, X) of the single class, or
        (K, Y, X) with background first.
    labels
        None unless asked for: (Y, X) uint16 or uint32, objects numbered.
    """

    mask: NDArray[np.uint8]
    foreground_fraction: float
    object_count: int
    object_area_px_median: float | None
    mean_confidence: float
    mean_entropy: float
    probabilities: NDArray[np.float32] | None
    labels: NDArray[np.uint16] | NDArray[np.uint32] | None


class Segmenter:
    """An open engine with the model it runs.

    ``segment`` may be called from several threads at once; ``streams`` is how
    many frames are worth having in flight so that the engine never waits;
    ``version`` is the engine's.

    Parameters
    ----------
    model
        From ``open_model``.
    settings
        ``engine``, ``precision``, ``threads``, ``memory_gib``, ``tile_px``,
        ``batch`` and ``threshold`` are used.

    Raises
    ------
    EngineError
        No engine can run the model as the settings wish.
    UsageError
        A threshold was set for a model that takes the most probable class.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        manifest = model.manifest
        if settings.threshold is not None and manifest.output == "softmax":
            raise UsageError(
                f"threshold = {settings.threshold} with model {manifest.name}",
                "no threshold: the model has several classes and the most probable one wins",
                "leave --threshold out",
            )
        self._manifest = manifest
        self._settings = settings
        self._threshold = manifest.threshold if settings.threshold is None else settings.threshold
        self._outputs = 1 if manifest.output == "sigmoid" else 1 + len(manifest.classes)
        self._opened = open_engine(model, settings)
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._laying_out = threading.Lock()  # so that what is told of a shape is told once
        self._workers = ThreadPoolExecutor(self._opened.threads + 1, "segment")
        self.streams = self._opened.threads + 1
        self.version = self._opened.engine.version
        self.info = ModelInfo(
            name=manifest.name,
            sha256=manifest.sha256,
            engine=self._opened.engine.name,
            precision=self._opened.engine.precision,
            manifest_sha256=manifest.content_sha256(),
        )

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for running tiles and give the engine back."""
        self._workers.shutdown()
        self._opened.engine.close()

    def segment(
        self,
        pixels: NDArray[Any],
        bit_depth: int,
        *,
        probabilities: bool = False,
        labels: bool = False,
    ) -> Segmentation:
        """Segment one frame.

        Parameters
        ----------
        pixels
            (Y, X) or (Y, X, 3), counts; never written to.
        bit_depth
            Of the converter, bits; 0 for floating-point images.
        probabilities, labels
            Also return these; 4 bytes per pixel (and class), and 8 while it
            runs.

        Raises
        ------
        UnsupportedFrameError
            The model's normalisation does not apply to such pixels.
        EngineError
            The engine failed.
        """
        pixels = seen_by(pixels, self._manifest.input_channels)
        shape = (pixels.shape[0], pixels.shape[1])
        layout = self._layout(shape)
        work = _Work(
            pixels,
            scale_of(pixels, self._manifest.normalisation, bit_depth),
            np.empty(shape, np.uint8),
            self._room_for_probabilities(shape) if probabilities else None,
        )
        if layout.grid.count > 1 and not self._manifest.exact_tiling:
            sums = self._blended(work, layout)
        else:
            tiles = list(layout.grid.tiles())
            groups = [tiles[at : at + layout.batch] for at in range(0, len(tiles), layout.batch)]
            if len(groups) == 1:
                sums = self._group(work, layout, groups[0])
            else:
                run = partial(self._group, work, layout)
                sums = [each for found in self._workers.map(run, groups) for each in found]
        confidence, entropy, counted = (sum(column) for column in zip(*sums, strict=True))
        classes = len(self._manifest.classes)
        areas = areas_of(work.mask, classes)
        return Segmentation(
            mask=work.mask,
            foreground_fraction=cv2.countNonZero(work.mask) / work.mask.size,
            object_count=areas.objects,
            object_area_px_median=areas.median,
            mean_confidence=confidence / counted,
            mean_entropy=entropy / counted,
            probabilities=work.probabilities,
            labels=labels_of(work.mask, classes) if labels else None,
        )

    def suited(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (Y, X) next to ``shape`` of frames that the engine is for.

        That is ``shape``, unless the engine takes one input shape only, and frames of ``shape``
        would be mirrored out to it or cannot be cut into tiles of it.
        """
        taken = self._opened.engine.input_shape
        if taken is None:
            return shape
        manifest = self._manifest
        stride, halo = manifest.stride or 1, manifest.tile_halo_px
        return shape_for_engine(shape, stride, halo, taken, manifest.margin_px)

    def _layout(self, shape: tuple[int, int]) -> Layout:
        with self._laying_out:
            if shape not in self._layouts:
                self._layouts[shape] = self._laid_out(shape)
            return self._layouts[shape]

    def _laid_out(self, shape: tuple[int, int]) -> Layout:
        manifest = self._manifest
        found = layout_for(
            shape,
            manifest.stride or 1,
            manifest.tile_halo_px,
            self._opened,
            self._settings,
            manifest.margin_px,
        )
        blended = not manifest.exact_tiling and found.grid.count > 1
        log.info(
            "frames laid out",
            shape=shape,
            tiles=(found.grid.y.count, found.grid.x.count),
            tile_px=found.grid.tile_shape,
            streams=found.streams,
            batch=found.batch,
            blended=blended,
        )
        if blended:
            log.warning(
                "tiles are blended and differ from the whole frame",
                model=manifest.name,
                why="no finite halo is exact for this network",
                remedy="raise memory_gib until the whole frame fits",
            )
        return found

    def _room_for_probabilities(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        return np.empty(shape if self._outputs == 1 else (self._outputs, *shape), np.float32)

    @contextmanager
    def _filled(
        self, work: _Work, layout: Layout, tiles: list[tuple[Span, Span]]
    ) -> Iterator[Request]:
        """Lend a request whose input is some tiles."""
        shape = (layout.batch, self._manifest.input_channels, *layout.grid.tile_shape)
        with self._opened.engine.request(shape, layout.streams) as request:
            for place, (y, x) in zip(request.input, tiles, strict=False):
                fill(work.pixels, y, x, *work.scale, place)
            yield request

    @contextmanager
    def _logits(
        self, work: _Work, layout: Layout, tiles: list[tuple[Span, Span]]
    ) -> Iterator[NDArray[np.float32]]:
        """Run some tiles and lend their logits (N, K, Y, X)."""
        sides = layout.grid.tile_shape
        shape = (layout.batch, self._manifest.input_channels, *sides)
        with self._filled(work, layout, tiles) as request:
            logits = request.infer()
            if logits.shape != (layout.batch, self._outputs, *sides):
                raise EngineError(
                    f"logits of shape {logits.shape} for input {shape}",
                    f"{(layout.batch, self._outputs, *sides)}, as its manifest says",
                    "correct output and classes in the model's manifest",
                )
            yield logits

    def _group(
        self, work: _Work, layout: Layout, tiles: list[tuple[Span, Span]]
    ) -> list[tuple[float, float, int]]:
        """Run the tiles of one request and keep their interiors."""
        if self._opened.decides and work.probabilities is None:
            with self._filled(work, layout, tiles) as request:
                return self._keep(work, cast("Deciding", request).decide(), tiles)
        with self._logits(work, layout, tiles) as logits:
            return [
                self._decide(work, found[:, y.kept, x.kept], y.target, x.target)
                for found, (y, x) in zip(logits, tiles, strict=False)
            ]

    def _keep(
        self, work: _Work, decided: Decided, tiles: list[tuple[Span, Span]]
    ) -> list[tuple[float, float, int]]:
        """Copy the interiors of masks that the engine made; certainty is from its whole blocks."""
        sums = []
        for place, (y, x) in enumerate(tiles):
            work.mask[y.target, x.target] = decided.mask[place, y.kept, x.kept]
            stride = self._manifest.stride or 1
            rows, columns = (decide.whole_blocks(each.kept, stride) for each in (y, x))
            entropy = float(decided.entropy[place, rows, columns].sum(dtype=np.float64))
            self._require_finite(entropy)
            blocks = decided.confidence[place, rows, columns]
            confidence = float(blocks.sum(dtype=np.float64))
            area = stride * stride
            sums.append((confidence * area, entropy * area, blocks.size * area))
        return sums

    def _blended(self, work: _Work, layout: Layout) -> list[tuple[float, float, int]]:
        """Run row after row of overlapping tiles and decide on their weighted sum."""
        blend = Blend(layout.grid, self._outputs)
        adding = threading.Lock()
        sums = []
        for row, y in enumerate(layout.grid.y.spans()):

            def run(column: int, row: int = row, y: Span = y) -> None:
                tile = (y, layout.grid.x.span(column))
                with self._logits(work, layout, [tile]) as logits, adding:
                    blend.add(row, column, logits[0])

            for _ in self._workers.map(run, range(layout.grid.x.count)):
                pass
            for rows, logits in blend.finish(row):
                sums.append(self._decide(work, logits, rows, slice(0, work.mask.shape[1])))
        return sums

    def _decide(
        self, work: _Work, logits: NDArray[np.float32], rows: slice, columns: slice
    ) -> tuple[float, float, int]:
        """Write one region of the mask, and of the probabilities where wanted."""
        self._require_finite(logits.max(), logits.min())  # of anything and NaN they are NaN
        mask = work.mask[rows, columns]
        counted = decide.counted_rows(work.mask.size, rows.start)
        if self._outputs == 1:
            if work.probabilities is not None:
                work.probabilities[rows, columns] = decide.sigmoid(logits[0])
            sums = decide.decide_binary(logits[0], self._threshold, mask, counted)
        else:
            if work.probabilities is not None:
                work.probabilities[:, rows, columns] = decide.softmax(logits)
            sums = decide.decide_classes(logits, mask, counted)
        self._require_finite(*sums)
        return sums

    def _require_finite(self, *values: Any) -> None:
        if not np.isfinite(values).all():
            raise EngineError(
                f"{self.info.engine} in {self.info.precision} gave logits that are not finite",
                "finite logits",
                "check the frame's counts against the model's normalisation, or use fp32",
            )


@dataclass(frozen=True, slots=True)
class _Work:
    """One frame on its way: its pixels and scale, and where its results are written."""

    pixels: NDArray[Any]
    scale: tuple[float, float]
    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
