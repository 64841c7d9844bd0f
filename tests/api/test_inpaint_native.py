"""`enlarger.inpaint` on tiny models of 9 and 4 channels: sizes, files, masks, crops, borders, seeds, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import enlarger
from enlarger.errors import Cancelled, InputError, Unsupported
from enlarger.image.inpaint_canvas import ChangedPixels
from enlarger.requests import InpaintRequest
from enlarger.tasks import inpaint
from enlarger.tasks.inpaint import Inpainter, InpaintResult, load_inpainter
from enlarger.tasks.results.result import Progress
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.pictures import gamma_profile, texture
from tests.support.tiny_inpaint import inpaint_folder, tiny_inpainter

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
BOX = (12, 10, 30, 20)  # left, top, right, bottom
AUTO = "mask_mode auto took the mask as 'white': its white part is repainted"


def picture(width: int = 50, height: int = 37, seed: int = 0) -> Image.Image:
    return Image.fromarray(texture(width, height, seed=seed))


def mask(width: int = 50, height: int = 37, value: float = 1.0) -> np.ndarray[Any, Any]:
    made = np.zeros((height, width), np.float32)
    made[BOX[1] : BOX[3], BOX[0] : BOX[2]] = value
    return made


def repaint(image: Any, mask: Any, channels: int = 9, **options: Any) -> InpaintResult:
    return tiny_inpainter(channels)(InpaintRequest(image, mask, **({"steps": 2, "prompt": "a cat"} | options)))


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


def without_networks(monkeypatch: pytest.MonkeyPatch, make: Any = lambda image: image) -> list[tuple[Tensor, Tensor]]:
    """`make` stands in for the networks; gives the pictures and masks that they would get."""
    seen: list[tuple[Tensor, Tensor]] = []

    def run(self: Inpainter, image: Tensor, mask: Tensor, *others: Any) -> Tensor:
        seen.append((image, mask))
        return make(image)

    monkeypatch.setattr(inpaint.Inpainter, "_run", run)
    return seen


@pytest.mark.parametrize("channels", [9, 4])
def test_folders_are_loaded_and_files_repainted(tmp_path: Path, channels: int) -> None:
    folder = inpaint_folder(tmp_path, channels)
    picture().save(tmp_path / "photo.png")
    Image.fromarray((mask() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    stages: list[str] = []
    found = enlarger.inpaint(
        tmp_path / "photo.png", tmp_path / "mask.png", model=folder, device="cpu", prompt="a cat", steps=3, count=2,
        seed=5, watch=lambda progress: stages.append(f"{progress.stage} {progress.done}/{progress.total}"),
    )  # fmt: skip
    assert stages == ["denoise 1/3", "denoise 2/3", "denoise 3/3"] * 2
    assert (found.seeds, found.model, found.notes) == ((5, 6), str(folder), (AUTO,))
    assert [(image.mode, image.size) for image in found.images] == [("RGB", (50, 37))] * 2
    assert found.changed[0] == ChangedPixels(180, BOX) and found.coverage == (pytest.approx(180 / 18.5),) * 2
    assert found.mask.mode == "L" and (pixels(found.mask) == mask() * 255).all()
    first, second = (pixels(image) for image in found.images)
    assert (first != second).any() and ((first == pixels(picture())).all(2) | (mask() > 0)).all()
    inside = first[BOX[1] : BOX[3], BOX[0] : BOX[2]]
    assert inside.std() > 3, "the networks have made something"


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize("options", [{}, {"crop": 5}, {"strength": 0.5}, {"guidance": 1.0}, {"rescale": 0.7}], ids=str)
def test_a_picture_is_the_same_alone_and_among_others(channels: int, options: dict[str, Any]) -> None:
    images, masks = [picture(), picture(40, 44, seed=1)], [mask(), mask(40, 44, 0.8)]
    prompts = ["a cat", "two dogs"]
    batch = repaint(images, masks, channels, prompt=prompts, negative="ugly", count=2, seed=[1, 9, 4, 7], **options)
    assert batch.seeds == (1, 9, 4, 7) and len(batch.coverage) == len(batch.masks) == len(batch.changed) == 4
    alone = repaint(images[1], masks[1], channels, prompt="two dogs", negative="ugly", seed=7, **options)
    assert (pixels(batch.images[3]) == pixels(alone.image)).all()
    assert (pixels(batch.images[2]) != pixels(alone.image)).any()
    assert batch.changed[3] == alone.changed[0]


def test_what_the_networks_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole picture padded to the network's grid; the soft mask averaged over each latent's pixels."""
    jobs: list[Any] = []

    def stop(networks: Any, job: Any) -> Any:
        jobs.append(job)
        raise Cancelled("seen")

    monkeypatch.setattr(inpaint, "prepare_inpaint", stop)
    for strength in (1.0, 0.5):
        with pytest.raises(Cancelled):
            repaint(picture(), mask(value=0.25), strength=strength, steps=4)
    assert jobs[0].image.shape == (1, 3, 40, 52) and jobs[0].mask.shape == (1, 1, 40, 52)
    assert_close(jobs[0].image[0, :, :37, :50], torch.from_numpy(texture(50, 37) / 127.5 - 1).permute(2, 0, 1), 1e-6)
    assert_close(jobs[0].mask[0, 0, :37, :50], mask(value=0.25), 0)
    assert (jobs[0].from_pure_noise, jobs[0].soft_mask, jobs[0].plan.sigma_schedule.steps) == (True, True, 4)
    assert (jobs[1].from_pure_noise, jobs[1].soft_mask, jobs[1].plan.sigma_schedule.steps) == (False, True, 2)


