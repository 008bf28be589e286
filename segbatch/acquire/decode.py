"""Bytes to pixels: strips and tiles of a TIFF page, and PNG images.

Every decoder is given the number of bytes or the shape that the header
promised, so that content cannot make it allocate more.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segbatch.acquire.layout import CMYK, JPEG, MINISBLACK, PALETTE, RGB, YCBCR, Page, segment_rows
from segbatch.acquire.raw import RawFile, content_errors, unreadable
from segbatch.errors import UnsupportedFrameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from segbatch.acquire.base import Empty
    from segbatch.acquire.tiff import Ifd

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEFLATE = (8, 32946, 50013)
CCITT = (2, 3, 4)
WEBP = 50001
LZMA_MEMORY = 256 << 20  # bytes; xz -9 takes 65 MiB


def tiff_pixels(ifd: Ifd, page: Page, empty: Empty) -> NDArray[Any]:
    """Decode one page.

    Parameters
    ----------
    ifd, page
        The page's directory and its checked layout.
    empty
        Gives the memory, as ``numpy.empty``.

    Returns
    -------
    (Y, X) or (Y, X, C) pixels, C-contiguous, native byte order, C of
    ``page.colours``; samples as stored (a palette's indices, CMYK inks).

    Raises
    ------
    UnreadableFrameError
        The content is corrupt or incomplete.
    UnsupportedFrameError
        Compression or predictor of a kind that is not read.
    """
    shape = (page.height, page.width, page.colours)
    with content_errors(ifd.file.path, f"a page of {page.width} x {page.height} pixels"):
        if page.is_plain:
            out = empty(shape, page.dtype)
            ifd.file.read_into(page.offsets[0], out.reshape(-1).view(np.uint8).data)
            if ifd.header.order != ("<" if np.little_endian else ">"):
                out.byteswap(inplace=True)
        else:
            decompress = _decompressor(ifd, page)
            out = empty(shape, page.dtype)
            for index in range(len(page.offsets)):
                _place(ifd, page, index, out, decompress)
    return out[..., 0] if page.colours == 1 else out


def _place(
    ifd: Ifd,
    page: Page,
    index: int,
    out: NDArray[Any],
    decompress: Callable[[bytes, int, int], NDArray[Any]],
) -> None:
    """Decode strip or tile ``index`` into its place in ``out`` (Y, X, C)."""
    grid_rows, grid_columns = page.grid
    plane, inner = divmod(index, grid_rows * grid_columns)
    if plane >= page.colours:
        return  # transparency, stored as a plane of its own
    row, column = divmod(inner, grid_columns)
    top, left = row * page.block[0], column * page.block[1]
    name = "tile" if page.tiled else "strip"
    with content_errors(ifd.file.path, f"{name} {index}"):
        data = ifd.file.read(page.offsets[index], page.counts[index])
        if page.fill_order == 2 and page.compression not in (JPEG, WEBP):
            import imagecodecs

            data = bytes(imagecodecs.bitorder_decode(data))
        block = decompress(data, segment_rows(page, index), page.block[1])
    target = out[top : top + page.block[0], left : left + page.block[1]]
    block = block[: target.shape[0], : target.shape[1]]
    if page.planar:
        target[..., plane] = block[..., 0]
    else:
        target[...] = block[..., : page.colours]


def _decompressor(ifd: Ifd, page: Page) -> Callable[[bytes, int, int], NDArray[Any]]:
    """Return what turns (bytes, rows, columns) into (rows, columns, samples)."""
    if page.photometric == YCBCR and page.compression != JPEG:
        raise _unsupported(ifd, "YCbCr without JPEG compression")
    samples = 1 if page.planar else page.samples
    if page.compression == JPEG:
        return _jpeg(ifd, page, samples)
    if page.compression == WEBP:
        return _webp(page, samples)
    if page.predictor not in (1, 2, 3) or (page.predictor == 3 and page.dtype.kind != "f"):
        raise _unsupported(ifd, f"predictor {page.predictor}")
    expand = _ccitt(ifd, page) if page.compression in CCITT else _expander(ifd, page.compression)
    order = ifd.header.order

    def decompress(data: bytes, rows: int, columns: int) -> NDArray[Any]:
        need = rows * (-(-columns * samples * page.bits // 8))
        data = expand(data, need)
        if len(data) < need:
            raise ValueError(f"{len(data)} of {need} bytes")
        return _unpack(data[:need], page, order, (rows, columns, samples))

    return decompress


def _expander(ifd: Ifd, compression: int) -> Callable[[bytes, int], bytes]:
    """Return what turns (bytes, bytes wanted) into at most about that many bytes."""
    if compression == 1:
        return lambda data, need: data
    if compression in DEFLATE:
        return _inflate
    if compression == 34925:
        return _unpack_lzma
    import imagecodecs

    codecs: dict[int, Any] = {
        5: imagecodecs.lzw_decode,
        32773: imagecodecs.packbits_decode,
        34926: imagecodecs.zstd_decode,
        50000: imagecodecs.zstd_decode,
    }
    codec = codecs.get(compression)
    if codec is None:
        raise _unsupported(ifd, f"compression {compression}")
    return lambda data, need: bytes(codec(data, out=need))


def _inflate(data: bytes, need: int) -> bytes:
    """Inflate at most ``need`` bytes, verifying the checksum where one stands.

    libdeflate takes half of zlib's time, and refuses streams that go on
    behind the last row or end without a checksum; zlib takes those.
    """
    import imagecodecs

    try:
        return bytes(imagecodecs.deflate_decode(data, out=need))
    except RuntimeError:
        stream = zlib.decompressobj()
        out = stream.decompress(data, need)
        if not stream.eof and len(out) == need:
            stream.decompress(stream.unconsumed_tail, 1)
        return out


def _unpack_lzma(data: bytes, need: int) -> bytes:
    """Unpack at most ``need`` bytes; a dictionary that needs much memory is refused."""
    return lzma.LZMADecompressor(memlimit=LZMA_MEMORY).decompress(data, need)


def _ccitt(ifd: Ifd, page: Page) -> Callable[[bytes, int], bytes]:
    """Fax codings of 1-bit pages (TIFF 6.0 sections 10 and 11)."""
    import imagecodecs

    if page.bits != 1 or page.samples != 1:
        raise _unsupported(ifd, f"fax compression of {page.bits}-bit samples")
    columns = page.block[1]
    row_bytes = -(-columns // 8)
    options = ifd.integer(292, 0)

    def expand(data: bytes, need: int) -> bytes:
        rows = need // row_bytes
        if page.compression == 2:
            bits = imagecodecs.ccittrle_decode(data, rows, columns)
        elif page.compression == 3:
            bits = imagecodecs.ccittfax3_decode(data, rows, columns, t4options=options)
        else:
            bits = imagecodecs.ccittfax4_decode(data, rows, columns)
        return np.packbits(bits.reshape(rows, columns).astype(bool), axis=1).tobytes()

    return expand


def _unpack(
    data: bytes, page: Page, order: Literal["<", ">"], shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Turn decompressed bytes into samples of ``shape``, in native byte order."""
    rows, columns, samples = shape
    if page.bits == 8 * page.dtype.itemsize:
        if page.predictor == 3:
            return _float_difference(data, page, shape)
        block = np.frombuffer(data, page.dtype.newbyteorder(order)).reshape(shape)
        block = block.astype(page.dtype, copy=False)
        if page.predictor == 2:
            return _sum_differences(block, page.dtype.itemsize)
        return block
    import imagecodecs

    if page.dtype.kind == "f":
        if page.predictor != 1:
            raise ValueError("24-bit floats with a predictor")
        block = imagecodecs.float24_decode(data, byteorder=order).reshape(shape)
    elif page.bits == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(rows, -1), axis=1)
        block = bits[:, : columns * samples].reshape(shape)
    else:
        block = imagecodecs.packints_decode(
            data, page.dtype, page.bits, runlen=columns * samples
        ).reshape(shape)
    if page.predictor == 2:
        block = _sum_differences(block, page.dtype.itemsize) & page.dtype.type((1 << page.bits) - 1)
    return block.astype(page.dtype, copy=False)


