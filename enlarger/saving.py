"""Writing pictures to files: whole or not at all, and nothing lost that the format does not hold. Without torch."""

import os
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.errors import InputError
from enlarger.opening import AVIF, one_line

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
