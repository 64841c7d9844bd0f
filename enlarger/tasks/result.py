"""What the tasks share: progress, results, prompts, padding, and decoding that never gives a black picture silently."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from enlarger.checkpoint.tensors.finite_check import find_first_non_finite
from enlarger.diffusion.sample import OnStep, Step
from enlarger.errors import NonFinite
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latents import Latents
from enlarger.text.encode import OutputLayer, PromptEmbeds, encode_prompts, encode_prompts_xl
from enlarger.text.tokenize import Tokenizer


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a stage of the work is; `step` holds the latents while denoising."""

    stage: str
    done: int
    total: int
    step: Step | None = None


ProgressCallback = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """Watch nothing."""


def report_steps(watch: ProgressCallback, total: int, stage: str = "denoise") -> OnStep:
    """What tells `watch` of each step of a run of `total`, and changes none."""
    done = 0

    def report(step: Step) -> Tensor:
        nonlocal done
        done += 1
        watch(Progress(stage, done, max(total, done), step))
        return step.x

    return report


@dataclass(frozen=True)
class Result:
    """The pictures made, the seed of each, and what is to be known of them."""

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...] = ()
    consistency: float | None = None  # largest difference of the reduced copy to the input, in 8-bit steps
    latents: Latents | None = None  # of the pictures in order; None where they differ in size, or were never latents
    flagged: tuple[bool, ...] | None = None  # by the checkpoint's safety checker; None: it has none, see `notes`

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]


@dataclass(frozen=True)
class GuidedText:
    """Features of the prompts, and of the negative prompts where guidance needs them."""

    positive: PromptEmbeds
    negative: PromptEmbeds | None = None


def encode_guided_prompts(
    tokenizer: Tokenizer, encoder: ClipText, runtime: Runtime,
    prompts: Sequence[str], negatives: Sequence[str] | None, layer: OutputLayer, long_prompt: bool = False,
    weighted: bool = False,
) -> GuidedText:  # fmt: skip
    """Prompts and negative prompts in one call, which gives them one length."""
    with runtime.hold(encoder):
        encoded = encode_prompts(
            tokenizer, encoder, [*prompts, *(negatives or ())], layer=layer, long_prompt=long_prompt, weighted=weighted
        )
    return _split_branches(encoded, len(prompts), negatives is not None)


def encode_guided_prompts_xl(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[ClipText], runtime: Runtime,
    prompts: Sequence[str], negatives: Sequence[str] | None, long_prompt: bool = False, weighted: bool = False,
) -> GuidedText:  # fmt: skip
    """The same for SDXL: one or two encoders that read the same prompts."""
    texts = [*prompts, *(negatives or ())]
    with ExitStack() as held_encoders:
        for encoder in encoders:
            held_encoders.enter_context(runtime.hold(encoder))
        encoded = encode_prompts_xl(
            tokenizers, encoders, [texts] * len(encoders), long_prompt=long_prompt, weighted=weighted
        )
    return _split_branches(encoded, len(prompts), negatives is not None)


def _split_branches(encoded: PromptEmbeds, count: int, is_guided: bool) -> GuidedText:
    """Features of the prompts, then of the negative prompts."""
    first, second = (
        PromptEmbeds(encoded.tokens[part], encoded.pooled[part], encoded.mask[part])
        for part in (slice(count), slice(count, None))
    )
    return GuidedText(first, second if is_guided else None)


def pad_to_multiple(x: Tensor, multiple: int, min_size: int = 1) -> Tensor:
    """The last row and column repeated until both sizes are multiples of `multiple`, and at least `least`."""
    bottom, right = (max(-(-side // multiple) * multiple, min_size) - side for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


@contextmanager
def in_float32(network: nn.Module, enabled: bool = True) -> Generator[torch.dtype]:
    """The network in float32 for the length of the block, if that is wanted; gives its precision there."""
    dtype = next(network.parameters()).dtype
    if not enabled or dtype == torch.float32:
        yield dtype
        return
    network.float()
    try:
        yield torch.float32
    finally:
        network.to(dtype)


def decode_latents(autoencoder: AutoencoderKL, latents: Tensor, runtime: Runtime, upcast: bool = False) -> Tensor:
    """Latents to pictures about -1..1 in float32. A half-precision overflow is decoded again in float32.

    `upcast` decodes in float32 at once. Raises NonFinite if that is not finite either.
    """
    with runtime.hold(autoencoder), torch.inference_mode():
        with in_float32(autoencoder, upcast) as dtype:
            picture = autoencoder.decode(latents.to(runtime.device, dtype)).float()
        if dtype != torch.float32 and not torch.isfinite(picture).all():
            with in_float32(autoencoder):
                picture = autoencoder.decode(latents.to(runtime.device).float())
    if not torch.isfinite(picture).all():
        error = NonFinite("the decoded picture is not finite; the latents or the autoencoder's weights are damaged")
        raise with_bad_weight(error, autoencoder)
    return picture


def with_bad_weight(error: NonFinite, *networks: nn.Module) -> NonFinite:
    """The error; or, if a network has a weight that is no number, one that names it."""
    name = next((name for network in networks if (name := find_first_non_finite(network)) is not None), None)
    return error if name is None else NonFinite(f"the weight {name} holds NaN or infinity; fetch the file again")
