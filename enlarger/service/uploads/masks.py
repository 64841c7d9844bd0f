"""What of a mask picture is repainted: two conventions, and one rule that decides; and how pictures get their size."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from enlarger.image.colour import to_srgb
from enlarger.image.mask_cleaning import clean_mask
from enlarger.service.problems import problem_error
from enlarger.target_size import scaled_side

MaskMode = Literal["auto", "alpha", "luminance", "inverted"]
MASK_MODES: tuple[str, ...] = get_args(MaskMode)
LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Fit:
    """A size that a picture is brought to, and how.

    "stretch" changes its shape; "crop" fills the size and cuts what hangs over, the middle stays; "pad" goes into the
    size whole, and repeats the pixels of its edges around it.
    """

    width: int
    height: int
    mode: Literal["stretch", "crop", "pad"] = "stretch"


def apply_fit(image: Image.Image, fit: Fit) -> Image.Image:
    """A picture brought to a size by Lanczos; colour is weighed by alpha, so that what is transparent lends none."""
    size, (width, height) = (fit.width, fit.height), image.size
    if image.size == size:
        return image
    if fit.mode == "stretch":
        return image.resize(size, LANCZOS)
    if fit.mode == "crop":
        scale = min(width / fit.width, height / fit.height)
        left, top = (width - fit.width * scale) / 2, (height - fit.height * scale) / 2
        box = (max(left, 0), max(top, 0), min(width - left, width), min(height - top, height))
        return image.resize(size, LANCZOS, box=box)
    scale = min(fit.width / width, fit.height / height)
    scaled_size = (scaled_side(width, scale), scaled_side(height, scale))
    return _pad_edges(image if scaled_size == image.size else image.resize(scaled_size, LANCZOS), size)


def _pad_edges(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    padding = ((top, size[1] - image.height - top), (left, size[0] - image.width - left))
    values = np.asarray(image)
    return Image.fromarray(np.pad(values, (*padding, *((0, 0),) * (values.ndim - 2)), mode="edge"))


def read_mask(
    image: Image.Image, mode: str, notes: list[str], *, lossy_kind: str | None = None, param: str = "mask"
) -> Image.Image:
    """A mask in grey, white is repainted, of a loaded and upright picture of any mode.

    "alpha": what is transparent is repainted; "luminance": what is white; "inverted": what is black; in these two only
    where the mask is opaque. "auto" takes alpha if any of it is not opaque, else luminance if that varies at all.
    Nearly black and white are taken as such where the file is lossy, and 1 as white where all is 0 or 1.
    Raises ProblemError: `empty_mask`, `invalid_image_mode`.
    """
    if mode not in MASK_MODES:
        raise problem_error(
            400, "invalid_value", f"found mask_mode {mode!r}, expected one of {', '.join(MASK_MODES)}", "mask_mode"
        )
    luminance, alpha = _luminance_and_alpha(image, notes, lossy_kind)
    if mode == "auto":
        mode = _detect_mask_mode(luminance, alpha, param)
        meaning = "what is transparent is repainted" if mode == "alpha" else "what is white is repainted"
        notes.append(f"mask_mode auto took the mask as {mode!r}: {meaning}")
    if mode == "alpha":
        if alpha is None:
            text = f"{param}: has no alpha channel, expected one for mask_mode 'alpha'; send a PNG with transparency"
            raise problem_error(400, "invalid_image_mode", text, param)
        repainted = 255 - alpha
    else:
        repainted = _multiply_alpha(luminance if mode == "luminance" else 255 - luminance, alpha)
    if not repainted.any():
        raise problem_error(
            400, "empty_mask", f"{param}: repaints nothing as {mode!r}; mark what is to be repainted", param
        )
    return Image.fromarray(repainted)


def mask_from_alpha(image: Image.Image, param: str = "image") -> Image.Image:
    """The transparent part of a picture as the mask of what is repainted. Raises ProblemError if all is opaque."""
    if image.has_transparency_data:
        repainted = 255 - np.asarray(to_srgb(image, [])[0].getchannel("A"))
        if repainted.any():
            return Image.fromarray(repainted)
    text = (
        f"{param}: nothing of it is transparent, and there is no mask; send a mask, or a picture with transparent parts"
    )
    raise problem_error(400, "empty_mask", text, param)


def resize_mask(
    mask: Image.Image, size: tuple[int, int], resize: bool, notes: list[str], param: str = "mask"
) -> Image.Image:
    """The mask in the size of its picture. Raises ProblemError if it has another and may not be resized."""
    if mask.size == size:
        return mask
    sizes = f"{mask.width} x {mask.height} pixels and the picture {size[0]} x {size[1]}"
    if not resize:
        text = f"{param}: is {sizes}; make them equal, or send mask_resize=true"
        raise problem_error(400, "mask_size_mismatch", text, param)
    notes.append(f"the mask was {sizes}: resized to the picture")
    return mask.resize(size, Image.Resampling.BILINEAR)


def _luminance_and_alpha(
    image: Image.Image, notes: list[str], lossy_kind: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Luminance and alpha, uint8 (H, W)."""
    srgb_image, _ = to_srgb(image, notes)
    alpha = np.asarray(srgb_image.getchannel("A")) if srgb_image.mode in ("LA", "RGBA") else None
    return clean_mask(np.array(srgb_image.convert("L")), lossy_kind, notes), alpha


def _detect_mask_mode(luminance: np.ndarray, alpha: np.ndarray | None, param: str) -> str:
    if alpha is not None and alpha.min() < 255:
        return "alpha"
    if luminance.min() < luminance.max():
        return "luminance"
    colour = {0: "black", 255: "white"}.get(int(luminance.min()), "grey")
    hint = "" if colour == "black" else "; to repaint the whole picture, send mask_mode=luminance"
    text = f"{param}: is opaque and {colour} all over, so nothing in it tells what to repaint; mark a part of it{hint}"
    raise problem_error(400, "empty_mask", text, param)


def _multiply_alpha(luminance: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    if alpha is None:
        return luminance
    return ((luminance.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
