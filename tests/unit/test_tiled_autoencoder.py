"""An autoencoder in tiles gives the result of the whole."""

import random

import pytest
import torch

from enlarger.errors import EnlargerError
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.runtime import feature_map
from enlarger.tasks.latent_diffusion import tiled_autoencoder
from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_image, decode_tiled, encode_image, encode_tiled
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-4
CONFIGS = (
    AutoencoderConfig((8, 8, 16, 16), 1, 4, 0.18215, groups=4),
    AutoencoderConfig((8, 16, 16), 2, 3, 0.08333, groups=4),
    AutoencoderConfig((4,), 1, 4, 0.18215, groups=2),
)
CASES = 6  # `benchmarks/tiled_autoencoder.py` takes 200


def check_case(seed: int) -> float:
    """Encode and decode a picture of a random size in tiles of a random size; the largest difference to the whole."""
    draw = random.Random(seed)
    autoencoder = randomise(AutoencoderKL(CONFIGS[seed % len(CONFIGS)]), seed)
    height, width, tile = draw.randint(9, 40), draw.randint(9, 40), draw.choice([3, 5, 6, 8, 9, 16, 33, 128])
    image = normal(draw.choice([1, 1, 2]), 3, height, width, seed=seed)
    with torch.inference_mode():
        found, expected = encode_tiled(autoencoder, image, tile), autoencoder.encode(image)
        assert_close(found.mean, expected.mean, ATOL)
        assert_close(found.std, expected.std, ATOL)
        assert expected.mean.std() > 0.01 * autoencoder.config.scaling_factor
        decoded, whole = decode_tiled(autoencoder, expected.mean, tile), autoencoder.decode(expected.mean)
    assert_close(decoded, whole, ATOL)
    return float(max((found.mean - expected.mean).abs().max(), (decoded - whole).abs().max()))


@pytest.mark.parametrize("seed", range(CASES))
def test_tiled_equals_whole(seed: int) -> None:
    check_case(seed)


def test_features_on_disk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_map, "IN_MEMORY", 0)
    monkeypatch.setattr(tiled_autoencoder, "BAND", 1)
    check_case(1)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, place: int) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(feature_map, "IN_MEMORY", 0)
    monkeypatch.setattr(feature_map.tempfile, "TemporaryFile", Full)
    with pytest.raises(
        EnlargerError, match=r"temporary files .* \(No space left on device\); free space there, or name"
    ):
        check_case(0)


def test_half_precision_stays_close() -> None:
    autoencoder = randomise(AutoencoderKL(CONFIGS[0])).bfloat16()
    latents = normal(1, 4, 6, 7).bfloat16() * 0.18215
    with torch.inference_mode():
        assert_close(decode_tiled(autoencoder, latents, 8).float(), autoencoder.decode(latents).float(), 0.1)


def test_large_pictures_run_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = randomise(AutoencoderKL(CONFIGS[0]))
    latents, tiled = normal(1, 4, 3, 4), list[int]()
    monkeypatch.setattr(tiled_autoencoder, "run_tiled", lambda network, x, tile: tiled.append(tile) or network(x))
    monkeypatch.setattr(tiled_autoencoder, "WHOLE_BYTES", 8 * 24 * 32 * 4)
    with torch.inference_mode():
        image = decode_image(autoencoder, latents)
        encode_image(autoencoder, image)
        assert tiled == []
        monkeypatch.setattr(tiled_autoencoder, "WHOLE_BYTES", 8 * 24 * 32 * 4 - 1)
        assert_close(decode_image(autoencoder, latents), image, 0)
        encode_image(autoencoder, image)
    assert tiled == [128, 128]
