"""Laws of the bundled model, with tiny random networks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import Cancelled, InputError, Unsupported
from enlarger.image.consistency import downscale
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig, backproject
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.result import Progress
from enlarger.tasks.upscale.bundled import BundledUpscaler
from enlarger.tasks.upscale.upscale import plan_upscale
from tests.support.close import assert_close, max_difference
from tests.support.pictures import texture
from tests.support.random_weights import normal, randomise

PLAIN, CONDITIONED = UpscaleNetConfig(8, 2), UpscaleNetConfig(8, 2, extra_channels=1)


def task(tile: int = 512, predictor: UpscaleNet | None = None) -> BundledUpscaler:
    return BundledUpscaler(
        randomise(UpscaleNet(PLAIN)) if predictor is None else predictor,
        randomise(UpscaleNet(PLAIN), seed=1),
        randomise(UpscaleNet(CONDITIONED), seed=2),
        randomise(UpscaleNet(PLAIN), seed=3),
        tile=tile,
    )


def untrained() -> UpscaleNet:
    return UpscaleNet(PLAIN).eval().requires_grad_(False)


@pytest.fixture
def photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given is no graphics: random networks are as wrong about every picture."""
    monkeypatch.setattr("enlarger.tasks.upscale.bundled.is_graphics", lambda *_: False)


PHOTOGRAPH = pytest.mark.usefixtures("photograph")


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.tanh(normal(count, 3, height, width))


SETTINGS = [(0.0, 0.0), (0.7, 0.0), (0.0, 0.4), (0.7, 0.4)]  # detail, restore


@pytest.mark.parametrize(("detail", "restore"), SETTINGS)
@pytest.mark.parametrize("size", [(55, 26), (1, 60)])
def test_tiles_equal_the_whole(size: tuple[int, int], detail: float, restore: float) -> None:
    small = picture(*size)
    whole = task().upscale_pixels(small, detail=detail, restore=restore)
    tiles = task(tile=16).upscale_pixels(small, detail=detail, restore=restore)
    assert tiles.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert_close(tiles, whole, 1e-5 * max(1.0, float(whole.abs().max())))  # random networks leave -1..1


def spread(function: Callable[[Tensor], Tensor], x: Tensor, row: int, column: int) -> list[int]:
    """First and last row and column of the outputs that change with one input pixel."""
    changed = x.clone()
    changed[..., row, column] += 1.0
    rows, columns = (function(changed) != function(x)).any(1)[0].nonzero().T
    return [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())]


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_receptive_radius_is_a_bound_and_not_idle(blocks: int) -> None:
    net = randomise(UpscaleNet(UpscaleNetConfig(4, blocks)))
    top, bottom, left, right = spread(net, picture(41, 43), 20, 21)
    radius = net.receptive_radius
    assert 20 - radius <= top // 2 and bottom // 2 <= 20 + radius
    assert 21 - radius <= left // 2 and right // 2 <= 21 + radius
    assert bottom // 2 - 20 > radius - 3


@PHOTOGRAPH
def test_without_detail_only_the_predictor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Tensor:
        raise AssertionError("not to be called")

    model, small = task(), picture(9, 10)
    upscale = model.upscale_pixels
    expected = upscale(small)
    for part in (model.detailer, model.restorer):
        monkeypatch.setattr(part, "forward", forbidden)
    seen: list[Progress] = []
    assert upscale(small, detail=0.0, restore=0.0, watch=seen.append).equal(expected)
    assert [progress.stage for progress in seen] == ["predict"]
    for options in ({"detail": 0.01}, {"restore": 0.01}):
        with pytest.raises(AssertionError, match="not to be called"):
            upscale(small, **options)


def test_the_stages_of_a_restored_picture_with_detail() -> None:
    seen: list[Progress] = []
    task().upscale_pixels(picture(9, 10), detail=0.5, restore=0.5, watch=seen.append)
    assert [progress.stage for progress in seen] == ["restore", "predict", "detail"]


@PHOTOGRAPH
def test_every_tile_is_seen_and_can_be_the_last() -> None:
    def stop(progress: Progress) -> None:
        seen.append((progress.stage, progress.done, progress.total))
        if progress.done == 3:
            raise Cancelled

    seen: list[tuple[str, int, int]] = []
    with pytest.raises(Cancelled):
        task(tile=16).upscale_pixels(picture(40, 40), watch=stop)
    assert seen == [("predict", 1, 9), ("predict", 2, 9), ("predict", 3, 9)]


