"""What is written beside the raw files, opened by other people's readers."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segbatch.acquire.find import is_own_output
from segbatch.errors import StorageError
from segbatch.service.record import masks
from segbatch.service.record.lines import Journal, Lines
from segbatch.service.record.names import Register
from segbatch.service.record.onepage import write_page
from segbatch.service.record.products import Products, page_of
from segbatch.service.record.recorder import Keep
from segbatch.service.record.schema import (
    FrameInfo,
    MaskInfo,
    QcRecord,
    Timing,
    decode,
    encode,
    encode_for_people,
)
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import StackPatcher, StackRecorder, read_lines

NO_EXTRAS = {"probabilities": False, "labels": False}


def identity_mask(number: int, shape: tuple[int, int] = (37, 53)) -> np.ndarray:
    """Return a mask that carries its frame's number: that many pixels set in its first row."""
    mask = np.zeros(shape, np.uint8)
    mask[0, : number + 1] = 1
    return mask


def products_of(mask: np.ndarray) -> Products:
    """Return a mask as products with a pixel of 0.5 um."""
    return Products(mask=page_of(mask), probabilities=None, labels=None, pixel_size_um=0.5)


def record_of(
    number: int, *, segmented: bool = True, file: str = "run.tif", objects: int | None = None
) -> QcRecord:
    """Return a record that carries its frame's number."""
    mask = MaskInfo(
        file="",
        page=0,
        foreground_fraction=0.1,
        object_count=number if objects is None else objects,
        object_area_px_median=None,
        mean_confidence=0.9,
        mean_entropy=0.1,
    )
    return QcRecord(
        frame=FrameInfo(file=file, page=number, shape=[37, 53], dtype="uint16"),
        outcome="segmented" if segmented else "rejected",
        reasons=[] if segmented else ["empty"],
        mask=mask if segmented else None,
        settings_sha256="0",
        software="segbatch test",
        written_at="2026-01-01T00:00:00Z",
        timing_ms=Timing(),
    )


def test_record_survives_the_round_trip_through_json() -> None:
    """A record read back equals the one written, in both layouts."""
    record = record_of(3)

    assert decode(encode(record)) == record
    assert decode(encode_for_people(record)) == record


def test_a_torn_record_is_no_record() -> None:
    """Half of a record's bytes decode to None, never to another record."""
    whole = encode(record_of(3))

    assert all(decode(whole[:cut]) is None for cut in range(len(whole) - 2))


