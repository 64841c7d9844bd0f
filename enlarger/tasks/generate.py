"""Prompts in, pictures out: from one network or several in turn, and enlarged if asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.errors import InputError
from enlarger.images import Picture, read_picture, to_pil
from enlarger.requests import HANDOFF, GenerateRequest, UpscaleRequest, filled, one_per, request_of, seeds_for
from enlarger.runtime.runtime import Offload
from enlarger.tasks.denoise import Expert, denoise
from enlarger.tasks.enlarge import Upscaler, bundled, load_upscaler
from enlarger.tasks.experts import Plan, turns_of, untils_of
from enlarger.tasks.latents import Latents, check_space
from enlarger.tasks.model import Model, load_model, words_of
from enlarger.tasks.parts import Progress, Result, Watch, quiet
from enlarger.tasks.reading import Checkpoint, Location
from enlarger.tasks.sources import joined_results
from enlarger.tasks.upscale_compact import CompactUpscale
from enlarger.tasks.upscale_latent import LatentUpscale

Locations = Location | Sequence[Location] | None


@dataclass(frozen=True, eq=False)
class Generator:
    """A loaded text-to-image checkpoint; calling it with a request makes the request's pictures.

    `refiners` take over one after another, each below a noise level of its own, on the same latents and down the same
    ladder. `upscaler` enlarges; None is the bundled one.
    """

    model: Model
    refiners: tuple[Model, ...] = ()
    upscaler: Upscaler | None = None

    def __post_init__(self) -> None:
        """Raises InputError for checkpoints whose latents do not fit together."""
        for refiner in self.refiners:
            check_space(self.model.space, refiner.networks.vae.config, f"the refiner {refiner.name}")
        if self.upscaler is not None and isinstance(self.upscaler.task, LatentUpscale):
            check_space(self.model.space, self.upscaler.task.vae.config, f"the upscaler {self.upscaler.name}")

    def __call__(self, request: GenerateRequest, watch: Watch = quiet) -> Result:
        """Each prompt gives `count` pictures of exactly the size asked for, times `upscale`, in order.

        One picture is computed at a time, so that it is the same to the last bit alone and among others.
        `Result.latents` are those before enlarging; they cover the size that the network needed, which can be larger.
        """
        prompts, negatives = _pairs(request)
        seeds = seeds_for(request.seed, len(prompts))
        alone = [
            replace(request, prompt=prompt, negative=negative, seed=seed, count=1)
            for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
        ]
        return joined_results([self.several([one], watch)[0] for one in alone])

    def explain(self, request: GenerateRequest) -> Plan:
        """Who would run which step, and how many calls that makes; nothing is computed."""
        options = self._options(request)
        method = self.model.method(options["steps"], options["solver"], [0])
        names = ["base", *("refiner" if i == 1 else f"refiner {i}" for i in range(1, len(self.refiners) + 1))]
        turns = turns_of(names, self._untils(request), method.solver, method.course.ladder)
        if request.upscale > 1:
            turns += self._upscaler.turns(self._enlarging(request, None, 0), self._size(options))
        return Plan(turns, len(_pairs(request)[0]))

    @property
    def _upscaler(self) -> Upscaler:
        return bundled(self.model.networks.runtime) if self.upscaler is None else self.upscaler

    def _options(self, request: GenerateRequest) -> dict[str, Any]:
        """The options with their defaults."""
        return filled(request, "generate/xl" if self.model.sized else "generate")

    def _size(self, options: dict[str, Any]) -> tuple[int, int]:
        """Height and width in pixels."""
        side = self.model.side * self.model.networks.vae.factor
        height, width = (side if options[name] is None else int(options[name]) for name in ("height", "width"))
        return height, width

    def _untils(self, request: GenerateRequest) -> tuple[float, ...]:
        """The noise level down to which each network works."""
        given = request.handoff
        levels = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
        if given is None and len(self.refiners) == 1:
            schedule = self.model.sampler.schedule
            levels = [float(schedule.sigmas[round(HANDOFF * schedule.count)])]
        if len(levels) != len(self.refiners):
            raise InputError(f"found {len(levels)} hand-offs for {len(self.refiners)} refiners; give one for each")
        return untils_of(levels)

    def several(self, requests: Sequence[GenerateRequest], watch: Watch = quiet) -> list[Result]:
        """One picture of each request, in one batch. They differ in prompts and seed alone, see `together`."""
        seeds = [seeds_for(request.seed, 1)[0] for request in requests]
        words = [words_of(self._options(request)) for request in requests]
        model, options = self.model, self._options(requests[0])
        size, method = self._size(options), model.method(options["steps"], options["solver"], seeds)
        experts = [
            Expert(one.networks.unet, one.on(method.course).precondition, one.tell_several(words, size), until)
            for one, until in zip((model, *self.refiners), self._untils(requests[0]), strict=True)
        ]
        networks = model.networks
        start = networks.draw(networks.shape(len(seeds), latent_size(model, *size)), method.noise)
        values = denoise(experts, start * method.course.start, method, networks.runtime, watch).cpu()
        made = [
            self._finish(Latents(values[i : i + 1], model.space), size, request, seeds[i], watch)
            for i, request in enumerate(requests)
        ]
        return [replace(one, notes=told.notes + one.notes) for one, told in zip(made, words, strict=True)]

    def _finish(
        self, latents: Latents, size: tuple[int, int], request: GenerateRequest, seed: int, watch: Watch
    ) -> Result:
        """One picture's latents made a picture, and judged."""
        image, notes = self._picture(latents, size, request, seed, watch)
        flagged, said = self.model.judge([] if self.model.checker is None else [read_picture(image).colour])
        return Result((image,), (seed,), self.model.name, notes + said, latents=latents, flagged=flagged)

    def _picture(
        self, latents: Latents, size: tuple[int, int], request: GenerateRequest, seed: int, watch: Watch
    ) -> tuple[Image.Image, tuple[str, ...]]:
        """The latents as a picture of `size` (height, width), times `upscale`."""
        upscaler = self._upscaler if request.upscale > 1 else None
        straight = upscaler is not None and isinstance(upscaler.task, LatentUpscale)
        pixels = None if straight else self.model.networks.decode(latents.values)[0, :, : size[0], : size[1]]
        if upscaler is None:
            assert pixels is not None
            return to_pil(Picture(pixels.cpu())), ()
        given = latents if pixels is None else pixels.clamp(-1, 1).cpu()

        def seen(progress: Progress) -> None:
            watch(replace(progress, stage=f"enlarge: {progress.stage}"))

        made = upscaler(self._enlarging(request, given, seed), seen)
        height, width = (round(side * request.upscale) for side in size)
        return made.image.crop((0, 0, width, height)), made.notes

    def _enlarging(self, request: GenerateRequest, image: Any, seed: int) -> UpscaleRequest:
        """What the upscaler is asked for: the same prompts where it can read them."""
        asked = UpscaleRequest(image, request.upscale, seed=seed, steps=request.upscale_steps)
        if not isinstance(self._upscaler.task, CompactUpscale):
            return replace(asked, prompt=request.prompt, negative=request.negative, long_prompt=request.long_prompt)
        if request.upscale_steps is not None:
            raise InputError(
                f"upscale_steps is {request.upscale_steps}, but the bundled upscaler takes no steps; "
                "give an upscaler's folder, or leave it"
            )
        return asked


