"""The model that ships with the package: what it must keep doing on the example photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from enlarger import UpscaleRequest, load_upscaler
from enlarger.errors import Unsupported
from enlarger.evaluate.metrics import consistency, fine_band, gmsd, psnr, ssim
from enlarger.image.degrade import DEGRADATIONS
from enlarger.image.picture import read_picture
from enlarger.tasks.loading.load import BUNDLED_FOLDER
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
    result = upscaler(UpscaleRequest(small, detail=detail))
    found = consistency(unit(result.image), unit(small))
    assert found.mean < 0.5
    assert result.consistency == pytest.approx(found.largest, abs=0.01)
    free = upscaler(UpscaleRequest(small, detail=detail, consistent=False))
    assert free.consistency is not None and result.consistency < free.consistency
    assert result.notes == ()


def test_more_detail_is_more_texture_which_is_the_picture_s_own(upscaler: Upscaler) -> None:
    truth, small = halved("mandrill")
    made = [unit(upscaler(UpscaleRequest(small, detail=detail)).image) for detail in (0.0, 0.5, 1.0)]
    bands = [fine_band(one, unit(truth)) for one in made]
    assert bands[0].energy < bands[1].energy < bands[2].energy < 1
    assert all(band.correlation > 0.3 for band in bands)
    assert energy(made[0]) < energy(made[1]) < energy(made[2])
    quality = [float(psnr(one, unit(truth))) for one in made]
    assert quality[0] > quality[1] > quality[2] > quality[0] - 2


def energy(picture: torch.Tensor) -> float:
    """How much neighbouring pixels differ."""
    return float((picture[:, :, 1:] - picture[:, :, :-1]).abs().mean())


@pytest.mark.parametrize("options", [{}, {"detail": 1.0}, {"restore": 0.5}, {"by": 4, "detail": 0.5}])
def test_a_flat_picture_comes_back_exactly(upscaler: Upscaler, options: dict[str, float]) -> None:
    colour = (200, 120, 40)
    made = upscaler(UpscaleRequest(Image.new("RGB", (40, 30), colour), **options)).image
    assert made.getcolors() == [(made.width * made.height, colour)]


@pytest.mark.parametrize("damage", ["jpeg40", "jpeg70", "phone"])
def test_a_damaged_picture_is_hinted_at_and_restored(upscaler: Upscaler, damage: str) -> None:
    truth, small = halved("bread")
    worse = Image.fromarray(DEGRADATIONS[damage](np.asarray(small), np.random.default_rng(0)))
    plain, restored = (upscaler(UpscaleRequest(worse, restore=strength)) for strength in (0.0, 0.5))
    if damage == "jpeg40":
        assert any("this looks JPEG-compressed" in note for note in plain.notes)
    assert psnr(unit(restored.image), unit(truth)) > psnr(unit(plain.image), unit(truth)) + 0.2
    assert restored.notes == ()


def drawing() -> tuple[Image.Image, Image.Image]:
    """Shapes and letters, rendered at both sizes."""
    canvas = Image.new("RGB", (1024, 1024), (250, 240, 220))
    pen = ImageDraw.Draw(canvas)
    pen.ellipse((150, 200, 700, 800), (40, 90, 160), (0, 0, 0), 24)
    pen.polygon([(500, 80), (960, 400), (620, 620)], (220, 60, 50))
    pen.text((80, 820), "Enlarge", (10, 10, 10), ImageFont.load_default(160))
    large, small = (canvas.resize((side, side), Image.Resampling.BOX) for side in (256, 128))
    return large, small


def test_drawings_get_no_halos(upscaler: Upscaler) -> None:
    truth, small = drawing()
    free, forced = (upscaler(UpscaleRequest(small, consistent=asked)) for asked in (None, True))
    assert any(note.startswith("taken for graphics") for note in free.notes)
    assert psnr(unit(free.image), unit(truth)) > psnr(unit(forced.image), unit(truth)) + 0.5
    assert psnr(unit(free.image), unit(truth)) > psnr(unit(small.resize((256, 256), 3)), unit(truth)) + 2


def test_cells_keep_their_edges(upscaler: Upscaler) -> None:
    draw = np.random.default_rng(5)
    cells = draw.integers(0, 256, (5, 3), dtype=np.uint8)[draw.integers(0, 5, (16, 16))]
    small, truth = (Image.fromarray(cells.repeat(k, 0).repeat(k, 1)) for k in (4, 8))
    assert np.array_equal(np.asarray(upscaler(UpscaleRequest(small)).image), np.asarray(truth))
    single, double = (Image.fromarray(cells.repeat(k, 0).repeat(k, 1)) for k in (1, 2))
    made = upscaler(UpscaleRequest(single)).image  # a cell for each pixel may be anything; it comes near
    assert psnr(unit(made), unit(double)) > psnr(unit(single.resize(double.size, 3)), unit(double)) + 3


def test_it_refuses_what_it_has_no_use_for(upscaler: Upscaler) -> None:
    small = Image.new("RGB", (8, 8))
    with pytest.raises(Unsupported, match="prompt is set, but the bundled model has no use for it"):
        upscaler(UpscaleRequest(small, prompt="a cat"))
    with pytest.raises(Unsupported, match="found latents with 4 channels; the bundled model takes pictures only"):
        upscaler(UpscaleRequest(torch.zeros(4, 8, 8)))
    with pytest.raises(Unsupported, match="solver is set, but the bundled model has no use for it"):
        upscaler(UpscaleRequest(small, detail=1.0, solver="heun"))
    with pytest.raises(Unsupported, match="steps is 4, but the bundled model makes detail in one; leave it"):
        upscaler(UpscaleRequest(small, detail=1.0, steps=4))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file()) <= 40_000_000