def _sum_differences(block: NDArray[Any], itemsize: int) -> NDArray[Any]:
    """Undo horizontal differencing (TIFF 6.0 section 14), modulo the sample's size."""
    whole = block.view(f"u{itemsize}")
    return np.cumsum(whole, axis=1, dtype=whole.dtype).view(block.dtype)


def _float_difference(data: bytes, page: Page, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Undo the floating-point predictor (Adobe TIFF Technical Note 3)."""
    import imagecodecs

    coded = np.frombuffer(data, page.dtype).reshape(shape)
    return np.asarray(imagecodecs.floatpred_decode(coded, axis=-2, out=np.empty_like(coded)))


def _jpeg(ifd: Ifd, page: Page, samples: int) -> Callable[[bytes, int, int], NDArray[Any]]:
    """JPEG strips and tiles (TIFF Technical Note 2); YCbCr comes out as RGB."""
    import imagecodecs

    if page.bits not in (8, 12, 16):
        raise _unsupported(ifd, f"JPEG of {page.bits}-bit samples")
    tables = ifd.data(347) or None
    spaces = {RGB: "RGB", MINISBLACK: "GRAYSCALE", CMYK: "CMYK", YCBCR: "YCBCR"}
    inside = None if samples == 1 or samples == 2 else spaces.get(page.photometric)
    outside = "RGB" if inside == "YCBCR" else inside

    def decompress(data: bytes, rows: int, columns: int) -> NDArray[Any]:
        height, width, depth = _jpeg_shape(data)
        if width < min(columns, page.width) or width > columns or height > rows or depth != samples:
            raise ValueError(
                f"JPEG of {width} x {height} x {depth}, wanted {columns} x {rows} x {samples}"
            )
        block: NDArray[Any] = imagecodecs.jpeg_decode(
            data, tables=tables, colorspace=inside, outcolorspace=outside
        )
        if block.dtype != page.dtype:
            raise ValueError(f"JPEG samples are {block.dtype}, wanted {page.dtype}")
        return _padded(block.reshape(height, width, -1), rows, columns)

    return decompress


def _jpeg_shape(data: bytes) -> tuple[int, int, int]:
    """Return (rows, columns, components) of a JPEG stream from its frame header (ITU-T T.81)."""
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            raise ValueError("no JPEG marker where one should be")
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows, columns, components = struct.unpack_from(">HHB", data, at + 5)
            return rows, columns, components
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ValueError("JPEG stream without a frame header")


def _padded(block: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Accept a last tile that was stored without its padding."""
    missing = (rows - block.shape[0], columns - block.shape[1])
    if not any(missing):
        return block
    return np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)))


