"""HEIC and JPEG XL, which Pillow reads with the extras `heif` and `jxl`; and how large a JPEG XL says it is."""

from contextlib import suppress
from importlib import import_module
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

JXL_BARE, JXL_BOXED = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
JXL_SIZE_BYTES = 12  # of a codestream: its signature, and its size at the longest
MAX_JXL_BOXES = 1000  # before the codestream's size
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height, by their number less one
JXL_SIZE_BITS = (9, 13, 18, 30)


def register_optional_formats() -> dict[str, str]:
    """Pillow's names of those that are installed, by the endings of their files."""
    found: dict[str, str] = {}
    with suppress(ImportError):
        heif = import_module("pillow_heif")
        heif.options.DECODE_THREADS = 1
        heif.register_heif_opener()
        found |= dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "HEIF")
    with suppress(ImportError):
        vars(import_module("pillow_jxl.JpegXLImagePlugin"))["DECODE_THREADS"] = 0
        found[".jxl"] = "JXL"
    return found


def is_jxl(head: bytes) -> bool:
    """Whether the plugin would take a file that begins so."""
    return head.startswith(JXL_BARE) or head[4:7] == JXL_BOXED[4:7]


def jxl_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Width and height of a JPEG XL file by its header; None where it does not say.

    Source: ISO/IEC 18181-1, SizeHeader. The plugin decodes a file as it opens it, so this comes first.
    """
    stream.seek(0)
    start = stream.read(JXL_SIZE_BYTES)
    if not start.startswith(JXL_BARE):
        start = _boxed_start(stream)
    if not start.startswith(JXL_BARE) or len(start) < 4:
        return None
    reader = _Bits(int.from_bytes(start[2:], "little"))
    is_small = bool(reader.take(1))
    height = reader.size(is_small)
    ratio = reader.take(3)
    if ratio == 0:
        return reader.size(is_small), height
    numerator, denominator = JXL_RATIOS[ratio - 1]
    return height * numerator // denominator, height


def _boxed_start(stream: BinaryIO) -> bytes:
    """The codestream's first bytes, of one box or of several that continue each other; none where boxes are wrong.

    Source: ISO/IEC 18181-2: a size of 1 is followed by one of 64 bits, one of 0 goes to the end; `jxlp` has a number.
    """
    found, offset, end = b"", 0, stream.seek(0, SEEK_END)
    for _ in range(MAX_JXL_BOXES):
        stream.seek(offset)
        header = stream.read(16)
        size, kind, begin = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:
            size, begin = int.from_bytes(header[8:], "big"), 16
        size = size or end - offset
        if size < begin:
            return found if offset == end else b""
        if kind in (b"jxlc", b"jxlp"):
            begin += 4 if kind == b"jxlp" else 0
            stream.seek(offset + begin)
            found += stream.read(max(min(size - begin, JXL_SIZE_BYTES - len(found)), 0))
        offset += size
        if len(found) == JXL_SIZE_BYTES or offset >= end:
            return found
    return b""


def jxl_file_size(path: Path) -> tuple[int, int] | None:
    """The same of a file, which may be of another kind."""
    with path.open("rb") as stream:
        return jxl_size(stream) if is_jxl(stream.read(JXL_SIZE_BYTES)) else None


class _Bits:
    """Numbers in a stream of bits, the lowest first."""

    def __init__(self, value: int) -> None:
        self.value = value

    def take(self, count: int) -> int:
        taken = self.value & ((1 << count) - 1)
        self.value >>= count
        return taken

    def size(self, is_small: bool) -> int:
        return (self.take(5) + 1) * 8 if is_small else self.take(JXL_SIZE_BITS[self.take(2)]) + 1
