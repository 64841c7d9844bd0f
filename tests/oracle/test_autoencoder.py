"""The autoencoder equals diffusers' on the same random weights."""

import pytest
import torch

from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-5


def pair(config: AutoencoderConfig) -> tuple[AutoencoderKL, torch.nn.Module]:
    """Ours and diffusers' with the same weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs

    count = len(config.channels)
    theirs = Theirs(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
    )
    ours = randomise(AutoencoderKL(config))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval()


CONFIGS = {
    "f8": AutoencoderConfig((16, 16, 32, 32), 1, 4, 0.18215, groups=4),
    "f4": AutoencoderConfig((8, 16, 32), 2, 3, 0.08333, groups=4),
}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (45, 29)])
@pytest.mark.parametrize("name", CONFIGS)
def test_encode_equals_diffusers(name: str, height: int, width: int) -> None:
    ours, theirs = pair(CONFIGS[name])
    image = normal(2, 3, height, width).clamp(-1, 1)
    with torch.inference_mode():
        found, expected = ours.encode(image), theirs.encode(image).latent_dist
    assert_close(found.mean, expected.mean * CONFIGS[name].scaling_factor, ATOL)
    assert_close(found.std, expected.std * CONFIGS[name].scaling_factor, ATOL)
    noise = normal(*found.mean.shape, seed=2)
    assert_close(found.sample(noise), (expected.mean + expected.std * noise) * CONFIGS[name].scaling_factor, ATOL)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3)])
@pytest.mark.parametrize("name", CONFIGS)
def test_decode_equals_diffusers(name: str, height: int, width: int) -> None:
    ours, theirs = pair(CONFIGS[name])
    latents = CONFIGS[name].scaling_factor * normal(2, CONFIGS[name].latent_channels, height, width)
    with torch.inference_mode():
        found, expected = ours.decode(latents), theirs.decode(latents / CONFIGS[name].scaling_factor).sample
    assert found.shape[2:] == (height * ours.downsample_factor, width * ours.downsample_factor)
    assert expected.std() > 0.1
    assert_close(found, expected, ATOL)


def test_factor() -> None:
    assert [AutoencoderKL(config).downsample_factor for config in CONFIGS.values()] == [8, 4]


def test_extreme_variance_is_clamped() -> None:
    ours, image = randomise(AutoencoderKL(CONFIGS["f4"])), normal(1, 3, 16, 16)
    ours.quant_conv.bias[3:] = torch.tensor([200.0, -200.0, 0.0])
    std = ours.encode(image).std / CONFIGS["f4"].scaling_factor
    limits = torch.tensor([10.0, -15.0]).exp()[:, None, None].expand(2, 4, 4)
    assert_close(std[0, :2] / limits, torch.ones(2, 4, 4), ATOL)


def test_latent_statistics_shift_and_scale_each_channel() -> None:
    mean, std = (0.5, -1.0, 0.25), (2.0, 0.5, 1.0)
    config = CONFIGS["f4"]
    plain = randomise(AutoencoderKL(config))
    ours = randomise(
        AutoencoderKL(
            AutoencoderConfig(
                config.channels, 2, 3, config.scaling_factor, groups=4, latents_mean=mean, latents_std=std
            )
        )
    )
    image = normal(1, 3, 16, 16)
    before, after = plain.encode(image), ours.encode(image)
    m, s = (torch.tensor(values)[:, None, None] for values in (mean, std))
    assert_close(after.mean, (before.mean / config.scaling_factor - m) * config.scaling_factor / s, ATOL)
    assert_close(after.std, before.std / s, ATOL)
    assert_close(ours.decode(after.mean), plain.decode(before.mean), ATOL)


def test_batch_equals_singles() -> None:
    ours, images = randomise(AutoencoderKL(CONFIGS["f8"])), normal(3, 3, 16, 24)
    assert_close(ours(images), torch.cat([ours(image[None]) for image in images]), ATOL)
