"""What a file says of its colours without an ICC profile, which is not followed: what is to be said of it. No torch."""

from collections.abc import Sequence
from math import isclose

from PIL import Image

PRIMARIES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # ITU-T H.273, as in PNG's cICP
TRANSFERS = {1: "BT.709", 13: "sRGB", 16: "PQ", 18: "HLG"}
LIKE_SRGB = ((1, 1), (1, 13))
SRGB_GAMMA, SRGB_CHROMATICITY = 1 / 2.2, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # PNG's gAMA and cHRM


def note_of_cicp(codes: bytes) -> str | None:
    """Of a PNG's cICP chunk; None where it means sRGB."""
    if len(codes) < 2 or tuple(codes[:2]) in LIKE_SRGB:
        return None
    primaries = PRIMARIES.get(codes[0], f"primaries {codes[0]}")
    transfer = TRANSFERS.get(codes[1], f"transfer {codes[1]}")
    return f"the file says its colours are {primaries} with {transfer}'s curve, in cICP: taken as sRGB"


def notes_of_chromaticity(image: Image.Image) -> list[str]:
    """Of a PNG's gAMA and cHRM chunks; none where they mean sRGB, or a profile is there."""
    if image.format != "PNG" or image.info.get("icc_profile") or "srgb" in image.info:
        return []
    gamma: float | None = image.info.get("gamma")
    points: Sequence[float] = image.info.get("chromaticity", SRGB_CHROMATICITY)
    found = [f"gamma {gamma:.4g}"] if gamma is not None and not isclose(gamma, SRGB_GAMMA, abs_tol=0.01) else []
    is_near = all(isclose(a, b, abs_tol=0.01) for a, b in zip(points, SRGB_CHROMATICITY, strict=False))
    found += [] if is_near else ["primaries that are not sRGB's"]
    return [f"the file says its colours have {' and '.join(found)}: taken as sRGB"] if found else []