def _webp(page: Page, samples: int) -> Callable[[bytes, int, int], NDArray[Any]]:
    """WebP tiles; an all-opaque alpha sample may be missing from a tile."""
    import imagecodecs

    if page.dtype != np.uint8 or samples not in (3, 4):
        raise ValueError(f"WebP of {samples} samples of {page.dtype}")

    def decompress(data: bytes, rows: int, columns: int) -> NDArray[Any]:
        out = np.empty((rows, columns, samples), np.uint8)  # a stream of another shape is refused
        return np.asarray(imagecodecs.webp_decode(data, hasalpha=samples == 4, out=out))

    return decompress


def _unsupported(ifd: Ifd, what: str) -> UnsupportedFrameError:
    return UnsupportedFrameError(
        f"{ifd.file.path}: {what}",
        "uncompressed, LZW, Deflate, PackBits, Zstandard, LZMA, JPEG, WebP or fax",
        "save it as uncompressed or LZW TIFF",
    )


def to_gray_or_rgb(ifd: Ifd, page: Page, pixels: NDArray[Any], *, indices: bool) -> NDArray[Any]:
    """Bring decoded samples to the (Y, X) or (Y, X, 3) that a frame holds.

    Parameters
    ----------
    pixels
        What ``tiff_pixels`` returned.
    indices
        Keep the indices of a palette page: for writers whose palette is only
        a way to show counts.

    Returns
    -------
    Gray and RGB as they are (also where 0 is white: counts stay counts).
    Palette pages as uint8 RGB. CMYK as RGB by ``(1 - ink) * (1 - black)``.
    """
    if page.photometric == CMYK:
        if page.dtype not in (np.uint8, np.uint16):
            raise _unsupported(ifd, f"CMYK of {page.dtype}")
        full = (1 << 8 * page.dtype.itemsize) - 1
        light = full - pixels.astype(np.uint32)  # a product of two 16-bit samples fits
        return ((light[..., :3] * light[..., 3:] + full // 2) // full).astype(page.dtype)
    if page.photometric != PALETTE or indices:
        return pixels
    table = ifd.array(320)
    entries = 1 << page.bits
    if table is None or page.dtype.kind != "u" or page.bits > 16 or len(table) < 3 * entries:
        raise unreadable(ifd.file.path, "has a palette page without a whole palette")
    colours = table[: 3 * entries].reshape(3, entries).T
    if colours.max() > 255:  # 16-bit as TIFF 6.0 asks; some writers store 8-bit values
        colours = colours >> np.uint64(8)
    rgb: NDArray[np.uint8] = colours.astype(np.uint8)[pixels]
    return rgb


def png_shape(head: bytes) -> tuple[int, int, int, int]:
    """Return (rows, columns, samples at most, bits) from a PNG's first 26 bytes (PNG 1.2, IHDR)."""
    columns, rows, bits, colour = struct.unpack_from(">IIBB", head, 16)
    samples = {0: 2, 2: 4, 3: 4, 4: 2, 6: 4}.get(colour, 0)
    if head[12:16] != b"IHDR" or not rows or not columns or not samples:
        raise ValueError(f"{columns} x {rows} pixels of colour type {colour}")
    return rows, columns, samples, bits


def png_pixels(file: RawFile, max_bytes: int) -> NDArray[Any]:
    """Decode a PNG: gray or RGB, 8 or 16 bits; palettes expanded, transparency dropped.

    Grays of fewer than 8 bits are stretched to 0..255, as PNG decoders do.

    Returns
    -------
    (Y, X) or (Y, X, 3), uint8 or uint16.

    Raises
    ------
    UnreadableFrameError
        Corrupt or cut short.
    UnsupportedFrameError
        Larger than ``max_bytes`` once decoded.
    """
    import imagecodecs

    with content_errors(file.path, "the PNG header"):
        rows, columns, samples, bits = png_shape(file.read(0, 26))
    size = rows * columns * samples * max(1, bits // 8)
    if max(size, file.size) > max_bytes:
        raise UnsupportedFrameError(
            f"{file.path}: {columns} x {rows} pixels are {size / 2**30:.4g} GiB",
            f"at most {max_bytes / 2**30:.4g} GiB (max_file_gib)",
            "raise max_file_gib if the file is what it says",
        )
    with content_errors(file.path, "the PNG image"):
        pixels = np.asarray(imagecodecs.png_decode(file.read(0, file.size)))
        if pixels.shape[:2] != (rows, columns):
            raise ValueError(f"decoded to {pixels.shape}")
    if pixels.ndim == 2:
        return pixels
    keep = 1 if pixels.shape[2] <= 2 else 3
    return np.ascontiguousarray(pixels[..., 0] if keep == 1 else pixels[..., :3])
