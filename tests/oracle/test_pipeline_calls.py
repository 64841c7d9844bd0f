"""Random calls equal diffusers', or raise where it raises: a fixed part of `scripts/pipeline-calls`."""

import random

import pytest

from tests.support import tiny
from tests.support.pipeline_calls import compare, random_call

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' deprecations, and ours of what is not used
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


def test_random_calls_are_diffusers() -> None:
    draw = random.Random(11)
    for _ in range(6):
        call = random_call(draw)
        verdict, said = compare(call)
        assert verdict in ("equal", "both raise", "taken", "no steps"), (str(call), verdict, said)
