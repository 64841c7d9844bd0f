"""The decoder process: turns one uploaded file at a time into a PNG of our own writing. It imports no torch.

One JSON object per line. In: {"source", "out", "most", "name", "seconds", "kind": "picture" | "mask" | "alpha", "fit",
"size", "mode", "resize"}. Out: {"ready": true} once, then {"ok": {...}} or {"fault": {...}} for each.
"""

import errno
import hashlib
import json
import math
import os
import resource
import signal
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from enlarger.colour import srgb_profile, to_srgb
from enlarger.errors import InputError
from enlarger.opening import READABLE, Unreadable, Why, check_size, loaded, one_line, opened
from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.pictures.masks import Fit, fitted, mask_of_picture, read_mask, resized_mask

CODES: dict[Why, str] = {
    "missing": "image_file_not_found",
    "empty": "empty_image_file",
    "unknown": "invalid_image_format",
    "damaged": "image_parse_error",
    "small": "image_too_small",
    "large": "image_too_large",
}
FOREIGN = {  # what files start with that are known, and that are not read
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"8BPS": "a Photoshop file",
    b"SIMPLE  =": "a FITS file",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\0\0\1\0": "an icon file",
    b"\xff\x0a": "a JPEG XL file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
}
BRANDS = {b"heic": "a HEIC photo", b"heix": "a HEIC photo", b"mif1": "a HEIF photo", b"avif": "an AVIF picture"}
MOST_CHUNKS = 1000  # of a PNG, those with pixels not counted
TEXT = 4 << 20  # bytes of text in a PNG, unpacked
START = 64  # bytes that say what a file is
PROFILE = 1 << 20  # bytes of a colour profile that Pillow reads back from a PNG
CONVERTED = ("CMYK", "LAB", "YCbCr", "HSV")  # modes that a PNG does not hold
BASE_MEMORY, PIXEL_MEMORY = 1 << 30, 24  # bytes of address space: the process, and each pixel


@dataclass(frozen=True)
class Pixels:
    """What is written: an image in a mode that PNG holds, and the colour profile that goes with it."""

    image: Image.Image
    profile: bytes | None = None

    @property
    def transparent(self) -> bool:
        """Whether any pixel is less than opaque."""
        mode = self.image.mode
        return mode in ("LA", "RGBA") and int(np.asarray(self.image.getchannel("A")).min()) < 255


def decode(ask: Mapping[str, Any]) -> dict[str, Any]:
    """Do what one message asks. Raises Refused and InputError."""
    source, name, notes = Path(ask["source"]), str(ask["name"]), list[str]()
    _check_start(source, name, ask["most"])
    with opened(source, name) as (image, _):
        check_size(name, *image.size, ask["most"])
        kind = "JPEG" if image.format == "MPO" else image.format  # several JPEGs in one file, as phones make
        upright = loaded(image, name, ask["most"], notes)
        pixels = _wanted(upright, ask, kind == "JPEG", notes)
        original, fit = pixels.image.size, ask["fit"]
        if fit is not None:
            pixels = Pixels(fitted(pixels.image, Fit.from_json(fit)), pixels.profile)
    _write(pixels, Path(ask["out"]))
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "width": pixels.image.width,
        "height": pixels.image.height,
        "format": kind,
        "mode": pixels.image.mode,
        "notes": [one_line(note) for note in notes],
        "sha256": digest,
        "transparent": pixels.transparent,
        "original": original,
    }


def clean(image: Image.Image, name: str, notes: list[str]) -> Pixels:
    """The pixels of a loaded image as PNG holds them: unconverted where it can, in sRGB where it cannot.

    All that will be done with the colour profile is done here once, so that what fails on it fails here.
    """
    profile = image.info.get("icc_profile") or None
    if _is_deep(image):
        return Pixels(_sixteen_bits(image, name, notes), profile if profile and len(profile) <= PROFILE else None)
    tried: list[str] = []
    plain, used = to_srgb(image, tried)
    large = profile is not None and len(profile) > PROFILE
    if image.mode in CONVERTED or large:
        notes += tried
        return Pixels(plain, srgb_profile() if large and used else used)
    if any("cannot be used" in note for note in tried):
        notes += tried
        profile = None
    return Pixels(_expanded(image), profile)


