"""Half precision that overflows is named, and computed again in float32."""

import copy
import random

import pytest
import torch

from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.latent_diffusion import decode_latents
from enlarger.tasks.loading.stable_diffusion import load_stable_diffusion
from enlarger.tasks.text_to_image import GenerateRequest, Generator
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_overflow_of_the_autoencoder_is_named(seed: int) -> None:
    autoencoder = randomise(AutoencoderKL(AutoencoderConfig((8, 16), 1, 4, 1.0, groups=4)), seed)
    convolutions = [name for name, part in autoencoder.decoder.named_modules() if isinstance(part, torch.nn.Conv2d)]
    name = random.Random(seed).choice([one for one in convolutions if "conv_out" not in one])
    autoencoder.decoder.get_submodule(name).weight.data *= 6e4  # float16 holds them, and not their sums
    latents, half = normal(1, 4, 6, 6), autoencoder.half()
    expected = decode_latents(copy.deepcopy(half).float(), latents, Runtime())
    with pytest.warns(UserWarning, match=rf"overflowed in decoder\.{name} in float16: decoded again in float32"):
        found = decode_latents(half, latents, Runtime())
    assert_close(found, expected, 1e-6)


def test_a_planted_overflow_of_the_diffusion_is_named_and_sampled_again() -> None:
    model = load_stable_diffusion(tiny.sd1_folder(), "cpu", "float16")
    unet = model.latent_diffusion.unet
    part = unet.get_submodule("down_blocks.0.resnets.0.conv1")
    part.weight.data *= 60000  # type: ignore[union-attr,operator]
    generator, request = Generator(model), GenerateRequest("a", width=32, height=32, steps=2)
    with pytest.warns(UserWarning, match="down_blocks.0.resnets.0.conv1 in the diffusion network is not finite in"):
        found = generator(request)
    unet.float()
    assert found.latents is not None
    again = generator(request)
    unet.half()
    assert again.latents is not None
    assert_close(found.latents.values, again.latents.values, 2e-2)
