"""What lies under a mask, or where a picture cannot be seen, at first: made from the surroundings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.image.picture import Picture

SMOOTHING_SWEEPS = 6  # of smoothing at each size
PATCH_GRID = 48  # cells along the longer side at which patches are compared
PATCH_RADIUS = 2  # of a patch, in cells


def fill_masked(colour: Tensor, mask: Tensor, mode: str, generator: torch.Generator) -> Tensor:
    """A picture (3, H, W) with other content where `mask` (1, H, W) is above 0, mixed in by the mask.

    `original` leaves it, `noise` draws with the mean and spread of what is visible, `blur` spreads the surroundings
    smoothly, `patch` copies from where the surroundings look alike. If nothing is visible, they give middle grey.
    """
    if mode == "original" or not bool((mask > 0).any()):
        return colour
    visible = (mask <= 0).to(colour)
    content = {"noise": _fill_noise, "blur": _fill_blur, "patch": _fill_patches}[mode](colour, visible, generator)
    return torch.lerp(colour, content, mask)


def pull_push_fill(colour: Tensor, weight: Tensor, sweeps: int = 0) -> Tensor:
    """Pixels of weight 0 take the weighted mean of ever larger surroundings (pull-push, Gortler et al. 1996).

    `sweeps` of 3 x 3 means at each size smooth what is made up: with a few it is nearly harmonic.
    """
    if bool((weight > 0).all()) or max(weight.shape[-2:]) == 1:
        return colour
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = pull_push_fill(F.avg_pool2d(colour * weight, 2, ceil_mode=True) / total.clamp(min=1e-8), total, sweeps)
    upsampled = F.interpolate(coarse, scale_factor=2)[..., : colour.shape[-2], : colour.shape[-1]]
    filled = torch.where(weight > 0, colour, upsampled)
    for _ in range(sweeps):
        mean = F.avg_pool2d(F.pad(filled, (1,) * 4, mode="replicate"), 3, stride=1)
        filled = torch.where(weight > 0, colour, mean)
    return filled


def bleed_alpha(picture: Picture) -> Tensor:
    """The colour, with what nobody can see replaced by its visible surroundings, so that it cannot bleed in."""
    if picture.alpha is None:
        return picture.colour
    return pull_push_fill(picture.colour[None], picture.alpha[None])[0]


def _fill_noise(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    visible_colours = colour[:, visible[0] > 0]
    mean, deviation = (
        (visible_colours.mean(1), visible_colours.std(1))
        if visible_colours.shape[1] > 1
        else (torch.zeros(3), torch.full((3,), 0.5))
    )
    noise = torch.randn(colour.shape, generator=generator)
    return (mean[:, None, None] + deviation[:, None, None] * noise).clamp(-1, 1)


def _fill_blur(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    return pull_push_fill((colour * visible)[None], visible[None], SMOOTHING_SWEEPS)[0]


def _fill_patches(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    """Exemplars (after Efros and Leung 1999): what is hidden is copied from what is visible, from the edge inwards.

    On a coarse grid each hidden cell takes the pixels of the visible cell whose surroundings are most like its own.
    Where too little is visible for that, the smooth fill.
    """
    height, width = colour.shape[-2:]
    cell_size = -(-max(height, width) // PATCH_GRID)  # pixels along a cell
    padding = (0, -width % cell_size, 0, -height % cell_size)
    visible_cells = (
        F.avg_pool2d(F.pad(visible, padding), cell_size)[0] == 1
    )  # cells that reach over the edge are no sources
    padded = F.pad(colour[None], padding, mode="replicate")[0]
    source_cells = _match_patches(F.avg_pool2d(padded, cell_size), visible_cells)
    if source_cells is None:
        return _fill_blur(colour, visible, generator)
    blocks = F.unfold(padded[None], cell_size, stride=cell_size)[0]  # (3 unit^2, cells)
    patched = F.fold(blocks[:, source_cells.flatten()][None], padded.shape[-2:], cell_size, stride=cell_size)[0]
    return torch.where(visible > 0, colour, patched[:, :height, :width])


def _match_patches(cells: Tensor, visible_cells: Tensor) -> Tensor | None:
    """For each cell of (3, h, w) the number of the whole cell to copy, itself where it is whole; None if none fits."""
    size, numbers = 2 * PATCH_RADIUS + 1, torch.arange(visible_cells.numel()).view_as(visible_cells)
    is_complete = F.avg_pool2d(visible_cells[None].float(), size, stride=1, padding=PATCH_RADIUS)[0] == 1
    if not bool(is_complete.any()):
        return None
    source_patches, source_numbers = _unfold_patches(cells)[is_complete.flatten()], numbers[is_complete]
    source_cells, known = numbers.clone(), visible_cells
    while not bool(known.all()):
        frontier = (F.max_pool2d(known[None].float(), 3, stride=1, padding=1)[0] > 0) & ~known
        known_weights = _unfold_patches(known[None].float())[frontier.flatten()].repeat(
            1, len(cells)
        )  # only what is known is compared
        target_patches = _unfold_patches(cells.flatten(1)[:, source_cells])[frontier.flatten()]
        distances = (
            known_weights @ (source_patches**2).T - 2 * (known_weights * target_patches) @ source_patches.T
        )  # squared distance, less a constant
        source_cells[frontier] = source_numbers[distances.argmin(1)]
        known = known | frontier
    return source_cells


def _unfold_patches(x: Tensor) -> Tensor:
    """(C, h, w) to the patches around its elements, (h w, C (2 RADIUS + 1)^2)."""
    padded = F.pad(x[None], (PATCH_RADIUS,) * 4, mode="replicate")
    return F.unfold(padded, 2 * PATCH_RADIUS + 1)[0].T
