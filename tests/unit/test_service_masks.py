"""What of a mask is repainted, and how pictures are brought to a size."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from enlarger.service.problems import ProblemError
from enlarger.service.uploads.masks import Fit, apply_fit, mask_from_alpha, read_mask, resize_mask
from tests.support.pictures import texture

OPAQUE, PAINT = 0, 255


def halves(mode: str, left: object, right: object) -> Image.Image:
    """A picture of 8 x 4 with two halves."""
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


MASKS = {
    "black and white": halves("L", 0, 255),
    "bits": halves("1", 0, 255),
    "black": halves("L", 0, 0),
    "white": halves("RGB", (255, 255, 255), (255, 255, 255)),
    "hole": halves("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
    "opaque": halves("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
    "soft": halves("LA", (200, 255), (200, 155)),
    "clear": halves("RGBA", (0, 0, 0, 0), (255, 255, 255, 0)),
}
TABLE: list[tuple[str, str, tuple[int, int] | str]] = [  # mask, mode, left and right half or the code of the refusal
    ("black and white", "auto", (OPAQUE, PAINT)),
    ("black and white", "luminance", (OPAQUE, PAINT)),
    ("black and white", "inverted", (PAINT, OPAQUE)),
    ("black and white", "alpha", "invalid_image_mode"),
    ("bits", "auto", (OPAQUE, PAINT)),
    ("bits", "inverted", (PAINT, OPAQUE)),
    ("black", "auto", "empty_mask"),
    ("black", "luminance", "empty_mask"),
    ("black", "inverted", (PAINT, PAINT)),
    ("white", "auto", "empty_mask"),
    ("white", "luminance", (PAINT, PAINT)),
    ("white", "inverted", "empty_mask"),
    ("hole", "auto", (OPAQUE, PAINT)),
    ("hole", "alpha", (OPAQUE, PAINT)),
    ("hole", "luminance", (PAINT, OPAQUE)),
    ("hole", "inverted", "empty_mask"),
    ("opaque", "auto", (OPAQUE, PAINT)),
    ("opaque", "alpha", "empty_mask"),
    ("opaque", "luminance", (OPAQUE, PAINT)),
    ("opaque", "inverted", (PAINT, OPAQUE)),
    ("soft", "auto", (OPAQUE, 100)),
    ("soft", "luminance", (200, 122)),
    ("clear", "auto", (PAINT, PAINT)),
    ("clear", "luminance", "empty_mask"),
]


@pytest.mark.parametrize(("name", "mode", "expected"), TABLE, ids=[f"{name}-{mode}" for name, mode, _ in TABLE])
def test_the_table_of_masks(name: str, mode: str, expected: tuple[int, int] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ProblemError) as caught:
            read_mask(MASKS[name], mode, [])
        refusal = caught.value.problem
        assert (refusal.status, refusal.code, refusal.param) == (400, expected, "mask")
        return
    mask = read_mask(MASKS[name], mode, [])
    assert mask.mode == "L" and mask.size == (8, 4)
    values = np.asarray(mask)
    assert (set(values[:, :4].flat), set(values[:, 4:].flat)) == ({expected[0]}, {expected[1]})


def test_there_are_24_cases() -> None:
    assert len(TABLE) == 24 and {mode for _, mode, _ in TABLE} == {"auto", "alpha", "luminance", "inverted"}


@dataclass(frozen=True)
class Said:
    mask: str
    mode: str
    text: str


@pytest.mark.parametrize(
    "said",
    [
        Said(
            "black", "auto", "is opaque and black all over, so nothing in it tells what to repaint; mark a part of it"
        ),
        Said("white", "auto", "white all over, .*; to repaint the whole picture, send mask_mode=luminance"),
        Said("opaque", "alpha", "mask: repaints nothing as 'alpha'; mark what is to be repainted"),
        Said("bits", "alpha", "has no alpha channel, expected one for mask_mode 'alpha'; send a PNG with transparency"),
        Said("bits", "white", "found mask_mode 'white', expected one of auto, alpha, luminance, inverted"),
    ],
)
def test_what_is_said_of_a_mask_that_cannot_be_used(said: Said) -> None:
    with pytest.raises(ProblemError, match=said.text):
        read_mask(MASKS[said.mask], said.mode, [])


def test_auto_says_how_the_mask_was_taken() -> None:
    for name, sense in (("hole", "'alpha': what is transparent"), ("bits", "'luminance': what is white")):
        notes: list[str] = []
        read_mask(MASKS[name], "auto", notes)
        assert len(notes) == 1 and notes[0] == f"mask_mode auto took the mask as {sense} is repainted"


def test_nearly_black_and_nearly_white_count_in_a_jpeg() -> None:
    notes: list[str] = []
    mask = read_mask(halves("L", 7, 249), "luminance", notes, lossy_kind="a JPEG")
    assert set(np.asarray(mask).flat) == {0, 255} and "within 8 steps of black or white" in notes[0]
    with pytest.raises(ProblemError, match="black all over"):
        read_mask(halves("L", 7, 3), "auto", [], lossy_kind="a JPEG")


def test_a_mask_of_0_and_1_means_0_and_255() -> None:
    notes: list[str] = []
    assert set(np.asarray(read_mask(halves("L", 0, 1), "auto", notes)).flat) == {0, 255}
    assert notes[0] == "the mask holds only 0 and 1: 1 was taken as white"


def test_a_picture_is_its_own_mask_where_it_is_transparent() -> None:
    assert np.array_equal(np.asarray(mask_from_alpha(MASKS["hole"])), np.asarray(MASKS["black and white"]))
    palette = halves("RGB", (1, 2, 3), (200, 100, 0)).quantize(2)
    palette.info["transparency"] = palette.getpixel((7, 0))
    assert np.array_equal(np.asarray(mask_from_alpha(palette)), np.asarray(MASKS["black and white"]))
    for name in ("opaque", "bits"):
        with pytest.raises(ProblemError, match="image: nothing of it is transparent, and there is no mask"):
            mask_from_alpha(MASKS[name])


def test_a_mask_of_another_size_is_refused_unless_it_may_be_resized() -> None:
    mask, notes = MASKS["black and white"], list[str]()
    assert resize_mask(mask, (8, 4), False, notes) is mask
    with pytest.raises(
        ProblemError, match="mask: is 8 x 4 pixels and the picture 16 x 8; make them equal, or send"
    ) as caught:
        resize_mask(mask, (16, 8), False, notes)
    assert caught.value.problem.code == "mask_size_mismatch" and notes == []
    larger = resize_mask(mask, (16, 8), True, notes)
    assert larger.size == (16, 8) and np.asarray(larger)[0, 0] == 0 and np.asarray(larger)[0, -1] == 255
    assert notes == ["the mask was 8 x 4 pixels and the picture 16 x 8: resized to the picture"]


@pytest.mark.parametrize("kind", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(40, 30), (7, 50), (1, 1), (31, 17), (64, 34)])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_fit_gives_its_size_and_keeps_the_mode(kind: str, size: tuple[int, int], mode: str) -> None:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}[mode]
    values = texture(31, 17, channels)
    image = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values)
    assert image.mode == mode
    found = apply_fit(image, Fit(*size, kind))
    assert found.size == size and found.mode == mode
    assert (found is image) == (size == image.size)


def test_crop_keeps_the_middle_and_pad_repeats_the_edges() -> None:
    image = Image.fromarray(texture(20, 10))
    cropped = apply_fit(image, Fit(10, 10, "crop"))
    assert np.array_equal(np.asarray(cropped), np.asarray(image)[:, 5:15])
    padded = np.asarray(apply_fit(image, Fit(20, 16, "pad")))
    assert np.array_equal(padded[3:13], np.asarray(image))
    assert (padded[:3] == padded[3]).all() and (padded[13:] == padded[12]).all()
    assert apply_fit(Image.new("L", (100, 3), 9), Fit(10, 10, "pad")).getpixel((5, 0)) == 9


def test_what_is_transparent_lends_no_colour_to_its_neighbours() -> None:
    image = halves("RGBA", (0, 0, 0, 0), (250, 100, 50, 255))
    values = np.asarray(apply_fit(image, Fit(16, 8)))
    shown = values[values[..., 3] > 40]
    off = shown[:, :3].astype(int) - (250, 100, 50)
    assert off.min() >= -4 and off.max() <= 12  # no darker; Lanczos overshoots beside an edge


def test_sixteen_bits_are_resized_as_sixteen_bits() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.float32)[None].repeat(8, 0)
    found = np.asarray(apply_fit(Image.fromarray(ramp.astype(np.uint16)), Fit(128, 16)), float)
    wanted = np.asarray(Image.fromarray(ramp).resize((128, 16), Image.Resampling.LANCZOS))
    assert np.abs(found - wanted.clip(0, 65535)).max() <= 2
