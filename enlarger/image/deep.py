"""Colour, and grey with alpha, of 16 bits for each channel: Pillow holds 8, so that the others are carried beside it.

Read and written in PNG and TIFF by libpng and libtiff, through imagecodecs. Without torch.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from enlarger.image.hdr import (
    ASSOCIATED,
    BITS,
    EXTRA,
    FORMAT,
    GREY,
    PHOTOMETRIC,
    PLANAR,
    RGB,
    UNASSOCIATED,
    Samples,
    channels_last,
    in_srgb_primaries,
    is_wide,
    read_values,
    to_samples,
    tone_mapped,
    without_alpha_in_colour,
)

DEEP_SUFFIX = ";16"  # of the names of their modes: LA;16, RGB;16, RGBA;16
DEEP_FORMATS = ("PNG", "TIFF")
PNG_LEVEL = 3  # of 9; higher takes far longer for a few percent
_EIGHT_BIT_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}
_TIFF_SAMPLES = {"LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4}
for _order in (b"II", b"MM"):  # Pillow's table of layouts lacks grey with alpha of 16 bits
    for _extra in (ASSOCIATED, UNASSOCIATED):
        TiffImagePlugin.OPEN_INFO.setdefault((_order, GREY, (1,), 1, (16, 16), (_extra,)), ("LA", "LA;16B"))


class DeepImage(Image.Image):
    """An image of mode LA, RGB or RGBA with its 16-bit `samples`; what Pillow's methods make of it has 8 bits."""

    samples: Samples

    @classmethod
    def from_samples(cls, samples: Samples, info: Mapping[Any, Any] | None = None) -> "DeepImage":
        """The image of samples (H, W, 2..4); its 8-bit pixels are these, rounded."""
        pixels, image = Image.fromarray(_rounded(samples)), cls()
        image.im, image._mode, image._size = pixels.im, _EIGHT_BIT_MODES[samples.shape[2]], pixels.size
        image.samples, image.info = samples, dict(info or {})
        return image

    def copy(self) -> "DeepImage":
        """With all bits."""
        return self.from_samples(self.samples.copy(), self.info)

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As `Image.save`; PNG and TIFF files get all bits."""
        named = fp if isinstance(fp, str | Path) else getattr(fp, "name", "")
        suffix = Path(named).suffix.lower() if isinstance(named, str | Path) else ""
        format_name = (format or Image.registered_extensions().get(suffix, "")).upper()
        if format_name not in DEEP_FORMATS:
            super().save(fp, format, **params)
        elif isinstance(fp, str | Path):
            with open(fp, "wb") as stream:
                write_deep(self, stream, format_name, params)
        else:
            write_deep(self, fp, format_name, params)


def _rounded(samples: Samples) -> "np.ndarray[Any, Any]":
    """Samples of 16 bits in 8."""
    rounded = np.empty(samples.shape, np.uint8)
    for row in range(len(samples)):  # what is wider is wide for one row
        rounded[row] = (samples[row].astype(np.uint32) + 128) // 257
    return rounded


def in_eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit image, grey or a `DeepImage`, rounded."""
    if isinstance(image, DeepImage):
        return image.convert(image.mode)
    grey = Image.fromarray(_rounded(np.asarray(image)))
    grey.info = dict(image.info)
    return grey


def load_codecs() -> None:
    """Load the libraries now, for a process that can load nothing later."""
    import imagecodecs

    image = DeepImage.from_samples(np.zeros((1, 1, 3), np.uint16))
    for format_name, decode in (("PNG", imagecodecs.png_decode), ("TIFF", imagecodecs.tiff_decode)):
        stream = io.BytesIO()
        image.save(stream, format_name)
        decode(stream.getvalue())
    imagecodecs.cms_transform(image.samples, *[imagecodecs.cms_profile("srgb")] * 2, colorspace="rgb")


def mode_of(image: Image.Image) -> str:
    """The mode of an image; RGB;16 and so on for the deep ones."""
    return f"{image.mode}{DEEP_SUFFIX}" if isinstance(image, DeepImage) else image.mode


def deep_mode(image: Image.Image) -> str | None:
    """The mode that an opened file's pixels have with all their bits, if that is a deep one; from its header."""
    if isinstance(image, DeepImage):
        return image.mode
    if image.format == "PNG":
        tiles: Any = getattr(image, "tile", ())
        raw_modes = (str(tile[3]) for tile in tiles)
        mode = next((raw.removesuffix(";16B") for raw in raw_modes if raw.endswith(";16B")), "")
        has_level = mode == "RGB" and "transparency" in image.info
        return "RGBA" if has_level else mode if mode in _TIFF_SAMPLES else None
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    is_colour = image.mode in _TIFF_SAMPLES and tags.get(PHOTOMETRIC) in (GREY, RGB)
    is_deep = set(tags.get(BITS, ())) == {16} and set(tags.get(FORMAT, (1,))) == {1}
    mode = "RGB" if image.mode == "RGBX" else image.mode
    if is_wide(image):
        return mode if mode in _TIFF_SAMPLES else None
    return mode if is_colour and is_deep and len(tags[BITS]) == _TIFF_SAMPLES[image.mode] else None


