"""What a request's file format cannot hold is refused when it is asked for."""

import pytest

from enlarger.service.jobs.job import OutputOptions
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import ProblemError
from enlarger.service.routes.parsed_request import ParsedRequest, build_job_spec
from enlarger.service.settings import Bounds

BUNDLED = ModelState("bundled", "bundled", ("upscale",), ())
BOUNDS = Bounds(output_pixels=400_000_000)


@pytest.mark.parametrize(
    ("file_format", "by", "size", "most"),
    [("webp", 2.0, (8200, 1), "16,383"), ("webp", 1.5, (3, 10_923), "16,383"), ("jpeg", 4.0, (16_400, 2), "65,500")],
)
def test_sizes_beyond_the_format_are_refused(file_format: str, by: float, size: tuple[int, int], most: str) -> None:
    parsed = ParsedRequest("upscale", {"by": by}, OutputOptions(file_format))
    with pytest.raises(ProblemError, match=rf"result: has a side of .* holds at most {most}; save as PNG") as caught:
        build_job_spec(parsed, BUNDLED, BOUNDS, size)
    assert (caught.value.problem.status, caught.value.problem.param) == (400, "output_format")


def test_sizes_within_it_pass() -> None:
    parsed = ParsedRequest("upscale", {"by": 2.0}, OutputOptions("webp"))
    assert build_job_spec(parsed, BUNDLED, BOUNDS, (8191, 2)).size == (16_382, 4)
