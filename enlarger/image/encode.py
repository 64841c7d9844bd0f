"""Writing pictures to files: whole or not at all, and nothing lost that the format does not hold. Without torch."""

import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, get_args

from PIL import Image, ImageColor

from enlarger.errors import InputError
from enlarger.field_types import check_type
from enlarger.image.atomic_write import atomic_write
from enlarger.image.decode import AVIF_FORMATS, one_line, open_upright
from enlarger.image.deep import DEEP_FORMATS, DEEP_SUFFIX, in_eight_bits, mode_of
from enlarger.image.generation import Json, add_generation
from enlarger.image.metadata import Strip, save_options, with_unique_id

MODE_NAMES = {"L": "grey", "LA": "grey with alpha", "RGB": "colour", "RGBA": "colour with alpha", "I;16": "16-bit grey"}
DEEP_NAMES = {"LA;16": "16-bit grey with alpha", "RGB;16": "16-bit colour", "RGBA;16": "16-bit colour with alpha"}
SIXTEEN_BITS = {"I;16": MODE_NAMES["I;16"], **DEEP_NAMES}
FORMAT_MODES: dict[str, frozenset[str]] = {  # what each format holds without losing a channel or depth
    "PNG": frozenset(MODE_NAMES),
    "JPEG": frozenset({"L", "RGB"}),
    "WEBP": frozenset({"L", "LA", "RGB", "RGBA"}),
    "TIFF": frozenset({*MODE_NAMES, "CMYK"}),
    "BMP": frozenset({"L", "RGB"}),
    "AVIF": frozenset({"L", "LA", "RGB", "RGBA"}),
    "GIF": frozenset({"L", "LA", "RGB", "RGBA"}),
}
MAX_SIDES = {
    "JPEG": 65_500,
    "WEBP": 16_383,
    "AVIF": 65_536,
    "BMP": 2**31 - 1,
}  # pixels, by the libraries that write them
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".apng": "PNG",
    **AVIF_FORMATS,
}
FRAME_SUFFIXES = SUFFIXES | {".gif": "GIF"}  # of files with every frame: of one alone GIF would keep 256 colours


def check_side(format_name: str, size: tuple[int, int], name: str = "result") -> None:
    """Raise InputError for a picture of `size` (either order) with a longer side than its format holds."""
    most = MAX_SIDES.get(format_name)
    if most is not None and max(size) > most:
        found = f"has a side of {max(size):,} pixels, {format_name} holds at most {most:,}"
        raise InputError(f"{name}: {found}; save as PNG, or make it smaller")


def check_output(
    path: str | Path,
    mode: str | None = None,
    size: tuple[int, int] | None = None,
    *,
    overwrite: bool = False,
    suffixes: Mapping[str, str] = SUFFIXES,
) -> str:
    """Pillow's name of the format for `path`; InputError, before any work, for what `save_image` would refuse.

    `mode` and `size` are the picture's, as far as they are known.
    """
    path, name = Path(path), one_line(path)
    format_name = suffixes.get(path.suffix.lower())
    if format_name is None:
        raise InputError(
            f"{name}: found suffix {path.suffix!r}, expected one of {', '.join(suffixes)}; choose one of these"
        )
    held = mode
    if mode in SIXTEEN_BITS:  # what has too many bits is rounded
        held = mode if mode in FORMAT_MODES[format_name] else mode.replace("I;16", "L").removesuffix(DEEP_SUFFIX)
    if mode is not None and held not in FORMAT_MODES[format_name]:
        mode_name = (MODE_NAMES | DEEP_NAMES).get(mode, f"mode {mode}")
        way_out = "save as .png, or convert the picture first"
        if mode == "CMYK":
            mode_name, way_out = "CMYK here", "save as .tif, or leave it in RGB"
        elif "alpha" in mode_name:
            way_out = "save as .png, or give a background such as white"
        raise InputError(f"{name}: {format_name} cannot hold {mode_name}; {way_out}")
    if size is not None:
        check_side(format_name, size, name)
    if not os.path.isdir(path.parent):
        raise InputError(f"{name}: no such folder {one_line(path.parent)}; make it first")
    if os.path.isdir(path):
        raise InputError(f"{name}: is a folder, expected a file name; add one")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{name}: exists already; choose another name or allow overwriting")
    return format_name


def check_saving(quality: int, strip: Strip) -> None:
    """Raise InputError for a quality outside 1 to 100, and for what is no word of `Strip`."""
    check_type("quality", quality, int)
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}, expected 1 to 100")
    if strip not in get_args(Strip):
        raise InputError(f"strip is {strip!r}, expected one of {', '.join(get_args(Strip))}")


def check_background(background: str | None) -> None:
    """Raise InputError for a background that is no colour."""
    if background is not None:
        _colour(background)


def _colour(background: str) -> tuple[int, ...]:
    try:
        colour = ImageColor.getrgb(background)
        if len(colour) > 3 and colour[3] != 255:
            raise ValueError("transparent")
        return colour[:3]
    except ValueError as error:
        raise InputError(
            f"background is {one_line(background)!r}, expected a colour such as white or #102030"
        ) from error


def is_opaque(image: Image.Image) -> bool:
    """Whether no pixel shows what is under it."""
    shown = image.convert("RGBA") if "A" not in image.getbands() else image  # of a palette or a transparent colour
    return shown.getchannel("A").getextrema()[0] in (255, 65535)


