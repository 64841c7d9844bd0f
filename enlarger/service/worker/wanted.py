"""What a job asks for, as requests of its model: what that has no use for is left out, and said."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.errors import InputError
from enlarger.requests import (
    DepthRequest,
    GenerateRequest,
    InpaintRequest,
    RefineRequest,
    UpscaleRequest,
    filled,
    request_of,
    seeds_for,
)
from enlarger.service.jobs import Ask
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.shelf import Loaded
from enlarger.tasks.enlarge import ONE_ANSWER, Upscaler
from enlarger.tasks.upscale_latent import LatentUpscale
from enlarger.text.encode import pieces
from enlarger.text.tokenize import Tokenizer

REQUESTS: Mapping[str, type[Any]] = {
    "upscale": UpscaleRequest,
    "generate": GenerateRequest,
    "refine": RefineRequest,
    "inpaint": InpaintRequest,
}
WORDS = {
    "prompt": "the prompt", "negative": "the negative prompt", "noise_level": "the noise level", "solver": "the solver",
    "profile": "the profile", "score": "the score", "negative_score": "the negative score", "long_prompt": "",
}  # fmt: skip
SCORES = ("score", "negative_score")
UNUSED = {  # by kind of model
    "bundled": ("prompt", "negative", "steps", "guidance", "solver", "noise_level", "profile", "long_prompt"),
    "x2": ("detail", "restore"),
    "x4": ("detail", "restore", "profile"),
    "sd": SCORES,
    "sdxl": SCORES,
    "depth": SCORES,
}
EMPTY = (None, "", 1.0)  # what changes nothing, and so needs no note


@dataclass(frozen=True, eq=False)
class Wanted:
    """One request for each picture of a job, and what the recipe says of them all."""

    requests: tuple[Any, ...]
    options: Mapping[str, Any]  # of the requests, with defaults filled in
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    tokens: int = 0  # of the prompt
    input: Mapping[str, Any] | None = None  # what is known of the picture that was given

    @property
    def shareable(self) -> bool:
        """Whether its picture may be made in a batch: a prompt that is cut is said to its own user alone."""
        first = self.requests[0]
        silent = getattr(first, "prompt", "") == getattr(first, "negative", "") == ""
        return len(self.requests) == 1 and (silent or first.long_prompt)

    @property
    def image(self) -> Image.Image | None:
        """The picture that was given."""
        return getattr(self.requests[0], "image", None)


def wanted_of(ask: Ask, loaded: Loaded, folder: Path) -> Wanted:
    """The requests of an ask; its pictures are read from the job's folder. Raises InputError for odd options."""
    options, notes = _useful(ask, loaded.described.kind)
    options.pop("refiner", None)
    kind = DepthRequest if loaded.described.kind == "depth" else REQUESTS[ask.task]
    pictures = {
        name: _opened(folder / file) for name, file in (("image", ask.image), ("mask", ask.mask)) if file is not None
    }
    if ask.task == "inpaint":
        options["mask_mode"] = "white"
    seeds = seeds_for(options.get("seed", 0), options.get("count", 1))
    whole = request_of(kind, **pictures, **options)
    requests = tuple(replace(whole, seed=seed, count=1) for seed in seeds)
    said = _recipe_options(whole, loaded, refiner_of(ask, loaded.described.settings))
    about = None if ask.image is None else _about(folder / ask.image, pictures["image"])
    return Wanted(requests, said, tuple(seeds), notes, _tokens(whole, loaded), about)


def refiner_of(ask: Ask, settings: ModelSettings) -> str | None:
    """The name of the model that is to finish what this one begins; the option is a name, or true."""
    found = ask.options.get("refiner")
    if found is None or found is False:
        return None
    name = settings.refiner if found is True else str(found)
    if name is None:
        raise InputError(f"refiner is true, but {ask.model} has none in the settings; name one there, or leave it out")
    return name


def _useful(ask: Ask, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that this kind of model has a use for, and what is to be said of the others."""
    options = dict(ask.options)
    unused = () if options.get("refiner") else UNUSED.get(kind, ())
    gone = {name: options.pop(name) for name in unused if name in options}
    notes = [f"{WORDS.get(name, name)} changes nothing: {ask.model} has no use for it" for name in _told(gone)]
    if kind == "bundled" and (count := options.get("count") or 1) > 1:
        options["count"] = 1
        notes.append(ONE_ANSWER.format(count=count))
    return options, tuple(notes)


def _told(gone: Mapping[str, Any]) -> Iterator[str]:
    """The names of those that somebody may have expected something of."""
    return (name for name, value in gone.items() if value not in EMPTY and name != "long_prompt")


def _opened(path: Path) -> Image.Image:
    """A picture that the decoder wrote. Raises InputError if it is not there any more."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return image
    except OSError as error:
        raise InputError(f"{path.name} of the job cannot be read ({error}); send the request again") from error


def _about(path: Path, image: Image.Image) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            "width": image.width,
            "height": image.height,
        }


def _recipe_options(request: Any, loaded: Loaded, refiner: str | None) -> dict[str, Any]:
    """The request's options with what None stands for; pictures and seeds are said elsewhere."""
    options = filled(request, _defaults(request, loaded)) | {"refiner": refiner}
    unused = UNUSED.get(loaded.described.kind, ()) if refiner is None else ()
    for name in ("image", "mask", "depth", "seed", "mask_mode", *unused):
        options.pop(name, None)
    if loaded.described.kind != "bundled" and options["solver"] is None:
        options["solver"] = _sampler(loaded)
    if isinstance(request, GenerateRequest):
        side = loaded.model.side * loaded.model.networks.vae.factor
        options |= {name: side for name in ("width", "height") if options[name] is None}
    return {name: value for name, value in options.items() if value is not None}


def _defaults(request: Any, loaded: Loaded) -> str:
    """The name in `requests.DEFAULTS` of what None stands for."""
    if isinstance(request, UpscaleRequest):
        names = {"bundled": "upscale/bundled", "x4": "upscale/x4"}
        return names.get(loaded.described.kind, f"upscale/{request.profile or 'diffusers'}")
    if isinstance(request, DepthRequest | InpaintRequest):
        return "depth" if isinstance(request, DepthRequest) else "inpaint"
    verb = "generate" if isinstance(request, GenerateRequest) else "refine"
    return f"{verb}/xl" if loaded.model.sized else verb


def _sampler(loaded: Loaded) -> str:
    """The name of the checkpoint's own solver."""
    task = loaded.task.task if isinstance(loaded.task, Upscaler) else loaded.model
    assert not hasattr(task, "predictor"), "the bundled model's solver has a default"
    return task.sampler.solver  # type: ignore[union-attr]


def _tokens(request: Any, loaded: Loaded) -> int:
    """CLIP's tokens of the prompt, start and end aside."""
    tokenizer = _tokenizer(loaded)
    if tokenizer is None or not request.prompt:
        return 0
    return sum(int(piece.mask.sum()) - 2 * len(piece.mask) for piece in pieces(tokenizer, [request.prompt], True, True))


def _tokenizer(loaded: Loaded) -> Tokenizer | None:
    if not isinstance(loaded.task, Upscaler):
        return loaded.model.tokenizers[0]
    task = loaded.task.task
    if isinstance(task, LatentUpscale):
        return task.tokenizer
    return getattr(task, "tokenizers", (None,))[0]
