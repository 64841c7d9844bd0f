"""PIL images of every mode and colour profile become sRGB, or keep a wider space that they are in."""

import io
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

from enlarger.errors import InputError
from enlarger.image.deep import DeepImage, Samples
from enlarger.image.hdr import unit_rows

Grey = np.ndarray[Any, np.dtype[np.float64]]  # (H, W)
GAMUT_TOLERANCE = 650  # 16-bit steps that a way to sRGB and back may move a colour: one hundredth
CURVE_TOLERANCE = 24 * 257  # 16-bit steps that greys may lie from those of sRGB for the networks to take them so
D50 = (0.3457, 0.3585)
ROMM_PRIMARIES = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)


def to_srgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """An 8-bit image of any mode as L, LA, RGB or RGBA in sRGB, with the profile to embed.

    A wide gamut stays in a wide space, whose profile it then is.
    """
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        image = (image.convert("L") if image.mode == "1" else image).convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("CMYK", "LAB"):
        profile = image.info.get("icc_profile")
        image = image.convert("L" if grey else "RGB")
        image.info["icc_profile"] = profile
    image, icc = _convert_from_profile(image, notes)
    if image.mode == "LAB":
        image = (
            ImageCms.profileToProfile(image, _create_profile("LAB"), _create_profile("sRGB"), outputMode="RGB") or image
        )
    image = image.convert("L" if grey else "RGB")
    if alpha is not None:
        image.putalpha(alpha)
    return image, None if grey else icc


def _convert_from_profile(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """Convert L, RGB or CMYK from its embedded profile to sRGB, unless both agree within one step."""
    data = image.info.get("icc_profile")
    if not data or image.mode == "LAB":
        if image.mode == "CMYK":
            notes.append("CMYK without a colour profile: colours are approximate")
        return image, None
    try:
        mode = _profile_mode(data)
        convertible = image.convert("RGB") if (image.mode, mode) == ("L", "RGB") else image
        if convertible.mode != mode:
            raise ValueError(f"a {mode} profile in a {convertible.mode} picture")
        use, text = _use_of_profile(data)
        if use is ProfileUse.KEEP:
            notes += [text] if text else []
            return image, data
        target = wide_profile() if use is ProfileUse.WIDE else srgb_profile()
        converted = _transform(convertible, data, target)
    except Exception as error:  # noqa: BLE001 - damaged profiles raise anything
        notes.append(f"the colour profile cannot be used ({error}): taken as sRGB")
        return image, None
    notes.append(text)
    return converted, target


def deep_to_srgb(image: DeepImage, notes: list[str]) -> tuple[Samples, bytes | None]:
    """The 16-bit samples (H, W, 2..4) as `to_srgb` makes 8-bit images, with the profile to embed."""
    data, samples = image.info.get("icc_profile"), image.samples
    if not data:
        return samples, None
    try:
        is_grey, mode = samples.shape[2] == 2, _profile_mode(data)
        if is_grey != (mode == "L"):
            raise ValueError(f"a {mode} profile in a {image.mode} picture")
        use, text = _use_of_profile(data)
        if use is ProfileUse.KEEP and not is_grey:
            notes += [text] if text else []
            return samples, data
        target = wide_profile() if use is ProfileUse.WIDE else srgb_profile()
        colour = samples[..., :1] if is_grey else samples[..., :3]
        converted = transform_samples(colour, data, target)[..., : colour.shape[2]]
    except Exception as error:  # noqa: BLE001 - damaged profiles raise anything
        notes.append(f"the colour profile cannot be used ({error}): taken as sRGB")
        return samples, None
    notes.append(text)
    return np.concatenate([converted, samples[..., colour.shape[2] :]], axis=2), None if is_grey else target


def grey_to_srgb(grey: Grey, data: bytes, notes: list[str]) -> Grey:
    """Grey (H, W) in 0..1 of a profile as sRGB's, by 16 bits."""
    try:
        if _profile_mode(data) != "L":
            raise ValueError("a colour profile in a grey picture")
        use, text = _use_of_profile(data)
        if use is ProfileUse.KEEP:
            return grey
        samples = (grey * 65535).round().astype(np.uint16)[..., None]
        converted = transform_samples(samples, data, srgb_profile())[..., 0] / 65535
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        notes.append("the colour profile is not applied to 16-bit grey: taken as sRGB")
        return grey
    notes.append(text)
    return converted


class ProfileUse(Enum):
    """What is done with a picture's profile: its numbers are kept, with it; or brought to sRGB, or to a wide space."""

    KEEP = "keep"
    SRGB = "srgb"
    WIDE = "wide"


@lru_cache(maxsize=16)
def _use_of_profile(data: bytes) -> tuple[ProfileUse, str]:
    """What to do with a profile of RGB, grey or CMYK, and what is to be said of that; nothing where it is sRGB.

    A wide gamut is not pressed into sRGB: the networks take the picture's own numbers, or, where its tone curve is far
    from a display's, such as a linear one, those of a wide space with such a curve. Raises what damaged profiles raise.
    """
    name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data))).strip()
    mode = _profile_mode(data)
    levels = np.arange(0, 256, 17, dtype=np.uint16) * 257
    if mode != "RGB":
        grid = levels[:, None, None]
        is_same = (
            mode == "L" and int(np.abs(transform_samples(grid, data, srgb_profile()) - grid.astype(int)).max()) <= 257
        )
        return (ProfileUse.KEEP, "") if is_same else (ProfileUse.SRGB, f"converted to sRGB from the profile {name!r}")
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    in_srgb = transform_samples(grid, data, srgb_profile())
    if int(np.abs(in_srgb.astype(int) - grid).max()) <= 257:
        return ProfileUse.KEEP, ""
    if int(np.abs(transform_samples(in_srgb, srgb_profile(), data).astype(int) - grid).max()) <= GAMUT_TOLERANCE:
        return ProfileUse.SRGB, f"converted to sRGB from the profile {name!r}"
    greys = np.repeat(levels[:, None, None], 3, axis=2)
    if int(np.abs(transform_samples(greys, data, srgb_profile()).astype(int) - greys).max()) <= CURVE_TOLERANCE:
        return ProfileUse.KEEP, f"kept in the colours of its profile {name!r}, which sRGB does not hold"
    return ProfileUse.WIDE, f"converted from the profile {name!r} to one as wide whose tone curve is a display's"


