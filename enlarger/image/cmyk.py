"""Pictures that came as CMYK, back in CMYK: by the profile that their file held. Without torch."""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageCms

from enlarger.image.colour import srgb_profile
from enlarger.image.decode import open_image

CMYK_PROFILE = "cmyk_profile"  # in a picture's metadata and its image's `info`: the profile, empty where there was none


def cmyk_metadata(image: Image.Image) -> dict[str, bytes]:
    """What an opened file's picture, or one made of it, needs to become CMYK again; nothing where it is none."""
    if CMYK_PROFILE in image.info:
        return {CMYK_PROFILE: image.info[CMYK_PROFILE]}
    return {CMYK_PROFILE: image.info.get("icc_profile") or b""} if image.mode == "CMYK" else {}


def is_cmyk(path: str | Path) -> bool:
    """Whether a file's picture is CMYK, from its header. Raises InputError as `read_picture` does."""
    with open_image(path) as (image, _):
        return image.mode == "CMYK"


def to_cmyk(image: Image.Image) -> Image.Image:
    """An image that was read from a CMYK file, in CMYK by that file's profile, which is in its `info` then.

    Without a profile, or with one that holds no way to CMYK, black is not used and a warning says so. An image that was
    no CMYK is returned as it is, with a warning. TIFF files hold the result.
    """
    profile: bytes | None = image.info.get(CMYK_PROFILE)
    if profile is None:
        warnings.warn("the input is no CMYK picture: the result is none either", stacklevel=2)
        return image
    converted = _by_profile(image, profile) if profile else None
    if converted is None:
        warnings.warn("no profile says how to print in CMYK: colours are approximate, without black", stacklevel=2)
        converted, profile = image.convert("RGB").convert("CMYK"), b""
    converted.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    converted.info |= {"icc_profile": profile} if profile else {}
    return converted


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image converted from its own profile, or sRGB; None where that cannot be done."""
    try:
        before, after = (
            ImageCms.ImageCmsProfile(io.BytesIO(data))
            for data in (image.info.get("icc_profile") or srgb_profile(), profile)
        )
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(before, after, "RGB", "CMYK", intent, flags)
        return ImageCms.applyTransform(image.convert("RGB"), transform)
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        return None
