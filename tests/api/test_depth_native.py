"""`enlarger.depth` on a tiny folder: maps of every kind and size, the folder's own estimator, and refusals."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger import DepthRequest, DepthToImage, InputError, Latents, Unsupported, load_depth
from tests.support import tiny, tiny_depth
from tests.support.close import assert_close
from tests.support.random_weights import normal

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def task() -> DepthToImage:
    return load_depth(tiny_depth.depth_folder(), "cpu")


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


def remade(task: DepthToImage, depth: Any, size: tuple[int, int] = (64, 48), **options: Any) -> Any:
    return task(DepthRequest(tiny.picture(*size), "a cat", depth, **{"steps": 3, **options}))


@pytest.mark.parametrize("given", [True, False])
def test_equals_diffusers(task: DepthToImage, given: bool) -> None:
    pipe = diffusers.StableDiffusionDepth2ImgPipeline.from_pretrained(tiny_depth.depth_folder())
    pipe.set_progress_bar_config(disable=True)
    depth, picture = normal(1, 30, 20) if given else None, tiny.picture(64, 48)
    expected = pipe(
        "a cat", picture, depth, 0.8, num_inference_steps=5, negative_prompt="ugly",
        generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    found = task(DepthRequest(picture, "a cat", depth, negative="ugly", steps=5, seed=3)).image
    assert_close(np.array(found) / 255, expected, 0.5 / 255 + 1e-4)


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (1, 1), (90, 16)])
@pytest.mark.parametrize("estimated", [True, False])
def test_any_size_stays(task: DepthToImage, size: tuple[int, int], estimated: bool) -> None:
    found = remade(task, None if estimated else normal(7, 5), size)
    assert found.image.size == size and found.latents is not None


def test_maps_of_every_kind_are_one(task: DepthToImage, tmp_path: Path) -> None:
    values = (np.arange(24 * 32) % 251).reshape(24, 32).astype(np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "map.png")
    kinds = [
        image, tmp_path / "map.png", str(tmp_path / "map.png"), values, values * 7.0, torch.from_numpy(values),
        torch.from_numpy(values)[None], torch.from_numpy(values)[None, None], [image],
        Image.fromarray(values.astype(np.uint16) * 200),
    ]  # fmt: skip
    made = [remade(task, kind) for kind in kinds]
    for found in made[1:]:
        assert np.abs(pixels(found.image) - pixels(made[0].image)).max() <= 1


def test_the_map_matters_and_its_scale_does_not(task: DepthToImage) -> None:
    near = normal(6, 8)
    made = remade(task, near).image
    assert np.abs(pixels(remade(task, near * 100 + 5).image) - pixels(made)).max() <= 1
    assert (pixels(remade(task, -near).image) != pixels(made)).any()


def test_a_constant_map_is_fine(task: DepthToImage) -> None:
    flat = [pixels(remade(task, torch.full((8, 8), value)).image) for value in (0.0, 3.0)]
    assert (flat[0] == flat[1]).all() and flat[0].std() > 5


def test_a_map_covers_the_picture_and_not_its_padding(task: DepthToImage) -> None:
    """The picture is padded to the right: a map of its own size and one of twice that give the same there."""
    ramp = torch.linspace(0, 1, 50).expand(33, 50)
    channel = task._depth_channel(_opened(task, 50, 33), ramp)
    assert channel.shape == (1, 1, 6, 8)  # of 64 x 48
    assert_close(channel[0, 0, :, -1], torch.ones(6), 1e-6)
    assert float(channel[0, 0, 0, 5]) > 0.7  # pixels 40 to 48 of 50


def _opened(task: DepthToImage, width: int, height: int) -> Any:
    from enlarger.tasks.inputs import prepare_picture

    return prepare_picture(tiny.picture(width, height), task.model.size_multiple)


def test_one_of_several_is_the_same_alone(task: DepthToImage) -> None:
    sources, maps = [tiny.picture(32, 32), tiny.picture(40, 24, seed=1)], normal(2, 1, 9, 9)
    request = DepthRequest(sources, "a cat", maps, steps=3, count=2, seed=[1, 9, 4, 4])
    batch = task(request)
    for depth in (maps[1], maps[1:]):
        alone = task(DepthRequest(sources[1], "a cat", depth, steps=3, count=2, seed=[4, 4]))
        for found, expected in zip(batch.images[2:], alone.images, strict=True):
            assert (pixels(found) == pixels(expected)).all()


def test_alpha_and_strength_0(task: DepthToImage) -> None:
    picture = tiny.picture(20, 30).convert("RGBA")
    assert task(DepthRequest(picture, depth=normal(4, 4), steps=2)).image.mode == "RGBA"
    found = task(DepthRequest(picture, depth=normal(4, 4), strength=0))
    assert found.image.tobytes() == picture.tobytes() and found.notes[0].startswith("strength is 0")


def test_refusals(task: DepthToImage) -> None:
    with pytest.raises(Unsupported, match=r"a checkpoint for text-to-image; use enlarger.generate"):
        load_depth(tiny.sd1_folder(), "cpu")
    without = load_depth(tiny_depth.depth_folder(), "cpu", estimator=False)
    with pytest.raises(InputError, match="found no depth map; give one per picture, or load the model with its depth"):
        remade(without, None)
    with pytest.raises(InputError, match="found latents, expected a picture: its depth is seen in its pixels"):
        task(DepthRequest(Latents(tiny.latents(1, 8, 8), "sd")))
    with pytest.raises(InputError, match="3 values of depth for 1 images; give one or 1"):
        remade(task, [normal(4, 4)] * 3)
    with pytest.raises(
        InputError, match="found NaN or infinity in a depth map, expected numbers; fill its holes first"
    ):
        remade(task, torch.full((4, 4), float("nan")))


def test_the_estimator_is_only_loaded_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any) -> None:
        raise AssertionError("not needed")

    monkeypatch.setattr("enlarger.tasks.auxiliary.depth_estimator.DepthEstimator.from_folder", load)
    found = enlarger.depth(
        tiny.picture(16, 16), "a", model=tiny_depth.depth_folder(), depth=normal(4, 4), device="cpu", steps=2
    )
    assert found.image.size == (16, 16)
