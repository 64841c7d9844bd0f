"""Damage of picture files that leaves their pixels whole, and what is there of files cut short. Without torch."""

import io
import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from enlarger.image.colour_marks import note_of_cicp

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
PIXEL_CHUNKS = (b"fdAT", b"fcTL")  # ancillary by name, but a part of what is seen
LEAST_BYTES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"acTL": 8}
MAX_TEXT_BYTES = PngImagePlugin.MAX_TEXT_CHUNK  # of one text, unpacked
MAX_TEXTS_BYTES = 3 << 20  # of all that are kept
MAX_PROFILE_BYTES = 16 << 20
WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ANMF", b"ALPH", b"ANIM", b"VP8X")
JPEG_END = b"\xff\xd9"
JPEG_SCAN = b"\xff\xda"  # where coded pixels begin
JPEG = ("JPEG",)  # Pillow's name of what reads it, and several in a file
JPEG_FILLS = (b"", b"\x55\xaa" * 64)  # what stands where the last bytes may be missing


def without_broken_chunks(stream: BinaryIO, notes: list[str]) -> tuple[BinaryIO, bytes | None]:
    """A PNG's bytes without the chunks beside the pixels that its reader stumbles over, and a profile too large for it.

    The stream itself where there are none.
    """
    broken: list[tuple[int, int]] = []
    profile: bytes | None = None
    text_bytes = 0
    for start, kind, body, checksum in _ancillary_chunks(stream):
        reason = _chunk_error(kind, body, checksum)
        if reason is None and kind in TEXT_CHUNKS:
            size = 0 if text_bytes > MAX_TEXTS_BYTES else _unpacked_size(kind, body)
            text_bytes += size
            reason = _text_error(size, text_bytes)
        if reason is None and kind == b"iCCP":
            unpacked = _inflate(body.partition(b"\0")[2][1:], MAX_PROFILE_BYTES + 1)
            profile = unpacked if MAX_TEXT_BYTES < len(unpacked) <= MAX_PROFILE_BYTES else None
            reason = "a profile of over 1 MiB" if len(unpacked) > MAX_TEXT_BYTES else None
        if kind == b"cICP" and (note := note_of_cicp(body)) is not None:
            notes.append(note)
        if reason is None:
            continue
        note = f"{kind.decode('ascii', 'replace')}, data beside the pixels, left out: {reason}"
        if note not in notes and (profile is None or kind != b"iCCP"):
            notes.append(note)
        broken.append((start, start + 12 + len(body)))
    return (_without(stream, broken), profile) if broken else (stream, None)


def _without(stream: BinaryIO, spans: Sequence[tuple[int, int]]) -> BinaryIO:
    """The bytes of a stream but for some spans, which are in order."""
    stream.seek(0)
    data, kept, position = stream.read(), list[bytes](), 0
    for start, end in spans:
        kept.append(data[position:start])
        position = end
    return io.BytesIO(b"".join([*kept, data[position:]]))


def _text_error(size: int, total: int) -> str | None:
    """Why a text is left out that is `size` bytes, and `total` with all before it."""
    if size > MAX_TEXT_BYTES:
        return f"text of over {MAX_TEXT_BYTES >> 20} MiB"
    return f"over {MAX_TEXTS_BYTES >> 20} MiB of texts" if total > MAX_TEXTS_BYTES else None


