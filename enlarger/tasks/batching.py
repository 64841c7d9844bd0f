"""Requests that differ in little, computed in one batch: the same pictures, up to rounding."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from enlarger.diffusion.sampler import Sampler
from enlarger.image.picture import open_upright
from enlarger.requests import GenerateRequest, UpscaleRequest, with_defaults
from enlarger.tasks.result import ProgressCallback, Result, no_progress
from enlarger.tasks.text_to_image import Generator
from enlarger.tasks.upscale.bundled import BundledUpscaler
from enlarger.tasks.upscale.latent_x2 import LatentUpscaler
from enlarger.tasks.upscale.upscale import Upscaler
from enlarger.text.encode import tokenize_prompts
from enlarger.text.tokenize import Tokenizer


@overload
def run_in_batches(
    task: Generator, requests: Sequence[GenerateRequest], watch: ProgressCallback = no_progress
) -> list[Result]: ...
@overload
def run_in_batches(
    task: Upscaler, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress
) -> list[Result]: ...
def run_in_batches(task: Any, requests: Sequence[Any], watch: ProgressCallback = no_progress) -> list[Result]:
    """The result of each request. Those of one group share a batch, which `watch` sees as one picture."""
    results_by_index: dict[int, Result] = {}
    for batch in group_into_batches(task, requests):
        batch_requests = [requests[i] for i in batch]
        results = task.run_batch(batch_requests, watch) if len(batch) > 1 else [task(batch_requests[0], watch)]
        results_by_index |= dict(zip(batch, results, strict=True))
    return [results_by_index[i] for i in range(len(requests))]


def group_into_batches(task: Generator | Upscaler, requests: Sequence[Any]) -> list[tuple[int, ...]]:
    """Which requests can share a batch, as their places in the sequence; each is in one batch.

    Alike are those for one picture that differ in prompts and seed alone, whose prompts fill as many rows of tokens
    and whose pictures are of one size. No batch is made where what happens to a picture would depend on the others:
    where the solver judges its error by all of them, or the network takes statistics.
    """
    if len(requests) == 1:
        return [(0,)]
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key = _generate_key(task, request) if isinstance(task, Generator) else _upscale_key(task, request)
        groups.setdefault(("alone", i) if key is None else key, []).append(i)
    return [tuple(indices) for indices in groups.values()]


def _generate_key(task: Generator, request: GenerateRequest) -> Hashable | None:
    """Equal for requests that are alike; None for one that has to be alone."""
    if task.refiners or request.upscale != 1 or not _is_batch_invariant(task.model.sampler, request.solver):
        return None
    return _prompt_key(request, task.model.tokenizers, weighted=True)


def _upscale_key(task: Upscaler, request: UpscaleRequest) -> Hashable | None:
    if not isinstance(request.image, str | Path | Image.Image):
        return None
    if isinstance(task.task, BundledUpscaler):
        prompt_key = _prompt_key(request)
    elif isinstance(task.task, LatentUpscaler):
        options = with_defaults(request, f"upscale/{request.profile or 'diffusers'}")
        if not _is_batch_invariant(task.task.sampler, options["solver"]):
            return None
        prompt_key = _prompt_key(request, [task.task.tokenizer])
    else:
        return None  # x4: its memory allows for one
    return None if prompt_key is None else (prompt_key, open_upright(request.image).size)


def _is_batch_invariant(sampler: Sampler, solver: str | None) -> bool:
    """Whether a picture's steps do not depend on its neighbours."""
    return sampler.with_solver(solver).solver != "dpm_adaptive"


def _prompt_key(request: Any, tokenizers: Sequence[Tokenizer] = (), weighted: bool = False) -> Hashable | None:
    """All but the picture, the prompts and the seed; of the prompts, how long they are and whether there are any."""
    texts = (request.prompt, request.negative)
    if request.count != 1 or not all(isinstance(text, str) for text in texts):
        return None
    lengths = tuple(
        max((len(tokenize_prompts(one, [text], request.long_prompt, weighted)) for one in tokenizers), default=0)
        for text in texts
    )
    image = {"image": None} if isinstance(request, UpscaleRequest) else {}
    request_without_prompts = replace(request, prompt="", negative="", seed=0, **image)
    return repr(request_without_prompts), lengths, request.negative == ""
