"""Laws of the bundled model, with tiny random networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.diffusion.noise import from_seeds
from enlarger.errors import Cancelled, InputError, Unsupported
from enlarger.image.consistency import downscale
from enlarger.nn.compact import CompactAutoencoder, CompactAutoencoderConfig, Predictor, PredictorConfig
from enlarger.nn.compact_unet import CompactStage, CompactUNet, CompactUNetConfig, residual_scale
from enlarger.requests import UpscaleRequest
from enlarger.tasks.result import Progress
from enlarger.tasks.upscale.bundled import BundledUpscaler
from tests.support.close import assert_close, max_difference
from tests.support.pictures import texture
from tests.support.random_weights import normal, randomise

STAGES = (CompactStage(8, 1), CompactStage(8, 1), CompactStage(8, 1))


def task(tile: int = 512, predictor: Predictor | None = None) -> BundledUpscaler:
    return BundledUpscaler(
        randomise(Predictor(PredictorConfig(8, 1))) if predictor is None else predictor,
        randomise(CompactAutoencoder(CompactAutoencoderConfig(3, 8, 1))),
        randomise(CompactUNet(CompactUNetConfig(6, 3, STAGES[:2], 16, (0.1, 0.2, 0.4)))),
        tile=tile,
    )


def untrained() -> Predictor:
    return Predictor(PredictorConfig(8, 2)).eval().requires_grad_(False)


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.tanh(normal(count, 3, height, width))


@pytest.mark.parametrize("detail", [0.0, 0.7])
@pytest.mark.parametrize("size", [(55, 26), (1, 60)])
def test_tiles_equal_the_whole(size: tuple[int, int], detail: float) -> None:
    small = picture(*size)
    whole = task().enlarge(small, from_seeds([3]), detail=detail, steps=1)
    tiles = task(tile=16).enlarge(small, from_seeds([3]), detail=detail, steps=1)
    assert tiles.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert_close(tiles, whole, 1e-5 * max(1.0, float(whole.abs().max())))  # random networks leave -1..1


def spread(function: Callable[[Tensor], Tensor], x: Tensor, row: int, column: int) -> list[int]:
    """First and last row and column of the outputs that change with one input pixel."""
    changed = x.clone()
    changed[..., row, column] += 1.0
    rows, columns = (function(changed) != function(x)).any(1)[0].nonzero().T
    return [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())]


@pytest.mark.parametrize("blocks", [1, 3])
def test_reach_of_the_predictor(blocks: int) -> None:
    predictor = randomise(Predictor(PredictorConfig(4, blocks)))
    top, bottom, left, right = spread(predictor, picture(41, 43), 20, 21)
    reach = predictor.receptive_radius
    assert 20 - reach <= top // 2 and bottom // 2 <= 20 + reach
    assert 21 - reach <= left // 2 and right // 2 <= 21 + reach
    assert bottom // 2 - 20 > reach - 3  # and it is not much too careful


@pytest.mark.parametrize("blocks", [1, 3])
def test_reach_of_the_autoencoder(blocks: int) -> None:
    autoencoder = randomise(CompactAutoencoder(CompactAutoencoderConfig(3, 4, blocks)))
    middle = 4 * (2 * blocks + 4)
    reach = autoencoder.receptive_radius // 4  # in latents: the pixel's own patch, and as many patches on each side
    for offset in (0, 3):
        top, bottom, left, right = spread(autoencoder.encode, picture(2 * middle, 2 * middle), middle + offset, middle)
        assert [top, bottom, left, right] == [middle // 4 - reach, middle // 4 + reach] * 2
    latents = normal(1, 3, middle // 2, middle // 2)
    top, bottom, left, right = spread(autoencoder.decode, latents, middle // 4, middle // 4)
    assert [top // 4, bottom // 4, left // 4, right // 4] == [middle // 4 - reach, middle // 4 + reach] * 2


@pytest.mark.parametrize("stages", [(CompactStage(4, 1),), (CompactStage(4, 1), CompactStage(4, 2)), STAGES])
def test_reach_of_the_denoiser(stages: tuple[CompactStage, ...]) -> None:
    unet = randomise(CompactUNet(CompactUNetConfig(2, 2, stages, 8, (1.0, 1.0)))).double()
    side = 2 * (unet.receptive_radius + 4) // 8 * 8 + 8
    x, time = normal(1, 2, side, side).double(), torch.zeros(1, dtype=torch.float64)
    furthest = 0
    for offset in range(unet.size_multiple):  # where a pixel lies in its block matters
        at = side // 2 + offset
        top, bottom, left, right = spread(lambda x: unet(x, time), x, at, at)
        assert max(at - top, bottom - at, at - left, right - at) <= unet.receptive_radius
        furthest = max(furthest, at - top, bottom - at)
    assert furthest > unet.receptive_radius / 2  # the bound is not idle


def test_without_detail_only_the_predictor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Tensor:
        raise AssertionError("not to be called")

    model, small = task(), picture(9, 10)
    upscale = model.enlarge
    expected = upscale(small, from_seeds([0]))
    for owner, name in ((model.unet, "forward"), (model.autoencoder, "encode"), (model.autoencoder, "decode")):
        monkeypatch.setattr(owner, name, forbidden)
    seen: list[Progress] = []
    assert upscale(small, from_seeds([1]), detail=0.0, watch=seen.append).equal(expected)  # nor does a seed matter
    assert [progress.stage for progress in seen] == ["predict"]
    with pytest.raises(AssertionError, match="not to be called"):
        upscale(small, from_seeds([0]), detail=0.01, steps=1)


def test_every_tile_is_seen_and_can_be_the_last() -> None:
    def stop(progress: Progress) -> None:
        seen.append((progress.stage, progress.done, progress.total))
        if progress.done == 3:
            raise Cancelled

    seen: list[tuple[str, int, int]] = []
    with pytest.raises(Cancelled):
        task(tile=16).enlarge(picture(40, 40), from_seeds([0]), watch=stop)
    assert seen == [("predict", 1, 9), ("predict", 2, 9), ("predict", 3, 9)]


def test_detail_is_added_in_proportion() -> None:
    upscale, small = task().enlarge, picture(8, 8)
    none, half, full = (upscale(small, from_seeds([4]), detail=d, steps=2) for d in (0.0, 0.5, 1.0))
    assert max_difference(none, full) > 0.01
    assert_close(half - none, (full - none) / 2, 1e-5)
    assert max_difference(upscale(small, from_seeds([5]), detail=1.0, steps=2), full) > 0.001


def test_what_is_added_is_as_large_as_the_texture_around_it() -> None:
    config = CompactUNetConfig(6, 3, STAGES[:2], 16, (1.0, 2.0, 0.5), floor=0.1)
    mean = torch.full((1, 3, 12, 24), 0.7)
    mean[..., 12:] += 3 * normal(1, 3, 12, 12)
    scale = residual_scale(mean, config)
    assert_close(scale[0, :, 6, 4], torch.tensor([0.1, 0.2, 0.05]), 1e-6)  # flat: the floor
    assert_close(scale[:, 1], 2 * scale[:, 0], 1e-6)
    assert 2 < float(scale[0, 0, :, 16:].mean()) < 4  # the texture's own deviation


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 30), (5, 64)])
def test_untrained_the_predictor_is_bicubic(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(
        80, 176, (*size, 3), dtype=np.uint8
    )  # Pillow clips between its two passes
    small = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1
    found = task(predictor=untrained()).enlarge(small, from_seeds([0]))
    wanted = np.asarray(Image.fromarray(array).resize((2 * size[1], 2 * size[0]), Image.Resampling.BICUBIC))
    rounded = ((found[0] + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0)
    assert_close(rounded, wanted, 1.0)


def test_a_batch_equals_singles() -> None:
    upscale, small = task().enlarge, picture(11, 9, count=3)
    found = upscale(small, from_seeds([7, 0, 5]), detail=1.0, steps=2)
    atol = 1e-5 * max(1.0, float(found.abs().max()))
    for i, seed in enumerate([7, 0, 5]):
        assert_close(upscale(small[i : i + 1], from_seeds([seed]), detail=1.0, steps=2), found[i : i + 1], atol)


@pytest.mark.parametrize("detail", [0.0, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (8, 16), (15, 17)])
def test_exact_sizes(size: tuple[int, int], detail: float) -> None:
    found = task().enlarge(picture(*size), from_seeds([0]), detail=detail, steps=1)
    assert found.shape == (1, 3, 2 * size[0], 2 * size[1]) and torch.isfinite(found).all()


def upscaler(predictor: Predictor | None = None) -> BundledUpscaler:
    return task(predictor=untrained() if predictor is None else predictor)


@pytest.mark.parametrize("by", [1, 1.01, 1.5, 2, 3, 4.5])
def test_any_factor_gives_the_exact_size_and_stays_true(by: float) -> None:
    result = upscaler()(UpscaleRequest(Image.fromarray(texture(21, 10)), by=by))
    assert result.image.size == (round(21 * by), round(10 * by))
    assert result.consistency is not None and result.consistency < 60  # only clipping and rounding keep it from 0
    plain = Image.fromarray(texture(21, 10) // 4 + 96)  # far from black and white nothing is clipped
    assert upscaler()(UpscaleRequest(plain, by=by)).consistency < 1


def test_alpha_is_enlarged_beside_the_colour() -> None:
    array = np.full((12, 10, 4), 200, np.uint8)
    array[:, :5, 3] = 0
    array[:, :5, :3] = 0  # black under what cannot be seen
    image = upscaler()(UpscaleRequest(Image.fromarray(array))).image
    made = np.asarray(image)
    assert image.mode == "RGBA" and image.size == (20, 24)
    assert made[:, :8, 3].max() <= 20 and made[:, 12:, 3].min() >= 190
    assert abs(made[..., :3].astype(int) - 200).max() <= 1  # no black bleeds in


def test_grey_stays_grey() -> None:
    random = upscaler(randomise(Predictor(PredictorConfig(8, 2))))
    image = random(UpscaleRequest(Image.fromarray(texture(12, 10, 1)))).image
    assert image.mode == "L" and image.size == (24, 20)
    both = random(UpscaleRequest(Image.fromarray(texture(12, 10, 2)[..., :2], "LA"))).image
    assert both.mode == "LA"


def test_16_bits_stay_16_bits() -> None:
    array = (np.arange(120, dtype=np.uint16).reshape(10, 12) * 300 + 9000).astype(np.uint16)
    image = upscaler()(UpscaleRequest(Image.fromarray(array))).image
    made = np.asarray(image)
    assert image.mode == "I;16" and made.shape == (20, 24) and len(np.unique(made)) > 256
    back = downscale(torch.from_numpy(made.astype(np.float32))[None, None], (10, 12))
    assert_close(back[0, 0], torch.from_numpy(array.astype(np.float32)), 1.0)


def test_seeds_and_counts() -> None:
    model = upscaler()
    pictures = [Image.fromarray(texture(9, 8, seed=s)) for s in range(2)]
    options = {"detail": 1.0, "steps": 1}
    result = model(UpscaleRequest(pictures, count=2, seed=5, **options))
    assert result.seeds == (5, 6, 7, 8) and len(result.images) == 4
    again = model(UpscaleRequest(pictures[1], seed=8, **options))
    assert np.abs(np.asarray(again.image, int) - np.asarray(result.images[3], int)).max() <= 1
    listed = model(UpscaleRequest(pictures, seed=[6, 6], **options))
    assert np.abs(np.asarray(listed.images[0], int) - np.asarray(result.images[1], int)).max() <= 1


def test_the_adaptive_solver_treats_pictures_alone() -> None:
    model, small = upscaler(), Image.fromarray(texture(9, 8))
    model.unet.conv_out.weight.zero_()  # a smooth flow takes few steps
    options = {"detail": 1.0, "solver": "dpm_adaptive"}
    two = model(UpscaleRequest(small, count=2, seed=0, **options))
    for seed, image in zip(two.seeds, two.images, strict=True):
        alone = model(UpscaleRequest(small, seed=seed, **options)).image
        assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1


def test_a_watcher_stops_the_work() -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done == 2:
            assert progress.total == 3 and progress.step is not None
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match=r"^enough$"):
        upscaler()(UpscaleRequest(Image.fromarray(texture(9, 8)), detail=1.0, steps=3), stop)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"image": []}, InputError, "an empty list of pictures, expected at least one"),
        (
            {"image": torch.zeros(4, 8, 8)},
            Unsupported,
            "found latents with 4 channels; the bundled model takes pictures",
        ),
        ({"image": torch.zeros(8, 8)}, InputError, r"tensor: found shape \(8, 8\), expected one picture"),
        ({"prompt": "a cat"}, Unsupported, "prompt is set, but the bundled model has no use for it"),
        ({"guidance": 0}, Unsupported, "guidance is set, but the bundled model has no use for it"),
        ({"noise_level": 0.1}, Unsupported, "noise_level is set, but the bundled model has no use for it"),
        ({"profile": "original"}, Unsupported, "profile is set, but the bundled model has no use for it"),
        ({"solver": "magic"}, InputError, "no solver is called 'magic'; there are euler, "),
        ({"seed": [1, 2]}, InputError, "2 seeds for 1 images"),
    ],
)
def test_refusals(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        upscaler()(UpscaleRequest(**{"image": Image.fromarray(texture(9, 8))} | change))
