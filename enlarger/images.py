"""Pictures in and out: files, PIL images, arrays and tensors become a `Picture`; a `Picture` becomes a file."""

import io
import os
import re
import threading
import uuid
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from enlarger.colour import to_srgb
from enlarger.errors import InputError, NonFinite
from enlarger.resize import resize, resize_matrix

__all__ = ["Picture", "check_output", "one_line", "read_picture", "resize", "resize_matrix", "save_image", "to_pil"]

AVIF = {".avif": "AVIF"} if features.check("avif") else {}  # a part of newer Pillows only
READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", *AVIF.values())
PIXEL_LIMIT = 89_478_485  # Pillow's own warning level
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
MODES = {"L": "grey", "LA": "grey with alpha", "RGB": "colour", "RGBA": "colour with alpha", "I;16": "16-bit grey"}
FORMATS: dict[str, frozenset[str]] = {  # what each format holds without losing a channel or depth
    "PNG": frozenset(MODES),
    "JPEG": frozenset({"L", "RGB"}),
    "WEBP": frozenset({"L", "LA", "RGB", "RGBA"}),
    "TIFF": frozenset(MODES),
    "BMP": frozenset({"L", "RGB"}),
    "AVIF": frozenset({"L", "LA", "RGB", "RGBA"}),
}
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    **AVIF,
}
_lock = threading.Lock()  # Python's warning filters are one per process


@dataclass(frozen=True)
class Picture:
    """One picture in memory: upright, in sRGB.

    The colour of transparent pixels is what the file holds, not premultiplied: whoever mixes neighbouring pixels weighs
    them by `alpha` first. `depth` is 16 only for grey that came with more than 8 bits; it is written back as such.
    """

    colour: Tensor  # (3, H, W) float32 in -1..1; grey has three equal channels
    alpha: Tensor | None = None  # (1, H, W) float32 in 0..1
    grey: bool = False
    depth: int = 8
    icc: bytes | None = None  # an sRGB profile, where the source was in colour and had a profile
    notes: tuple[str, ...] = ()  # what was converted, guessed or left out, one line each

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.colour.shape[-2]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.colour.shape[-1]


Source = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