def test_the_mask_weighs_old_and_new(monkeypatch: pytest.MonkeyPatch) -> None:
    without_networks(monkeypatch, torch.ones_like)
    for dtype, top in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
        old = (np.full((37, 50), top * 0.2)).round(6).astype(dtype)
        new = repaint(old, mask(value=0.25), feather=0).image
        assert new.dtype == dtype and (new[mask() == 0] == old[0, 0]).all()
        assert_close(new[mask() > 0], np.full(180, top * 0.4), 0.5 if top > 1 else 1e-6)
        whole = repaint(old, mask(), feather=0).image
        assert (whole[mask() > 0] == top).all()
    feathered = repaint(np.zeros((37, 50), np.float32), mask(), feather=3).image
    assert_close(feathered[15, 10:18], np.array([0, 0, 1, 2, 3, 4, 4, 4]) / 4, 1e-6)


@pytest.mark.parametrize("crop", [0, 3, 400])
def test_a_crop_is_worked_on_at_the_models_size_and_put_back_in_its_place(
    monkeypatch: pytest.MonkeyPatch, crop: int
) -> None:
    seen = without_networks(monkeypatch)
    y, x = np.mgrid[0:90, 0:120] / 120
    smooth = np.stack([np.sin(3 * x) / 2 + 0.5, np.cos(2 * y) / 2 + 0.5, x * y], 2)
    wanted = {0: (32, 32), 3: (32, 32), 400: (28, 37)}[crop]  # 32 x 32 pixels, 90 : 120 where all is taken
    found = repaint(smooth, mask(120, 90), crop=crop, feather=0).image
    assert seen[0][0].shape[-2:] == wanted and seen[0][1].shape == (1, 1, *wanted)
    assert_close(found, smooth, 0.02)
    assert (found[mask(120, 90) == 0] == smooth[mask(120, 90) == 0]).all()
    covered = float(seen[0][1].mean()) * {0: 18 * 18, 3: 24 * 24, 400: 90 * 120}[crop]
    assert abs(covered - 180) < 6


def test_expanding_adds_a_border_and_keeps_the_inside() -> None:
    image = picture(30, 21).convert("RGBA")
    image.putalpha(Image.fromarray(texture(30, 21, 1)))
    found = repaint(image, None, 4, expand="8,0,3,5")
    assert (found.image.mode, found.image.size, found.notes) == ("RGBA", (41, 26), ())
    assert (pixels(found.image)[:21, 8:38] == pixels(image)).all()
    border = np.ones((26, 41), bool)
    border[:21, 8:38] = False
    assert (pixels(found.image)[border][:, 3] == 255).all() and (pixels(found.mask) == border * 255).all()
    assert found.changed[0] == ChangedPixels(int(border.sum()), (0, 0, 41, 26))
    batch_of = repaint(np.array(picture(30, 21)), mask(30, 21), expand=(0, 4, 0, 0), crop=2)
    assert batch_of.image.shape == (25, 30, 3) and batch_of.coverage[0] > 16


