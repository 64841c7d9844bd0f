"""The nearest enlargement whose reduction is the input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from enlarger import upscale
from enlarger.image import bounded_least_squares, consistency
from enlarger.image.consistency import downscale, make_consistent, make_consistent_in_range, residual
from enlarger.image.resize import resize_matrix
from tests.support.close import assert_close, max_difference
from tests.support.random_weights import normal

SIZES = [
    ((8, 8), (16, 16)),
    ((7, 11), (14, 22)),
    ((7, 11), (21, 33)),
    ((9, 5), (13, 8)),
    ((1, 1), (2, 2)),
    ((1, 40), (16, 640)),
]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_the_reduction_of_the_result_is_the_input(small: tuple[int, int], large: tuple[int, int]) -> None:
    wanted = draw(2, 3, *small)
    found = make_consistent(draw(2, 3, *large, seed=1), wanted)
    assert found.shape == (2, 3, *large) and found.dtype == torch.float32
    assert_close(downscale(found, small), wanted, 5e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(1, 16), st.integers(0, 99))
def test_any_size_and_factor(height: int, width: int, by: float, seed: int) -> None:
    by = min(by, 200 / max(height, width))
    large = (max(height, round(by * height)), max(width, round(by * width)))
    wanted = draw(1, 1, height, width, seed=seed)
    assert_close(downscale(make_consistent(draw(1, 1, *large, seed=seed + 1), wanted), (height, width)), wanted, 1e-4)


def test_a_consistent_picture_stays_as_it_is() -> None:
    small = draw(1, 3, 9, 12)
    once = make_consistent(draw(1, 3, 18, 24, seed=1), small)
    assert_close(make_consistent(once, small), once, 5e-6)
    assert_close(make_consistent(once, downscale(once, (9, 12))), once, 5e-6)


def test_the_change_is_the_smallest_possible() -> None:
    small, large = draw(1, 1, 6, 5, dtype=torch.float64), draw(1, 1, 12, 10, seed=1, dtype=torch.float64)
    change = make_consistent(large, small) - large
    rows, columns = resize_matrix(12, 6), resize_matrix(10, 5)
    whole = torch.kron(rows, columns)  # (30, 120): the reduction of both axes
    least = torch.linalg.lstsq(whole, (small - downscale(large, (6, 5))).flatten(), driver="gelsd").solution
    assert_close(change.flatten(), least, 1e-10)
    other = make_consistent(draw(1, 1, 12, 10, seed=2, dtype=torch.float64), small) - large
    assert float(change.norm()) < float(other.norm())


def test_grey_stays_grey_and_images_and_channels_do_not_mix() -> None:
    small, large = draw(2, 1, 7, 7), draw(2, 1, 14, 14, seed=1)
    found = make_consistent(large.expand(-1, 3, -1, -1), small.expand(-1, 3, -1, -1))
    assert_close(found, found[:, :1].expand(-1, 3, -1, -1), 1e-6)
    assert_close(make_consistent(large[1:], small[1:]), found[1:, :1], 1e-6)


def test_the_arguments_are_left_alone() -> None:
    small, large = draw(1, 3, 4, 4), draw(1, 3, 8, 8, seed=1)
    before = small.clone(), large.clone()
    make_consistent(large, small)
    assert small.equal(before[0]) and large.equal(before[1])


def test_a_constant_stays_constant() -> None:
    found = make_consistent(torch.full((1, 3, 20, 30), 0.25), torch.full((1, 3, 10, 15), 0.25))
    assert_close(found, torch.full_like(found, 0.25), 1e-6)


@pytest.mark.parametrize(
    ("small", "large"), [(300, 600), (200, 300), (150, 450), (257, 300), (300, 301), (300, 303), (40, 640)]
)
def test_the_blocks_equal_the_whole_inverse(small: int, large: int) -> None:
    reduction = resize_matrix(large, small)
    whole = torch.linalg.solve(reduction @ reduction.T, reduction).T
    found = torch.zeros_like(whole)
    for block in consistency._pseudo_inverse(small, large):
        found[block.start : block.end, block.low : block.high] = block.matrix
    assert_close(found, whole, 1e-7)


def test_no_block_grows_with_the_picture() -> None:
    blocks = consistency._pseudo_inverse(2000, 4000)
    assert max(block.matrix.numel() for block in blocks) < 128 * 160
    small = draw(1, 1, 2, 2000)
    found = make_consistent(draw(1, 1, 4, 4000, seed=1), small)
    assert max_difference(downscale(found, (2, 2000)), small) < 5e-6


def test_it_stays_true_within_the_range_of_pictures() -> None:
    small = torch.tanh(2 * normal(1, 3, 12, 15))
    large = torch.tanh(2 * normal(1, 3, 24, 30, seed=4))
    found = make_consistent_in_range(large, small)
    assert float(found.abs().max()) <= 1
    once = make_consistent(large, small).clamp(-1, 1)
    errors = [float((downscale(x, (12, 15)) - small).abs().mean()) for x in (large, once, found)]
    assert errors[2] < errors[1] / 1.5 < errors[0] / 1.5
    calm = 0.1 * small
    assert_close(
        downscale(make_consistent_in_range(0.1 * large, calm), (12, 15)), calm, 1e-5
    )  # away from the ends both hold


def test_projections_go_on_until_the_tolerance_is_met_and_what_is_off_is_said() -> None:
    small, large = 0.3 * torch.tanh(normal(1, 3, 12, 15)), 3 * normal(1, 3, 24, 30, seed=4)
    coarse, fine = (make_consistent_in_range(large, small, tolerance=one) for one in (2.0, 1e-4))
    assert residual(fine, small) <= 1e-4 < residual(coarse, small)
    grey, checks = np.full((8, 9, 3), 40000, np.uint16), (np.indices((8, 9)).sum(0) % 2 * 65535).astype(np.uint16)
    calm, hard = (upscale(one, consistent=True) for one in (grey, np.stack([checks] * 3, -1)))
    assert calm.residual is not None and calm.residual[1] <= 1 / 257 and not any("off by" in one for one in calm.notes)
    assert hard.residual is not None and hard.residual[1] > 1 / 257 and any("off by" in one for one in hard.notes)


def waves(height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) that reach black and white in many places."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.sin(x / (3 + k) + k) * torch.cos(y / (4 + k)) for k in range(3)])[None]


@pytest.mark.parametrize("tolerance", [2 / 255, 2 / 65535], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize(("size", "by"), [((12, 15), 2.0), ((40, 71), 2.0), ((33, 36), 1.5), ((9, 34), 4.0)])
def test_black_and_white_are_met_within_the_tolerance(size: tuple[int, int], by: float, tolerance: float) -> None:
    small = waves(*size)
    large = torch.tanh(2 * normal(1, 3, int(by * size[0]), int(by * size[1])))
    found = make_consistent_in_range(large, small, tolerance=tolerance)
    assert residual(found, small) <= tolerance and float(found.abs().max()) <= 1


def test_only_what_is_near_a_place_that_is_off_is_solved() -> None:
    small = 0.2 * waves(40, 300)
    small[..., 18:22, 18:22] = 1.0
    large = 0.1 * normal(1, 3, 80, 600)
    coarse, fine = (make_consistent_in_range(large, small, tolerance=one) for one in (2.0, 1e-3))
    changed = (coarse != fine).any(1)[0].any(0).nonzero()
    assert residual(fine, small) <= 1e-3 < residual(coarse, small) and int(changed.max()) < 2 * (32 + 8)


@pytest.mark.parametrize("tolerance", [2 / 255, 2 / 65535], ids=["8 bits", "16 bits"])
def test_slow_is_not_impossible(tolerance: float) -> None:
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    small = 0.52 * noise  # far from black and white, but it alternates
    found = make_consistent_in_range(0 * small.repeat(1, 1, 2, 2), small, tolerance=tolerance)
    assert residual(found, small) <= tolerance and float(found.abs().max()) <= 1


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    small, taken = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)).round() * 2 - 1, list[int]()
    solve = bounded_least_squares._solve

    def counted(*arguments: Any) -> tuple[torch.Tensor, int]:
        found, work = solve(*arguments)
        taken.append(work)
        return found, work

    monkeypatch.setattr(bounded_least_squares, "_solve", counted)
    first = replace(bounded_least_squares.PASSES[0], min_work=1, work_per_value=1)
    monkeypatch.setattr(bounded_least_squares, "PASSES", (first,))
    make_consistent_in_range(0 * small.repeat(1, 1, 2, 2), small)
    assert taken and sum(taken[:-1]) < small.numel() * 4  # after which no other window is begun


def test_what_no_picture_is_reduced_to_is_found_to_be_so() -> None:
    rows = resize_matrix(16, 8).float()
    checks = (torch.stack([torch.arange(8)] * 8) + torch.arange(8)[:, None]) % 2 * 2.0 - 1
    wanted, both = torch.stack([checks, 0.1 * checks])[:, None], rows.expand(2, 1, -1, -1)
    problem = bounded_least_squares._Problem(
        torch.zeros(2, 1, 16, 16), wanted, both, both, torch.full((2, 1, 1, 1), 3.0)
    )
    found, _ = bounded_least_squares._solve(problem, 1e-3, bounded_least_squares.PASSES[1], 10**9)
    left = (wanted - rows @ found @ rows.mT).abs().amax((1, 2, 3))
    assert problem.is_impossible(found, 1e-3).tolist() == [True, False] == (left > 1e-3).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_the_tolerance_is_met_wherever_a_linear_program_finds_that_it_can_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    (height, width), by = random.integers(4, 8, 2), (2, 1.5, 3)[seed % 3]
    y, x = np.mgrid[:height, :width]
    waves = random.uniform(0.8, 1.6) * np.sin(x / random.uniform(0.4, 2) + seed) * np.cos(y / random.uniform(0.4, 2))
    small = torch.from_numpy(waves.clip(-1, 1)).float()[None, None]
    large = torch.tanh(normal(1, 1, int(by * height), int(by * width)))
    least = least_residual(small[0, 0], large.shape[-2:])
    for tolerance in (2 / 255, 2 / 65535):
        found = residual(make_consistent_in_range(large, small, tolerance=tolerance), small)
        assert (found <= tolerance) == (least <= tolerance) or 0.85 < least / tolerance < 1, (least, found)


def least_residual(small: torch.Tensor, size: torch.Size) -> float:
    """The smallest possible difference of a picture within -1..1, reduced, to (h, w)."""
    rows, columns = (resize_matrix(n_in, n_out) for n_in, n_out in zip(size, small.shape, strict=True))
    reduction, wanted = torch.kron(rows, columns).numpy(), small.double().flatten().numpy()
    slack = -np.ones((len(wanted), 1))
    found = linprog(
        np.append(np.zeros(size.numel()), 1.0),
        A_ub=np.block([[reduction, slack], [-reduction, slack]]),
        b_ub=np.append(wanted, -wanted),
        bounds=[(-1, 1)] * size.numel() + [(0, None)],
    )
    return float(found.fun)