def read_picture(source: Source, *, limit: int = PIXEL_LIMIT) -> Picture:
    """Read one picture.

    `source` is a path; a PIL image; an array (H, W) or (H, W, 1..4) of uint8, uint16 or floats in 0..1, its channels
    grey, grey and alpha, RGB or RGBA; or a float tensor (1 or 3, H, W) in -1..1. The EXIF orientation is applied, an
    ICC profile converted to sRGB, the first frame of several taken; `notes` says so. PIL modes I and I;16 are 16-bit
    grey, mode F is grey in 0..1, 16-bit colour files are read as 8-bit. Raises InputError, one line with the file's
    name, for whatever cannot be read or has more than `limit` pixels (for files, Pillow's own bound, twice
    `PIL.Image.MAX_IMAGE_PIXELS`, holds as well).
    """
    if isinstance(source, (str, Path, Image.Image)):
        with _opened(source) as (image, name):
            return _from_pil(image, name, limit)
    if isinstance(source, np.ndarray):
        return _from_array(source, limit)
    if isinstance(source, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return _from_tensor(source, limit)
    raise InputError(
        f"found a {type(source).__name__}, expected a path, PIL image, numpy array or tensor; pass one of these"
    )


def pictures_in(folder: str | Path) -> list[Path]:
    """The files in a folder, and in the folders in it, whose suffix is a picture's; in order."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def one_line(text: object) -> str:
    """A name or message on one printable line."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


@contextmanager
def _quiet() -> Generator[None]:
    """Keep Pillow's warnings from the user: what matters of them becomes an error or a note."""
    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def open_upright(source: str | Path | Image.Image, *, limit: int = PIXEL_LIMIT) -> Image.Image:
    """The pixels of a file or PIL image in their own mode: loaded, turned upright, the first frame of several.

    Raises InputError as `read_picture` does.
    """
    with _opened(source) as (image, name):
        return _loaded(image, name, limit, []).copy()


@contextmanager
def _opened(source: str | Path | Image.Image) -> Generator[tuple[Image.Image, str]]:
    """A picture with its header read, and its name, for the length of the block."""
    if isinstance(source, Image.Image):
        with _quiet():
            yield source, one_line(getattr(source, "filename", "")) or "PIL image"
        return
    path, name = Path(source), one_line(source)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder, expected a picture file; name a file inside it")
        if path.exists() and not path.is_file():
            raise InputError(f"{name}: is not a regular file; copy the picture to a file first")
        stream = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be opened ({one_line(reason)}); check the path and its permissions") from None
    with stream, _quiet():
        start = stream.read(16)
        if not start:
            raise InputError(f"{name}: the file is empty (0 bytes); copy or download it again")
        stream.seek(0)
        yield _open(stream, start, name), name


def _open(stream: io.BufferedReader, start: bytes, name: str) -> Image.Image:
    """Read a file's header only."""
    kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    try:
        return Image.open(stream, formats=READABLE)
    except Image.DecompressionBombError as error:
        pixels, most = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise _too_large(name, pixels, most) from None
    except UnidentifiedImageError:
        if kind is not None:
            raise InputError(f"{name}: the {kind} header is damaged or cut short; copy or download it again") from None
        raise InputError(f"{name}: is not a picture, expected one of {', '.join(READABLE)}; convert it first") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise _undecodable(name, error) from error


def _too_large(name: str, pixels: int, limit: int) -> InputError:
    return InputError(f"{name}: has {pixels:,} pixels, at most {limit:,} are read; shrink or crop it first")


def _undecodable(name: str, error: Exception) -> InputError:
    text = one_line(error) or type(error).__name__
    reason = "the file is cut short" if "truncated" in text.lower() else f"cannot be decoded ({text})"
    return InputError(f"{name}: {reason}; copy or download it again, or save it anew with another program")


def _check_size(name: str, width: int, height: int, limit: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name}: is {width} x {height} pixels, expected at least 1 x 1; pass a picture with pixels")
    if width * height > limit:
        raise _too_large(f"{name}: {width} x {height}", width * height, limit)


def _loaded(image: Image.Image, name: str, limit: int, notes: list[str]) -> Image.Image:
    _check_size(name, *image.size, limit)
    try:
        if not image.mode.startswith("I") and re.search(";16[BLN]", str(getattr(image, "tile", ""))):
            notes.append("16-bit colour: read as 8-bit")
        image.load()
        return _first_upright(image, notes)
    except Exception as error:  # decoders raise anything on damaged files
        raise _undecodable(name, error) from error


def _from_pil(image: Image.Image, name: str, limit: int) -> Picture:
    notes: list[str] = []
    image = _loaded(image, name, limit, notes)
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            values, depth, icc = _deep_grey(image, name, notes), 16, None
        else:
            plain, icc = to_srgb(image, notes)
            values, depth = _scaled(np.array(plain)), 8
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise _undecodable(name, error) from error
    return _picture(values, depth, icc, notes)


def _first_upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Apply the EXIF orientation, and note that there are more frames."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block must not cost the picture
        orientation = 1
        notes.append("the EXIF data is damaged: orientation not applied")
    upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    with suppress(Exception):
        if getattr(image, "is_animated", False):
            notes.append("animated or with several pages: only the first frame is used")
    return upright


def _deep_grey(image: Image.Image, name: str, notes: list[str]) -> Tensor:
    """(H, W, 1) in 0..1 of the modes that hold more than 8 bits of grey."""
    if image.info.get("icc_profile"):
        notes.append("the colour profile is not applied to 16-bit grey: taken as sRGB")
    if image.info.get("transparency") is not None:
        notes.append("the transparent level of 16-bit grey is left out")
    top = 1 if image.mode == "F" else 65535
    values = np.array(image if image.mode == "F" else image.convert("I"))
    return _in_range(torch.from_numpy(values)[..., None].float() / top, name, f"mode {image.mode} in 0..{top}", top)


def _in_range(values: Tensor, name: str, expected: str, scale: float = 1, low: float = 0) -> Tensor:
    """Values that may overshoot `low`..1 only by rounding, clamped."""
    least, most = (float(v) for v in values.aminmax())
    if not (least >= low - 1e-3 and most <= 1 + 1e-3):
        found = f"values from {least * scale:g} to {most * scale:g}"
        raise InputError(f"{name}: found {found}, expected {expected}; scale or clip the values first")
    return values.clamp(low, 1)


def _scaled(values: np.ndarray[Any, Any]) -> Tensor:
    """Unsigned integers (H, W) or (H, W, C) as float32 (H, W, C) in 0..1."""
    top = np.iinfo(values.dtype).max
    return torch.from_numpy(values.reshape(*values.shape[:2], -1).astype(np.float32)).div_(top)


def _picture(values: Tensor, depth: int, icc: bytes | None, notes: list[str]) -> Picture:
    """From (H, W, 1..4) float32 in 0..1: grey, grey and alpha, RGB, RGBA."""
    planes = values.permute(2, 0, 1)
    grey, alpha = len(planes) < 3, len(planes) in (2, 4)
    colour = (planes[:1] if grey else planes[:3]) * 2 - 1
    return Picture(
        colour=colour.expand(3, -1, -1).contiguous(),
        alpha=planes[-1:].clone() if alpha else None,
        grey=grey,
        depth=depth,
        icc=icc,
        notes=tuple(one_line(note) for note in notes),
    )


def _from_array(array: np.ndarray[Any, Any], limit: int) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise InputError(f"array: found shape {array.shape}, expected (H, W) or (H, W, 1..4); move the channels last")
    _check_size("array", array.shape[1], array.shape[0], limit)
    if array.dtype in (np.uint8, np.uint16):
        values = _scaled(array)
    elif np.issubdtype(array.dtype, np.floating):
        values = torch.from_numpy(array.reshape(*array.shape[:2], -1).astype(np.float32))
        values = _in_range(values, "array", "floats in 0..1")
    else:
        raise InputError(f"array: found {array.dtype}, expected uint8, uint16 or floats in 0..1; convert it first")
    deep = array.dtype == np.uint16 and values.shape[2] == 1
    return _picture(values, 16 if deep else 8, None, [])


def _from_tensor(tensor: Tensor, limit: int) -> Picture:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(f"tensor: found shape {tuple(tensor.shape)}, expected one picture (1 or 3, H, W) in -1..1")
    if not tensor.is_floating_point():
        raise InputError(
            f"tensor: found {tensor.dtype}, expected floats in -1..1; divide uint8 by 127.5 and subtract 1"
        )
    _check_size("tensor", tensor.shape[2], tensor.shape[1], limit)
    values = _in_range(tensor.detach().cpu().float(), "tensor", "floats in -1..1", low=-1)
    return Picture(values.expand(3, -1, -1).clone(), grey=tensor.shape[0] == 1)


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a PIL image, mode L, LA, RGB, RGBA or I;16 (grey of depth 16 without alpha).

    Rounded half to even after clamping; grey is the mean of the three channels. Raises NonFinite for NaN or infinity.
    """
    if not bool(torch.isfinite(picture.colour).all()):
        raise NonFinite("found NaN or infinity in a picture, expected numbers; run again in float32")
    colour = picture.colour.mean(dim=0, keepdim=True) if picture.grey else picture.colour
    planes = (colour.float().cpu() / 2 + 0.5).clamp(0, 1)
    if picture.grey and picture.depth == 16 and picture.alpha is None:
        return Image.fromarray((planes[0] * 65535).round().numpy().astype(np.uint16))
    if picture.alpha is not None:
        planes = torch.cat([planes, picture.alpha.float().cpu().clamp(0, 1)])
    array = (planes * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(planes)]
    image = Image.fromarray(array[..., 0] if mode == "L" else array)
    assert image.mode == mode
    if picture.icc and not picture.grey:
        image.info["icc_profile"] = picture.icc
    return image


def check_output(path: str | Path, mode: str | None = None, *, overwrite: bool = False) -> str:
    """Pillow's name of the format for `path`; InputError, before any work, for what `save_image` would refuse."""
    path, name = Path(path), one_line(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{name}: found suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}; choose one of these"
        )
    if mode is not None and mode not in FORMATS[kind]:
        known = MODES.get(mode, f"mode {mode}")
        raise InputError(f"{name}: {kind} cannot hold {known}; save as .png, or convert the picture first")
    if not os.path.isdir(path.parent):
        raise InputError(f"{name}: no such folder {one_line(path.parent)}; make it first")
    if os.path.isdir(path):
        raise InputError(f"{name}: is a folder, expected a file name; add one")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{name}: exists already; choose another name or allow overwriting")
    return kind


