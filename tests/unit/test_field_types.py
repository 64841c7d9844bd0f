"""A field of another type is refused at once, by name, whatever the request is."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.errors import InputError
from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.results.result import Result
from enlarger.train.options import SampleOptions

WRONG: list[tuple[type, dict[str, Any], str]] = [
    (InpaintRequest, {"preserve": ["exact"]}, "preserve is ['exact'], expected one of exact, none"),
    (InpaintRequest, {"feather": [4]}, "feather is [4], expected a whole number"),
    (InpaintRequest, {"feather": None}, "feather is None, expected a whole number"),
    (InpaintRequest, {"mask_resize": "yes"}, "mask_resize is 'yes', expected True or False"),
    (GenerateRequest, {"width": [512, 512]}, "width is [512, 512], expected a whole number"),
    (GenerateRequest, {"steps": [2]}, "steps is [2], expected a whole number"),
    (GenerateRequest, {"count": None}, "count is None, expected a whole number"),
    (GenerateRequest, {"solver": ["euler"]}, "solver is ['euler'], expected text"),
    (GenerateRequest, {"prompt": None}, "prompt is None, expected text or a list"),
    (GenerateRequest, {"prompt": ["a", 3]}, "prompt is 3, expected text"),
    (GenerateRequest, {"prompt": b"a"}, "prompt is b'a', expected text or a list"),
    (GenerateRequest, {"negative": None}, "negative is None, expected text or a list"),
    (GenerateRequest, {"rescale": None}, "rescale is None, expected a number"),
    (GenerateRequest, {"handoff": "0.2"}, "handoff is '0.2', expected a number or a list"),
    (GenerateRequest, {"loras": "x"}, "loras is 'x', expected a list of (text or a path, a number)"),
    (GenerateRequest, {"loras": ["x"]}, "loras is 'x', expected (text or a path, a number)"),
    (GenerateRequest, {"loras": [("x", "1")]}, "loras is '1', expected a number"),
    (GenerateRequest, {"loras": [("x", 1, 2)]}, "loras is ('x', 1, 2), expected (text or a path, a number)"),
    (GenerateRequest, {"styles": 3}, "styles is 3, expected text or a list"),
    (RefineRequest, {"strength": None}, "strength is None, expected a number"),
    (DepthRequest, {"clip_skip": "2"}, "clip_skip is '2', expected a whole number"),
    (UpscaleRequest, {"by": None}, "by is None, expected a number"),
    (UpscaleRequest, {"size": (30, 20)}, "size is (30, 20), expected text"),
    (UpscaleRequest, {"consistent": 1}, "consistent is 1, expected True or False"),
    (SampleOptions, {"sample_steps": None}, "sample_steps is None, expected a whole number"),
]


@pytest.mark.parametrize(("kind", "options", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_wrong_types(kind: type, options: dict[str, Any], message: str) -> None:
    source: dict[str, Any] = (
        {} if kind is SampleOptions else {"prompt": "a"} if kind is GenerateRequest else {"image": None}
    )
    with pytest.raises(InputError) as raised:
        kind(**(source | options))
    assert str(raised.value) == message


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    assert GenerateRequest("a", seed=np.array([1, 2])).seed == [1, 2]  # pyright: ignore[reportArgumentType] - converted
    assert GenerateRequest("a", seed=torch.tensor(3)).seed == 3  # pyright: ignore[reportArgumentType] - converted
    assert type(UpscaleRequest(None, by=np.float32(2)).by) is float  # pyright: ignore[reportArgumentType] - converted
    assert type(GenerateRequest("a", steps=np.int64(2)).steps) is int  # pyright: ignore[reportArgumentType] - converted
    assert GenerateRequest("a", seed=(np.uint64(2**63), 1)).seed == [2**63, 1]  # pyright: ignore[reportArgumentType]
    loras = GenerateRequest("a", loras=[("x", 1), (Path("y"), 0.5)], styles="warm").loras
    assert loras == [("x", 1), (Path("y"), 0.5)]


def test_what_is_no_offload_is_refused() -> None:
    with pytest.raises(InputError, match=r"^offload is 'sequental', expected one of none, model, sequential$"):
        Runtime.here(offload="sequental")  # pyright: ignore[reportArgumentType] - wrong on purpose


def test_a_result_is_not_saved_with_what_is_no_option(tmp_path: Path) -> None:
    result = Result((Image.new("RGB", (3, 2)),), (0,), "bundled")
    path: Any = tmp_path / "a.jpg"
    wrong_options: list[tuple[Any, dict[str, Any], str]] = [
        (path, {"strip": "GPS"}, "strip is 'GPS', expected one of none, gps, all"),
        (path, {"strip": None}, "strip is None, expected one of none, gps, all"),
        (path, {"quality": 200}, "quality is 200, expected 1 to 100"),
        (path, {"quality": "high"}, "quality is 'high', expected a whole number"),
        ("", {}, "path is '', expected a file name such as picture.png"),
        (io.BytesIO(), {}, "found BytesIO, expected a file's path; image.save writes into a stream"),
    ]
    for wrong, options, message in wrong_options:
        with pytest.raises(InputError) as raised:
            result.save(wrong, **options)
        assert str(raised.value) == message
    assert not path.exists()
    assert len({result, result}) == 1
