"""Opening picture files with Pillow: which formats, how many pixels, which way up. Nothing here needs torch."""

import io
import re
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features

from enlarger.errors import InputError
from enlarger.image.damage import (
    PNG_SIGNATURE,
    complete_jpeg,
    is_webp,
    pixel_bound,
    whole_webp,
    without_broken_chunks,
)
from enlarger.image.deep import DEEP_SUFFIX, DeepImage, deep_mode, read_deep, read_hdr, transpose_deep
from enlarger.image.hdr import is_hdr, is_wide, wide_headers
from enlarger.image.optional_formats import is_jxl, jxl_size, register_optional_formats
from enlarger.image.other_kinds import HEAD_BYTES, RAW, OtherKind, other_kind
from enlarger.image.tiff_tags import has_sensor_data, is_raw_photo, oversized_tiles, tiff_samples

AVIF_FORMATS = {".avif": "AVIF"} if features.check("avif") else {}  # a part of newer Pillows only
OPTIONAL_FORMATS = register_optional_formats()
READABLE_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    *AVIF_FORMATS.values(),
    *sorted({*OPTIONAL_FORMATS.values()}),
)
PIXEL_LIMIT = 178_956_970  # of a file; Pillow opens no larger ones by itself
MAX_LINE_CHARACTERS = 1000
EXIF_ORIENTATION = 0x0112  # the EXIF tag
ORIENTATION_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_SIDEWAYS = 5  # orientations from here on swap width and height
MAGIC_BYTES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
FileSource = str | Path | bytes | bytearray | BinaryIO  # a path, a file's bytes, or an open file
UnreadableReason = Literal["missing", "empty", "unknown", "damaged", "small", "large"]
_lock = threading.Lock()  # Python's warning filters are one per process


class UnreadableImage(InputError):
    """A picture file that cannot be used. `why` is for programs: is it no picture, a damaged one, too large a one?"""

    def __init__(self, text: str, reason: UnreadableReason = "damaged") -> None:
        super().__init__(text)
        self.reason: UnreadableReason = reason


def one_line(text: object) -> str:
    """A name or message on one printable line, of MAX_LINE_CHARACTERS at most: files may say megabytes."""
    line = " ".join(str(text)[: 4 * MAX_LINE_CHARACTERS].split())
    shown = line if len(line) <= MAX_LINE_CHARACTERS else f"{line[: MAX_LINE_CHARACTERS - 4]} ..."
    return "".join(c if c.isprintable() else "?" for c in shown)


@contextmanager
def _without_pillow_warnings() -> Generator[None]:
    """Keep Pillow's warnings from the user: what matters of them becomes an error or a note. Wide TIFFs are known."""
    with _lock, warnings.catch_warnings(), wide_headers():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def open_upright(source: FileSource | Image.Image, *, limit: int | None = None) -> Image.Image:
    """The pixels of a file or PIL image in their own mode: loaded, turned upright, the first frame of several.

    A larger `limit` than usual holds instead of Pillow's. Raises InputError as `read_picture` does.
    """
    limit = pixel_limit(source, limit)
    with open_image(source, any_size=limit > PIXEL_LIMIT) as (image, name):
        return decode_image(image, name, limit, []).copy()


def read_header(path: str | Path) -> tuple[str, tuple[int, int]]:
    """In which mode a picture like a file's is written, and its width and height upright; only its header is read.

    Raises InputError for a file that is no picture.
    """
    with open_image(path) as (image, _):
        is_grey, has_alpha = image.mode in ("1", "L", "LA", "La"), image.has_transparency_data
        mode = ("L" if is_grey else "RGB") + ("A" if has_alpha else "")
        mode = "I;16" if image.mode == "F" or image.mode.startswith("I") else mode
        deep = deep_mode(image)
        return (mode if deep is None else deep + DEEP_SUFFIX), _upright_size(image)