def _pairs(request: GenerateRequest) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts, each `count` times in a row."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
    if not prompts:
        raise InputError("an empty list of prompts, expected at least one")
    negatives = one_per(request.negative, len(prompts), "negative")
    return [p for p in prompts for _ in range(request.count)], [n for n in negatives for _ in range(request.count)]


def latent_size(model: Model, height: int, width: int) -> tuple[int, int]:
    """The latents that cover a picture, in sizes that the network halves evenly."""
    multiple, factor = model.granularity, model.networks.vae.factor
    high, wide = (-(-side // multiple) * multiple // factor for side in (height, width))
    return high, wide


def generate(
    prompt: Any, *, model: Location, refiner: Locations = None, upscaler: Location | None = None,
    device: str = "auto", precision: str = "auto", offload: Offload = "none", watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Make pictures from text with the Stable Diffusion checkpoint in a folder; `options` are `GenerateRequest`'s.

    `refiner` is a folder, or several, of checkpoints that finish the picture below the noise levels `handoff`. With
    `upscale` 2, a folder of the x2 latent upscaler in `upscaler` enlarges the latents before they ever become a
    picture; other upscalers, None being the bundled one, enlarge the picture. Raises InputError for latents that do not
    fit together, and Unsupported for checkpoints made for something else.
    """
    request = request_of(GenerateRequest, prompt=prompt, **options)
    if upscaler is not None and request.upscale == 1:
        raise InputError(f"found the upscaler {upscaler}, but upscale is 1; give upscale, or leave both")
    return load_generator(model, device, precision, offload, refiner, upscaler)(request, watch)


def load_generator(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none",
    refiner: Locations = None, upscaler: Location | None = None,
) -> Generator:  # fmt: skip
    """Load a text-to-image checkpoint, and what works on its latents after it, once for many requests."""
    folders = [] if refiner is None else [refiner] if isinstance(refiner, str | Path | Checkpoint) else list(refiner)
    place = (device, precision, offload)
    return Generator(
        load_model(model, *place).for_task("generate"),
        tuple(load_model(folder, *place).for_task("generate", "refine") for folder in folders),
        None if upscaler is None else load_upscaler(upscaler, *place),
    )
