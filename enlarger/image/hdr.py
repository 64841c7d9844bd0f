"""TIFF files of floating-point numbers, and of integers of over 16 bits: read, and brought to what a display shows.

They are read by libtiff, through imagecodecs, since Pillow has layouts for a few greys of them alone. Without torch.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from enlarger.errors import InputError

Values = np.ndarray[Any, Any]  # (H, W, 1..4) of any numbers
Samples = np.ndarray[Any, np.dtype[np.uint16]]  # (H, W, 1..4)
Unit = np.ndarray[Any, np.dtype[np.float64]]  # in 0..1
PHOTOMETRIC, BITS, EXTRA, FORMAT, PLANAR = 262, 258, 338, 339, 284  # TIFF tags
GREY_FROM_WHITE, GREY, RGB, ASSOCIATED, UNASSOCIATED, SEPARATE = 0, 1, 2, 1, 2, 2  # values of these
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WIDE = ((UNSIGNED, 32), (UNSIGNED, 64), (SIGNED, 16), (SIGNED, 32), (SIGNED, 64), (FLOAT, 16), (FLOAT, 32), (FLOAT, 64))
PILLOWS_GREYS = ((SIGNED, 32), (FLOAT, 32))  # that Pillow reads itself, and as they are meant
CHANNELS = {"F": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # of the modes that such files have
NOT_PILLOWS = "wide"  # stands where Pillow's layouts of pixels stand, and fails if Pillow tries
GROUND = 1e-4  # of the mean light: what is darker has no say in how bright a picture is
KEY = 0.18  # of a picture in the middle of the scale (Reinhard et al. 2002, section 3.1)
LUMINANCE = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


def _layouts() -> dict[Any, tuple[str, str]]:
    """What Pillow needs to read the headers, by the keys of its own table."""
    layouts = dict[Any, tuple[str, str]]()
    for order, (kind, bits) in product((b"II", b"MM"), WIDE):
        for grey in (GREY, GREY_FROM_WHITE):
            layouts[(order, grey, (kind,), 1, (bits,), ())] = ("F", NOT_PILLOWS)
        for extra in ((), (0,), (ASSOCIATED,), (UNASSOCIATED,)):
            has_alpha = extra not in ((), (0,))
            layout = (order, RGB, (kind,), 1, (bits,) * (3 + len(extra)), extra)
            layouts[layout] = ("RGBA" if has_alpha else "RGB", NOT_PILLOWS)
            if extra:
                layout = (order, GREY, (kind,), 1, (bits, bits), extra)
                layouts[layout] = ("LA" if has_alpha else "F", NOT_PILLOWS)
    return {layout: modes for layout, modes in layouts.items() if layout not in TiffImagePlugin.OPEN_INFO}


LAYOUTS = _layouts()


@contextmanager
def wide_headers() -> Generator[None]:
    """Let Pillow read the headers of such files within the block, and nobody else's Pillow after it.

    Its table is one for the process: whoever enters holds a lock.
    """
    table: dict[Any, tuple[str, str]] = TiffImagePlugin.OPEN_INFO
    table.update(LAYOUTS)
    try:
        yield
    finally:
        for layout in LAYOUTS:
            table.pop(layout, None)


def is_wide(image: Image.Image) -> bool:
    """Whether an opened file's pixels are such numbers, and not those that Pillow reads itself; from its header."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode not in CHANNELS or image.fp is None:
        return False
    tags = image.tag_v2
    kinds, bits = set(tags.get(FORMAT, (UNSIGNED,))), set(tags.get(BITS, (1,)))
    is_pillows = image.mode in ("F", "I") and len(tags.get(BITS, (1,))) == 1 and tags.get(PHOTOMETRIC) == GREY
    layouts = [one for one in WIDE if not (is_pillows and one in PILLOWS_GREYS)]
    return len(kinds) == len(bits) == 1 and (*kinds, *bits) in layouts


def is_hdr(image: Image.Image) -> bool:
    """Whether an opened file's numbers may go beyond what a display shows."""
    return is_wide(image) or image.mode in ("F", "I")


def read_values(image: Image.Image, data: bytes) -> tuple[Values, int]:
    """The numbers (H, W, C) of an opened file as they are stored, with alpha last if it has that, and what is white.

    Raises whatever libtiff raises on damaged files.
    """
    import imagecodecs

    values: Values = imagecodecs.tiff_decode(data, index=image.tell())
    tags: Any = getattr(image, "tag_v2", {})
    values = channels_last(values, tags.get(PLANAR))
    if sorted(values.shape[:2]) != sorted(image.size):  # Pillow has turned the size already
        raise OSError("its tags name two sizes")
    values = values[..., : CHANNELS[image.mode]]
    most = 1 if values.dtype.kind == "f" else 32767 if values.dtype == np.int16 else 65535
    if tags.get(PHOTOMETRIC) == GREY_FROM_WHITE:
        values = most - values.astype(np.float64)
    return without_alpha_in_colour(values, most) if ASSOCIATED in tags.get(EXTRA, ()) else values, most


def channels_last(values: Values, planar: int | None) -> Values:
    """What libtiff reads, (H, W), (H, W, C) or by the tag `planar` (C, H, W), as (H, W, C)."""
    if values.ndim == 2:
        return values[..., None]
    return np.moveaxis(values, 0, 2) if planar == SEPARATE else values


