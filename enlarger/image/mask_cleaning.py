"""What a mask's numbers were before a format or a program changed them: hard edges, 0 and 255. Without torch."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

Grey = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W)
LOSSY_TOLERANCE = 8  # steps that black and white may be off
MIN_EXTREMES, MIN_EXTREME_SHARE = 8, 0.02  # a blurred edge has almost no turning points near black and white
MAX_MIDDLE_SHARE = 0.5  # of a mask; a picture of greys has more
LOSSY_FORMATS = {"JPEG": "a JPEG", "MPO": "a JPEG", "AVIF": "an AVIF"}
MAX_CHUNKS = 16  # that WebP may have before its pixels


def clean_mask(values: Grey, lossy_kind: str | None, notes: list[str]) -> Grey:
    """The values with 1 as 255 where there is nothing but 0 and 1, and nearly black and white as such where these ring.

    `lossy_kind` is what `lossy_kind_of` says of the file. `notes` gets what was done.
    """
    if values.size and values.max() == 1:
        notes.append("the mask holds only 0 and 1: 1 was taken as white")
        return values * np.uint8(255)
    if lossy_kind is None and not has_ringing(values):
        return values
    was = "rings as one that was a JPEG" if lossy_kind is None else f"is {lossy_kind}"
    notes.append(f"the mask {was}: what is within {LOSSY_TOLERANCE} steps of black or white was taken as such")
    cleaned = np.where(values <= LOSSY_TOLERANCE, 0, values)
    return np.where(values >= 255 - LOSSY_TOLERANCE, 255, cleaned).astype(np.uint8)


def has_ringing(values: Grey) -> bool:
    """Whether a mask of hard edges turns up and down near black and white, as compression leaves it."""
    is_middle = (values > LOSSY_TOLERANCE) & (values < 255 - LOSSY_TOLERANCE)
    if is_middle.mean() > MAX_MIDDLE_SHARE:
        return False
    extremes, count = (sum(both) for both in zip(_turning_points(values), _turning_points(255 - values), strict=True))
    return extremes >= MIN_EXTREMES and extremes >= MIN_EXTREME_SHARE * count


def lossy_kind_of(source: object) -> str | None:
    """The lossy kind of file that a path or an image comes from, in words."""
    if not isinstance(source, str | Path):
        return LOSSY_FORMATS.get(source.format or "") if isinstance(source, Image.Image) else None
    with Path(source).open("rb") as file:
        head = file.read(12)
        if head.startswith(b"\xff\xd8"):
            return LOSSY_FORMATS["JPEG"]
        if head[4:] == b"ftypavif":
            return LOSSY_FORMATS["AVIF"]
        return "a lossy WebP" if head[8:] == b"WEBP" and _is_lossy_webp(file) else None


def _turning_points(values: Grey) -> tuple[int, int]:
    """How many of the nearly black pixels are maxima along their row or column, and how many there are."""
    inner, rest = values[1:-1, 1:-1], (values > 0) & (values <= LOSSY_TOLERANCE)
    near = rest[1:-1, 1:-1]
    across = (inner > values[1:-1, :-2]) & (inner > values[1:-1, 2:])
    down = (inner > values[:-2, 1:-1]) & (inner > values[2:, 1:-1])
    return int((near & (across | down)).sum()), int(near.sum())


def _is_lossy_webp(file: BinaryIO) -> bool:
    """Whether the first chunk of pixels is of the lossy kind."""
    position = 12
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if header[:4] in (b"VP8 ", b"VP8L"):
            return header[:4] == b"VP8 "
        position += 8 + int.from_bytes(header[4:], "little") + int.from_bytes(header[4:], "little") % 2
    return False
