"""Requests: limits, defaults, and how one value becomes one per picture."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enlarger.errors import InputError
from enlarger.requests import (
    DEFAULTS,
    GenerateRequest,
    InpaintRequest,
    UpscaleRequest,
    make_request,
    one_per_image,
    seeds_for,
    with_defaults,
)
from enlarger.service.jobs.job import OutputOptions
from enlarger.service.routes.parsed_request import ParsedRequest, result_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": 0.5}, "by is 0.5, expected 1 to 16"),
        ({"by": 16.1}, "by is 16.1, expected 1 to 16"),
        ({"by": math.nan}, "by is nan, expected 1 to 16"),
        ({"by": math.inf}, "by is inf, expected 1 to 16"),
        ({"by": "2"}, "by is '2', expected a number"),
        ({"steps": 0}, "steps is 0, expected 1 to 1000"),
        ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
        ({"steps": True}, "steps is True, expected a whole number"),
        ({"count": 65}, "count is 65, expected 1 to 64"),
        ({"guidance": 101}, "guidance is 101, expected -100 to 100"),
        ({"seed": -2}, "seed is -2, expected -1 to 1.84467e+19"),
        ({"seed": [1, -3]}, "seed is -3, expected -1 to 1.84467e+19"),
        ({"seed": [1.5]}, "seed is 1.5, expected a whole number"),
        ({"noise_level": -0.1}, "noise_level is -0.1, expected 0 to 1000"),
        ({"detail": 1.01}, "detail is 1.01, expected 0 to 1"),
        ({"restore": -0.5}, "restore is -0.5, expected 0 to 1"),
        ({"profile": "ours"}, "profile is 'ours', expected one of diffusers, original"),
    ],
)
def test_limits(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        UpscaleRequest(image=None, **change)
    assert str(raised.value) == message


def test_limits_of_generation() -> None:
    for change, message in (
        ({"width": 4}, "width is 4, expected 8 to 8192"),
        ({"height": 64.0}, "height is 64.0, expected a whole number"),
        ({"rescale": 1.5}, "rescale is 1.5, expected 0 to 1"),
        ({"handoff": [2, -1]}, "handoff is -1, expected 0 to 1000"),
        ({"upscale": 0.5}, "upscale is 0.5, expected 1 to 16"),
        ({"score": 11}, "score is 11, expected 0 to 10"),
        ({"upscale_steps": 3}, "upscale_steps is 3, but upscale is 1; give upscale, or leave both"),
        ({"memory": 2000}, "memory is 2000, expected 0.01 to 1024 GiB"),
        (
            {"upscale": 2, "upscale_strength": 0.5},
            "upscale_strength is 0.5, but tile is not set; set it, or leave both",
        ),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            GenerateRequest("a boat", **change)
    assert GenerateRequest("a boat", width=8, height=8192, rescale=0).rescale == 0


def test_the_ends_of_the_limits_and_numpy_numbers_pass() -> None:
    UpscaleRequest(None, by=1, steps=1, guidance=-100, count=64, detail=0, noise_level=10, seed=2**64 - 1)
    UpscaleRequest(None, by=np.float32(2), steps=np.int64(5), seed=[np.int32(0), 3])  # type: ignore[arg-type]
    UpscaleRequest(None, by=16, steps=None, guidance=None, detail=None)


def test_zero_is_a_value_and_none_means_the_default() -> None:
    given = with_defaults(UpscaleRequest(None, guidance=0, detail=0, seed=0, consistent=False), "upscale/bundled")
    assert (given["guidance"], given["detail"], given["seed"], given["consistent"]) == (0, 0, 0, False)
    silent = with_defaults(UpscaleRequest(None), "upscale/bundled")
    assert {name: silent[name] for name in DEFAULTS["upscale/bundled"]} == DEFAULTS["upscale/bundled"]
    assert with_defaults(UpscaleRequest(None), "upscale/diffusers")["steps"] == 75
    assert with_defaults(UpscaleRequest(None), "upscale/diffusers")["detail"] is None  # no default there
    assert with_defaults(GenerateRequest(""), "generate")["guidance"] == 7.5


def test_the_model_cards_default_solvers() -> None:
    assert DEFAULTS["upscale/diffusers"] == {"steps": 75, "guidance": 9.0, "solver": "euler", "noise_level": 0}
    assert DEFAULTS["upscale/x2"] == {"steps": 12, "guidance": 9.0, "solver": "unipc", "noise_level": 0}
    assert DEFAULTS["upscale/x4"] == {"steps": 75, "guidance": 9.0, "noise_level": 20}
    assert DEFAULTS["upscale/original"]["solver"] == "dpm_adaptive"


def test_requests_do_not_change() -> None:
    with pytest.raises(AttributeError):
        UpscaleRequest(None).by = 3  # type: ignore[misc]


def test_one_per_picture() -> None:
    assert one_per_image("a", 3, "prompt") == ["a", "a", "a"]
    assert one_per_image(["a"], 2, "prompt") == ["a", "a"]
    assert one_per_image(("a", "b"), 2, "prompt") == ["a", "b"]
    assert one_per_image(Path("x"), 2, "output") == [Path("x")] * 2
    assert one_per_image("", 0, "prompt") == []
    with pytest.raises(InputError, match=r"^2 values of prompt for 3 images; give one or 3$"):
        one_per_image(["a", "b"], 3, "prompt")
    with pytest.raises(InputError, match=r"^0 values of prompt for 2 images; give one or 2$"):
        one_per_image([], 2, "prompt")


def test_seeds_count_on() -> None:
    assert seeds_for(0, 3) == [0, 1, 2]
    assert seeds_for(2**64 - 2, 2) == [2**64 - 2, 2**64 - 1]
    for seed, count in ((2**64 - 1, 2), (2**64 - 64, 65), (2**64, 1)):
        with pytest.raises(
            InputError, match=f"seed is {seed} for {count} pictures, the last seed is 18446744073709551615"
        ):
            seeds_for(seed, count)
    assert seeds_for([5, 5], 2) == [5, 5]
    with pytest.raises(InputError, match=r"^1 seeds for 2 images; give one seed, or one per image$"):
        seeds_for([5], 2)


def test_requests_from_options_by_name() -> None:
    assert make_request(GenerateRequest, prompt="a boat", steps=3) == GenerateRequest("a boat", steps=3)
    with pytest.raises(InputError, match="argument 'stepz'; the options are those of GenerateRequest"):
        make_request(GenerateRequest, prompt="a boat", stepz=3)


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({"by": 1.5}, (101, 200), (152, 300)),
        ({"by": 8}, (10, 20), (80, 160)),
        ({"size": "3000x2000"}, (1000, 1500), (2000, 3000)),
        ({"size": "300X201"}, (67, 100), (201, 300)),
        ({"size": "1000x667"}, (333, 500), (667, 1000)),  # rounded
        ({"long_edge": 4096}, (1000, 2000), (2048, 4096)),
        ({"long_edge": 4096}, (4096, 3), (4096, 3)),
        ({"megapixels": 24}, (2000, 3000), (4000, 6000)),
        ({"long_edge": 160}, (1, 10), (16, 160)),
        ({"by": 1.5}, (3, 5), (5, 8)),  # halves are rounded up
        ({"by": 2.5}, (1, 3), (3, 8)),
        ({"by": 1.1}, (5, 15), (6, 17)),
        ({"long_edge": 15}, (3, 10), (5, 15)),
    ],
)
def test_target_sizes(options: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert UpscaleRequest(None, **options).target_size(*size) == expected


def test_the_service_rounds_sizes_as_the_library_does() -> None:
    assert result_size(ParsedRequest("upscale", {"by": 1.5}, OutputOptions()), (5, 3)) == (8, 5)
    assert result_size(ParsedRequest("generate", {"upscale": 1.5}, OutputOptions()), (5, 3)) == (8, 5)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"size": "3000x2000"}, (1000, 1000), "another shape; give 3000x3000 or 2000x2000, or crop it first"),
        ({"size": "100x50"}, (100, 200), "would become 0.5 times as large, expected 1 to 16"),
        ({"long_edge": 99}, (10, 100), "the picture of 100x10 would become 0.99 times as large, expected 1 to 16"),
        ({"megapixels": 24}, (10, 100), "would become 155 times as large, expected 1 to 16; give another size"),
    ],
)
def test_sizes_that_a_picture_cannot_have(options: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UpscaleRequest(None, **options).target_size(*size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "3000"}, "size is '3000', expected width x height in pixels, as 3000x2000"),
        ({"size": "0x10"}, "size is '0x10', expected width x height in pixels"),
        ({"size": "٣x10"}, "size is '٣x10', expected width x height"),
        ({"size": "8x8", "long_edge": 9}, "size and long_edge are given, expected one of them"),
        ({"megapixels": 1, "by": 3}, "megapixels and by are given, expected one of them"),
        ({"long_edge": 0}, "long_edge is 0, expected 1 to 65536"),
    ],
)
def test_sizes_that_say_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UpscaleRequest(None, **options)


def test_a_seed_of_minus_one_is_drawn() -> None:
    drawn = {UpscaleRequest(None, seed=-1).seed for _ in range(8)} | {
        GenerateRequest("a", seed=-1).seed for _ in range(8)
    }
    assert len(drawn) > 8 and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in drawn)
    first, *rest = seeds_for(UpscaleRequest(None, seed=[-1, 7, -1]).seed, 3)
    assert first >= 0 and rest[0] == 7 and rest[1] >= 0
    with pytest.raises(InputError, match="the last seed is 18446744073709551615; give a smaller one"):
        seeds_for(2**64 - 1, 2)
    assert seeds_for(2**64 - 1, 1) == [2**64 - 1]


def test_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"picture")
    os.close(writing)
    with open(reading, "rb") as pipe:
        request = UpscaleRequest([pipe])
        assert replace(request, by=3).image[0].read() == b"picture"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (UpscaleRequest, {"memory": "9" * 400}),
        (UpscaleRequest, {"size": "9" * 5000 + "x3"}),
        (InpaintRequest, {"expand": "9" * 5000}),
    ],
    ids=["memory", "size", "expand"],
)
def test_absurd_numbers_are_said_in_a_line(kind: Any, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        kind(None, **options)
    assert len(str(caught.value)) < 200