def without_alpha_in_colour(values: Values, most: int) -> Values:
    """Colours that were multiplied by their alpha, divided by it.

    What hardly covers anything, a glow, gets no brighter than the rest: one such pixel would set the picture's range.
    """
    divided, brightest = values.astype(np.float64), float(most)
    for row in divided:
        light = row[:, :-1] / np.maximum(row[:, -1:] / most, 0.5)
        brightest = float(light.max(initial=brightest, where=np.isfinite(light)))
    for row in divided:
        colour, alpha = row[:, :-1], row[:, -1:] / most
        colour[:] = np.divide(colour, alpha, where=alpha > 0, out=np.zeros_like(colour))
        np.minimum(colour, brightest, where=alpha < 0.5, out=colour)
    return divided


def to_samples(values: Values, most: int, notes: list[str]) -> Samples:
    """Numbers (H, W, 1..4) of 0 to `most` in 16 bits; the colours are scaled with a note where they go beyond.

    Raises InputError for a picture without a single number.
    """
    count = values.shape[2] - (values.shape[2] in (2, 4))
    samples = np.empty(values.shape, np.uint16)
    for part, said in ((slice(count), notes), (slice(count, None), list[str]())):
        if values[..., part].size:
            for i, row in enumerate(unit_rows(values[..., part], most, said)):
                samples[i, :, part] = (row * 65535).round()
    return samples


def unit_rows(values: Values, most: int, notes: list[str]) -> Iterator[Unit]:
    """Each row of numbers in 0..1, where `most` is 1; values beyond are scaled, with a note; NaN is lowest.

    Raises InputError for a picture without a single number.
    """
    low, high, missing = _range(values)
    if missing:
        notes.append(f"{missing} pixels are no numbers: taken as the lowest level, infinity as the highest")
    scale, offset = 1 / most, 0.0
    if low < -1e-3 * most or high > (1 + 1e-3) * most:
        notes.append(f"values from {low:g} to {high:g}, expected 0 to {most}: scaled to that")
        offset = min(low, 0)
        scale = 1 / (max(high, most) - offset)
    for row in values:
        numbers = np.nan_to_num(row.astype(np.float64), nan=low, posinf=high, neginf=low)
        yield ((numbers - offset) * scale).clip(0, 1)


def _range(values: Values) -> tuple[float, float, int]:
    """The lowest and the highest number, and how many pixels have none."""
    low, high, missing = np.inf, -np.inf, 0
    for row in values:
        is_number = np.isfinite(row)
        numbers = row[is_number]
        missing += int((~is_number.reshape(len(row), -1)).any(1).sum())
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    if low > high:
        raise InputError("found NaN or infinity in every pixel, expected numbers; save it anew")
    return low, high, missing


def in_srgb_primaries(values: Values, profile: bytes | None, notes: list[str]) -> Values:
    """Linear light (H, W, 1..4) of a profile's primaries as that of sRGB's; its tone curve has no say in light.

    A profile without primaries, of grey or of tables, is left out with a note.
    """
    if not profile:
        return values
    try:
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(read).strip()
        matrix = np.linalg.solve(_primaries(ImageCms.createProfile("sRGB")), _primaries(read.profile))  # pyright: ignore[reportUnknownArgumentType] - untyped C
        if values.shape[2] < 3:
            raise ValueError("grey has no primaries")
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        notes.append("tone mapping leaves out the colour profile, which tells no primaries: taken as sRGB's")
        return values
    if np.abs(matrix - np.eye(3)).max() < 1e-3:
        return values
    notes.append(f"converted from the primaries of the profile {name!r} to those of sRGB")
    light = values[..., :3]
    brightest = light.max(initial=0, where=np.isfinite(light))
    light = np.nan_to_num(light, nan=0, posinf=brightest, neginf=0)
    return np.concatenate([light @ matrix.T, values[..., 3:]], axis=2)


def _primaries(profile: Any) -> Unit:
    """CIE XYZ of a profile's red, green and blue, one in each column."""
    return np.array([profile.red_colorant[0], profile.green_colorant[0], profile.blue_colorant[0]], np.float64).T


def tone_mapped(values: Values, most: int) -> Samples:
    """Linear light (H, W, 1..4) as sRGB of 16 bits, bright parts pressed together and dark ones kept; alpha as it is.

    Source: Reinhard et al. 2002, "Photographic Tone Reproduction for Digital Images", equations 1, 2 and 4, with the
    brightest light as white; the curve is IEC 61966-2-1's. The mean is that of what is seen: neither of transparent nor
    of black ground, which would make the rest white.
    """
    count = values.shape[2] - (values.shape[2] in (2, 4))
    light = values[..., :count].astype(np.float64) / most
    _, brightest, _ = _range(light)
    light = np.nan_to_num(light, posinf=brightest).clip(0)
    luminance = light @ np.array(LUMINANCE if count == 3 else (1.0,))
    alpha = [to_samples(values[..., count:], most, [])] if count < values.shape[2] else []
    is_shown = alpha[0][..., 0] > 0 if alpha else np.ones(luminance.shape, bool)
    lit = luminance[is_shown & (luminance > 0)]
    seen = lit[lit > GROUND * np.exp(np.log(lit).mean())] if lit.size else luminance
    scaled = luminance * KEY / np.exp(np.log(seen + 1e-6).mean())
    white = max(float(scaled.max(initial=0, where=is_shown)), 1e-6)
    shown = scaled * (1 + scaled / white**2) / (1 + scaled)
    ratio = np.divide(shown, luminance, where=luminance > 0, out=np.zeros_like(luminance))
    mapped = (light * ratio[..., None]).clip(0, 1)
    curved = np.where(mapped <= 0.0031308, mapped * 12.92, 1.055 * mapped ** (1 / 2.4) - 0.055)
    return np.concatenate([(curved * 65535).round().astype(np.uint16), *alpha], axis=2)
