"""SDXL's invisible watermark: the published decoder finds it, and little of the picture changes."""

import imwatermark
import numpy as np
import pytest
from PIL import Image

from enlarger import generate, refine
from enlarger.image.deep import DeepImage
from enlarger.image.watermark import BITS, MESSAGE, add_watermark, can_hold, read_watermark
from enlarger.tasks.results.watermarking import NOTE, UNSUITED_NOTE, watermark_picture
from tests.support import tiny, tiny_xl
from tests.support.pictures import texture

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


def published_decoder(pixels: np.ndarray) -> list[int]:
    """The bits by the published algorithm (dwtDct of invisible-watermark 0.2.0), one block after another.

    OpenCV's YUV of 8 bits, the low band of a Haar transform, and of each 4 x 4 block the largest coefficient but for
    the first.
    """
    red, green, blue = (pixels[..., k].astype(np.float64) for k in range(3))
    luma = np.round(0.299 * red + 0.587 * green + 0.114 * blue)
    chroma = np.clip(np.round((blue - luma) * 0.492 + 128), 0, 255)
    height, width = (side // 4 * 4 for side in chroma.shape)
    a, b, c, d = (chroma[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    low, votes = (a + b + c + d) / 2, [[] for _ in range(48)]
    for i in range(low.shape[0] // 4):
        for j in range(low.shape[1] // 4):
            block = np.abs(low[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten()[1:])
            votes[(i * (low.shape[1] // 4) + j) % 48].append(block.max() % 36 > 18)
    return [int(np.mean(each) * 255 > 127) for each in votes]


@pytest.mark.parametrize("size", [(256, 256), (300, 271), (512, 384)], ids=["256x256", "300x271", "512x384"])
def test_the_published_decoder_finds_all_48_bits(size: tuple[int, int]) -> None:
    image = Image.fromarray(texture(*size))
    marked = add_watermark(image)
    assert published_decoder(np.asarray(marked)) == BITS.tolist() and int("".join(map(str, BITS)), 2) == MESSAGE
    assert read_watermark(marked) == 1.0
    assert sum(published_decoder(np.asarray(image)) == BITS) < 44
    change = np.asarray(marked, float) - np.asarray(image, float)
    assert 10 * np.log10(255**2 / np.mean(change**2)) > 32


def test_the_packages_decoder_finds_it() -> None:
    pixels = np.ascontiguousarray(np.asarray(add_watermark(Image.fromarray(texture(300, 271))))[..., ::-1])
    assert np.array_equal(imwatermark.WatermarkDecoder("bits", 48).decode(pixels, "dwtDct"), BITS == 1)


def test_depth_alpha_and_profile_stay() -> None:
    samples = texture(256, 256, 4).astype(np.uint16) * 257
    image = DeepImage.from_samples(samples, {"icc_profile": b"x"})
    marked = add_watermark(image)
    assert isinstance(marked, DeepImage) and np.array_equal(marked.samples[..., 3], samples[..., 3])
    assert marked.info == {"icc_profile": b"x"} and read_watermark(marked) == 1.0
    assert not can_hold(Image.new("L", (300, 300))) and not can_hold(Image.new("RGB", (300, 255)))


def test_sdxl_gets_it_and_others_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("enlarger.image.watermark.LEAST_SIDE", 16)
        marked = generate("a", model=tiny_xl.base_folder(), width=64, height=64, steps=1, guidance=1.0)
        assert NOTE in marked.notes and (read_watermark(marked.image) or 0) > 0.9
    image = Image.fromarray(texture(256, 256))
    for wanted, is_xl in ((None, False), (False, True), (False, False)):
        assert watermark_picture(image, wanted, is_xl) == (image, ())
    assert watermark_picture(image, True, False)[1] == (NOTE,)
    small = Image.new("RGB", (255, 300))
    assert watermark_picture(small, None, True) == (small, ()) and watermark_picture(small, True, True)[1] == (
        UNSUITED_NOTE,
    )
    assert UNSUITED_NOTE in refine(texture(16, 16), model=tiny.sd1_folder(), steps=4, watermark=True).notes
