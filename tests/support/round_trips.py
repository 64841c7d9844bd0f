"""The way of a picture through files: every kind of file, pixels, profile and metadata, made here and read back.

The reference path never meets our code: pixels and profile as they were drawn, as CIELAB by Little CMS. What comes back
is compared with it by CIEDE2000.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import ExifTags, Image

from enlarger.errors import InputError
from enlarger.image.deep import DeepImage
from enlarger.image.metadata import read_file_metadata
from enlarger.image.picture import read_picture, save_image, to_pil
from tests.support.pictures import texture

Array = np.ndarray[Any, Any]
FORMATS = ("png", "tif", "webp", "jpg", "avif", "bmp")
LOSSY = {"webp": 2.5, "jpg": 2.5, "avif": 2.5}  # mean CIEDE2000 at quality 95
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "L;16": 1, "LA;16": 2, "RGB;16": 3, "RGBA;16": 4}
PROFILES = ("none", "srgb", "adobergb", "gamma 1.8")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description dc:title="a hill"/></rdf:RDF></x:xmpmeta>'
IPTC = b"\x1c\x02\x78\0\x06a hill"
MARGIN = 1.0  # CIEDE2000 that rounding to 8 bits after a conversion may cost
NARROW = (0.3127, 0.3290), (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white and primaries of sRGB


@dataclass(frozen=True)
class Cell:
    """One way: into a file of one kind and out into another, which is read back."""

    suffix_in: str
    suffix_out: str
    mode: str
    profile: str

    def __str__(self) -> str:
        return f"{self.mode} {self.profile}, {self.suffix_in} to {self.suffix_out}"


def cells() -> Iterator[Cell]:
    """All cells: the inputs that hold their pixels and profile, into every format."""
    for suffix_in, suffix_out, mode, profile in itertools.product(("png", "tif"), FORMATS, MODES, PROFILES):
        is_grey = mode.startswith("L")
        if not (is_grey and profile in ("srgb", "adobergb")):
            yield Cell(suffix_in, suffix_out, mode, profile)


def round_trip(cell: Cell, folder: Path) -> str | None:
    """What differs from what must be; None: all is as it must be, or was refused in one line, or said in a note."""
    values, profile = _pixels(cell.mode), profile_of(cell)
    source, out = folder / f"in.{cell.suffix_in}", folder / f"out.{cell.suffix_out}"
    _write(source, values, profile)
    picture = read_picture(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            save_image(to_pil(picture), out)
        except InputError as error:
            must_refuse = cell.suffix_out in ("jpg", "bmp") and "A" in cell.mode
            must_refuse |= cell.mode == "L;16" and cell.suffix_out not in ("png", "tif")
            return None if must_refuse else f"refused: {error}"
    notes = [str(warning.message) for warning in caught]
    found = read_picture(out)
    made, back = to_pil(found), _profile_in(out)
    difference = delta_e(values, profile, _array(made), found.icc_profile if back is None else back)
    most = LOSSY.get(cell.suffix_out, 0.0) + (0.0 if _is_kept(cell, values, made) else MARGIN)
    if cell.suffix_out == "bmp" and cell.profile == "adobergb":
        most = 100.0  # it holds no profile, which its note says
    if (measured := float(difference.mean())) > most:
        return f"CIEDE2000 {measured:.2f}, at most {most:g} expected"
    return _lost_in_silence(cell, out, notes)


def _is_kept(cell: Cell, values: Array, made: Image.Image) -> bool:
    """Whether every number must be the same, and is."""
    is_converted = cell.profile == "gamma 1.8"
    is_rounded = cell.mode.endswith(";16") and cell.suffix_out not in ("png", "tif")
    return not is_converted and not is_rounded and np.array_equal(_array(made)[..., :1], values[..., :1])


def _lost_in_silence(cell: Cell, out: Path, notes: list[str]) -> str | None:
    """What of the metadata is not in the file, and in no note either."""
    with Image.open(out) as image:
        about = read_file_metadata(image)
    text = " ".join(notes)
    for key, name in (("exif", "EXIF"), ("xmp", "XMP"), ("iptc", "IPTC"), ("dpi", "resolution")):
        is_there = key in about or (key == "iptc" and cell.suffix_in == "png")  # PNG holds no IPTC
        if not is_there and name not in text:
            return f"{name} is lost without a note"
    is_rounded = cell.mode.endswith(";16") and cell.suffix_out not in ("png", "tif")
    return "16 bits are lost without a note" if is_rounded and "8 bits" not in text else None


def _pixels(mode: str) -> Array:
    """(H, W, C): smooth colours, and saturated ones that sRGB does not hold of a wider space."""
    channels, is_deep = MODES[mode], mode.endswith(";16")
    values = texture(20, 14, 4).astype(np.uint16)
    values[:4, :4, :3], values[4:8, :4, :3] = (0, 255, 0), (255, 20, 0)
    planes = values[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    return (planes * 257 - planes // 3).astype(np.uint16) if is_deep else planes.astype(np.uint8)


@cache
def _make_profile(name: str, is_grey: bool) -> bytes:
    if is_grey:
        return imagecodecs.cms_profile("gray", whitepoint=NARROW[0], gamma=1.8)
    if name == "gamma 1.8":
        return imagecodecs.cms_profile("rgb", whitepoint=NARROW[0], primaries=NARROW[1], gamma=1.8)
    return imagecodecs.cms_profile(name)


def profile_of(cell: Cell) -> bytes | None:
    """The profile of the input."""
    return None if cell.profile == "none" else _make_profile(cell.profile, cell.mode.startswith("L"))


def _write(path: Path, values: Array, profile: bytes | None) -> None:
    exif = Image.Exif()
    exif[0x8298] = "(c) me"
    exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = "2020:01:02 03:04:05"
    image = _image(values)
    info = {"exif": exif.tobytes(), "xmp": XMP, "iptc": IPTC, "dpi": (300.0, 300.0)}
    image.info |= info | ({} if profile is None else {"icc_profile": profile})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if values.shape[2] < 3 and profile is not None:  # `save_image` writes none with grey
            image.save(path, icc_profile=profile, exif=exif, dpi=(300, 300), **_xmp(path))
        else:
            save_image(image, path)


def _xmp(path: Path) -> dict[str, Any]:
    from PIL import PngImagePlugin, TiffImagePlugin

    if path.suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return {"pnginfo": texts}
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x8298] = "(c) me"
    for tag, kind, value in ((700, 1, XMP), (33723, 7, IPTC)):
        tags.tagtype[tag], tags[tag] = kind, value
    return {"tiffinfo": tags}


def _image(values: Array) -> Image.Image:
    if values.shape[2] == 1:
        return Image.fromarray(values[..., 0])
    return DeepImage.from_samples(values) if values.dtype == np.uint16 else Image.fromarray(values)


def _array(image: Image.Image) -> Array:
    values = image.samples if isinstance(image, DeepImage) else np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def _profile_in(path: Path) -> bytes | None:
    with Image.open(path) as image:
        return image.info.get("icc_profile")


def delta_e(first: Array, first_profile: bytes | None, second: Array, second_profile: bytes | None) -> Array:
    """CIEDE2000 of the colours of two pictures, (H, W)."""
    return ciede2000(_lab(first, first_profile), _lab(second, second_profile))


def _lab(values: Array, profile: bytes | None) -> Array:
    colour = values[..., :1] if values.shape[2] < 3 else values[..., :3]
    samples = colour.astype(np.uint16) * (257 if colour.dtype == np.uint8 else 1)
    is_grey_profile = profile is not None and profile[16:20] == b"GRAY"
    if samples.shape[2] == 1 and not is_grey_profile:
        samples = samples.repeat(3, axis=2)
    used = _make_profile("srgb", False) if profile is None else profile
    space = "gray" if is_grey_profile else "rgb"
    intent, flags = imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC, imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION
    return imagecodecs.cms_transform(
        np.ascontiguousarray(samples[..., 0] if is_grey_profile else samples), used, imagecodecs.cms_profile("lab2"),
        colorspace=space, outcolorspace="lab", outdtype="float64", intent=intent, flags=flags,
    )  # fmt: skip


def ciede2000(first: Array, second: Array) -> Array:
    """Sharma, Wu and Dalal 2005, equations 2 to 22, with all three weights 1."""
    (light1, a1, b1), (light2, a2, b2) = (np.moveaxis(np.asarray(lab, float), -1, 0) for lab in (first, second))
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    turn = np.where(c1 * c2 == 0, 0, np.where(h2 - h1 == -180, -180, turn))
    light_step, chroma_step = light2 - light1, c2 - c1
    hue_step = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    light, c = (light1 + light2) / 2, (c1 + c2) / 2
    near = np.abs(h1 - h2) <= 180
    hue = np.where(near, (h1 + h2) / 2, (h1 + h2 + np.where(h1 + h2 < 360, 360, -360)) / 2)
    hue = np.where(c1 * c2 == 0, h1 + h2, hue)
    weights = [(-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63)]
    t = 1 + sum(factor * np.cos(np.radians(times * hue + shift)) for factor, times, shift in weights)
    light_scale = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    chroma_scale, hue_scale = 1 + 0.045 * c, 1 + 0.015 * c * t
    rotation = -2 * np.sqrt(c**7 / (c**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    x, y, z = light_step / light_scale, chroma_step / chroma_scale, hue_step / hue_scale
    return np.sqrt(np.maximum(x * x + y * y + z * z + rotation * y * z, 0))