def save_image(image: Image.Image, path: str | Path, *, overwrite: bool = False, quality: int = 95) -> Path:
    """Write an image whole or not at all: to a new file in the same folder, which then takes the name.

    The suffix chooses the format; `quality` (1..100) is for JPEG, WebP and AVIF. The colour profile in `image.info` of
    a colour image is kept (BMP holds none); EXIF with its orientation and place and all other metadata are left out.
    Raises InputError for alpha or 16 bits in a format without them, an unknown suffix, a missing folder, a full disk
    and, without `overwrite`, an existing file.
    """
    kind, path = check_output(path, image.mode, overwrite=overwrite), Path(path)
    plain = image.copy()
    plain.info = {}
    options: dict[str, Any] = {"quality": quality} if kind in ("JPEG", "WEBP", "AVIF") else {}
    if image.mode in ("RGB", "RGBA") and image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
    part = path.parent / f".enlarger-{uuid.uuid4().hex}.part"
    try:
        with part.open("xb") as stream:
            plain.save(stream, format=kind, **options)
            stream.flush()
            os.fsync(stream.fileno())
        _take_name(part, path, overwrite)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{one_line(path)}: cannot be written ({one_line(error)}); check space, size and permissions"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _take_name(part: Path, path: Path, overwrite: bool) -> None:
    """Rename; without `overwrite` through a hard link, which fails if another process made the file meanwhile."""
    if not overwrite:
        try:
            os.link(part, path)
            return
        except FileExistsError:
            raise InputError(f"{one_line(path)}: exists already; choose another name or allow overwriting") from None
        except OSError:  # a file system without hard links
            check_output(path)
    os.replace(part, path)