def upright_size(source: FileSource | Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it is seen, from its header. Raises InputError as `read_picture` does."""
    with open_image(source) as (image, _):
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow has turned this one already
        return image.size
    with suppress(Exception):  # a damaged EXIF block must not cost the picture
        if image.getexif().get(EXIF_ORIENTATION, 1) >= FIRST_SIDEWAYS:
            return image.height, image.width
    return image.size


def transpose(image: Image.Image, method: Image.Transpose) -> Image.Image:
    """As `Image.transpose` does, with all bits."""
    return transpose_deep(image, method) if isinstance(image, DeepImage) else image.transpose(method)


@contextmanager
def open_image(
    source: FileSource | Image.Image,
    name: str | None = None,
    notes: list[str] | None = None,
    *,
    any_size: bool = False,
) -> Generator[tuple[Image.Image, str]]:
    """A picture with its header read, and its name, for the length of the block.

    Errors call the picture `name`, by default its path; `notes` gets what was left out. With `any_size` Pillow's bound
    on pixels does not hold, for headers and for what was made here. Raises Unreadable.
    """
    if isinstance(source, Image.Image):
        with _without_pillow_warnings():
            yield source, name or one_line(getattr(source, "filename", "")) or "PIL image"
        return
    name = name or _source_name(source)
    with _open_stream(source, name) as stream, _without_pillow_warnings(), pixel_bound(any_size):
        first_bytes = stream.read(16)
        if not first_bytes:
            raise UnreadableImage(f"{name}: the file is empty (0 bytes); copy or download it again", "empty")
        if is_jxl(first_bytes):
            _check_jxl_size(stream, name)
        stream.seek(0)
        is_png, profile, read_from = first_bytes.startswith(PNG_SIGNATURE), None, stream
        if is_png:
            read_from, profile = without_broken_chunks(stream, [] if notes is None else notes)
            read_from.seek(0)
        elif is_webp(first_bytes):
            read_from = whole_webp(stream, [] if notes is None else notes)
            if read_from is None:
                raise decode_error(name, OSError("truncated"))
        image = _read_header(read_from, first_bytes, name)
        if is_raw_photo(image, first_bytes):
            raise _kind_error(name, RAW)
        if any_size and image.format == "PNG" and "exif" not in image.info:  # Pillow would look behind the pixels
            check_size(name, *image.size, PIXEL_LIMIT)
        if profile is not None:
            image.info["icc_profile"] = profile
        yield image, name


def _check_jxl_size(stream: BinaryIO, name: str) -> None:
    """Refuse a JPEG XL that is too large, or does not say how large, before it is opened, which decodes it."""
    size, most = jxl_size(stream), Image.MAX_IMAGE_PIXELS
    limit = PIXEL_LIMIT if most is None else 2 * most
    if size is None:
        raise unknown_kind_error(stream, name)
    if size[0] * size[1] > limit:
        raise too_large_error(name, size[0] * size[1], limit)


def is_file_source(source: object) -> bool:
    """Whether it is a path, a file's bytes, or an open file."""
    return isinstance(source, str | Path | bytes | bytearray) or hasattr(source, "read")


def pixel_limit(source: object, limit: int | None) -> int:
    """How many pixels are read of a source, if not said: PIXEL_LIMIT of files, all of what is in memory already."""
    return (PIXEL_LIMIT if is_file_source(source) else sys.maxsize) if limit is None else limit


def _source_name(source: FileSource) -> str:
    if isinstance(source, str | Path):
        return one_line(source)
    return one_line(getattr(source, "name", "")) or ("the file" if hasattr(source, "read") else "the bytes")


def file_bytes(source: Any, name: str) -> bytes:
    """What is left of an open file, which stands afterwards where it stood before if it can."""
    if isinstance(source, io.TextIOBase):
        raise UnreadableImage(f"{name}: is open as text, expected a file that is open for bytes; open it with 'rb'")
    start = source.tell() if source.seekable() else None
    data: bytes = source.read()
    if start is not None:
        source.seek(start)
    return data


def _open_stream(source: FileSource, name: str) -> BinaryIO:
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        return io.BytesIO(file_bytes(source, name))
    path = Path(source)
    try:
        if path.is_dir():
            raise UnreadableImage(f"{name}: is a folder, expected a picture file; name a file inside it", "missing")
        if path.exists() and not path.is_file():
            raise UnreadableImage(f"{name}: is not a regular file; copy the picture to a file first", "missing")
        return path.open("rb")
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file; check the path", "missing") from None
    except (OSError, ValueError) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        text = f"{name}: cannot be opened ({reason}); check the path and its permissions"
        raise UnreadableImage(text, "missing") from None


def _read_header(stream: BinaryIO, first_bytes: bytes, name: str) -> Image.Image:
    """Read a file's header only."""
    format_name = next((kind for magic, kind in MAGIC_BYTES.items() if first_bytes.startswith(magic)), None)
    format_name = "WEBP" if is_webp(first_bytes) else format_name
    try:
        return Image.open(stream, formats=READABLE_FORMATS)
    except Image.DecompressionBombError as error:
        pixels, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise too_large_error(name, pixels, limit) from None
    except UnidentifiedImageError:
        if format_name == "TIFF" and has_sensor_data(stream):
            raise _kind_error(name, RAW) from None
        if format_name == "TIFF" and (samples := tiff_samples(stream)) is not None:
            text = f"{name}: is a TIFF of {samples}, which is not read; save it with 8 or 16 bits for each channel"
            raise UnreadableImage(text, "unknown") from None
        if format_name is not None:
            raise UnreadableImage(
                f"{name}: the {format_name} header is damaged or cut short; copy or download it again"
            ) from None
        raise unknown_kind_error(stream, name) from None
    except Exception as error:  # decoders raise anything on damaged files
        kind = other_kind(first_bytes)
        if kind is not None and kind.format in READABLE_FORMATS:
            raise unknown_kind_error(stream, name) from error
        raise decode_error(name, error) from error


def unknown_kind_error(stream: BinaryIO, name: str) -> UnreadableImage:
    """The error of a file that none of the readers takes, with the name of its kind where that is known."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    stream.seek(max(stream.seek(0, io.SEEK_END) - HEAD_BYTES, 0))
    kind = other_kind(head, stream.read()) or OtherKind("not a picture")
    if kind.format in READABLE_FORMATS:
        return UnreadableImage(f"{name}: the {kind.format} header is damaged or cut short; copy or download it again")
    return _kind_error(name, kind)


def _kind_error(name: str, kind: OtherKind) -> UnreadableImage:
    text = f"{name}: is {kind.name}, expected one of {', '.join(READABLE_FORMATS)}; {kind.way_out}"
    return UnreadableImage(text, "unknown")


def too_large_error(name: str, pixels: int, limit: int) -> UnreadableImage:
    """The error of a picture with more pixels than are read."""
    return UnreadableImage(
        f"{name}: has {pixels:,} pixels, at most {limit:,} are read; shrink or crop it first", "large"
    )


def decode_error(name: str, error: Exception) -> UnreadableImage:
    """The error of a picture on which a decoder failed."""
    text = one_line(error) or type(error).__name__
    reason = "the file is cut short" if "truncated" in text.lower() else f"cannot be decoded ({text})"
    return UnreadableImage(f"{name}: {reason}; copy or download it again, or save it anew with another program")


def check_size(name: str, width: int, height: int, limit: int) -> None:
    """Raise Unreadable for a picture without pixels, or with too many."""
    if width < 1 or height < 1:
        text = f"{name}: is {width} x {height} pixels, expected at least 1 x 1; pass a picture with pixels"
        raise UnreadableImage(text, "small")
    if width * height > limit:
        raise too_large_error(f"{name}: {width} x {height}", width * height, limit)


def decode_image(image: Image.Image, name: str, limit: int, notes: list[str], tone_map: bool = False) -> Image.Image:
    """The decoded pixels of an opened picture, upright, in its own mode. Raises Unreadable."""
    check_size(name, *image.size, limit)
    if (found := oversized_tiles(image)) is not None:
        raise UnreadableImage(f"{name}: {found}; save it anew with another program")
    try:
        return apply_orientation(image, load_pixels(image, notes, tone_map), notes)
    except InputError as error:  # of a picture that was decoded
        raise UnreadableImage(f"{name}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise decode_error(name, error) from error


def load_pixels(image: Image.Image, notes: list[str], tone_map: bool = False) -> Image.Image:
    """The image with its pixels and all their bits, also of a JPEG that lacks nothing but the mark at its end.

    Of HDR pictures what a display shows, by `tone_map` or scaled.
    """
    if isinstance(image, DeepImage):
        return image
    is_deep = not image.mode.startswith("I") and bool(re.search(";16[BLN]", str(getattr(image, "tile", ""))))
    if is_wide(image) or (tone_map and is_hdr(image)):
        return read_hdr(image, file_content(image), notes, tone_map)
    data = file_content(image) if deep_mode(image) is not None else b""
    if data and image.format == "TIFF" and (deep := read_deep(image, data)) is not None:
        return deep
    try:
        image.load()
        if data and image.format == "PNG" and (deep := read_deep(image, data)) is not None:
            return deep
        notes += ["16-bit colour: read as 8-bit"] if is_deep else []
        return image
    except OSError:
        if image.format not in ("JPEG", "MPO") or (whole := complete_jpeg(image, file_content(image))) is None:
            raise
    notes.append("the mark at the end of the JPEG is missing; all its pixels are there")
    whole.info |= image.info
    return whole


def file_content(image: Image.Image) -> bytes:
    """The bytes of the file that an image is read from."""
    stream: BinaryIO | None = getattr(image, "fp", None)
    if stream is None:
        return b""
    place = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(place)
    return data


def apply_orientation(image: Image.Image, loaded: Image.Image, notes: list[str]) -> Image.Image:
    """The loaded pixels of an image turned as its EXIF orientation says; notes that there are more frames."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block must not cost the picture
        orientation = 1
        notes.append("the EXIF data is damaged: orientation not applied")
    upright = (
        transpose(loaded, ORIENTATION_TRANSPOSES[orientation]) if orientation in ORIENTATION_TRANSPOSES else loaded
    )
    with suppress(Exception):
        if image.format == "MPO":  # several JPEGs in a file, as phones and cameras for stereo make
            notes.append("the file holds a second picture too, such as a gain map: left out")
        elif getattr(image, "is_animated", False):
            notes.append("animated or with several pages: only the first frame is used")
    return upright
