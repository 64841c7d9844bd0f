"""The one file of a kind of model that the package does not have: each pixel twice along both sides."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.families import KINDS, ModelKind
from enlarger.requests import UpscaleRequest
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls
from enlarger.tasks.results.result import Progress, ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.upscale.upscale import UpscaleBatch, single_batches, stack_requests


@dataclass(frozen=True, eq=False)
class NearestUpscaler:
    """An `Upscaler` without a network."""

    name: str
    scale: int = 2
    latent_space: None = None
    vae: None = None
    tokenizer: None = None
    sampler: None = None

    @property
    def kind(self) -> ModelKind:
        return KINDS["nearest"]

    def __call__(self, request: UpscaleRequest, watch: ProgressCallback = no_progress) -> Result:
        batches = single_batches(self, request, lambda requests: None)
        return join_results([result for batch, _ in batches for result in self._run(batch, watch)])

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return self._run(stack_requests(requests), watch)

    def batch_key(self, request: UpscaleRequest) -> Hashable | None:
        return None

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        return ()

    def _run(self, batch: UpscaleBatch, watch: ProgressCallback) -> list[Result]:
        image = batch.low_res
        while batch.needs_pass(image):
            image = F.interpolate(image, scale_factor=self.scale, mode="nearest")
            watch(Progress("double", 1, 1))
        count = len(batch.requests)
        return batch.finish(self.name, image, [False] * count, [()] * count)


def load(components: PipelineComponents, runtime: Runtime, name: str) -> NearestUpscaler:
    """It needs none of its folder's parts."""
    return NearestUpscaler(name)