def read_hdr(image: Image.Image, data: bytes, notes: list[str], tone_map: bool = False) -> Image.Image:
    """The pixels of an opened file that `is_hdr` in 16 bits, grey in mode I;16.

    Where they go beyond what a display shows, they are scaled with a note, or all are mapped by `tone_map`. Raises
    whatever libtiff raises on damaged files, and InputError for a picture without a single number.
    """
    if is_wide(image):
        values, most = read_values(image, data)
    else:
        values, most = np.array(image)[..., None], 1 if image.mode == "F" else 65535
    if tone_map:
        values = in_srgb_primaries(values, image.info.get("icc_profile"), notes)
    samples = tone_mapped(values, most) if tone_map else to_samples(values, most, notes)
    info = {key: value for key, value in image.info.items() if not (tone_map and key == "icc_profile")}
    notes += ["tone-mapped"] if tone_map else []
    if samples.shape[2] > 1:
        return DeepImage.from_samples(samples, info)
    grey = Image.fromarray(samples[..., 0])
    grey.info |= info
    return grey


def read_deep(image: Image.Image, data: bytes) -> DeepImage | None:
    """The pixels of an opened file with all their bits, as they are stored; None where they cannot be read so."""
    import imagecodecs

    info = {key: value for key, value in image.info.items() if key != "transparency"}  # that is alpha now
    with suppress(Exception):  # codecs raise anything on damaged files; Pillow then says what is wrong
        if image.format == "PNG":
            return DeepImage.from_samples(imagecodecs.png_decode(data), info)
        samples = imagecodecs.tiff_decode(data, index=image.tell())
        tags: Any = getattr(image, "tag_v2", {})
        samples = channels_last(samples, tags.get(PLANAR))
        if image.mode == "RGBX":
            samples = samples[..., :3]
        elif ASSOCIATED in tags.get(EXTRA, ()):
            divided = without_alpha_in_colour(samples, 65535)
            samples = divided.round().clip(0, 65535).astype(np.uint16)
        return DeepImage.from_samples(np.ascontiguousarray(samples), info)
    return None


def transpose_deep(image: DeepImage, method: Image.Transpose) -> DeepImage:
    """The image flipped or turned, as `Image.transpose` does."""
    samples = image.samples
    turned = {
        Image.Transpose.FLIP_LEFT_RIGHT: samples[:, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: samples[::-1],
        Image.Transpose.ROTATE_90: np.rot90(samples, 1),
        Image.Transpose.ROTATE_180: samples[::-1, ::-1],
        Image.Transpose.ROTATE_270: np.rot90(samples, 3),
        Image.Transpose.TRANSPOSE: samples.swapaxes(0, 1),
        Image.Transpose.TRANSVERSE: samples[::-1, ::-1].swapaxes(0, 1),
    }[method]
    return DeepImage.from_samples(np.ascontiguousarray(turned), image.info)


def write_deep(image: DeepImage, stream: BinaryIO, format_name: str, options: Mapping[str, Any]) -> None:
    """Write a PNG or TIFF with all bits; `options` are those that Pillow takes."""
    if format_name == "PNG":
        _write_png(image, stream, options)
    else:
        _write_tiff(image, stream, options)


def _write_png(image: DeepImage, stream: BinaryIO, options: Mapping[str, Any]) -> None:
    """libpng's file of the pixels, with the chunks of metadata that Pillow writes for such a picture."""
    import imagecodecs

    small, pixel = io.BytesIO(), Image.new(image.mode, (1, 1))
    pixel.info = image.info
    pixel.save(small, "PNG", **options)
    level = options.get("compress_level", PNG_LEVEL)
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(image.samples), level=level))
    start = len(b"\x89PNG\r\n\x1a\n") + 12 + 13  # the signature, and the header's chunk
    stream.write(data[:start])
    for kind, chunk in _chunks(small.getvalue()):
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            stream.write(chunk)
    stream.write(memoryview(data)[start:])


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        yield png[start + 4 : start + 8], png[start:end]
        start = end


def _write_tiff(image: DeepImage, stream: BinaryIO, options: Mapping[str, Any]) -> None:
    """One strip without compression, under the tags that Pillow writes."""
    given: Any = options.get("tiffinfo")
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2() if given is None else given
    height, width, count = image.samples.shape
    is_grey, has_alpha = count == 2, count in (2, 4)
    values = {
        256: width, 257: height, BITS: (16,) * count, 259: 1, PHOTOMETRIC: GREY if is_grey else RGB,
        273: 0, 277: count, 278: height, 279: image.samples.nbytes, 284: 1, FORMAT: (1,) * count,
    }  # fmt: skip
    if has_alpha:
        values[EXTRA] = UNASSOCIATED
    for tag, value in values.items():
        tags[tag] = value
    if (dpi := options.get("dpi")) is not None:
        tags[282], tags[283], tags[296] = dpi[0], dpi[1], 2
    if profile := options.get("icc_profile", image.info.get("icc_profile")):
        tags.tagtype[34675] = 7
        tags[34675] = profile
    end: int = tags.save(stream)
    stream.seek(end)
    stream.write(np.ascontiguousarray(image.samples, "<u2").tobytes())
