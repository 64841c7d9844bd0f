"""An autoencoder in tiles gives the result of the whole."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from enlarger.errors import EnlargerError, OutOfMemory
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.runtime import feature_map
from enlarger.tasks.latent_diffusion import tiled_autoencoder
from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_image, decode_tiled, encode_image, encode_tiled
from enlarger.tasks.planning.network_costs import decoder_cost, encoder_cost
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


def test_what_takes_more_than_it_may_runs_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = randomise(AutoencoderKL(CONFIGS[0]))
    latents, tiled = normal(1, 4, 12, 9), list[int]()
    monkeypatch.setattr(tiled_autoencoder, "run_tiled", lambda network, x, tile: tiled.append(tile) or network(x))
    needs = [cost(autoencoder, (12 * f, 9 * f)).peak for cost, f in ((decoder_cost, 1), (encoder_cost, 8))]
    with torch.inference_mode():
        image = decode_image(autoencoder, latents)
        encode_image(autoencoder, image)
        decode_image(autoencoder, latents, work=needs[0])
        encode_image(autoencoder, image, work=needs[1])
        assert tiled == []
        assert_close(decode_image(autoencoder, latents, work=needs[0] - 1), image, 0)
        encode_image(autoencoder, image, work=needs[1] - 1)
        decode_image(autoencoder, latents.expand(2, -1, -1, -1), work=2 * needs[0] - 2)
        decode_image(autoencoder, latents, work=1)
    assert tiled == [64, 64, 64, 64, 16]


NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


def failing(times: int, error: Exception) -> Callable[..., Tensor]:
    """`run_tiled`, which first runs out of memory so many times."""
    real, left = tiled_autoencoder.run_tiled, [times]

    def run(network: nn.Module, x: Tensor, tile: int) -> Tensor:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(network, x, tile)

    return run


@pytest.mark.parametrize("error", NO_MEMORY, ids=["cuda", "cpu", "python"])
def test_where_memory_runs_out_smaller_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    autoencoder, latents = randomise(AutoencoderKL(CONFIGS[0])), normal(1, 4, 12, 9)
    with torch.inference_mode():
        expected = autoencoder.decode(latents)
        monkeypatch.setattr(tiled_autoencoder, "run_tiled", failing(1, error))
        with pytest.warns(UserWarning, match=r"^memory ran out in decoding: again in tiles of 64 pixels$"):
            assert_close(decode_image(autoencoder, latents, tiled=True), expected, ATOL)
        monkeypatch.setattr(tiled_autoencoder, "run_tiled", failing(3, error))
        with (
            pytest.warns(UserWarning, match=r"^memory ran out in decoding: again in tiles of (64|32) pixels"),
            pytest.raises(
                OutOfMemory, match=r"^memory ran out in decoding in tiles of 32 pixels, which takes .* MB besi"
            ),
        ):
            decode_image(autoencoder, latents, tiled=True)


def test_what_the_whole_lacks_memory_for_goes_into_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, image = randomise(AutoencoderKL(CONFIGS[0])), normal(1, 3, 40, 72)
    expected = autoencoder.encode(image).mean

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(autoencoder.encoder, "forward", fail)
    with torch.inference_mode(), pytest.warns(UserWarning, match=r"^memory ran out in encoding: again in tiles of 32"):
        assert_close(encode_image(autoencoder, image).mean, expected, ATOL)


def test_other_errors_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_autoencoder, "run_tiled", failing(1, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        decode_image(randomise(AutoencoderKL(CONFIGS[0])), normal(1, 4, 12, 9), tiled=True)
