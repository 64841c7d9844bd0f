"""What a job asks for, as requests of its model: what that has no use for is left out, and said."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.checkpoint.families import ModelKind
from enlarger.errors import InputError
from enlarger.image.decode import load_pixels
from enlarger.image.digest import file_sha256
from enlarger.requests import (
    DepthRequest,
    GenerateRequest,
    InpaintRequest,
    RefineRequest,
    UpscaleRequest,
    make_request,
    seeds_for,
    with_defaults,
    without_idle_factor,
)
from enlarger.service.jobs.job import JobSpec
from enlarger.service.problems import problem_error
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.model_cache import CachedModel
from enlarger.tasks.loading.adapters import with_styles
from enlarger.tasks.loading.stable_diffusion import StableDiffusion
from enlarger.text.encode import tokenize_prompts

REQUEST_TYPES: Mapping[str, type[Any]] = {
    "upscale": UpscaleRequest,
    "generate": GenerateRequest,
    "refine": RefineRequest,
    "inpaint": InpaintRequest,
    "depth": DepthRequest,
}
OPTION_LABELS = {
    "prompt": "the prompt", "negative": "the negative prompt", "noise_level": "the noise level", "solver": "the solver",
    "spacing": "the spacing",
    "profile": "the profile", "score": "the score", "negative_score": "the negative score", "long_prompt": "",
}  # fmt: skip
NEUTRAL_VALUES = (None, "", 1.0)  # what changes nothing, and so needs no note


@dataclass(frozen=True, eq=False)
class ModelRequests:
    """One request for each picture of a job, and what the metadata says of them all."""

    requests: tuple[Any, ...]
    options: Mapping[str, Any]  # of the requests, with defaults filled in
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    num_prompt_tokens: int = 0  # of the prompt
    input_info: Mapping[str, Any] | None = None  # what is known of the picture that was given

    @property
    def is_batchable(self) -> bool:
        """Whether its picture may be made in a batch: a prompt that is cut is said to its own user alone."""
        first = self.requests[0]
        has_no_prompt = getattr(first, "prompt", "") == getattr(first, "negative", "") == ""
        return len(self.requests) == 1 and (has_no_prompt or first.long_prompt)

    @property
    def image(self) -> Image.Image | None:
        """The picture that was given."""
        return getattr(self.requests[0], "image", None)


def build_requests(spec: JobSpec, model: CachedModel, folder: Path) -> ModelRequests:
    """The requests of a job; its pictures are read from the job's folder. Raises InputError for odd options."""
    options, notes = _supported_options(spec, model.loaded.kind)
    options.pop("refiner", None)
    verb = model.description.verbs[spec.task]
    pictures = {
        name: _open_image(folder / file)
        for name, file in (("image", spec.image), ("mask", spec.mask))
        if file is not None
    }
    if spec.task == "inpaint":
        options["mask_mode"] = "white"
    seeds = seeds_for(options.get("seed", 0), options.get("count", 1))
    request = make_request(REQUEST_TYPES[verb], **pictures, **options)
    requests = tuple(replace(request, seed=seed, count=1) for seed in seeds)
    metadata_options = _metadata_options(request, model, verb, refiner_name(spec, model.description.settings))
    input_info = None if spec.image is None else _input_info(folder / spec.image, pictures["image"])
    return ModelRequests(
        requests, metadata_options, tuple(seeds), notes, _count_tokens(request.prompt, model), input_info
    )


def refiner_name(spec: JobSpec, settings: ModelSettings) -> str | None:
    """The name of the model that is to finish what this one begins; the option is a name, or true."""
    option = spec.options.get("refiner")
    if option is None or option is False:
        return None
    name = settings.refiner if option is True else str(option)
    if name is None:
        raise InputError(f"refiner is true, but {spec.model} has none in the settings; name one there, or leave it out")
    return name


def _supported_options(spec: JobSpec, kind: ModelKind) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that this kind of model has a use for, and what is to be said of the others."""
    options = dict(spec.options)
    unused = () if options.get("refiner") else kind.unused_options
    dropped = {name: options.pop(name) for name in unused if name in options}
    notes = [
        f"{OPTION_LABELS.get(name, name)} changes nothing: {spec.model} has no use for it"
        for name in _noteworthy(dropped)
    ]
    for needed, names in kind.dependent_options.items():
        if options.get(needed) in (None, 0):
            dropped = {name: options.pop(name) for name in names if name in options}
            notes += [
                f"{OPTION_LABELS.get(name, name)} changes nothing without {needed}" for name in _noteworthy(dropped)
            ]
    if kind.one_answer and (count := options.get("count") or 1) > 1:
        options["count"] = 1
        notes.append(kind.one_answer.format(count=count))
    return options, tuple(notes)


def _noteworthy(dropped: Mapping[str, Any]) -> Iterator[str]:
    """The names of those that somebody may have expected something of."""
    return (name for name, value in dropped.items() if value not in NEUTRAL_VALUES and name != "long_prompt")


def _open_image(path: Path) -> Image.Image:
    """A picture that the decoder wrote. Raises InputError if it is not there any more."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return load_pixels(image, [])
    except OSError as error:
        raise InputError(f"{path.name} of the job cannot be read ({error}); send the request again") from error


def _input_info(path: Path, image: Image.Image) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "width": image.width, "height": image.height}


def _metadata_options(request: Any, model: CachedModel, verb: str, refiner: str | None) -> dict[str, Any]:
    """The request's options with what None stands for; pictures and seeds are said elsewhere."""
    kind = model.loaded.kind
    profile = getattr(request, "profile", None)
    defaults = kind.tasks[verb].defaults if profile is None else f"{verb}/{profile}"
    options = without_idle_factor(with_defaults(request, defaults)) | {"refiner": refiner}
    unused = kind.unused_options if refiner is None else ()
    for needed, names in kind.dependent_options.items():
        unused += names if options[needed] == 0 else ()
    if options.get("solver", "") is None and model.model.sampler is not None:
        options["solver"] = model.model.sampler.solver
    if verb == "generate":
        side = model.model.sample_size * model.model.vae.downsample_factor
        options |= {name: side for name in ("width", "height") if options[name] is None}
    hidden = ("image", "mask", "depth", "seed", "mask_mode", *unused)
    return {name: value for name, value in options.items() if value not in (None, ()) and name not in hidden}


def check_prompt_tokens(request: Any, model: CachedModel, max_tokens: int) -> None:
    """Raise ProblemError, 400 `invalid_prompt`, for a prompt that would take an encoder long: 75 tokens are one run.

    The prompt counts with its styles. Raises InputError for styles that there are not.
    """
    if isinstance(model.model, StableDiffusion):
        request = with_styles(model.model, request)
    for field, name in (("prompt", "prompt"), ("negative", "negative_prompt")):
        count = _count_tokens(getattr(request, field, None), model)
        if count > max_tokens:
            text = f"{name} has {count:,} tokens, expected at most {max_tokens:,}; say it in fewer words"
            raise problem_error(400, "invalid_prompt", text, name)


def _count_tokens(text: str | None, model: CachedModel) -> int:
    """CLIP's tokens of a text, start and end aside."""
    tokenizer = model.model.tokenizer
    if tokenizer is None or not text:
        return 0
    return sum(int(piece.mask.sum()) - 2 * len(piece.mask) for piece in tokenize_prompts(tokenizer, [text], True, True))