def test_single_mask_opens_in_pillow_with_its_colours(tmp_path: Path) -> None:
    """Pillow reads a single frame's mask as indices with a palette and the pixel size."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    mask = identity_mask(5)
    SingleRecorder(names).commit(0, record_of(0, file="a.tif"), products_of(mask))

    with Image.open(names.mask) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert image.getpalette()[3:6] == [230, 159, 0]  # type: ignore[index]
        assert image.info["dpi"][0] == pytest.approx(2.54 * 1e4 / 0.5, rel=1e-6)
    assert decode(names.qc.read_bytes()).mask.file == "a_mask.tif"  # type: ignore[union-attr]


@pytest.mark.skipif(shutil.which("tiffinfo") is None, reason="tiffinfo (libtiff-tools) not here")
def test_masks_are_clean_for_libtiff(tmp_path: Path) -> None:
    """Libtiff's tiffinfo decodes every strip of a mask without a warning."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    SingleRecorder(names).commit(0, record_of(0), products_of(identity_mask(5, (1080, 1440))))

    done = subprocess.run(
        ["tiffinfo", "-D", str(names.mask)], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
    assert "palette color" in done.stdout


@pytest.mark.skipif(shutil.which("identify") is None, reason="ImageMagick not here")
def test_masks_open_in_imagemagick(tmp_path: Path) -> None:
    """ImageMagick reads the size of a mask and complains of nothing."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    SingleRecorder(names).commit(0, record_of(0), products_of(identity_mask(5)))

    done = subprocess.run(
        ["identify", "-format", "%w %h", str(names.mask)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("53 37", "")


def test_committing_again_without_a_mask_removes_the_old_one(tmp_path: Path) -> None:
    """A frame that turns out to be rejected keeps no mask of its earlier outcome."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    recorder = SingleRecorder(names)
    recorder.commit(0, record_of(0), products_of(identity_mask(1)))
    recorder.commit(0, record_of(0, segmented=False), None)

    assert not names.mask.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_qc.json"]


def test_keeping_products_rewrites_the_record_alone(tmp_path: Path) -> None:
    """A record amended with its products kept leaves the mask's bytes as they were."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    recorder = SingleRecorder(names)
    recorder.commit(0, record_of(0), products_of(identity_mask(1)))
    before = names.mask.read_bytes()
    recorder.commit(0, record_of(7), Keep.PRODUCTS)

    assert names.mask.read_bytes() == before
    assert decode(names.qc.read_bytes()).mask.object_count == 7  # type: ignore[union-attr]


def stack_names(folder: Path, raw: str = "run.tif"):
    """Name the results of one stack."""
    return Register(folder, at_once=True).add([folder / raw])[folder / raw]


def test_stack_frames_out_of_order_end_in_order(tmp_path: Path) -> None:
    """Frames committed in any order stand in a stack's mask and log in the order of the raw."""
    names = stack_names(tmp_path)
    recorder = StackRecorder(names, **NO_EXTRAS)
    for number in (2, 0, 3, 1, 4):
        recorder.commit(number, record_of(number), products_of(identity_mask(number)))
    recorder.finish(None)

    pages = tifffile.imread(names.mask)
    assert [int(page.sum()) for page in pages] == [1, 2, 3, 4, 5]
    lines = read_lines(names.qc_lines)
    assert [line.frame.page for line in lines or []] == [0, 1, 2, 3, 4]
    assert [line.mask.page for line in lines or [] if line.mask] == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_mask.tif", "run_qc.jsonl"]


def test_a_stack_under_way_holds_no_record_in_memory(tmp_path: Path) -> None:
    """A frame of a stack that grows for days costs some two hundred bytes of memory."""
    recorder = StackRecorder(stack_names(tmp_path), **NO_EXTRAS)
    tracemalloc.start()
    try:
        for number in range(500):
            recorder.append(record_of(number, segmented=False), {})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        recorder.close()

    assert held / 500 < 300


def test_records_are_those_of_the_log_that_was_opened(tmp_path: Path) -> None:
    """Records that are read back after their log was replaced are those that stood in it."""
    log = tmp_path / "run_qc.jsonl"
    log.write_bytes(b"".join(encode(record_of(number)) for number in range(600)))
    with Lines(log) as lines:
        (tmp_path / "new").write_bytes(encode(record_of(7)))
        (tmp_path / "new").replace(log)

        assert [record.frame.page for record in lines] == list(range(600))
        assert [record.frame.page for record in lines[-2:]] == [598, 599]
        assert lines[-1].frame.page == 599
        with pytest.raises(IndexError):
            lines[600]


def test_a_journal_that_was_closed_touches_no_file(tmp_path: Path) -> None:
    """After close() nothing is read or written, whoever has the descriptor's number now."""
    journal = Journal(tmp_path / "journal")
    journal.append(record_of(0))
    journal.close()
    journal.close()
    with (tmp_path / "another").open("w+b") as another:
        for use in (
            lambda: journal.append(record_of(1)),
            lambda: journal[0],
            lambda: journal.truncate(0),
        ):
            with pytest.raises((OSError, StorageError)):
                use()
        assert another.seek(0, os.SEEK_END) == 0


def test_lines_of_a_log_end_before_one_that_is_not_whole(tmp_path: Path) -> None:
    """What follows the last whole record of a log is no record."""
    log = tmp_path / "run_qc.jsonl"
    whole = encode(record_of(0)) + encode(record_of(1))
    for rest in (b"", encode(record_of(2))[:-1], b"{}\n" + encode(record_of(2))):
        log.write_bytes(whole + rest)
        with Lines(log) as lines:
            assert (len(lines), lines.size_bytes) == (2, len(whole))


def test_rejected_frames_of_a_stack_have_pages_of_zeros(tmp_path: Path) -> None:
    """Page i of a stack's mask answers for frame i even where frames have no mask."""
    names = stack_names(tmp_path)
    recorder = StackRecorder(names, **NO_EXTRAS)
    for number in range(4):
        good = number % 2 == 1
        products = products_of(identity_mask(number)) if good else None
        recorder.commit(number, record_of(number, segmented=good), products)
    recorder.finish(None)

    assert [int(page.sum()) for page in tifffile.imread(names.mask)] == [0, 2, 0, 4]


@pytest.mark.parametrize("lost", [1, 40, 400])
def test_a_stack_cut_anywhere_goes_on_where_pages_and_lines_agree(
    tmp_path: Path, lost: int
) -> None:
    """Bytes lost from journal or spool cost whole frames, never a shifted or torn one."""
    for victim in ("journal", "spool"):
        folder = tmp_path / victim
        folder.mkdir()
        names = stack_names(folder)
        recorder = StackRecorder(names, **NO_EXTRAS)
        for number in range(5):
            recorder.commit(number, record_of(number), products_of(identity_mask(number)))
        recorder.close()
        hidden = next(p for p in folder.iterdir() if p.name.endswith(victim))
        with hidden.open("r+b") as handle:
            handle.truncate(max(0, hidden.stat().st_size - lost))

        resumed = StackRecorder(names, **NO_EXTRAS)
        first = resumed.next_page
        assert first < 5
        for number in range(first, 5):
            resumed.commit(number, record_of(number), products_of(identity_mask(number)))
        resumed.finish(None)

        assert [int(page.sum()) for page in tifffile.imread(names.mask)] == [1, 2, 3, 4, 5]
        assert [r.frame.page for r in read_lines(names.qc_lines) or []] == [0, 1, 2, 3, 4]


def test_patching_a_stack_changes_the_named_frames_alone(tmp_path: Path) -> None:
    """Replaced outcomes appear in mask and log; the other pages keep their pixels and size."""
    names = stack_names(tmp_path)
    recorder = StackRecorder(names, **NO_EXTRAS)
    for number in range(4):
        recorder.commit(number, record_of(number), products_of(identity_mask(number)))
    recorder.finish(None)
    patcher = StackPatcher(names)
    patcher.commit(1, record_of(1, segmented=False), None)
    patcher.commit(2, record_of(2), products_of(identity_mask(20)))
    patcher.commit(3, record_of(3, objects=33), Keep.PRODUCTS)
    patcher.finish(None)

    with tifffile.TiffFile(names.mask) as file:
        assert [int(page.asarray().sum()) for page in file.pages] == [1, 0, 21, 4]
        assert file.pages.first.resolution[0] == pytest.approx(1e4 / 0.5)
    lines = read_lines(names.qc_lines) or []
    assert [line.outcome for line in lines] == ["segmented", "rejected", "segmented", "segmented"]
    assert lines[3].mask is not None
    assert lines[3].mask.object_count == 33


def test_ome_stack_keeps_its_axes_and_pixel_size(tmp_path: Path) -> None:
    """The mask of an OME-TIFF says the raw's axes and pixel size in its own OME-XML."""
    names = stack_names(tmp_path, "run_MMStack_Pos0.ome.tif")
    recorder = StackRecorder(names, **NO_EXTRAS)
    for number in range(6):
        recorder.commit(number, record_of(number), products_of(identity_mask(number)))
    recorder.finish(("TC", (3, 2)))

    assert names.mask.name == "run_MMStack_Pos0_mask.ome.tif"
    with tifffile.TiffFile(names.mask) as file:
        assert file.is_ome
        assert (file.series[0].axes, file.series[0].shape) == ("TCYX", (3, 2, 37, 53))
        assert 'PhysicalSizeX="0.5"' in (file.ome_metadata or "")


def test_patching_keeps_the_axes_of_an_ome_stack(tmp_path: Path) -> None:
    """A patched OME-TIFF mask has the axes that it was published with."""
    names = stack_names(tmp_path, "run.ome.tif")
    recorder = StackRecorder(names, **NO_EXTRAS)
    for number in range(6):
        recorder.commit(number, record_of(number), products_of(identity_mask(number)))
    recorder.finish(("ZC", (2, 3)))
    patcher = StackPatcher(names)
    patcher.commit(1, record_of(1, segmented=False), None)
    patcher.finish(None)

    with tifffile.TiffFile(names.mask) as file:
        assert (file.series[0].axes, file.series[0].shape) == ("ZCYX", (2, 3, 37, 53))


def test_products_beside_the_mask_open_with_their_types(tmp_path: Path) -> None:
    """Probabilities come back as float32 planes and labels as uint32 numbers."""
    names = stack_names(tmp_path)
    probabilities = np.linspace(0, 1, 2 * 37 * 53, dtype=np.float32).reshape(2, 37, 53)
    labels = np.arange(37 * 53, dtype=np.uint32).reshape(37, 53)
    products = Products(
        mask=page_of(identity_mask(1)),
        probabilities=page_of(probabilities),
        labels=page_of(labels),
        pixel_size_um=None,
    )
    SingleRecorder(names).commit(0, record_of(0), products)

    assert np.array_equal(tifffile.imread(names.probabilities), probabilities)
    assert np.array_equal(tifffile.imread(names.labels), labels)


def test_two_raws_of_one_stem_never_share_results(tmp_path: Path) -> None:
    """The second of two raws of one stem has results under its full name."""
    raws = [tmp_path / "a.tif", tmp_path / "a.tiff"]
    named = Register(tmp_path, at_once=True).add(raws)

    assert named[raws[0]].mask.name == "a_mask.tif"
    assert named[raws[1]].mask.name == "a.tiff_mask.tif"


def test_a_later_raw_of_the_same_stem_leaves_earlier_results_alone(tmp_path: Path) -> None:
    """A raw keeps its results when another of its stem appears that sorts before it."""
    late, early = tmp_path / "a.tif", tmp_path / "a.tiff"
    names = Register(tmp_path, at_once=True).add([early])[early]
    SingleRecorder(names).commit(0, record_of(0, file="a.tiff"), products_of(identity_mask(1)))
    named = Register(tmp_path, at_once=True).add([late, early])

    assert named[early].mask.name == "a_mask.tif"
    assert named[late].mask.name == "a.tif_mask.tif"


def test_a_raw_named_like_a_mask_is_never_overwritten(tmp_path: Path) -> None:
    """Results go under the full name where the plain one is somebody's raw file."""
    raws = [tmp_path / "a.tif", tmp_path / "a_mask.tif"]
    named = Register(tmp_path, at_once=True).add(raws)

    products = {path for names in named.values() for path in names.products()}
    assert products.isdisjoint(raws)


def test_palette_tells_neighbouring_classes_apart() -> None:
    """Background is black and the first eight classes have eight different colours."""
    colours = masks.palette().T

    assert tuple(colours[0]) == (0, 0, 0)
    assert len({tuple(colour) for colour in colours[:9]}) == 9


def test_a_mask_saved_by_an_editor_that_keeps_our_words_is_not_ours(tmp_path: Path) -> None:
    """A corrected mask is somebody's own even where its editor kept the Software tag."""
    names = Register(tmp_path, at_once=True).add([tmp_path / "a.tif"])[tmp_path / "a.tif"]
    SingleRecorder(names).commit(0, record_of(0), products_of(identity_mask(5)))
    assert is_own_output(names.mask)
    with Image.open(names.mask) as image:
        image.load()
        image.putpixel((3, 3), 1)
        image.save(names.mask)

    with tifffile.TiffFile(names.mask) as file:
        assert file.pages.first.software.startswith("segbatch")
    assert not is_own_output(names.mask)


@pytest.mark.parametrize("shape", [(1080, 1440), (64, 96), (1, 1), (2161, 700)])
@pytest.mark.parametrize("pixel_size_um", [None, 0.0862])
@pytest.mark.parametrize(("dtype", "coloured"), [("u1", True), ("u4", False), ("f4", False)])
def test_a_page_from_a_head_is_byte_for_byte_what_tifffile_writes(
    shape: tuple[int, int], pixel_size_um: float | None, dtype: str, *, coloured: bool
) -> None:
    """A file written from the head that is kept equals the one that tifffile writes."""
    rng = np.random.default_rng(3)
    for _ in range(2):  # the second takes the head of the first
        pixels = (rng.random(shape) > 0.9).astype(dtype)
        page = page_of(pixels)
        quick, whole = io.BytesIO(), io.BytesIO()
        write_page(
            quick, page, pixels.dtype, coloured=coloured, pixel_size_um=pixel_size_um, ome=False
        )
        masks.write_pages(
            whole,
            [(page.shape, iter(page.strips))],
            pixels.dtype,
            coloured=coloured,
            pixel_size_um=pixel_size_um,
        )
        assert quick.getvalue() == whole.getvalue()
        quick.seek(0)
        assert np.array_equal(tifffile.imread(quick), pixels)
