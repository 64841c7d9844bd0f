"""Requests that differ in little, computed in one batch: the same pictures, up to rounding."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from enlarger.diffusion.sampler import Sampler
from enlarger.images import open_upright
from enlarger.requests import GenerateRequest, UpscaleRequest, filled
from enlarger.tasks.enlarge import Upscaler
from enlarger.tasks.generate import Generator
from enlarger.tasks.parts import Result, Watch, quiet
from enlarger.tasks.upscale_compact import CompactUpscale
from enlarger.tasks.upscale_latent import LatentUpscale
from enlarger.text.encode import pieces
from enlarger.text.tokenize import Tokenizer


@overload
def together(task: Generator, requests: Sequence[GenerateRequest], watch: Watch = quiet) -> list[Result]: ...
@overload
def together(task: Upscaler, requests: Sequence[UpscaleRequest], watch: Watch = quiet) -> list[Result]: ...
def together(task: Any, requests: Sequence[Any], watch: Watch = quiet) -> list[Result]:
    """The result of each request. Those that `batches` puts together share a batch; `watch` sees it as one picture."""
    made: dict[int, Result] = {}
    for batch in batches(task, requests):
        several = [requests[i] for i in batch]
        results = task.several(several, watch) if len(batch) > 1 else [task(several[0], watch)]
        made |= dict(zip(batch, results, strict=True))
    return [made[i] for i in range(len(requests))]


def batches(task: Generator | Upscaler, requests: Sequence[Any]) -> list[tuple[int, ...]]:
    """Which requests can share a batch, as their places in the sequence; each is in one batch.

    Alike are those for one picture that differ in prompts and seed alone, whose prompts fill as many rows of tokens
    and whose pictures are of one size. No batch is made where what happens to a picture would depend on the others:
    where the solver judges its error by all of them, or the network takes statistics.
    """
    if len(requests) == 1:
        return [(0,)]
    found: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key = _key_to_generate(task, request) if isinstance(task, Generator) else _key_to_upscale(task, request)
        found.setdefault(("alone", i) if key is None else key, []).append(i)
    return [tuple(several) for several in found.values()]


def _key_to_generate(task: Generator, request: GenerateRequest) -> Hashable | None:
    """Equal for requests that are alike; None for one that has to be alone."""
    if task.refiners or request.upscale != 1 or not _independent(task.model.sampler, request.solver):
        return None
    return _told_key(request, task.model.tokenizers, weighted=True)


def _key_to_upscale(task: Upscaler, request: UpscaleRequest) -> Hashable | None:
    if not isinstance(request.image, str | Path | Image.Image):
        return None
    if isinstance(task.task, CompactUpscale):
        told = _told_key(request)
    elif isinstance(task.task, LatentUpscale):
        options = filled(request, f"upscale/{request.profile or 'diffusers'}")
        if not _independent(task.task.sampler, options["solver"]):
            return None
        told = _told_key(request, [task.task.tokenizer])
    else:
        return None  # x4: its memory allows for one
    return None if told is None else (told, open_upright(request.image).size)


def _independent(sampler: Sampler, solver: str | None) -> bool:
    """Whether a picture's steps do not depend on its neighbours."""
    return sampler.using(solver).solver != "dpm_adaptive"


def _told_key(request: Any, tokenizers: Sequence[Tokenizer] = (), weighted: bool = False) -> Hashable | None:
    """All but the picture, the prompts and the seed; of the prompts, how long they are and whether there are any."""
    texts = (request.prompt, request.negative)
    if request.count != 1 or not all(isinstance(text, str) for text in texts):
        return None
    lengths = tuple(
        max((len(pieces(one, [text], request.long_prompt, weighted)) for one in tokenizers), default=0)
        for text in texts
    )
    image = {"image": None} if isinstance(request, UpscaleRequest) else {}
    bare = replace(request, prompt="", negative="", seed=0, **image)
    return repr(bare), lengths, request.negative == ""
