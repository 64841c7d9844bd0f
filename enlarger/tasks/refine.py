"""Pictures in, the same pictures made anew from noisy copies of them out (SDEdit, Meng et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.errors import InputError
from enlarger.image.picture import to_pil
from enlarger.requests import RefineRequest, make_request, with_defaults
from enlarger.runtime.runtime import Offload
from enlarger.tasks.image_to_image import ImageToImageJob, image_to_image
from enlarger.tasks.inputs import PreparedImage, prepare_picture, run_each_image
from enlarger.tasks.latents import Latents
from enlarger.tasks.loading import Location
from enlarger.tasks.result import ProgressCallback, Result, no_progress, report_steps
from enlarger.tasks.sampling import SamplingPlan
from enlarger.tasks.stable_diffusion import StableDiffusion, load_stable_diffusion, prompt_spec_from_options


@dataclass(frozen=True, eq=False)
class Refiner:
    """A loaded checkpoint, of text-to-image or SDXL's refiner; calling it with a request remakes its pictures."""

    model: StableDiffusion

    def __call__(self, request: RefineRequest, watch: ProgressCallback = no_progress) -> Result:
        """Each input gives `count` pictures of its own size, in order. One picture is computed at a time."""

        def run_one(request: RefineRequest, seeds: tuple[int, ...]) -> Result:
            name = "refine/xl" if self.model.has_micro_conditioning else "refine"
            return run_image_to_image(
                self.model, with_defaults(request, name), self._prepare_input(request.image), seeds, watch
            )

        return run_each_image(request, run_one)

    def _prepare_input(self, source: Any) -> PreparedImage:
        if not isinstance(source, Latents):
            return prepare_picture(source, self.model.size_multiple)
        vae = self.model.latent_diffusion.vae
        values = source.values_for(vae, f"refining with {self.model.name}")
        return PreparedImage(values, (values.shape[2] * vae.downsample_factor, values.shape[3] * vae.downsample_factor))


def run_image_to_image(
    model: StableDiffusion,
    options: Mapping[str, Any],
    prepared: PreparedImage,
    seeds: Sequence[int],
    watch: ProgressCallback,
    extra_conditioning: Mapping[str, Tensor] | None = None,
) -> Result:
    """One picture from each seed, after `options` of a request; `beside` is what the network is told besides."""
    if options["strength"] == 0:
        return _input_as_result(model, prepared, seeds)
    prompt_spec = prompt_spec_from_options(options)
    full_plan = model.sampling_plan(options["steps"], options["solver"], seeds)
    sigma_schedule = truncate_by_strength(full_plan.sigma_schedule, options["strength"])
    conditioning = model.condition_one(prompt_spec, prepared.size).with_fields(**(extra_conditioning or {}))
    latent_diffusion = model.bind_schedule(sigma_schedule)
    latents = [
        image_to_image(
            latent_diffusion,
            ImageToImageJob(conditioning, prepared.image, SamplingPlan(sigma_schedule, full_plan.solver, noise)),
            report_steps(watch, sigma_schedule.steps),
        )
        for noise in (from_seeds([seed]) for seed in seeds)
    ]
    decoded = [latent_diffusion.decode(one) for one in latents]
    flagged, safety_notes = model.check_safety([one[0] for one in decoded])
    return Result(
        tuple(prepared.to_image(one) for one in decoded),
        tuple(seeds),
        model.name,
        prepared.notes + prompt_spec.notes + safety_notes,
        latents=Latents(torch.cat(latents).cpu(), model.latent_space),
        flagged=flagged,
    )


def truncate_by_strength(sigma_schedule: SigmaSchedule, strength: float) -> SigmaSchedule:
    """The last min(int(steps * strength), steps) steps, as diffusers counts; InputError where none is left."""
    steps = min(int(sigma_schedule.steps * strength), sigma_schedule.steps)
    if steps < 1:
        raise InputError(
            f"strength {strength:g} of {sigma_schedule.steps} steps is less than one step; give more of either, or "
            "strength 0, "
            "which keeps the picture"
        )
    return sigma_schedule.subrange(sigma_schedule.steps - steps)


def _input_as_result(model: StableDiffusion, prepared: PreparedImage, seeds: Sequence[int]) -> Result:
    note = "strength is 0: the picture is the input, no network has changed it"
    latents = None
    if prepared.picture is None:
        image = prepared.to_image(model.latent_diffusion.decode(prepared.image))
        latents = Latents(prepared.image.float().repeat(len(seeds), 1, 1, 1), model.latent_space)
    else:
        image = to_pil(prepared.picture)
    return Result(
        tuple(image.copy() for _ in seeds), tuple(seeds), model.name, (*prepared.notes, note), latents=latents
    )


def refine(
    image: Any, prompt: Any = "", *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", watch: ProgressCallback = no_progress, **options: Any,
) -> Result:  # fmt: skip
    """Remake one or several pictures: paths, PIL images, arrays, tensors in -1..1, or `Latents` of the model's space.

    `model` is a folder of Stable Diffusion 1 or 2 or SDXL, base or refiner; `options` are `RefineRequest`'s. Raises
    InputError for pictures and options that cannot be used, Unsupported for checkpoints made for something else.
    """
    request = make_request(RefineRequest, image=image, prompt=prompt, **options)
    return load_refiner(model, device, precision, offload)(request, watch)


def load_refiner(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Refiner:  # fmt: skip
    """Load a checkpoint once for many requests."""
    return Refiner(load_stable_diffusion(model, device, precision, offload).require_task("generate", "refine"))
