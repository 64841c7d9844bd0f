"""What is not repainted keeps every bit, whatever kind of picture comes in and whatever the mask is like."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from enlarger.requests import InpaintRequest
from enlarger.tasks import inpaint
from enlarger.tasks.inpaint import Inpainter, InpaintResult
from tests.support import tiny
from tests.support.tiny_inpaint import tiny_inpainter

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
PLAIN = ("L", "LA", "RGB", "RGBA")
BECOMES = {"P": "RGB", "1": "L", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
ARRAYS = ("uint8", "uint16", "float16", "float32", "float64")
TENSORS = ("float16", "bfloat16", "float32", "float64")
CHANNELS = (0, 1, 2, 3, 4)  # 0: (H, W)
KINDS = (
    *(("pil", mode) for mode in (*PLAIN, *DEEP, *BECOMES)),
    *(("array", dtype, channels) for dtype in ARRAYS for channels in CHANNELS),
    *(("tensor", dtype, channels) for dtype in TENSORS for channels in (1, 3)),
)
FLAT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


def make_picture(kind: tuple[Any, ...], size: tuple[int, int], random: np.random.Generator) -> Any:
    """A picture of random numbers of a kind, (h, w)."""
    if kind[0] == "pil":
        return make_image(kind[1], size, random)
    _, dtype, channels = kind
    if kind[0] == "tensor":
        values = torch.from_numpy(random.uniform(-1, 1, (channels, *size)))
        return values.to(getattr(torch, dtype))
    shape = size if channels == 0 else (*size, channels)
    if dtype.startswith("u"):
        return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return random.uniform(0, 1, shape).astype(dtype)


def make_image(mode: str, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    if mode in DEEP:
        array = random.integers(0, 65536, size)
        kind = {"F": np.float32, "I": np.int32, "I;16B": ">u2"}.get(mode, np.uint16)
        values = (array / 65535 if mode == "F" else array).astype(kind)
        return Image.frombytes(mode, (size[1], size[0]), values.tobytes())
    if mode == "P":
        return Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).quantize(16)
    rgba = Image.fromarray(random.integers(0, 256, (*size, 4), np.uint8))
    through = {"La": "LA", "PA": "LA", "LA": "LA", "RGBa": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
    image = rgba.convert(through)
    return image if mode == through else image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


def make_mask(shape: str, size: tuple[int, int], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Weights (h, w) of a kind of mask."""
    height, width = size
    if shape == "hard":
        return random.integers(0, 2, size).astype(np.float32)
    if shape == "soft":
        return (random.uniform(0, 1, size) * random.integers(0, 2, size)).astype(np.float32)
    mask = np.full(size, float(shape == "full"), np.float32)
    if shape == "box":
        (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in (height, width))
        mask[top:bottom, left:right] = 1
    return mask


def pixels(picture: Any, mode: str | None = None) -> np.ndarray[Any, Any]:
    """The numbers of a picture, (h, w, C), in bytes that can be compared."""
    if isinstance(picture, Image.Image):
        array = np.array(picture if mode in (None, picture.mode) else picture.convert(mode))
    elif isinstance(picture, torch.Tensor):
        array = picture.view(torch.int16 if picture.element_size() == 2 else picture.dtype).permute(1, 2, 0).numpy()
    else:
        array = picture
    return array.reshape(*array.shape[:2], -1)


def same_kind(found: Any, source: Any) -> None:
    assert type(found) is type(source) or isinstance(source, Image.Image)
    if isinstance(source, Image.Image):
        assert (found.mode, found.size) == (BECOMES.get(source.mode, source.mode), source.size)
    else:
        assert (found.dtype, found.shape) == (source.dtype, source.shape)


