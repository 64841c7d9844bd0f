"""What a request adds to its model: LoRAs, by tags in the prompt or by name, styles, a layer of the text encoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from enlarger.checkpoint.model_folder import LORA, ModelFolder
from enlarger.errors import InputError
from enlarger.requests import MAX_LORAS, SamplingOptions, one_per_image
from enlarger.tasks.loading.load import LoraFile, with_adapters
from enlarger.tasks.loading.stable_diffusion import StableDiffusion
from enlarger.text.lora_tags import LoraUse, lora_use, split_lora_tags
from enlarger.text.styles import apply_styles

Request = TypeVar("Request", bound=SamplingOptions)
FIRST_XL_LAYER = 2  # counted from the end: the one that SDXL was trained to read


def is_adapted(request: SamplingOptions) -> bool:
    """Whether a request changes its model, or its prompts."""
    texts = [*_texts(getattr(request, "prompt", "")), *_texts(request.negative)]
    has_tags = any(split_lora_tags(text)[1] for text in texts)
    return bool(request.loras or request.styles or has_tags) or request.clip_skip is not None


def adapt(model: StableDiffusion, request: Request) -> tuple[StableDiffusion, Request]:
    """The model with what a request adds, and the request without that; both as they are where it adds nothing.

    The model that was given stays as it is, and shares all weights that are not changed. Raises InputError for names
    that its folder of models does not have, and what `read_lora` raises.
    """
    if not is_adapted(request):
        return model, request
    request = with_styles(model, request)
    prompt, tagged = _split_tags(getattr(request, "prompt", ""))
    if any(split_lora_tags(negative)[1] for negative in _texts(request.negative)):
        raise InputError("the negative prompt names a LoRA, which works on the whole picture; name it in the prompt")
    uses = [*tagged, *(lora_use(name, scale) for name, scale in request.loras)]
    if len(uses) > MAX_LORAS:
        raise InputError(f"found {len(uses)} LoRAs, expected at most {MAX_LORAS}")
    clip_skip = model.clip_skip if request.clip_skip is None else check_clip_skip(model, request.clip_skip)
    adapted = replace(_with_loras(model, uses), clip_skip=clip_skip)
    changes: dict[str, Any] = {"prompt": prompt, "loras": (), "styles": (), "clip_skip": None}
    return adapted, replace(request, **changes)


def check_clip_skip(model: StableDiffusion, clip_skip: int) -> int:
    """The layer, if the text encoders have it. Raises InputError."""
    first = FIRST_XL_LAYER if model.has_micro_conditioning else 1
    last = min(encoder.config.layers for encoder in model.text_encoders) + first - 1
    if not first <= clip_skip <= last:
        raise InputError(f"clip_skip is {clip_skip}, expected {first} to {last} for {model.kind.label}")
    return clip_skip


def with_styles(model: StableDiffusion, request: Request) -> Request:
    """The request with its styles in its prompts. Raises InputError as `apply_styles`, and for unequal lists."""
    if not request.styles:
        return request
    folder = ModelFolder(Path()) if model.model_folder is None else model.model_folder
    prompts, negatives = _texts(getattr(request, "prompt", "")), _texts(request.negative)
    count = max(len(prompts), len(negatives))
    pairs = zip(one_per_image(prompts, count, "prompt"), one_per_image(negatives, count, "negative"), strict=True)
    styled = [apply_styles(*pair, _texts(request.styles), folder.styles) for pair in pairs]
    changes: dict[str, Any] = {"prompt": [one for one, _ in styled], "negative": [other for _, other in styled]}
    if len(styled) == 1:
        changes = {name: texts[0] for name, texts in changes.items()}
    return replace(request, styles=(), **changes)


def _split_tags(prompt: str | Sequence[str]) -> tuple[str | list[str], tuple[LoraUse, ...]]:
    """Prompts without tags, and what the tags name. Raises InputError where prompts name different ones."""
    pairs = [split_lora_tags(text) for text in _texts(prompt)]
    uses = [named for _, named in pairs]
    if any(named != uses[0] for named in uses):
        raise InputError("the prompts of one request name different LoRAs; make a request for each prompt")
    texts = [text for text, _ in pairs]
    return (texts[0] if isinstance(prompt, str) else texts), uses[0] if uses else ()


def _with_loras(model: StableDiffusion, uses: Sequence[LoraUse]) -> StableDiffusion:
    if not uses:
        return model
    folder = model.model_folder
    files = [LoraFile(_find(model, use.name), use.text_scale, use.unet_scale) for use in uses]
    parts = with_adapters(model.parts(), files, allow_pickle=folder is not None and folder.allow_pickle)
    return model.with_parts(parts)


def _find(model: StableDiffusion, name: str | Path) -> Path:
    """The file of a LoRA. A name is never taken for a path: it may come from a stranger's prompt."""
    if isinstance(name, Path):
        return name
    if model.model_folder is None:
        raise InputError(
            f"the LoRA {name!r} is asked for by name, but there is no folder of models; give one (--models DIR, or "
            "Checkpoint(models=...)), or its file as a Path"
        )
    return model.model_folder.find(name, LORA)


def _texts(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)
