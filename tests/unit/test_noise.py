"""Randomness is an argument: one generator per image, or one for all."""

import torch

from enlarger.diffusion.noise import PerSampleGenerators, SharedGenerator, from_seeds
from tests.support.close import assert_close


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    like = torch.zeros(3, 2, 4, 4)
    whole = from_seeds([7, 0, 2**64 - 1])
    first, second = whole(like), whole(like)
    for i, seed in enumerate([7, 0, 2**64 - 1]):
        alone = from_seeds([seed])
        assert alone(like[:1]).equal(first[i : i + 1]) and alone(like[:1]).equal(second[i : i + 1])
    assert not first.equal(second)


def test_shared_noise_is_one_draw() -> None:
    like = torch.zeros(2, 1, 2, 2)
    drawn = SharedGenerator(torch.Generator().manual_seed(3))(like)
    assert drawn.equal(torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(5)
    expected = torch.randn(2, 1, 2, 2)
    torch.manual_seed(5)
    assert SharedGenerator(None)(like).equal(expected)


def test_noise_is_normal_and_the_same_in_every_precision() -> None:
    drawn = from_seeds([0])(torch.zeros(1, 4, 64, 64))
    assert abs(float(drawn.mean())) < 0.03 and abs(float(drawn.std()) - 1) < 0.03
    for dtype in (torch.bfloat16, torch.float16):
        assert from_seeds([0])(torch.zeros(1, 4, 64, 64, dtype=dtype)).equal(drawn)


def test_noise_of_other_programs_is_drawn_in_the_batch_precision() -> None:
    like, generators = torch.zeros(1, 4, 64, 64, dtype=torch.bfloat16), (torch.Generator().manual_seed(0),)
    half = PerSampleGenerators(generators)(like)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), from_seeds([0])(like), 0.02)  # the same numbers, rounded


def test_seed_0_is_a_seed() -> None:
    like = torch.zeros(1, 1, 2, 2)
    assert from_seeds([0])(like).equal(from_seeds([0])(like))
    assert isinstance(from_seeds([0]), PerSampleGenerators)
