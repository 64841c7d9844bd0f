"""Whether a picture gets SDXL's invisible watermark."""

from dataclasses import replace

from PIL import Image

from enlarger.image.watermark import LEAST_SIDE, add_watermark, can_hold
from enlarger.tasks.results.result import Result

NOTE = "carries SDXL's invisible watermark; watermark=False (--no-watermark) leaves it out"
UNSUITED_NOTE = f"no watermark: it needs colour and at least {LEAST_SIDE} pixels a side"


def watermark_picture(image: Image.Image, wanted: bool | None, is_xl: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture with the watermark if that is wanted; None: for SDXL, as in its reference code."""
    if not (is_xl if wanted is None else wanted):
        return image, ()
    if not can_hold(image):
        return image, (UNSUITED_NOTE,) if wanted else ()
    return add_watermark(image), (NOTE,)


def watermark_result(result: Result, wanted: bool | None, is_xl: bool) -> Result:
    """The result with its pictures marked."""
    marked = [watermark_picture(image, wanted, is_xl) for image in result.images]
    notes = tuple(dict.fromkeys(note for _, notes in marked for note in notes))
    return replace(result, images=tuple(image for image, _ in marked), notes=result.notes + notes)
