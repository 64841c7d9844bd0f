"""Requests that differ in little, computed in one batch: the same pictures, up to rounding."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from enlarger.diffusion.sampler import Sampler
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.result import ProgressCallback, Result, no_progress
from enlarger.text.encode import tokenize_prompts
from enlarger.text.tokenize import Tokenizer

R = TypeVar("R", contravariant=True)


class BatchedTask(Protocol[R]):
    """A task that can compute several requests in one batch."""

    def __call__(self, request: R, watch: ProgressCallback = no_progress) -> Result: ...

    def run_batch(self, requests: Sequence[R], watch: ProgressCallback = no_progress) -> list[Result]: ...

    def batch_key(self, request: R) -> Hashable | None: ...


def run_in_batches(task: BatchedTask[R], requests: Sequence[R], watch: ProgressCallback = no_progress) -> list[Result]:
    """The result of each request. Those with equal keys share a batch; `watch` sees it as one picture."""
    results_by_index: dict[int, Result] = {}
    for batch in group_into_batches(task, requests):
        batch_requests = [requests[i] for i in batch]
        results = task.run_batch(batch_requests, watch) if len(batch) > 1 else [task(batch_requests[0], watch)]
        results_by_index |= dict(zip(batch, results, strict=True))
    return [results_by_index[i] for i in range(len(requests))]


def group_into_batches(task: BatchedTask[R], requests: Sequence[R]) -> list[tuple[int, ...]]:
    """Which requests can share a batch, as their places in the sequence; each is in one batch.

    Alike are those for one picture that differ in prompts and seed alone, whose prompts fill as many rows of tokens
    and whose pictures are of one size. No batch is made where what happens to a picture would depend on the others:
    where the solver judges its error by all of them, or the network takes statistics.
    """
    if len(requests) == 1:
        return [(0,)]
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key = task.batch_key(request)
        groups.setdefault(("alone", i) if key is None else key, []).append(i)
    return [tuple(indices) for indices in groups.values()]


def is_batch_invariant(sampler: Sampler, solver: str | None) -> bool:
    """Whether a picture's steps do not depend on its neighbours."""
    return sampler.with_solver(solver).solver != "dpm_adaptive"


def prompt_key(request: Any, tokenizers: Sequence[Tokenizer] = (), weighted: bool = False) -> Hashable | None:
    """All but the picture, the prompts and the seed; of the prompts, how long they are and whether there are any. None
    for a request of several pictures or prompts."""
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
