"""Pictures made in one batch are those made one by one, whatever else is in the batch and in whichever order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from enlarger import GenerateRequest, Generator, Progress, UpscaleRequest, load_generator, load_upscaler
from enlarger.tasks.batching import group_into_batches, run_in_batches
from enlarger.tasks.upscale.pixel_x4 import PixelUpscaler
from tests.support import tiny, tiny_xl

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
LONG = "a very detailed painting of many boats " * 12
SD = [
    GenerateRequest("a boat", width=48, height=40, steps=4, seed=3),
    GenerateRequest("two (red:1.4) cats", negative="blue", width=48, height=40, steps=4, seed=0),
    GenerateRequest("", width=48, height=40, steps=4, seed=3),
    GenerateRequest("a boat", negative="grey", width=48, height=40, steps=4, seed=9),
]


@pytest.fixture(scope="module", params=[tiny.sd1_folder, tiny_xl.base_folder], ids=["sd", "xl"])
def generator(request: pytest.FixtureRequest) -> Iterator[Generator]:
    yield load_generator(request.param(), "cpu")


def difference(found: Any, expected: Any) -> int:
    """The largest, in 8-bit steps."""
    a, b = (np.array(image, dtype=np.int64) for image in (found, expected))
    assert a.shape == b.shape and b.std() > 5
    return int(np.abs(a - b).max())


def check(task: Any, requests: Sequence[Any]) -> None:
    """A batch of all, of two of them, and the other way round, against one at a time."""
    alone = [task(request) for request in requests]
    for order in [tuple(range(len(requests))), tuple(reversed(range(len(requests)))), *permutations(range(2))]:
        made = run_in_batches(task, [requests[i] for i in order])
        for i, result in zip(order, made, strict=True):
            assert result.seeds == alone[i].seeds and result.notes == alone[i].notes
            assert result.consistency == pytest.approx(alone[i].consistency, abs=0.01)
            assert difference(result.image, alone[i].image) <= 1
            if result.latents is not None:
                assert float((result.latents.values - alone[i].latents.values).abs().max()) < 1e-4


def test_generating(generator: Generator) -> None:
    requests = [SD[1], SD[3]] if generator.model.force_zeros_for_empty_prompt else SD
    check(generator, requests)


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_2m_sde", "unipc", "heun", "plms"])
def test_solvers(generator: Generator, solver: str) -> None:
    check(generator, [replace(one, solver=solver, negative="x", guidance=5.0, rescale=0.5) for one in SD[:2]])


def test_one_branch(generator: Generator) -> None:
    check(generator, [replace(one, guidance=1.0, negative="") for one in SD])


def test_the_bundled_model() -> None:
    pictures = [tiny.picture(40, 30, seed) for seed in range(3)]
    pictures += [pictures[0].convert("RGBA")]
    upscaler = load_upscaler(None, "cpu")
    for by in (2, 3.2):
        requests = [UpscaleRequest(picture, by, seed=i) for i, picture in enumerate(pictures)]
        assert group_into_batches(upscaler, requests) == [(0, 1, 2, 3)]
        check(upscaler, requests)


def test_the_x2_upscaler() -> None:
    upscaler = load_upscaler(tiny.x2_folder(), "cpu")
    requests = [
        UpscaleRequest(tiny.picture(40, 30, i), prompt=prompt, steps=3, seed=i, guidance=3.0)
        for i, prompt in enumerate(("a boat", "", "two cats"))
    ]
    assert group_into_batches(upscaler, requests) == [(0, 1, 2)]
    check(upscaler, requests)


def test_what_is_not_alike_runs_by_itself(generator: Generator) -> None:
    one = replace(SD[0], negative="x")
    others = [
        replace(one, steps=3), replace(one, width=56), replace(one, guidance=1.0), replace(one, negative=""),
        replace(one, count=2), replace(one, solver="dpm_adaptive"), replace(one, solver="dpm_adaptive"),
        replace(one, prompt=LONG, long_prompt=True), replace(one, long_prompt=True), replace(one, upscale=2.0),
    ]  # fmt: skip
    assert group_into_batches(generator, [one, *others, one]) == [(0, 11), *((i,) for i in range(1, 11))]
    refined = Generator(generator.model, (generator.model,))
    assert group_into_batches(refined, [one, one]) == [(0,), (1,)]
    assert group_into_batches(generator, [replace(one, prompt=LONG), one]) == [(0, 1)]


def test_long_prompts_share_a_batch_with_those_as_long(generator: Generator) -> None:
    long = replace(SD[0], prompt=LONG, negative="x", long_prompt=True)
    short = replace(long, prompt="a boat")
    requests = [long, short, replace(long, seed=5)]
    assert group_into_batches(generator, requests) == [(0, 2), (1,)]
    check(generator, requests)


@pytest.mark.parametrize(
    "change", [{"detail": 0.5}, {"restore": 0.5}, {"by": 3.0}, {"image": tiny.picture(40, 31)}, {"count": 2}]
)
def test_enlargements_that_are_not_alike_run_by_themselves(change: dict[str, Any]) -> None:
    upscaler = load_upscaler(None, "cpu")
    one = UpscaleRequest(tiny.picture(40, 30))
    assert group_into_batches(upscaler, [one, replace(one, **change), one]) == [(0, 2), (1,)]
    turned = tiny.picture(30, 40)
    turned.getexif()[0x0112] = 6
    assert group_into_batches(upscaler, [one, replace(one, image=turned)]) == [(0, 1)]
    array = replace(one, image=np.zeros((30, 40, 3), np.uint8))
    assert group_into_batches(upscaler, [array, array]) == [(0,), (1,)]


def test_the_callback_sees_one_schedule(generator: Generator) -> None:
    seen: list[Progress] = []
    requests = [replace(one, negative="x") for one in SD]
    run_in_batches(generator, requests, seen.append)
    assert [progress.done for progress in seen] == list(range(1, seen[0].total + 1))
    assert all(progress.step is not None and len(progress.step.denoised) == 4 for progress in seen)
    assert isinstance(seen[0].step.x, torch.Tensor)  # type: ignore[union-attr]


def test_other_networks_take_one_at_a_time() -> None:
    upscaler = PixelUpscaler(load_generator(tiny.sd1_folder(), "cpu").model, "x4")
    one = UpscaleRequest(tiny.picture(40, 30))
    assert group_into_batches(upscaler, [one, one]) == [(0,), (1,)]