def test_a_border_continues_the_picture_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stripes = np.repeat((np.arange(64) // 4 % 2 * 255).astype(np.uint8)[:, None], 64, 1)
    default = repaint(stripes, None, expand=(0, 0, 16, 0), strength=0)
    assert (default.image == np.repeat(stripes[:, :1], 80, 1)).all()
    assert default.notes == ("strength is 0: no network has changed the picture, except for what was added, which has "
                             "its fill",)  # fmt: skip
    seen = without_networks(monkeypatch)
    for fill in ("original", "noise", "blur", "patch"):
        repaint(stripes, None, 4, expand=(0, 0, 16, 0), fill=fill)
    assert_close(seen[0][0][0, 0, :, 64:], seen[0][0][0, 0, :, 63:64].expand(-1, 16), 0)
    assert len({float(image.mean()) for image, _ in seen}) >= 3


def test_what_lies_under_the_mask_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        repaint(picture(), mask(), 4, strength=0.5, fill=fill) for fill in ("original", "noise", "blur", "patch")
    ]
    assert len({image.image.tobytes() for image in results}) == 4
    seen = without_networks(monkeypatch)
    repaint(picture(), mask(), 4, fill="noise", seed=[3, 3, 4], count=3)
    assert seen[0][0].equal(seen[1][0]) and not seen[0][0].equal(seen[2][0])
    found = repaint(picture(), mask(), 9, fill="blur")
    assert found.notes[1] == "fill has no effect: at strength 1 this model sees nothing of what lies under the mask"


def test_an_empty_mask_and_strength_0_call_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = without_networks(monkeypatch)
    image = picture().quantize(16)
    found = repaint(image, mask(value=0), count=2)
    assert found.notes[-1] == "the mask is empty: the picture is returned as it was"
    assert found.image.mode == "P" and found.image.tobytes() == image.tobytes() and len(found.images) == 2
    assert found.changed == (ChangedPixels(0, None),) * 2 and found.coverage == (0.0, 0.0)
    array = texture(50, 37)
    kept = repaint(array, mask(), strength=0, preserve="none")
    assert (kept.image == array).all() and kept.notes[-1] == "strength is 0: no network has changed the picture"
    assert seen == []


def test_preserve_none_returns_what_was_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    without_networks(monkeypatch, torch.zeros_like)
    assert (repaint(texture(50, 37), mask(), preserve="none").image == 128).all()
    part = repaint(texture(50, 37), mask(), preserve="none", crop=2)
    assert part.changed[0].box == (10, 4, 32, 26)


def test_files_keep_orientation_profile_alpha_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_networks(monkeypatch)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(37, 50).save(tmp_path / "turned.png", exif=turned)
    found = repaint(tmp_path / "turned.png", mask())
    assert found.image.size == (50, 37) and dict(found.image.getexif()) == {}
    expected = pixels(picture(37, 50).transpose(Image.Transpose.ROTATE_270))
    assert (np.abs(pixels(found.image) - expected).max(2) == 0)[mask() == 0].all()
    picture().save(tmp_path / "profile.png", icc_profile=gamma_profile())
    found = repaint(tmp_path / "profile.png", mask(), feather=0)
    assert found.image.info["icc_profile"] == gamma_profile() and found.notes[0].startswith("converted to sRGB")
    away = np.abs(pixels(found.image) - pixels(picture()))
    assert (away[mask() == 0] == 0).all() and away.max() <= 12 and away.mean() < 0.2
    deep = Image.fromarray((np.arange(37 * 50).reshape(37, 50) * 35).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    found = repaint(tmp_path / "deep.png", mask())
    assert found.image.mode == "I;16" and np.abs(pixels(found.image) - pixels(deep)).max() <= 1
    key = picture()
    key.save(tmp_path / "key.png", transparency=key.getpixel((0, 0)))
    found = repaint(tmp_path / "key.png", mask())
    assert found.image.mode == "RGBA" and pixels(found.image)[0, 0, 3] == 0
    assert found.notes[0] == "mode RGB cannot be repainted in place: the result is RGBA, same colours"


def test_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    without_networks(monkeypatch)
    small = np.zeros((100, 100), np.float32)
    small[5, 5] = 1
    assert repaint(texture(100, 100), small, feather=0).notes[1:] == (
        "the mask covers 0.01 % of the picture; if the rest was meant, invert it",
        "the picture is much larger than the 32 x 32 pixels of the model; crop helps",
    )
    assert repaint(texture(30, 30), np.ones((30, 30), bool)).notes[1].startswith("the mask covers 100 % of the picture")
    assert repaint(picture(), mask(), feather=40).notes[1].startswith("feather 40 reaches over the whole mask")
    hidden = picture()
    hidden.putalpha(Image.fromarray(255 - (mask() * 255).astype(np.uint8)))
    found = repaint(hidden, hidden, mask_mode="alpha")
    assert found.changed[0].box == BOX and found.notes == (
        "alpha stays as it is: what is repainted where the picture is transparent is not seen",
    )
    assert (
        repaint(picture(), mask(), guidance=1, negative="ugly").notes[1].startswith("the negative prompt is not used")
    )


@pytest.mark.parametrize(
    ("image", "cover", "options", "words"),
    [
        (picture(), None, {}, "found no mask and nothing to add, so nothing to repaint; give a mask, or expand"),
        (picture(), mask(37, 50), {}, "the mask is 37 x 50 pixels and the picture 50 x 37; make them equal"),
        ([picture()] * 3, [mask()] * 2, {}, "2 values of mask for 3 images; give one or 3"),
        ([picture()] * 2, mask(), {"prompt": ["a"] * 3}, "3 values of prompt for 2 images; give one or 2"),
        ([], mask(), {}, "an empty list of pictures"),
        (picture(), mask(), {"strength": 0.3, "steps": 3}, "strength 0.3 of 3 steps is less than one step"),
        (picture(), mask(), {"strength": 1.1}, "strength is 1.1, expected 0 to 1"),
        (picture(), mask(), {"mask_mode": "black"}, "mask_mode is 'black', expected one of white, alpha, auto"),
        (picture(), mask(), {"preserve": "most"}, "preserve is 'most', expected one of exact, none"),
        (picture(), mask(), {"fill": "red"}, "fill is 'red', expected one of original, noise, blur, patch"),
        (picture(), mask(), {"feather": -1}, "feather is -1, expected 0 to 512"),
        (picture(), mask(), {"crop": 2.5}, "crop is 2.5, expected a whole number"),
        (picture(), mask(), {"expand": "1,2"}, "expand is '1,2', expected one whole number of 0 to 8192, or four"),
        (picture(), mask(), {"expand": (1, 2, 3, -4)}, r"expand is \(1, 2, 3, -4\), expected one whole number"),
        (picture(), mask(), {"expand": "wide"}, "expand is 'wide', expected one whole number"),
        (np.zeros((2000, 2000), np.uint8), None, {"expand": 8000}, "the expanded picture would be 18000 x 18000"),
        (torch.zeros(4, 9, 9), torch.ones(9, 9), {}, r"found shape \(4, 9, 9\), expected one picture"),
        (picture(), mask(), {"solver": "magic"}, "no solver is called 'magic'"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(image: Any, cover: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        repaint(image, cover, **options)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="here no float is longer than 64 bits")
def test_floats_that_torch_does_not_know_are_refused() -> None:
    with pytest.raises(InputError, match="expected floats of 64 bits at most; convert it first"):
        repaint(np.zeros((37, 50), np.longdouble), mask())


def test_other_options_and_checkpoints_are_refused() -> None:
    with pytest.raises(
        InputError, match="unexpected keyword argument 'masks'; the options are those of InpaintRequest"
    ):
        enlarger.inpaint(picture(), mask(), model="nowhere", masks=1)
    with pytest.raises(Unsupported, match="expected a checkpoint of the Stable Diffusion family"):
        load_inpainter(tiny.x2_folder(), device="cpu")


def test_a_watcher_may_stop_the_run() -> None:
    def stop(progress: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        tiny_inpainter(9)(InpaintRequest(picture(), mask(), steps=2), stop)
