"""The model that ships with the package: what it must keep doing on the example photographs."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from enlarger import UpscaleRequest, load_upscaler
from enlarger.errors import InputError, Unsupported
from enlarger.evaluate.metrics import consistency, gmsd, psnr, ssim
from enlarger.image.picture import read_picture
from enlarger.tasks.loading import BUNDLED_FOLDER
from enlarger.tasks.upscale.upscaler import Upscaler

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("bread", "bridge", "mandrill")


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return load_upscaler()


def halved(name: str) -> tuple[Image.Image, Image.Image]:
    """A crop of an example, and its antialiased-bicubic half."""
    with Image.open(EXAMPLES / f"{name}.jpg") as image:
        truth = image.convert("RGB").crop((40, 40, 296, 296))
    return truth, truth.resize((128, 128), Image.Resampling.BICUBIC)


def unit(image: Image.Image) -> torch.Tensor:
    return read_picture(image).colour / 2 + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_beats_lanczos(upscaler: Upscaler, name: str) -> None:
    truth, small = halved(name)
    ours, theirs = (unit(i) for i in (upscaler(UpscaleRequest(small)).image, small.resize((256, 256), 1)))
    assert psnr(ours, unit(truth)) > psnr(theirs, unit(truth)) + 1.0
    assert ssim(ours, unit(truth)) > ssim(theirs, unit(truth))
    assert gmsd(ours, unit(truth)) < gmsd(theirs, unit(truth))


@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_the_result_stays_true_to_its_input(upscaler: Upscaler, detail: float) -> None:
    _, small = halved("bread")
    result = upscaler(UpscaleRequest(small, detail=detail, steps=2))
    found = consistency(unit(result.image), unit(small))
    assert found.mean < 0.5
    assert result.consistency == pytest.approx(found.largest, abs=0.01)
    free = upscaler(UpscaleRequest(small, detail=detail, steps=2, consistent=False))
    assert free.consistency is not None and result.consistency < free.consistency


def test_detail_adds_texture_that_depends_on_the_seed(upscaler: Upscaler) -> None:
    _, small = halved("mandrill")
    first, again, other = (
        unit(upscaler(UpscaleRequest(small, detail=1.0, steps=2, seed=seed)).image) for seed in (0, 0, 1)
    )
    mean = unit(upscaler(UpscaleRequest(small)).image)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.002
    assert energy(first) > energy(mean)


def energy(picture: torch.Tensor) -> float:
    """How much neighbouring pixels differ."""
    return float((picture[:, :, 1:] - picture[:, :, :-1]).abs().mean())


def test_a_flat_picture_stays_flat(upscaler: Upscaler) -> None:
    found = unit(upscaler(UpscaleRequest(Image.new("RGB", (40, 30), (200, 120, 40)))).image)
    wanted = torch.tensor([200, 120, 40])[:, None, None] / 255
    away = (found - wanted).abs()
    assert away[:, 8:-8, 8:-8].max() <= 1.01 / 255
    assert away.max() <= 4.01 / 255  # the convolutions see zeros beyond the picture's edge


def test_it_refuses_what_it_has_no_use_for(upscaler: Upscaler) -> None:
    small = Image.new("RGB", (8, 8))
    with pytest.raises(Unsupported, match="prompt is set, but the bundled model has no use for it"):
        upscaler(UpscaleRequest(small, prompt="a cat"))
    with pytest.raises(Unsupported, match="found latents with 4 channels; the bundled model takes pictures only"):
        upscaler(UpscaleRequest(torch.zeros(4, 8, 8)))
    with pytest.raises(InputError, match="no solver is called 'rk4'"):
        upscaler(UpscaleRequest(small, detail=1.0, solver="rk4"))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file()) <= 40_000_000