def flattened_mode(mode: str, source: str | Path, path: str | Path, background: str | None) -> str:
    """The mode in which a picture of a file is written to `path`: without alpha where that is opaque, or a background
    is there, and the format holds none."""
    plain = mode.removesuffix(DEEP_SUFFIX)
    if plain not in ("LA", "RGBA") or plain in FORMAT_MODES.get(SUFFIXES.get(Path(path).suffix.lower(), ""), (plain,)):
        return mode
    is_flat = background is not None or is_opaque(open_upright(source))
    return plain.removesuffix("A") if is_flat else mode


def flatten(image: Image.Image, path: str | Path, background: str | None = None) -> Image.Image:
    """The image as the format of `path` holds it, see `flatten_for`."""
    return flatten_for(SUFFIXES.get(Path(path).suffix.lower(), ""), image, background)


def flatten_for(format_name: str, image: Image.Image, background: str | None = None) -> Image.Image:
    """The image as a format holds it: opaque alpha is left out without a word, transparent parts have the `background`
    under them. Without one, and where the format holds alpha, that stays. 16 bits are rounded where it holds 8."""
    if mode_of(image) in SIXTEEN_BITS and format_name in FORMAT_MODES and format_name not in DEEP_FORMATS:
        image = in_eight_bits(image)
    if image.mode not in ("LA", "RGBA") or image.mode in FORMAT_MODES.get(format_name, (image.mode,)):
        return image
    if is_opaque(image):
        flat = image.convert(image.mode.removesuffix("A"))
    elif background is None:
        return image
    else:
        under = Image.new("RGBA", image.size, (*_colour(background), 255))
        flat = Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    flat.info = dict(image.info)
    return flat


def save_image(
    image: Image.Image,
    path: str | Path,
    *,
    overwrite: bool = False,
    quality: int = 95,
    strip: Strip = "none",
    generation: Json | None = None,
    background: str | None = None,
) -> Path:
    """Write an image whole or not at all: to a new file in the same folder, which then takes the name.

    The suffix chooses the format; `quality` (1..100) is for JPEG, WebP and AVIF. The colour profile in `image.info` of
    a colour image is kept (BMP holds none), and so are EXIF, XMP, IPTC, resolution and texts that `read_picture` found,
    but for what `strip` names; what the format cannot hold is said in a warning. All other metadata are left out.
    `generation` says how the picture was made, see `image.generation`; its "fingerprint", 32 hexadecimal digits,
    becomes the EXIF tag ImageUniqueID. Neither is in a BMP, nor where all is stripped. It says the `background` too,
    which lies under what is transparent where the format holds no alpha; alpha that is opaque is left out there.
    16 bits are rounded, with a warning, where the format holds 8. Raises InputError for transparent parts in a format
    without alpha, an unknown suffix, a missing folder, a full disk and, without `overwrite`, an existing file.
    """
    check_saving(quality, strip)
    check_background(background)
    mode, image, path = mode_of(image), flatten(image, path, background), Path(path)
    format_name = check_output(path, mode_of(image), image.size, overwrite=overwrite)
    if mode in SIXTEEN_BITS and format_name not in DEEP_FORMATS:
        warnings.warn(f"{format_name} holds 8 bits: the {SIXTEEN_BITS[mode]} is rounded", stacklevel=2)
    if generation:
        under = {} if background is None else {"background": background}
        ink = {"cmyk": True} if image.mode == "CMYK" else {}
        generation = generation | {"file": {"quality": quality, "strip": strip, **under, **ink}}
    options, notes = file_options(image, format_name, strip, generation)
    options |= {"quality": quality} if format_name in ("JPEG", "WEBP", "AVIF") else {}
    for note in notes:
        warnings.warn(note, stacklevel=2)
    with write_whole(path, overwrite=overwrite) as stream:
        write_image(image, stream, format_name, options)
    return path


@contextmanager
def write_whole(path: Path, *, overwrite: bool) -> Generator[BinaryIO]:
    """A stream as `atomic_write` gives it; what cannot be written to it, or take its name, is an InputError."""
    try:
        with atomic_write(path, overwrite=overwrite) as stream:
            yield stream
    except FileExistsError:
        raise InputError(f"{one_line(path)}: exists already; choose another name or allow overwriting") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{one_line(path)}: cannot be written ({one_line(error)}); check space, size and permissions"
        ) from error


def file_options(
    image: Image.Image, format_name: str, strip: Strip = "none", generation: Json | None = None
) -> tuple[Json, tuple[str, ...]]:
    """Pillow's options that write what goes with a picture's pixels, and notes of what the format cannot hold."""
    info, notes = dict(image.info), tuple[str, ...]()
    if generation is not None and strip != "all":
        if "task" in generation:
            info, notes = add_generation(info, generation, format_name, image.size)
        if "fingerprint" in generation and format_name not in ("BMP", "GIF"):
            info["exif"] = with_unique_id(info.get("exif"), generation["fingerprint"])
    options, lost = save_options(info, format_name, image.size, strip)
    if image.mode in ("RGB", "RGBA", "CMYK") and image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
        lost += ("BMP holds no colour profile: left out",) if format_name == "BMP" else ()
    return options, notes + lost


def write_image(image: Image.Image, stream: BinaryIO, format_name: str, options: Mapping[str, Any]) -> None:
    """Write pixels, and of metadata what the options say."""
    bare = image.copy()
    bare.info = {}
    bare.save(stream, format=format_name, **options)