def _profile_mode(data: bytes) -> str:
    """The mode of the pictures that a profile is for, by its header's colour space."""
    return {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}[data[16:20]]


def _transform(image: Image.Image, source: bytes, target: bytes) -> Image.Image:
    """An 8-bit image of the profile `source` as RGB of the profile `target`."""
    before, after = (ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (source, target))
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(before, after, _profile_mode(source), "RGB", intent, flags)
    return ImageCms.applyTransform(image, transform) or image


def transform_samples(samples: Samples, source: bytes, target: bytes) -> Samples:
    """16-bit samples (H, W, 1 or 3) of the profile `source` as those of `target`, in RGB or grey as they say."""
    import imagecodecs

    spaces = [{"L": "gray", "RGB": "rgb"}[_profile_mode(data)] for data in (source, target)]
    intent, flags = imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC, imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION
    converted: Samples = imagecodecs.cms_transform(
        np.ascontiguousarray(samples[..., 0] if spaces[0] == "gray" else samples),
        source,
        target,
        colorspace=spaces[0],
        outcolorspace=spaces[1],
        intent=intent,
        flags=flags,
    )
    return converted.reshape(*samples.shape[:2], -1)


def to_unit_grey(image: Image.Image, name: str, notes: list[str]) -> Grey:
    """Grey (H, W) of a mode of more than 8 bits in 0..1; values beyond what it may hold are scaled, with a note.

    Mode F is expected in 0..1, the modes I in 0..65535. Raises InputError for a picture without a single number.
    """
    values = np.array(image if image.mode == "F" else image.convert("I"))
    try:
        return np.stack(list(unit_rows(values, 1 if image.mode == "F" else 65535, notes)))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _create_profile(space: Literal["LAB", "sRGB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))  # pyright: ignore[reportUnknownArgumentType] - untyped C


@cache
def srgb_profile() -> bytes:
    """An sRGB ICC profile whose bytes do not depend on the day: the creation date is set to 2000-01-01."""
    data = _create_profile("sRGB").tobytes()
    return data[:24] + bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)) + data[36:]


@cache
def wide_profile() -> bytes:
    """An ICC profile with the primaries of ROMM RGB (ISO 22028-2) and a tone curve of gamma 2.2."""
    import imagecodecs

    data: bytes = imagecodecs.cms_profile("rgb", whitepoint=D50, primaries=ROMM_PRIMARIES, gamma=2.2)
    return data[:24] + bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)) + data[36:]
