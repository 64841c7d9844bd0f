"""What every upscaler offers, whatever is inside."""

from collections.abc import Hashable, Sequence
from typing import Protocol, Unpack

from enlarger.checkpoint.families import ModelKind
from enlarger.diffusion.sampler import Sampler
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.requests import UpscaleRequest
from enlarger.tasks.inputs import ImageSource, LatentSpace
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.stages import Timer
from enlarger.tasks.results.result import ProgressCallback, Result, no_progress
from enlarger.text.tokenize import Tokenizer
from enlarger.verb_options import UpscalerOptions


class Upscaler(Protocol):
    """A loaded model; calling it with a request enlarges the request's pictures one after another."""

    @property
    def name(self) -> str:
        """The path or the name that it was loaded by, for results and messages."""
        ...

    @property
    def kind(self) -> ModelKind: ...

    @property
    def scale(self) -> int:
        """How many times wider and higher one pass makes a picture."""
        ...

    @property
    def input_latent_space(self) -> LatentSpace | None:
        """Whose latents it enlarges without a picture in between; None: it takes pictures only."""
        ...

    @property
    def vae(self) -> AutoencoderKL | None:
        """The autoencoder of the latents that it denoises, for previews; None where there are none to show."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What reads its prompts; None: it takes none."""
        ...

    @property
    def sampler(self) -> Sampler | None:
        """The checkpoint's own solver and noise levels; None: it has none."""
        ...

    def __call__(
        self,
        request: UpscaleRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[UpscalerOptions],
    ) -> Result:
        """Takes a request, or what its `image` may be with its other fields by name.

        Each input gives `count` pictures of exactly `by` times its size, in order.

        One picture is computed at a time. Latents are enlarged by `scale`, without a picture in between.
        """
        ...

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        """One enlargement for each request, in one batch; their `batch_key`s are equal."""
        ...

    def batch_key(self, request: UpscaleRequest) -> Hashable | None:
        """Equal for requests that can share a batch; None for one that is computed by itself."""
        ...

    def plan(self, request: UpscaleRequest, timer: Timer | None = None) -> Plan:
        """What a request will take, stage by stage, before it runs; with a `timer`, its time too.

        Raises InputError for a `memory` that even the smallest tiles do not keep.
        """
        ...

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        """The calls of its diffusion network that enlarge a picture of `size` (height, width), or its latents."""
        ...
