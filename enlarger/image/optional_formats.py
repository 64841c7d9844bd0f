"""HEIC and JPEG XL, which Pillow reads with the extras `heif` and `jxl`; and how large a JPEG XL says it is."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

JXL_BARE, JXL_BOXED = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
JXL_HEAD_BYTES = 4096  # of a file, within which its codestream begins
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height, by their number less one
JXL_SIZE_BITS = (9, 13, 18, 30)


def register_optional_formats() -> dict[str, str]:
    """Pillow's names of those that are installed, by the endings of their files."""
    found: dict[str, str] = {}
    with suppress(ImportError):
        heif = import_module("pillow_heif")
        heif.options.DECODE_THREADS = 1
        heif.register_heif_opener()
        found |= dict.fromkeys((".heic", ".heif", ".hif"), "HEIF")
    with suppress(ImportError):
        vars(import_module("pillow_jxl.JpegXLImagePlugin"))["DECODE_THREADS"] = 0
        found[".jxl"] = "JXL"
    return found


def jxl_size(head: bytes) -> tuple[int, int] | None:
    """Width and height by the first bytes of a JPEG XL file; None for another kind, or where they do not say.

    Source: ISO/IEC 18181-1, SizeHeader. The plugin decodes a file as it opens it, so this comes first.
    """
    start = head.find(JXL_BARE) if head.startswith((JXL_BARE, JXL_BOXED)) else -1
    if start < 0 or len(head) < start + 12:
        return None
    reader = _Bits(int.from_bytes(head[start + 2 : start + 12], "little"))
    is_small = bool(reader.take(1))
    height = reader.size(is_small)
    ratio = reader.take(3)
    if ratio == 0:
        return reader.size(is_small), height
    numerator, denominator = JXL_RATIOS[ratio - 1]
    return height * numerator // denominator, height


def jxl_file_size(path: Path) -> tuple[int, int] | None:
    """The same of a file."""
    with path.open("rb") as stream:
        return jxl_size(stream.read(JXL_HEAD_BYTES))


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
