"""What inpainting works on: a picture and its mask on a canvas that holds what is added around them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.composite import OriginalImage, composite, expand_canvas, read_original
from enlarger.image.fill import fill_masked
from enlarger.image.mask import Box, Mask, bounding_box, expand_box, feather_mask, read_mask
from enlarger.image.picture import PIXEL_LIMIT
from enlarger.image.resize import resize
from enlarger.requests import DEFAULTS, InpaintRequest


@dataclass(frozen=True)
class ChangedPixels:
    """How many pixels of a result differ from the input, and the box (left, top, right, bottom) that holds them."""

    pixels: int
    box: Box | None


@dataclass(frozen=True, eq=False)
class InpaintCanvas:
    """One picture laid out for the work, on a canvas of (H, W) that holds what `expand` adds."""

    original: OriginalImage
    mask: Mask
    expanded_area: Tensor  # (1, H, W), 1 where the canvas is larger than the input
    weights: Tensor  # (1, H, W) of the new colours in the result
    box: Box  # what is worked on

    @property
    def box_slices(self) -> tuple[slice, ...]:
        """The box as an index into (C, H, W)."""
        left, top, right, bottom = self.box
        return (slice(None), slice(top, bottom), slice(left, right))

    @property
    def is_changed(self) -> bool:
        """Whether any of the result is new."""
        return bool((self.weights > 0).any())

    def fill(self, fill: str | None, seed: int) -> Tensor:
        """The canvas with what lies under the mask at first; None stands for the defaults of mask and border."""
        colour, generator = self.original.picture.colour, torch.Generator().manual_seed(seed)
        if fill is not None:
            return fill_masked(colour, self.mask.weights, fill, generator)
        inside_mask = self.mask.weights * (1 - self.expanded_area)
        colour = fill_masked(colour, inside_mask, DEFAULTS["inpaint"]["fill"], generator)
        return fill_masked(colour, self.expanded_area, DEFAULTS["inpaint/expand"]["fill"], generator)

    def replace_box(self, filled: Tensor, repainted: Tensor) -> Tensor:
        """The canvas (3, H, W) with other colours, of any size, in the box."""
        left, top, right, bottom = self.box
        size, result = (bottom - top, right - left), filled.clone()
        result[self.box_slices] = resize(repainted, size, "lanczos") if repainted.shape[-2:] != size else repainted
        return result

    def finish(self, colour: Tensor) -> tuple[Any, ChangedPixels]:
        """The result with `colour` (3, H, W) in it, and what changed by that."""
        values = composite(self.original, colour, self.weights)
        difference = (values != self.original.values).any(0, keepdim=True).float().maximum(self.expanded_area)
        return self.original.write(values), ChangedPixels(int(difference.sum()), bounding_box(difference))


def prepare_canvas(request: InpaintRequest) -> InpaintCanvas:
    """Read the picture and the mask of a request for one, and settle where the work and the result go."""
    original, (left, top, right, bottom) = read_original(request.image), request.sides
    if request.mask is None and not any(request.sides):
        raise InputError("found no mask and nothing to add, so nothing to repaint; give a mask, or expand")
    height, width = original.size
    canvas_width, canvas_height = left + width + right, top + height + bottom
    if any(request.sides) and canvas_width * canvas_height > PIXEL_LIMIT:
        raise InputError(
            f"the expanded picture would be {canvas_width} x {canvas_height}, at most {PIXEL_LIMIT:,} pixels; add less"
        )
    padding, zeros = (left, right, top, bottom), torch.zeros(1, height, width)
    input_mask = Mask(zeros)
    if request.mask is not None:
        input_mask = read_mask(request.mask, original.size, request.mask_mode, resize=request.mask_resize)
    mask = replace(input_mask, weights=F.pad(input_mask.weights, padding, value=1.0))
    expanded_area = F.pad(zeros, padding, value=1.0)
    mask_box, full_box = bounding_box(mask.weights), (0, 0, canvas_width, canvas_height)
    box = (
        full_box
        if request.crop is None or mask_box is None
        else expand_box(mask_box, request.crop, (canvas_height, canvas_width))
    )
    expanded_original = expand_canvas(original, request.sides)
    return InpaintCanvas(
        expanded_original, mask, expanded_area, _composite_weights(request, mask.weights, expanded_area, box), box
    )


def _composite_weights(request: InpaintRequest, mask: Tensor, expanded_area: Tensor, box: Box) -> Tensor:
    """The share of the new colours in the result."""
    if request.strength == 0 or not bool((mask > 0).any()):
        return expanded_area
    if request.preserve == "exact":
        return feather_mask(mask, request.feather)
    left, top, right, bottom = box
    weights = torch.zeros_like(mask)
    weights[:, top:bottom, left:right] = 1
    return weights
