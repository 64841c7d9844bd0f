"""What lies under a mask, or where a picture cannot be seen, at first: made from the surroundings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.images import Picture

SWEEPS = 6  # of smoothing at each size
COARSE = 48  # cells along the longer side at which patches are compared
RADIUS = 2  # of a patch, in cells


def fill_under(colour: Tensor, mask: Tensor, mode: str, generator: torch.Generator) -> Tensor:
    """A picture (3, H, W) with other content where `mask` (1, H, W) is above 0, mixed in by the mask.

    `original` leaves it, `noise` draws with the mean and spread of what is visible, `blur` spreads the surroundings
    smoothly, `patch` copies from where the surroundings look alike. If nothing is visible, they give middle grey.
    """
    if mode == "original" or not bool((mask > 0).any()):
        return colour
    visible = (mask <= 0).to(colour)
    content = {"noise": _noise, "blur": _blur, "patch": _patches}[mode](colour, visible, generator)
    return torch.lerp(colour, content, mask)


def surroundings(colour: Tensor, weight: Tensor, sweeps: int = 0) -> Tensor:
    """Pixels of weight 0 take the weighted mean of ever larger surroundings (pull-push, Gortler et al. 1996).

    `sweeps` of 3 x 3 means at each size smooth what is made up: with a few it is nearly harmonic.
    """
    if bool((weight > 0).all()) or max(weight.shape[-2:]) == 1:
        return colour
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = surroundings(F.avg_pool2d(colour * weight, 2, ceil_mode=True) / total.clamp(min=1e-8), total, sweeps)
    spread = F.interpolate(coarse, scale_factor=2)[..., : colour.shape[-2], : colour.shape[-1]]
    filled = torch.where(weight > 0, colour, spread)
    for _ in range(sweeps):
        mean = F.avg_pool2d(F.pad(filled, (1,) * 4, mode="replicate"), 3, stride=1)
        filled = torch.where(weight > 0, colour, mean)
    return filled


def spread_colour(picture: Picture) -> Tensor:
    """The colour, with what nobody can see replaced by its visible surroundings, so that it cannot bleed in."""
    if picture.alpha is None:
        return picture.colour
    return surroundings(picture.colour[None], picture.alpha[None])[0]


def _noise(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    seen = colour[:, visible[0] > 0]
    mean, spread = (seen.mean(1), seen.std(1)) if seen.shape[1] > 1 else (torch.zeros(3), torch.full((3,), 0.5))
    drawn = torch.randn(colour.shape, generator=generator)
    return (mean[:, None, None] + spread[:, None, None] * drawn).clamp(-1, 1)


def _blur(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    return surroundings((colour * visible)[None], visible[None], SWEEPS)[0]


def _patches(colour: Tensor, visible: Tensor, generator: torch.Generator) -> Tensor:
    """Exemplars (after Efros and Leung 1999): what is hidden is copied from what is visible, from the edge inwards.

    On a coarse grid each hidden cell takes the pixels of the visible cell whose surroundings are most like its own.
    Where too little is visible for that, the smooth fill.
    """
    height, width = colour.shape[-2:]
    unit = -(-max(height, width) // COARSE)  # pixels along a cell
    edges = (0, -width % unit, 0, -height % unit)
    whole = F.avg_pool2d(F.pad(visible, edges), unit)[0] == 1  # cells that reach over the edge are no sources
    fine = F.pad(colour[None], edges, mode="replicate")[0]
    source = _nearest(F.avg_pool2d(fine, unit), whole)
    if source is None:
        return _blur(colour, visible, generator)
    blocks = F.unfold(fine[None], unit, stride=unit)[0]  # (3 unit^2, cells)
    copied = F.fold(blocks[:, source.flatten()][None], fine.shape[-2:], unit, stride=unit)[0]
    return torch.where(visible > 0, colour, copied[:, :height, :width])


def _nearest(cells: Tensor, whole: Tensor) -> Tensor | None:
    """For each cell of (3, h, w) the number of the whole cell to copy, itself where it is whole; None if none fits."""
    size, numbers = 2 * RADIUS + 1, torch.arange(whole.numel()).view_as(whole)
    entire = F.avg_pool2d(whole[None].float(), size, stride=1, padding=RADIUS)[0] == 1
    if not bool(entire.any()):
        return None
    exemplars, choice = _windows(cells)[entire.flatten()], numbers[entire]
    source, known = numbers.clone(), whole
    while not bool(known.all()):
        ring = (F.max_pool2d(known[None].float(), 3, stride=1, padding=1)[0] > 0) & ~known
        trust = _windows(known[None].float())[ring.flatten()].repeat(1, len(cells))  # only what is known is compared
        wanted = _windows(cells.flatten(1)[:, source])[ring.flatten()]
        apart = trust @ (exemplars**2).T - 2 * (trust * wanted) @ exemplars.T  # squared distance, less a constant
        source[ring] = choice[apart.argmin(1)]
        known = known | ring
    return source


def _windows(x: Tensor) -> Tensor:
    """(C, h, w) to the patches around its elements, (h w, C (2 RADIUS + 1)^2)."""
    padded = F.pad(x[None], (RADIUS,) * 4, mode="replicate")
    return F.unfold(padded, 2 * RADIUS + 1)[0].T