def _ancillary_chunks(stream: BinaryIO) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Where each chunk that a reader may do without begins, its name, its content and checksum.

    The picture's end ends them, and so does a chunk that says to be longer than the file.
    """
    file_size = stream.seek(0, io.SEEK_END)
    stream.seek(len(PNG_SIGNATURE))
    while len(head := stream.read(8)) == 8 and head[4:] != PNG_END:
        start, length, kind = stream.tell() - 8, *struct.unpack(">I4s", head)
        if not kind.isalpha() or start + 12 + length > file_size:
            return
        if not kind[0] & 0x20 or kind in PIXEL_CHUNKS:
            stream.seek(length + 4, io.SEEK_CUR)
            continue
        body = stream.read(length + 4)
        yield start, kind, body[:-4], body[-4:]


def _chunk_error(kind: bytes, body: bytes, checksum: bytes) -> str | None:
    if zlib.crc32(kind + body).to_bytes(4) != checksum:
        return "its checksum is wrong"
    return "it is too short" if len(body) < LEAST_BYTES.get(kind, 0) else None


def _unpacked_size(kind: bytes, body: bytes) -> int:
    """The bytes of a text chunk as its reader unpacks it, counted up to a little over what is read."""
    _, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        is_packed, texts = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        rest = b"\0" + texts[-1] if is_packed else b""
    if kind == b"tEXt" or not rest:
        return min(len(body), MAX_TEXT_BYTES)
    return len(_inflate(rest[1:], MAX_TEXT_BYTES + 1))


def _inflate(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def is_webp(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def whole_webp(stream: BinaryIO, notes: list[str]) -> BinaryIO | None:
    """A WebP that says to be longer than it is, with its length and without what is cut short beside the pixels.

    The stream itself where nothing is wrong; None where pixels are cut short.
    """
    file_size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    stated = 8 + struct.unpack("<4xI4x", stream.read(12))[0]
    if stated <= file_size:
        stream.seek(0)
        return stream
    end, has_pixels = 12, False
    while len(head := stream.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if end + 8 + length > file_size:
            if kind in WEBP_PIXELS:
                return None
            notes.append(f"{kind.decode('ascii', 'replace')}, data beside the pixels, left out: it is cut short")
            break
        has_pixels = has_pixels or kind in WEBP_PIXELS[:3]
        end = stream.seek(end + 8 + length + length % 2)
    else:
        notes.append("the length in the WebP's header is wrong; all its pixels are there")
    if not has_pixels:
        return None
    stream.seek(12)
    content = stream.read(end - 12).ljust(end - 12, b"\0")
    return io.BytesIO(b"RIFF" + struct.pack("<I", end - 8) + b"WEBP" + content)


def complete_jpeg(image: Image.Image, data: bytes) -> Image.Image | None:
    """A JPEG that ends before its end marker, decoded, if all its pixels are there; else None.

    Where nothing is missing, bytes put after the last ones change no pixel.
    """
    if data.rfind(JPEG_END) > data.rfind(JPEG_SCAN):
        return None
    first, second = (_load(data.rstrip(b"\xff") + fill + JPEG_END) for fill in JPEG_FILLS)
    return first if first.size == image.size and first.tobytes() == second.tobytes() else None


def rows_of_truncated(image: Image.Image, data: bytes) -> Image.Image | None:
    """The rows that are there of a file cut short, from the top or the bottom as it is written; None if there are none.

    It is decoded over two grounds: rows that do not show them were decoded. Nothing else may load pictures meanwhile.
    """
    if image.format in ("JPEG", "MPO"):
        grounds = [_load(data + fill + JPEG_END) for fill in JPEG_FILLS]
    else:
        with _truncated_allowed():
            grounds = [_load(data, (str(image.format),), ground) for ground in (0, 1)]
    first, second = (np.asarray(ground) for ground in grounds)
    is_same = (first == second).reshape(first.shape[0], -1).all(axis=1)
    if bool(is_same[0]):
        first_row, end = 0, len(is_same) if bool(is_same.all()) else int(is_same.argmin())
    else:
        first_row, end = len(is_same) - int(is_same[::-1].argmin()), len(is_same)
    return grounds[0].crop((0, first_row, image.width, end)) if end > first_row else None


def _load(data: bytes, formats: tuple[str, ...] = JPEG, ground: int | None = None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=formats)
    if ground is not None:
        channels = len(image.getbands())
        image.im = Image.new(image.mode, image.size, ground if channels == 1 else (ground,) * channels).im
    image.load()
    return image


@contextmanager
def pixel_bound(any_size: bool) -> Generator[None]:
    """Pillow's bound on pixels, or none, within the block. Nothing else may open pictures meanwhile."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if any_size else before
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _truncated_allowed() -> Generator[None]:
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
