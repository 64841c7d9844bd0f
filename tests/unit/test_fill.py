"""`enlarger.image.fill`: what is put under a mask comes from what is visible around it."""

import pytest
import torch
from torch import Tensor

from enlarger.image.fill import fill_masked, pull_push_fill
from enlarger.image.picture import read_picture
from tests.support.close import assert_close
from tests.support.pictures import texture

MODES = ["noise", "blur", "patch"]


def fill(colour: Tensor, mask: Tensor, mode: str, seed: int = 0) -> Tensor:
    return fill_masked(colour, mask, mode, torch.Generator().manual_seed(seed))


def photo(width: int = 70, height: int = 50) -> Tensor:
    return read_picture(texture(width, height)).colour


def hole(height: int = 50, width: int = 70) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, 15:32, 20:45] = 1
    return mask


@pytest.mark.parametrize("mode", MODES)
def test_only_what_is_hidden_changes_and_nothing_of_it_is_seen(mode: str) -> None:
    colour, mask = photo(), hole()
    found = fill(colour, mask, mode)
    other = fill(torch.where(mask > 0, -colour, colour), mask, mode)
    kept = (mask == 0).expand_as(colour)
    assert found[kept].equal(colour[kept]) and not found[~kept].equal(colour[~kept])
    assert_close(found, other, 1e-6)
    assert found.abs().max() <= 1 + 1e-6 and found.equal(fill(colour, mask, mode))


def test_the_original_and_an_empty_mask_leave_the_picture() -> None:
    colour = photo()
    assert fill(colour, hole(), "original") is colour
    assert all(fill(colour, torch.zeros(1, 50, 70), mode) is colour for mode in MODES)


def test_noise_has_the_spread_of_what_is_visible_and_depends_on_the_seed() -> None:
    colour, mask = photo() * 0.3, hole()
    found, kept = fill(colour, mask, "noise"), mask[0] == 0
    for c in range(3):
        assert abs(found[c][~kept].mean() - colour[c][kept].mean()) < 0.03
        assert abs(found[c][~kept].std() - colour[c][kept].std()) < 0.03
    assert not found.equal(fill(colour, mask, "noise", seed=1))


def test_blur_continues_a_ramp() -> None:
    """A ramp is harmonic: the smooth fill of a hole in it is nearly the ramp."""
    ramp = torch.linspace(-1, 1, 70).expand(3, 50, 70)
    assert_close(fill(ramp, hole(), "blur"), ramp, 0.07)


def test_patches_continue_stripes() -> None:
    stripes = (torch.arange(96) // 4 % 2 * 2.0 - 1)[None, :, None].expand(3, 96, 96)
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:60, 30:60] = 1
    found = fill(stripes, mask, "patch")
    assert_close(found, stripes, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 2)])
def test_small_pictures_and_full_masks(mode: str, size: tuple[int, int]) -> None:
    colour = torch.full((3, *size), 0.5)
    found = fill(colour, torch.ones(1, *size), mode)
    assert found.shape == colour.shape and found.isfinite().all()
    if mode != "noise":
        assert_close(found, torch.zeros(3, *size), 0)  # nothing is visible: middle grey
    if size != (1, 1):
        mask = torch.ones(1, *size)
        mask[:, 0, 0] = 0
        assert_close(fill(colour, mask, "blur"), colour, 1e-6)


def test_soft_masks_mix() -> None:
    colour, mask = photo(), hole()
    full, half = fill(colour, mask, "blur"), fill(colour, mask * 0.5, "blur")
    assert_close(half, (colour + full) / 2, 1e-6)


def test_surroundings_without_sweeps_are_pull_push() -> None:
    colour = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    assert pull_push_fill(colour, weight).flatten().tolist() == [1, 1, 1, 1]