def check_preserved(result: InpaintResult, source: Any, mask: np.ndarray[Any, Any]) -> None:
    """Same kind; same bytes where the mask is 0, and of the alpha everywhere; what changed is reported."""
    if not mask.any():
        assert any("mask is empty" in note for note in result.notes)
        assert pixels(result.image).tobytes() == pixels(source).tobytes() and result.changed[0].pixels == 0
        return
    same_kind(result.image, source)
    mode = result.image.mode if isinstance(source, Image.Image) else None
    before, after = pixels(source, mode), pixels(result.image)
    assert before[mask == 0].tobytes() == after[mask == 0].tobytes()
    if before.shape[2] in (2, 4):
        assert before[..., -1].tobytes() == after[..., -1].tobytes()
    differs = (before != after).any(2)
    assert result.changed[0].pixels == differs.sum()
    rows, columns = np.nonzero(differs)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
    assert result.changed[0].box == box


def painted(self: Inpainter, image: torch.Tensor, mask: Any, options: Any, seed: int, watch: Any) -> torch.Tensor:
    """What stands in for the networks: random colours, some out of range."""
    assert image.isfinite().all() and mask.shape[-2:] == image.shape[-2:]
    return torch.empty(image.shape).uniform_(-1.5, 1.5, generator=torch.Generator().manual_seed(seed))


@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(["hard", "soft", "box", "empty", "full"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    crop=st.sampled_from([None, 0, 3]),
    feather=st.sampled_from([0, 1, 4]),
    strength=st.sampled_from([0.6, 1.0]),
    fill=st.sampled_from([None, "noise", "blur", "patch"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, **FLAT)
def test_nothing_changes_outside_the_mask(
    kind: Any, shape: str, size: Any, seed: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    monkeypatch.setattr(inpaint.Inpainter, "_run", painted)
    random = np.random.default_rng(seed)
    source, mask = make_picture(kind, size, random), make_mask(shape, size, random)
    copy = np.array(pixels(source))
    result = tiny_inpainter(4)(InpaintRequest(source, mask, seed=seed, **options))
    check_preserved(result, source, mask)
    assert copy.tobytes() == pixels(source).tobytes(), "the input itself is left alone"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_kind_is_repainted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpaint.Inpainter, "_run", painted)
    random = np.random.default_rng(0)
    source, mask = make_picture(kind, (9, 12), random), np.zeros((9, 12), bool)
    mask[2:7, 3:9] = True
    result = tiny_inpainter(4)(InpaintRequest(source, mask, feather=0))
    check_preserved(result, source, mask)
    assert 25 <= result.changed[0].pixels <= 30


@given(
    kind=st.sampled_from(KINDS),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    sides=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    shape=st.sampled_from(["box", "empty"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, **FLAT)
def test_nothing_inside_changes_when_a_picture_is_expanded(
    kind: Any, size: Any, sides: Any, shape: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inpaint.Inpainter, "_run", painted)
    random = np.random.default_rng(seed)
    source, mask = make_picture(kind, size, random), make_mask(shape, size, random)
    result = tiny_inpainter(4)(InpaintRequest(source, mask, seed=seed, expand=sides, feather=1))
    mode = result.image.mode if isinstance(source, Image.Image) else None
    before, after = pixels(source, mode), pixels(result.image)
    left, top, right, bottom = sides
    assert after.shape[:2] == (size[0] + top + bottom, size[1] + left + right)
    inside = after[top : top + size[0], left : left + size[1]]
    assert before[mask == 0].tobytes() == inside[mask == 0].tobytes()


@given(
    channels=st.sampled_from([4, 9]),
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(["hard", "soft", "box", "full"]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop=st.sampled_from([None, 2]),
    strength=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, **FLAT)
def test_nothing_changes_outside_the_mask_with_networks(
    channels: int, kind: Any, shape: str, size: Any, seed: int, **options: Any
) -> None:
    random = np.random.default_rng(seed)
    source, mask = make_picture(kind, size, random), make_mask(shape, size, random)
    result = tiny_inpainter(channels)(InpaintRequest(source, mask, seed=seed, steps=2, guidance=1.0, **options))
    check_preserved(result, source, mask)
