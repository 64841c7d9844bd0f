"""Pictures in, the same pictures made anew from noisy copies of them out (SDEdit, Meng et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sampler import Course
from enlarger.errors import InputError
from enlarger.images import to_pil
from enlarger.requests import RefineRequest, filled, request_of
from enlarger.runtime.runtime import Offload
from enlarger.tasks.denoise import Method
from enlarger.tasks.image_to_image import ImageToImageJob, image_to_image
from enlarger.tasks.latents import Latents
from enlarger.tasks.model import Model, load_model, words_of
from enlarger.tasks.parts import Result, Watch, quiet
from enlarger.tasks.reading import Location
from enlarger.tasks.sources import Opened, each_source, open_picture


@dataclass(frozen=True, eq=False)
class Refiner:
    """A loaded checkpoint, of text-to-image or SDXL's refiner; calling it with a request remakes its pictures."""

    model: Model

    def __call__(self, request: RefineRequest, watch: Watch = quiet) -> Result:
        """Each input gives `count` pictures of its own size, in order. One picture is computed at a time."""

        def one(request: RefineRequest, seeds: tuple[int, ...]) -> Result:
            name = "refine/xl" if self.model.sized else "refine"
            return remake(self.model, filled(request, name), self._open(request.image), seeds, watch)

        return each_source(request, one)

    def _open(self, source: Any) -> Opened:
        if not isinstance(source, Latents):
            return open_picture(source, self.model.granularity)
        vae = self.model.networks.vae
        values = source.values_for(vae, f"refining with {self.model.name}")
        return Opened(values, (values.shape[2] * vae.factor, values.shape[3] * vae.factor))


def remake(
    model: Model, options: Mapping[str, Any], opened: Opened, seeds: Sequence[int], watch: Watch,
    beside: Mapping[str, Tensor] | None = None,
) -> Result:  # fmt: skip
    """One picture from each seed, after `options` of a request; `beside` is what the network is told besides."""
    if options["strength"] == 0:
        return _unchanged(model, opened, seeds)
    words = words_of(options)
    whole = model.method(options["steps"], options["solver"], seeds)
    course = last_share(whole.course, options["strength"])
    told = model.tell_one(words, opened.size).beside(**(beside or {}))
    networks = model.on(course)
    latents = [
        image_to_image(networks, ImageToImageJob(told, opened.image, Method(course, whole.solver, noise)), watch)
        for noise in (from_seeds([seed]) for seed in seeds)
    ]
    made = [networks.decode(one) for one in latents]
    flagged, said = model.judge([one[0] for one in made])
    return Result(
        tuple(opened.close(one) for one in made),
        tuple(seeds),
        model.name,
        opened.notes + words.notes + said,
        latents=Latents(torch.cat(latents).cpu(), model.space),
        flagged=flagged,
    )


def last_share(course: Course, strength: float) -> Course:
    """The last min(int(steps * strength), steps) steps, as diffusers counts; InputError where none is left."""
    steps = min(int(course.steps * strength), course.steps)
    if steps < 1:
        raise InputError(
            f"strength {strength:g} of {course.steps} steps is less than one step; give more of either, or strength 0, "
            "which keeps the picture"
        )
    return course.part(course.steps - steps)


def _unchanged(model: Model, opened: Opened, seeds: Sequence[int]) -> Result:
    note = "strength is 0: the picture is the input, no network has changed it"
    latents = None
    if opened.picture is None:
        image = opened.close(model.networks.decode(opened.image))
        latents = Latents(opened.image.float().repeat(len(seeds), 1, 1, 1), model.space)
    else:
        image = to_pil(opened.picture)
    return Result(tuple(image.copy() for _ in seeds), tuple(seeds), model.name, (*opened.notes, note), latents=latents)


def refine(
    image: Any, prompt: Any = "", *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Remake one or several pictures: paths, PIL images, arrays, tensors in -1..1, or `Latents` of the model's space.

    `model` is a folder of Stable Diffusion 1 or 2 or SDXL, base or refiner; `options` are `RefineRequest`'s. Raises
    InputError for pictures and options that cannot be used, Unsupported for checkpoints made for something else.
    """
    request = request_of(RefineRequest, image=image, prompt=prompt, **options)
    return load_refiner(model, device, precision, offload)(request, watch)


def load_refiner(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Refiner:  # fmt: skip
    """Load a checkpoint once for many requests."""
    return Refiner(load_model(model, device, precision, offload).for_task("generate", "refine"))
