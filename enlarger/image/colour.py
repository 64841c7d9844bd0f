"""PIL images of every mode and colour profile become 8-bit sRGB."""

import io
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

from enlarger.errors import InputError


def to_srgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """An 8-bit image of any mode as L, LA, RGB or RGBA in sRGB, with the profile to embed."""
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
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}[data[16:20]]  # the header's colour space
        convertible = image.convert("RGB") if (image.mode, mode) == ("L", "RGB") else image
        transform = ImageCms.buildTransform(
            profile,
            _create_profile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if convertible.mode != mode:
            raise ValueError(f"a {mode} profile in a {convertible.mode} picture")
        if mode != "CMYK" and _is_identity(transform, mode):
            return image, data
        converted = ImageCms.applyTransform(convertible, transform) or convertible
    except Exception as error:  # noqa: BLE001 - damaged profiles raise anything
        notes.append(f"the colour profile cannot be used ({error}): taken as sRGB")
        return image, None
    notes.append(f"converted to sRGB from the profile {ImageCms.getProfileDescription(profile).strip()!r}")
    return converted, srgb_profile()


def to_unit_grey(image: Image.Image, name: str, notes: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Grey (H, W) of a mode of more than 8 bits in 0..1; values beyond what it may hold are scaled, with a note.

    Mode F is expected in 0..1, the modes I in 0..65535. Raises InputError for a picture without a single number.
    """
    max_value = 1 if image.mode == "F" else 65535
    values = np.array(image if image.mode == "F" else image.convert("I"), np.float64) / max_value
    is_number = np.isfinite(values)
    if not is_number.any():
        raise InputError(f"{name}: found NaN or infinity in every pixel, expected numbers; save it anew")
    low, high = float(values[is_number].min()), float(values[is_number].max())
    if not is_number.all():
        notes.append(f"{int((~is_number).sum())} pixels are no numbers: taken as the lowest level")
        values = np.where(is_number, values, low)
    if low < -1e-3 or high > 1 + 1e-3:
        found = f"values from {low * max_value:g} to {high * max_value:g}"
        notes.append(f"{found}, expected 0 to {max_value}: scaled to that")
        low = min(low, 0)
        values = (values - low) / max(high - low, 1e-3)
    return values.clip(0, 1)


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform moves no 8-bit colour of a 16 x 16 x 16 grid by more than one step."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    probe = Image.fromarray(grid if mode == "RGB" else grid[..., 0])
    converted = np.asarray(ImageCms.applyTransform(probe, transform) or probe, dtype=int)
    return bool(np.abs(converted - np.asarray(probe.convert("RGB"), dtype=int)).max() <= 1)


def _create_profile(space: Literal["LAB", "sRGB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))  # pyright: ignore[reportUnknownArgumentType] - untyped C


@cache
def srgb_profile() -> bytes:
    """An sRGB ICC profile whose bytes do not depend on the day: the creation date is set to 2000-01-01."""
    data = _create_profile("sRGB").tobytes()
    return data[:24] + bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)) + data[36:]