def _wanted(image: Image.Image, ask: Mapping[str, Any], lossy: bool, notes: list[str]) -> Pixels:
    """What a message asks to be made of a picture: its pixels, or a mask."""
    name: str = ask["name"]
    if ask["kind"] == "picture":
        return clean(image, name, notes)
    if ask["kind"] == "alpha":
        return Pixels(mask_of_picture(image, name))
    if _is_deep(image):
        image = Image.fromarray(((np.asarray(_sixteen_bits(image, name, notes), np.uint32) + 128) // 257).astype("u1"))
    mask = read_mask(image, ask["mode"], notes, lossy=lossy, param=name)
    return Pixels(resized_mask(mask, tuple(ask["size"]), ask["resize"], notes, name))


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _sixteen_bits(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Grey of more than 8 bits as I;16. Raises Refused for values outside of what its mode may hold."""
    if image.info.get("transparency") is not None:
        notes.append("the transparent level of 16-bit grey is left out")
    top = 1 if image.mode == "F" else 65535
    values = np.asarray(image if image.mode == "F" else image.convert("I"))
    low, high = float(values.min()) / top, float(values.max()) / top
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        text = f"{name}: found values from {low * top:g} to {high * top:g}, expected 0..{top} in mode {image.mode}"
        raise refuse(400, "invalid_image_mode", f"{text}; scale or clip the values first", name)
    if image.mode == "F":
        notes.append("floating-point grey: kept with 16 bits")
    return Image.fromarray((values.astype(np.float64) * (65535 / top)).round().clip(0, 65535).astype(np.uint16))


def _expanded(image: Image.Image) -> Image.Image:
    """L, LA, RGB or RGBA of the modes that hold the same colours otherwise: palettes, bits, a transparent colour."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return (image.convert("L") if image.mode == "1" else image).convert("LA" if grey else "RGBA")
    return image.convert("L" if grey else "RGB")


def _write(pixels: Pixels, out: Path) -> None:
    """Write a PNG without any metadata but the profile, whole or not at all."""
    part = out.with_name(f".{uuid.uuid4().hex}.part")
    plain = pixels.image.copy()
    plain.info = {}
    options = {} if pixels.profile is None else {"icc_profile": pixels.profile}
    try:
        plain.save(part, format="PNG", compress_level=1, **options)
        part.replace(out)
    except OSError as error:
        code = "storage_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "storage_failed"
        text = f"the service cannot write its files ({error.strerror}); its disk may be full"
        raise refuse(500, code, text) from error
    finally:
        part.unlink(missing_ok=True)


def _check_start(source: Path, name: str, most: int) -> None:
    """Refuse from a file's first bytes what Pillow would refuse later, or with less to say."""
    with source.open("rb") as stream:
        start = stream.read(START)
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_chunks(stream, name)
    kind = _foreign(start)
    if kind is not None:
        text = f"{name}: is {kind}, expected one of {', '.join(READABLE)}; convert it first"
        raise refuse(400, "unsupported_image_media_type", text, name)
    if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) >= 30:  # Pillow would make its canvas
        width, height = (int.from_bytes(start[k : k + 3], "little") + 1 for k in (24, 27))
        check_size(name, width, height, most)


def _check_chunks(stream: BinaryIO, name: str) -> None:
    """Refuse a PNG with more metadata than any program writes: Pillow reads each chunk before the size is known."""
    place, count = 8, 0
    while count <= MOST_CHUNKS:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            return
        place += 12 + int.from_bytes(head[:4], "big")
        count += head[4:] not in (b"IDAT", b"fdAT", b"fcTL")
    text = f"{name}: has more than {MOST_CHUNKS:,} pieces of metadata; save it anew with another program"
    raise refuse(400, "image_parse_error", text, name)


def _foreign(start: bytes) -> str | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start[4:8] == b"ftyp" and start[8:12] in BRANDS:
        kind = BRANDS[start[8:12]]
        return None if "AVIF" in kind and "AVIF" in READABLE else kind
    found = (kind for magic, kind in FOREIGN.items() if start.startswith(magic) or text.startswith(magic))
    return next(found, None)


def fault_of_decoding(error: Exception, name: str) -> Fault:
    """The fault of what decoding raised; what is not ours is named by its type alone."""
    if isinstance(error, Refused):
        return error.fault
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        text = f"{name}: takes more memory to decode than is allowed; shrink it, or save it anew with another program"
        return Fault(400, "image_parse_error", text, name)
    if isinstance(error, Unreadable):
        return Fault(400, CODES[error.why], str(error), name)
    if isinstance(error, InputError):
        return Fault(400, "invalid_image", str(error), name)
    kind = type(error).__name__
    text = f"{name}: cannot be decoded ({kind}); copy or download it again, or save it anew with another program"
    return Fault(400, "image_parse_error", text, name)


def answer(ask: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to one message. The process ends itself if this takes far longer than its parent waits."""
    signal.alarm(math.ceil(ask["seconds"]) + 5)
    try:
        return {"ok": decode(ask)}
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        return {"fault": fault_of_decoding(error, str(ask["name"])).to_json()}
    finally:
        signal.alarm(0)


def confine(pixels: int, cpu_seconds: int) -> None:
    """Take from this process what decoding does not need: memory, files, time, core dumps."""
    memory = BASE_MEMORY + PIXEL_MEMORY * pixels
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 5 * pixels + (16 << 20),  # a PNG that does not compress
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # lower already, or a system without it
            resource.setrlimit(limit, (value, value))


def main() -> None:
    """Answer messages until the input closes. Arguments: the most pixels of a picture, the most seconds of CPU."""
    out = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    Image.init()  # all formats now: reading the first file would load them
    Image.MAX_IMAGE_PIXELS = None  # sizes are checked by us, with the limit of the request
    PngImagePlugin.MAX_TEXT_MEMORY = TEXT
    confine(int(sys.argv[1]), int(sys.argv[2]))
    _say(out, {"ready": True})
    os.dup2(silent, 2)  # libraries write what files say there
    for line in sys.stdin.buffer:
        _say(out, answer(json.loads(line)))


def _say(out: Any, message: Mapping[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