@PHOTOGRAPH
@pytest.mark.parametrize("restore", [0.0, 0.4])
def test_detail_is_added_in_proportion(restore: float) -> None:
    upscale, small = task().upscale_pixels, picture(8, 8)
    none, half, full = (upscale(small, detail=d, restore=restore) for d in (0.0, 0.5, 1.0))
    assert max_difference(none, full) > 0.01
    assert_close(half - none, (full - none) / 2, 1e-5 * max(1.0, float(full.abs().max())))


def test_the_strength_of_a_restoration_is_told() -> None:
    upscale, small = task().upscale_pixels, picture(8, 8)
    assert max_difference(upscale(small, restore=0.2), upscale(small, restore=0.8)) > 0.001


def test_back_projection_brings_the_half_nearer() -> None:
    small, large = picture(16, 18), picture(32, 36)
    before, after = (max_difference(downscale(x, (16, 18)), small) for x in (large, backproject(large, small)))
    assert after < before / 2


@PHOTOGRAPH
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 30), (5, 64)])
def test_untrained_the_predictor_is_bicubic(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(
        80, 176, (*size, 3), dtype=np.uint8
    )  # Pillow clips between its two passes
    small = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1
    found = task(predictor=untrained()).upscale_pixels(small)
    wanted = np.asarray(Image.fromarray(array).resize((2 * size[1], 2 * size[0]), Image.Resampling.BICUBIC))
    rounded = ((found[0] + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0)
    assert_close(rounded, wanted, 1.0)


@pytest.mark.parametrize(("detail", "restore"), SETTINGS)
@pytest.mark.parametrize("by", [2, 3, 4])
def test_one_colour_comes_back_exactly_whatever_the_weights(detail: float, restore: float, by: float) -> None:
    flat = Image.new("RGB", (13, 10), (200, 120, 41))
    result = task()(UpscaleRequest(flat, by=by, detail=detail, restore=restore))
    assert result.image.getcolors() == [(13 * 10 * by**2, (200, 120, 41))]


def test_nothing_is_added_where_the_surroundings_are_of_one_colour() -> None:
    small = torch.full((1, 3, 20, 20), 0.25)
    small[..., 15:, :] = -0.5
    found = task().upscale_pixels(small)
    assert_close(found[..., :24, :], torch.full((1, 3, 24, 40), 0.25), 1e-6)
    assert max_difference(found[..., 28:30, :], torch.full((1, 3, 2, 40), 0.25)) > 0.01


def test_a_batch_equals_singles() -> None:
    upscale, small = task().upscale_pixels, picture(11, 9, count=3)
    found = upscale(small, detail=1.0, restore=0.3)
    atol = 1e-5 * max(1.0, float(found.abs().max()))
    for i in range(3):
        assert_close(upscale(small[i : i + 1], detail=1.0, restore=0.3), found[i : i + 1], atol)


@pytest.mark.parametrize(("detail", "restore"), SETTINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (8, 16), (15, 17)])
def test_exact_sizes(size: tuple[int, int], detail: float, restore: float) -> None:
    found = task().upscale_pixels(picture(*size), detail=detail, restore=restore)
    assert found.shape == (1, 3, 2 * size[0], 2 * size[1]) and torch.isfinite(found).all()


def upscaler(predictor: UpscaleNet | None = None) -> BundledUpscaler:
    return task(predictor=untrained() if predictor is None else predictor)


@pytest.mark.parametrize("by", [1, 1.01, 1.5, 2, 3, 4.5])
def test_any_factor_gives_the_exact_size_and_stays_true(by: float) -> None:
    result = upscaler()(UpscaleRequest(Image.fromarray(texture(21, 10)), by=by, consistent=True))
    assert result.image.size == (math.floor(21 * by + 0.5), math.floor(10 * by + 0.5))
    assert result.consistency is not None and result.consistency < 60  # only clipping and rounding keep it from 0
    plain = Image.fromarray(texture(21, 10) // 4 + 96)  # far from black and white nothing is clipped
    assert upscaler()(UpscaleRequest(plain, by=by, consistent=True)).consistency < 1


def test_graphics_are_not_made_consistent_unless_asked() -> None:
    cells = np.random.default_rng(0).integers(0, 2, (12, 12, 1)).repeat(3, 2).astype(np.uint8) * 255
    small, insisted = Image.fromarray(cells), UpscaleRequest(Image.fromarray(cells), consistent=True)
    result, forced = upscaler()(UpscaleRequest(small)), upscaler()(insisted)
    assert [note for note in result.notes if note.startswith("taken for graphics: redrawn without detail")]
    assert not any(note.startswith("taken for graphics") for note in forced.notes)
    assert result.consistency is not None and forced.consistency < result.consistency
    seen: list[str] = []
    free = upscaler()(UpscaleRequest(small, consistent=False, detail=1.0), lambda progress: seen.append(progress.stage))
    assert np.array_equal(np.asarray(free.image), np.asarray(result.image)) and free.notes == result.notes
    assert seen == ["predict", "redraw"]  # no detail


def test_a_batch_may_hold_graphics_and_photographs() -> None:
    cells = (
        torch.from_numpy(np.random.default_rng(0).integers(0, 2, (1, 1, 12, 10))).float().expand(-1, 3, -1, -1) * 2 - 1
    )
    smooth = torch.from_numpy(texture(10, 12)).permute(2, 0, 1)[None] / 127.5 - 1
    upscale = task(predictor=untrained()).upscale_pixels
    both = upscale(torch.cat([cells, smooth]), detail=1.0)
    for i, one in enumerate((cells, smooth)):
        assert_close(both[i : i + 1], upscale(one, detail=1.0), 1e-5 * float(both.abs().max()))


@PHOTOGRAPH
def test_a_photograph_s_half_is_made_consistent() -> None:
    smooth = Image.fromarray(texture(12, 10)).resize((40, 30), Image.Resampling.BICUBIC)
    result = upscaler()(UpscaleRequest(smooth))
    assert result.notes == () and result.consistency is not None and result.consistency < 1.5


@PHOTOGRAPH
def test_a_picture_is_restored_once() -> None:
    seen: list[str] = []
    small = Image.fromarray(texture(9, 8))
    upscaler()(UpscaleRequest(small, by=4, restore=0.5), lambda progress: seen.append(progress.stage))
    assert seen == ["restore", "predict"]
    seen.clear()
    idle = upscaler()(UpscaleRequest(small, by=1, detail=1))
    assert idle.notes[-1] == "the picture has the size that is asked for: no network has changed it"
    assert str(plan_upscale(UpscaleRequest(small, by=1, restore=0.5), (9, 12), 2)).startswith(
        "12 x 9 -> 12 x 9: 1 pass"
    )
    same = upscaler()(UpscaleRequest(small, by=1, restore=0.5), lambda progress: seen.append(progress.stage))
    assert seen == ["restore"] and same.image.size == (9, 8)
    restored, whole = (upscaler()(UpscaleRequest(small, restore=0.5, consistent=c)).image for c in (None, False))
    assert np.array_equal(np.asarray(restored), np.asarray(whole))  # the damage is not put back


@PHOTOGRAPH
def test_several_of_a_picture_are_one() -> None:
    small = Image.fromarray(texture(9, 8))
    result = upscaler()(UpscaleRequest([small, small], count=3, detail=1.0, seed=5))
    assert len(result.images) == 2 and result.seeds == (5, 8)
    assert "count is 3, but the bundled model has one answer for a picture: one was made" in result.notes


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
    random = upscaler(randomise(UpscaleNet(PLAIN)))
    image = random(UpscaleRequest(Image.fromarray(texture(12, 10, 1)))).image
    assert image.mode == "L" and image.size == (24, 20)
    both = random(UpscaleRequest(Image.fromarray(texture(12, 10, 2)[..., :2], "LA"))).image
    assert both.mode == "LA"


def test_16_bits_stay_16_bits() -> None:
    array = (np.arange(120, dtype=np.uint16).reshape(10, 12) * 300 + 9000).astype(np.uint16)
    image = upscaler()(UpscaleRequest(Image.fromarray(array), consistent=True)).image
    made = np.asarray(image)
    assert image.mode == "I;16" and made.shape == (20, 24) and len(np.unique(made)) > 256
    back = downscale(torch.from_numpy(made.astype(np.float32))[None, None], (10, 12))
    assert_close(back[0, 0], torch.from_numpy(array.astype(np.float32)), 1.0)


@PHOTOGRAPH
def test_a_watcher_stops_the_work() -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "detail":
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match=r"^enough$"):
        upscaler()(UpscaleRequest(Image.fromarray(texture(9, 8)), detail=1.0), stop)


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
        ({"solver": "euler"}, Unsupported, "solver is set, but the bundled model has no use for it"),
        ({"steps": 4}, Unsupported, "steps is 4, but the bundled model makes detail in one; leave it"),
        ({"seed": [1, 2]}, InputError, "2 seeds for 1 images"),
    ],
)
def test_refusals(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        upscaler()(UpscaleRequest(**{"image": Image.fromarray(texture(9, 8))} | change))
