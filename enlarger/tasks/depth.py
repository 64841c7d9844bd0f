"""Pictures in, other pictures of the same depth out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import InputError
from enlarger.requests import DepthRequest, as_request, make_request, one_per_image, with_defaults
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload
from enlarger.tasks.auxiliary.depth_estimator import DepthEstimator, normalise_depth, read_depth_map
from enlarger.tasks.image_to_image import image_to_image, prepare_run, truncate_by_strength
from enlarger.tasks.inputs import (
    ImageSource,
    Latents,
    PreparedImage,
    image_size,
    prepare_picture,
    split_images,
    split_request,
)
from enlarger.tasks.latent_diffusion.latent_diffusion import pad_to_multiple
from enlarger.tasks.latent_diffusion.sampling import trace_network_calls
from enlarger.tasks.loading.adapters import adapt
from enlarger.tasks.loading.load import Location
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, load_stable_diffusion
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import ProgressCallback, Result, join_results, no_progress, report_steps
from enlarger.verb_options import DepthOptions, DepthToImageOptions


@dataclass(frozen=True, eq=False)
class DepthToImage:
    """A loaded depth checkpoint; calling it with a request remakes the request's pictures.

    Without an `estimator` every request has to bring its depth maps.
    """

    model: StableDiffusion
    estimator: DepthEstimator | None = None

    def __call__(
        self,
        request: DepthRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[DepthToImageOptions],
    ) -> Result:
        """Each input gives `count` pictures of its own size, in order. One picture is computed at a time."""
        request = as_request(DepthRequest, request, options)
        model, adapted = adapt(self.model, request)
        if model is not self.model:
            return with_generation(replace(self, model=model)(adapted, watch), self.model, "depth", request)
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        count = len(split_images(request.image))
        depth_maps = one_per_image(None if request.depth is None else _split_depth_maps(request.depth), count, "depth")
        sharing = self.model.sharing_prompts()
        results: list[Result] = []
        for one, seeds in split_request(request, depth=depth_maps):
            if isinstance(one.image, Latents):
                raise InputError(
                    "found latents, expected a picture: its depth is seen in its pixels; decode them first"
                )
            prepared = prepare_picture(one.image, self.model.size_multiple)
            depth = self._depth_channel(prepared, one.depth)
            bounded = sharing.within(self._room(one, prepared.size).work)
            run = prepare_run(bounded, with_defaults(one, "depth"), prepared, seeds, depth)
            latents: list[Tensor] = []
            for job in run.jobs:
                on_step = report_steps(watch, job.plan.sigma_schedule.steps)
                latents.append(image_to_image(run.latent_diffusion, job, on_step))
            results.append(run.finish(latents))
        return with_generation(join_results(results), self.model, "depth", request)

    def plan(self, request: DepthRequest, timer: Timer | None = None) -> Plan:
        """What a request will take, stage by stage, before it runs; with a `timer`, its time too. What estimates depth
        is not in it.

        Raises InputError for a `memory` that even the smallest tiles do not keep.
        """
        lists = [self._stages(one, len(seeds), timer) for one, seeds in split_request(request)]
        networks = self.model.latent_diffusion
        return make_plan("depth", self.model, networks.runtime, networks.dtype, lists)

    def _stages(self, request: DepthRequest, count: int, timer: Timer | None) -> StageList:
        """What is done for one picture."""
        size, options, model = image_size(request.image), with_defaults(request, "depth"), self.model
        rows, room = 1 if options["guidance"] == 1 else 2, self._room(request, size)
        stages = StageList(room, size, size, count, timer)
        stages.read()
        if request.strength > 0:
            padded, sampler = padded_size(size, model.size_multiple), model.sampler_for(options)
            sigmas = truncate_by_strength(sampler.sigma_schedule(options["steps"]), request.strength).sigmas
            calls = trace_network_calls(["depth"], [0.0], sampler.make_solver(), sigmas)
            stages.text(model.text_encoders, rows)
            stages.encode(model.vae, padded, count)
            stages.denoise(model.network_shape, model.latent_size(padded), None, calls, rows)
            stages.decode(model.vae, model.latent_size(padded), count)
        stages.finish(size, is_consistent=False)
        return stages

    def _room(self, request: DepthRequest, size: tuple[int, int]) -> MemoryRoom:
        """What a picture of `size` leaves of the memory that a request allows."""
        networks = (*self.model.networks, *(() if self.estimator is None else (self.estimator.network,)))
        return MemoryRoom.of(request.memory, self.model.latent_diffusion.runtime, networks, size)

    def _depth_channel(self, prepared: PreparedImage, depth_map: Any) -> Tensor:
        """The depth of the padded picture as the network's fifth channel, (1, 1, h, w) in -1..1."""
        if depth_map is None and self.estimator is None:
            raise InputError("found no depth map; give one per picture, or load the model with its depth estimator")
        height, width = prepared.size
        visible = prepared.image[..., :height, :width]
        depth_values = (
            read_depth_map(depth_map) if depth_map is not None else cast("DepthEstimator", self.estimator)(visible)
        )
        if len(depth_values) != 1:
            raise InputError(f"found {len(depth_values)} depth maps for one picture, expected one; give a list of them")
        factor = self.model.latent_diffusion.vae.downsample_factor
        if visible.shape != prepared.image.shape:
            depth_values = F.interpolate(depth_values, (height, width), mode="bicubic", align_corners=False)
            depth_values = pad_to_multiple(depth_values, self.model.size_multiple)
        return normalise_depth(depth_values, (prepared.image.shape[2] // factor, prepared.image.shape[3] // factor))


def _split_depth_maps(depth: Any) -> list[Any]:
    """One depth map, a list of them, or a batch (B, H, W) or (B, 1, H, W), as a list."""
    if isinstance(depth, list | tuple):
        return list(cast("Sequence[Any]", depth))
    batch = hasattr(depth, "ndim") and depth.ndim > 2
    return list(depth) if batch else [depth]


def depth(
    image: Any, prompt: str | Sequence[str] = "", *, model: Location, depth: Any = None, device: str = "auto",
    precision: str = "auto", offload: Offload = "none", engine: EngineName = "torch",
    watch: ProgressCallback = no_progress,
    progress: bool | None = None,
    **options: Unpack[DepthOptions],
) -> Result:  # fmt: skip
    """Remake one or several pictures with their depth kept: paths, PIL images, arrays or tensors in -1..1.

    `model` is a folder of Stable Diffusion 2's depth model. `depth` is a map per picture (a path, PIL image, array or
    tensor of any size and scale, near is large); None estimates it with the folder's own network, which needs
    enlarger[depth]. `options` are `DepthRequest`'s. Raises InputError for pictures, maps and options that cannot be
    used.
    """
    request = make_request(DepthRequest, image=image, prompt=prompt, depth=depth, **options)
    with progress_bar(watch, progress) as watching:
        return load_depth(model, device, precision, offload, estimator=depth is None, engine=engine)(request, watching)


def load_depth(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    estimator: bool = True,
    engine: EngineName = "torch",
) -> DepthToImage:
    """Load a depth checkpoint once for many requests; `estimator` loads the network that estimates depth too."""
    checkpoint_model = load_stable_diffusion(model, device, precision, offload, engine).require_task("depth")
    return DepthToImage(checkpoint_model, load_depth_estimator(checkpoint_model) if estimator else None)


def with_estimator(model: StableDiffusion) -> DepthToImage:
    """The task of a checkpoint that was read, with the network that estimates depth where there is one."""
    return DepthToImage(model, load_depth_estimator(model))


def load_depth_estimator(model: StableDiffusion) -> DepthEstimator | None:
    """The network beside the checkpoint that estimates depth; None where there is none, as with single files."""
    if not (model.path / "depth_estimator").is_dir():
        return None
    return DepthEstimator.from_folder(model.path, model.latent_diffusion.dtype, model.latent_diffusion.runtime)
