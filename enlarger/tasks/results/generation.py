"""What made each picture of a result, as its file says it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from enlarger import __version__
from enlarger.checkpoint.families import ModelKind
from enlarger.diffusion.sampler import Sampler
from enlarger.image.decode import file_bytes
from enlarger.image.digest import file_sha256
from enlarger.image.generation import Json
from enlarger.requests import with_defaults, without_idle_factor
from enlarger.tasks.inputs import Latents, split_images
from enlarger.tasks.results.result import Result

PICTURES = ("image", "mask", "depth")  # fields of requests that are said by their contents
TEXTS = ("prompt", "negative")  # fields that may differ from picture to picture


class Described(Protocol):
    """What is said of the model that made a picture."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> ModelKind: ...
    @property
    def sampler(self) -> Sampler | None: ...


def with_generation(result: Result, model: Described, verb: str, request: Any) -> Result:
    """The result, with what made each of its pictures."""
    return replace(result, generation=describe_pictures(result.seeds[: len(result.images)], model, verb, request))


def describe_pictures(seeds: Sequence[int], model: Described, verb: str, request: Any) -> tuple[Json, ...]:
    """What the pictures of these seeds were made of and by: all options with their defaults, and each one's input.

    A file is known by its name and its SHA-256, a picture in memory by its size alone.
    """
    options, sources = _options(model, verb, request), _sources(request)
    per_source = max(len(seeds) // max(len(sources), 1), 1)
    base = {"enlarger": __version__, "task": verb, "model": model.name}
    made = list[Json]()
    for index, seed in enumerate(seeds):
        source = min(index // per_source, len(sources) - 1)
        own = {name: _as_json(value) for name, value in options.items()}
        own |= {name: _text_of(options[name], index, len(seeds)) for name in TEXTS if name in options}
        about = {"input": sources[source]} if sources else {}
        made.append(base | {"options": own, "seeds": [seed]} | about | {"torch": torch.__version__})
    return tuple(made)


def _options(model: Described, verb: str, request: Any) -> dict[str, Any]:
    kind, profile = model.kind, getattr(request, "profile", None)
    name = kind.tasks[verb].defaults if profile is None else f"{verb}/{profile}"
    options = without_idle_factor(with_defaults(request, name))
    if options.get("solver", "") is None and model.sampler is not None:
        options["solver"] = model.sampler.solver
    hidden = {*PICTURES, "seed", *kind.unused_options}
    options = {name: value for name, value in options.items() if value is not None and name not in hidden}
    return options | ({"count": 1} if "count" in options else {})


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in cast("Sequence[Any]", value)]
    return value if isinstance(value, str | int | float) else str(value)


def _text_of(value: str | Sequence[str], index: int, count: int) -> str:
    """The text for one of `count` pictures; a text for each input or prompt stands for that one's pictures in a row."""
    return value if isinstance(value, str) else value[index * len(value) // count]


def _sources(request: Any) -> list[Json]:
    """What is known of each picture that was given; none where there is only text."""
    names = {item.name for item in fields(request)}
    if "image" not in names:
        return []
    images = split_images(request.image)
    beside = {name: getattr(request, name) for name in PICTURES[1:] if name in names}
    return [_describe(image) | _describe_beside(beside, i, len(images)) for i, image in enumerate(images)]


def _describe_beside(beside: Mapping[str, Any], index: int, count: int) -> Json:
    found: Json = {}
    for name, value in beside.items():
        values = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else [value]
        if value is not None:
            found[name] = _describe(values[index if len(values) == count else 0])
    return found


def _describe_file(path: Path) -> Json:
    """Its name, and its SHA-256 unless it is gone by now: the picture that was made of it is there."""
    found: Json = {"file": path.name}
    with suppress(OSError):
        found |= {"sha256": file_sha256(path)} if path.is_file() else {}
    return found


def _describe(source: Any) -> Json:
    if isinstance(source, str | Path):
        return _describe_file(Path(source))
    if isinstance(source, bytes | bytearray):
        return {"sha256": hashlib.sha256(source).hexdigest()}
    if hasattr(source, "read"):
        return {"sha256": hashlib.sha256(file_bytes(source, "the file")).hexdigest()}
    if isinstance(source, Latents):
        return {"latents": list(source.values.shape)}
    if isinstance(source, Tensor):
        return {"width": source.shape[-1], "height": source.shape[-2]}
    size: Any = getattr(source, "size", None)
    if isinstance(size, tuple):
        return {"width": size[0], "height": size[1]}
    shape: Any = getattr(source, "shape", (0, 0))
    return {"width": int(shape[1]), "height": int(shape[0])}
