"""Latents know whose they are: what is refused, with which advice, and how they are split and joined."""

import numpy as np
import pytest
import torch

from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.tasks.inputs import (
    SPACE_BY_SCALING_FACTOR,
    Latents,
    LatentSpace,
    check_space,
    join_latents,
    latent_space_of,
    split_images,
)
from tests.support.close import assert_close
from tests.support.random_weights import normal

VALUES = normal(3, 4, 2, 5)


def config(scale: float) -> AutoencoderConfig:
    return AutoencoderConfig((8, 8), 1, 4, scale, groups=4)


def test_spaces_are_told_by_the_scale() -> None:
    for scale, space in SPACE_BY_SCALING_FACTOR.items():
        assert latent_space_of(config(scale)) == space and Latents(VALUES, space).scale == scale
    assert latent_space_of(config(0.5)) == "0.5" and Latents(VALUES, "0.5").scale == 0.5
    assert Latents(VALUES, "0.5").values_for(AutoencoderKL(config(0.5)), "x2") is VALUES


@pytest.mark.parametrize(
    ("found", "scale", "message"),
    [
        (
            "sdxl", 0.18215,
            "found latents of sdxl for x2, which takes those of sd; give them to an SDXL checkpoint, base or refiner, "
            "or decode them and give the picture",
        ),
        (
            "x4", 0.13025,
            "found latents of x4 for x2, which takes those of sdxl; give them to the x4 upscaler's autoencoder, "
            "or decode them and give the picture",
        ),
        (
            "sd", 0.08333,
            "found latents of sd for x2, which takes those of x4; give them to a Stable Diffusion 1 or 2 checkpoint "
            "or the x2 latent upscaler, or decode them and give the picture",
        ),
        (
            "0.5", 0.18215,
            "found latents of 0.5 for x2, which takes those of sd; give them to a checkpoint whose autoencoder has "
            "that scale, or decode them and give the picture",
        ),
    ],
)  # fmt: skip
def test_a_wrong_mix_names_the_right_checkpoint(found: LatentSpace, scale: float, message: str) -> None:
    with pytest.raises(InputError) as raised:
        check_space(found, config(scale), "x2")
    assert str(raised.value) == message
    with pytest.raises(InputError) as raised:
        Latents(VALUES, found).values_for(AutoencoderKL(config(scale)), "x2")
    assert str(raised.value) == message


def test_noise_and_channels() -> None:
    autoencoder = AutoencoderKL(config(0.18215))
    assert Latents(VALUES, "sd").values_for(autoencoder, "x2") is VALUES
    noisy = Latents(VALUES, "sd", 2.5)
    assert noisy.values_for(autoencoder, "x2", allow_noise=True) is VALUES
    with pytest.raises(InputError, match=r"found latents with noise of level 2.5 for x2, expected finished ones; run "):
        noisy.values_for(autoencoder, "x2")
    with pytest.raises(InputError, match="found latents with 3 channels for x2, expected 4"):
        Latents(VALUES[:, :3], "sd").values_for(autoencoder, "x2")


def test_what_are_no_latents() -> None:
    with pytest.raises(InputError, match=r"latents have shape \(4, 2, 5\) of torch.float32, expected floats \(B, C, h"):
        Latents(VALUES[0], "sd")
    with pytest.raises(InputError, match=r"latents have shape \(3, 4, 2, 5\) of torch.int64, expected floats"):
        Latents(VALUES.long(), "sd")
    with pytest.raises(InputError, match="latents are of space 'sd3', expected one of sd, sdxl, x4"):
        Latents(VALUES, "sd3")
    for space in ("0", "-1.0", "nan", "inf", "0.50", "0.18215"):  # the last is "sd"
        with pytest.raises(
            InputError, match=f"latents are of space '{space}', expected one of sd, sdxl, x4, or the sc"
        ):
            Latents(VALUES, space)
    for sigma in (-1.0, float("nan")):
        with pytest.raises(InputError, match=f"latents have noise of level {sigma}, expected 0 or above"):
            Latents(VALUES, "sd", sigma)


def test_splitting_and_joining() -> None:
    latents = Latents(VALUES, "sdxl", 0.5)
    assert len(latents) == 3 and repr(latents) == "Latents((3, 4, 2, 5), 'sdxl', sigma=0.5)"
    parts = [latents[i] for i in range(3)]
    assert [tuple(part.values.shape) for part in parts] == [(1, 4, 2, 5)] * 3
    whole = join_latents(parts)
    assert whole is not None and (whole.space, whole.sigma) == ("sdxl", 0.5)
    assert_close(whole.values, VALUES, 0)
    assert torch.equal(latents[1:].values, VALUES[1:])
    others = [
        Latents(VALUES[:1, :, :1], "sdxl", 0.5),
        Latents(VALUES[:1], "sd", 0.5),
        Latents(VALUES[:1], "sdxl"),
        None,
    ]
    for other in others:
        assert join_latents([parts[0], other]) is None
    assert join_latents([]) is None


def test_a_batch_in_an_array_is_a_list() -> None:
    assert [one.shape for one in split_images(np.zeros((2, 8, 9, 3), np.uint8))] == [(8, 9, 3)] * 2
