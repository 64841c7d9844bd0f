"""Pictures and masks in, repainted pictures out: what inpainting needs around its network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.composite import OriginalImage, composite, expand_canvas, read_original
from enlarger.image.fill import fill_masked
from enlarger.image.mask import Box, Mask, bounding_box, expand_box, feather_mask, read_mask
from enlarger.image.picture import PIXEL_LIMIT
from enlarger.image.resize import resize
from enlarger.requests import DEFAULTS, InpaintRequest, make_request, one_per_image, seeds_for, with_defaults
from enlarger.runtime.runtime import Offload
from enlarger.tasks.inpaint import InpaintJob
from enlarger.tasks.inpaint import inpaint as inpaint_latents
from enlarger.tasks.inputs import join_flags, split_images
from enlarger.tasks.loading import Location
from enlarger.tasks.refine import truncate_by_strength
from enlarger.tasks.result import ProgressCallback, no_progress, pad_to_multiple, report_steps
from enlarger.tasks.sampling import SamplingPlan
from enlarger.tasks.stable_diffusion import StableDiffusion, load_stable_diffusion, prompt_spec_from_options

LOW_COVERAGE, HIGH_COVERAGE = 0.1, 99.9  # percent of coverage beyond which the mask's sense is doubtful
LARGE_PIXEL_RATIO = 4  # times the pixels that the model was trained on


@dataclass(frozen=True)
class ChangedPixels:
    """How many pixels of a result differ from the input, and the box (left, top, right, bottom) that holds them."""

    pixels: int
    box: Box | None


@dataclass(frozen=True)
class InpaintResult:
    """Results of their inputs' kind, mode, type and size, and what is to be known of each, in the same order.

    A path gives a PIL image. `masks` are those that were used, white is repainted; `coverage` is their mean in percent.
    """

    images: tuple[Any, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...]
    changed: tuple[ChangedPixels, ...]
    coverage: tuple[float, ...]
    masks: tuple[Image.Image, ...]
    flagged: tuple[bool, ...] | None = None  # by the checkpoint's safety checker; None: it has none, see `notes`

    @property
    def image(self) -> Any:
        """The first result."""
        return self.images[0]

    @property
    def mask(self) -> Image.Image:
        """The first mask."""
        return self.masks[0]


@dataclass(frozen=True, eq=False)
class InpaintCanvas:
    """One picture laid out for the work, on a canvas of (H, W) that holds what `expand` adds."""

    original: OriginalImage
    mask: Mask
    expanded_area: Tensor  # (1, H, W), 1 where the canvas is larger than the input
    weights: Tensor  # (1, H, W) of the new colours in the result
    box: Box  # what is worked on

    @property
    def box_slices(self) -> tuple[slice, ...]:
        """The box as an index into (C, H, W)."""
        left, top, right, bottom = self.box
        return (slice(None), slice(top, bottom), slice(left, right))

    def finish(self, colour: Tensor) -> tuple[Any, ChangedPixels]:
        """The result with `colour` (3, H, W) in it, and what changed by that."""
        values = composite(self.original, colour, self.weights)
        difference = (values != self.original.values).any(0, keepdim=True).float().maximum(self.expanded_area)
        return self.original.write(values), ChangedPixels(int(difference.sum()), bounding_box(difference))


@dataclass(frozen=True, eq=False)
class Inpainter:
    """A loaded checkpoint; calling it with a request repaints the request's pictures one after another."""

    model: StableDiffusion

    def __call__(self, request: InpaintRequest, watch: ProgressCallback = no_progress) -> InpaintResult:
        """Each input gives `count` results, in order. One is computed at a time, so that it depends on no other."""
        sources = split_images(request.image)
        per_image = {"mask": [None] if request.mask is None else split_images(request.mask)}
        per_image |= {"prompt": request.prompt, "negative": request.negative}
        values_by_name = {name: one_per_image(value, len(sources), name) for name, value in per_image.items()}
        count, seeds = request.count, seeds_for(request.seed, len(sources) * request.count)
        results = [
            self._inpaint(
                replace(request, image=source, **{name: values[i] for name, values in values_by_name.items()}),
                seeds[i * count : (i + 1) * count],
                watch,
            )
            for i, source in enumerate(sources)
        ]
        return InpaintResult(
            tuple(image for one in results for image in one.images),
            tuple(seeds),
            self.model.name,
            tuple(dict.fromkeys(note for one in results for note in one.notes)),
            tuple(changed for one in results for changed in one.changed),
            tuple(coverage for one in results for coverage in one.coverage),
            tuple(mask for one in results for mask in one.masks),
            join_flags([one.flagged for one in results]),
        )

    def _inpaint(self, request: InpaintRequest, seeds: Sequence[int], watch: ProgressCallback) -> InpaintResult:
        """All results of one input."""
        options = with_defaults(request, "inpaint") | {"fill": request.fill}  # None differs for mask and border
        inpaint_canvas = prepare_canvas(request)
        flagged, safety_notes = None, ()
        if bool((inpaint_canvas.weights > 0).any()):
            painted = [self._paint(inpaint_canvas, options, seed, watch) for seed in seeds]
            flagged, safety_notes = self.model.check_safety(painted)
            finished = [inpaint_canvas.finish(colour) for colour in painted]
        else:
            finished = [(inpaint_canvas.original.upright, ChangedPixels(0, None)) for _ in seeds]
        notes = (
            *inpaint_canvas.original.notes,
            *inpaint_canvas.mask.notes,
            *prompt_spec_from_options(options).notes,
            *self._notes(request, inpaint_canvas),
            *safety_notes,
        )
        images, changed = (tuple(column) for column in zip(*finished, strict=True))
        count = len(seeds)
        masks, coverage = (inpaint_canvas.mask.image(),) * count, (inpaint_canvas.mask.coverage,) * count
        return InpaintResult(images, tuple(seeds), self.model.name, notes, changed, coverage, masks, flagged)

    def _paint(
        self, inpaint_canvas: InpaintCanvas, options: Mapping[str, Any], seed: int, watch: ProgressCallback
    ) -> Tensor:
        """The canvas (3, H, W) with the box remade."""
        canvas = _initial_fill(inpaint_canvas, options["fill"], seed)
        if options["strength"] == 0:
            return canvas
        crop, mask = canvas[inpaint_canvas.box_slices], inpaint_canvas.mask.weights[inpaint_canvas.box_slices]
        crop_size = (crop.shape[-2], crop.shape[-1])
        if options["crop"] is not None:
            size = self._trained_size(crop_size)
            crop, mask = resize(crop, size, "lanczos").clamp(-1, 1), resize(mask, size).clamp(0, 1)
        repainted = self._run(crop[None], mask[None], options, seed, watch)[0]
        result = canvas.clone()
        result[inpaint_canvas.box_slices] = (
            resize(repainted, crop_size, "lanczos") if repainted.shape[-2:] != crop_size else repainted
        )
        return result

    def _run(
        self, image: Tensor, mask: Tensor, options: Mapping[str, Any], seed: int, watch: ProgressCallback
    ) -> Tensor:
        """A picture (1, 3, h, w) of any size, repainted by the network."""
        height, width = image.shape[-2:]
        plan, strength = self.model.sampling_plan(options["steps"], options["solver"], [seed]), options["strength"]
        sigma_schedule = truncate_by_strength(plan.sigma_schedule, strength)
        conditioning = self.model.condition_one(prompt_spec_from_options(options), (height, width))
        size_multiple = self.model.size_multiple
        image, mask = (
            pad_to_multiple(x, size_multiple, 2 * size_multiple) for x in (image, mask)
        )  # a lone latent has no statistics
        job = InpaintJob(
            conditioning,
            image,
            mask,
            SamplingPlan(sigma_schedule, plan.solver, plan.noise),
            from_pure_noise=strength == 1,
            soft_mask=True,
        )
        latent_diffusion = self.model.bind_schedule(sigma_schedule)
        repainted = latent_diffusion.decode(
            inpaint_latents(latent_diffusion, job, report_steps(watch, sigma_schedule.steps))
        )
        return repainted[..., :height, :width].cpu()

    def _trained_size(self, crop_size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) of the same shape with as many pixels as the model was trained on."""
        side = self.model.sample_size * self.model.latent_diffusion.vae.downsample_factor
        scale = side / (crop_size[0] * crop_size[1]) ** 0.5
        return max(round(crop_size[0] * scale), 1), max(round(crop_size[1] * scale), 1)

    def _notes(self, request: InpaintRequest, inpaint_canvas: InpaintCanvas) -> list[str]:
        coverage, notes = inpaint_canvas.mask.coverage, list[str]()
        if coverage == 0:
            return ["the mask is empty: the picture is returned as it was"]
        if coverage < LOW_COVERAGE or coverage > HIGH_COVERAGE:
            notes.append(f"the mask covers {coverage:.4g} % of the picture; if the rest was meant, invert it")
        if request.strength == 0:
            kept = ", except for what was added, which has its fill" if bool(inpaint_canvas.expanded_area.any()) else ""
            return [*notes, f"strength is 0: no network has changed the picture{kept}"]
        left, top, right, bottom = inpaint_canvas.box
        side = self.model.sample_size * self.model.latent_diffusion.vae.downsample_factor
        if request.crop is None and (right - left) * (bottom - top) > LARGE_PIXEL_RATIO * side**2:
            notes.append(f"the picture is much larger than the {side} x {side} pixels of the model; crop helps")
        if request.fill is not None and request.strength == 1 and self.model.task == "inpaint":
            notes.append("fill has no effect: at strength 1 this model sees nothing of what lies under the mask")
        if request.preserve == "exact" and float(inpaint_canvas.weights.max()) < float(
            inpaint_canvas.mask.weights.max()
        ):
            notes.append(f"feather {request.feather} reaches over the whole mask: old colours remain everywhere in it")
        alpha = inpaint_canvas.original.picture.alpha
        if alpha is not None and bool(((alpha == 0) & (inpaint_canvas.weights > 0)).any()):
            notes.append("alpha stays as it is: what is repainted where the picture is transparent is not seen")
        return notes


def prepare_canvas(request: InpaintRequest) -> InpaintCanvas:
    """Read the picture and the mask of a request for one, and settle where the work and the result go."""
    original, (left, top, right, bottom) = read_original(request.image), request.sides
    if request.mask is None and not any(request.sides):
        raise InputError("found no mask and nothing to add, so nothing to repaint; give a mask, or expand")
    height, width = original.size
    canvas_width, canvas_height = left + width + right, top + height + bottom
    if canvas_width * canvas_height > PIXEL_LIMIT:
        raise InputError(
            f"the expanded picture would be {canvas_width} x {canvas_height}, at most {PIXEL_LIMIT:,} pixels; add less"
        )
    padding, zeros = (left, right, top, bottom), torch.zeros(1, height, width)
    input_mask = Mask(zeros) if request.mask is None else read_mask(request.mask, original.size, request.mask_mode)
    mask = replace(input_mask, weights=F.pad(input_mask.weights, padding, value=1.0))
    expanded_area = F.pad(zeros, padding, value=1.0)
    mask_box, full_box = bounding_box(mask.weights), (0, 0, canvas_width, canvas_height)
    box = (
        full_box
        if request.crop is None or mask_box is None
        else expand_box(mask_box, request.crop, (canvas_height, canvas_width))
    )
    expanded_original = expand_canvas(original, request.sides)
    return InpaintCanvas(
        expanded_original, mask, expanded_area, _composite_weights(request, mask.weights, expanded_area, box), box
    )


def _composite_weights(request: InpaintRequest, mask: Tensor, expanded_area: Tensor, box: Box) -> Tensor:
    """The share of the new colours in the result."""
    if request.strength == 0 or not bool((mask > 0).any()):
        return expanded_area
    if request.preserve == "exact":
        return feather_mask(mask, request.feather)
    left, top, right, bottom = box
    weights = torch.zeros_like(mask)
    weights[:, top:bottom, left:right] = 1
    return weights


def _initial_fill(inpaint_canvas: InpaintCanvas, fill: str | None, seed: int) -> Tensor:
    """The canvas with what lies under the mask at first; None stands for the defaults of mask and border."""
    colour, generator = inpaint_canvas.original.picture.colour, torch.Generator().manual_seed(seed)
    if fill is not None:
        return fill_masked(colour, inpaint_canvas.mask.weights, fill, generator)
    inside_mask = inpaint_canvas.mask.weights * (1 - inpaint_canvas.expanded_area)
    colour = fill_masked(colour, inside_mask, DEFAULTS["inpaint"]["fill"], generator)
    return fill_masked(colour, inpaint_canvas.expanded_area, DEFAULTS["inpaint/expand"]["fill"], generator)


def inpaint(
    image: Any, mask: Any = None, *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", watch: ProgressCallback = no_progress, **options: Any,
) -> InpaintResult:  # fmt: skip
    """Repaint what a mask covers of one or several pictures: paths, PIL images, arrays, or tensors in -1..1.

    `model` is a folder of an inpainting checkpoint or of any other of Stable Diffusion 1 or 2 or SDXL; `options` are
    `InpaintRequest`'s. Not one byte changes where the mask is 0. Raises InputError for pictures, masks and options that
    cannot be used, Unsupported for checkpoints made for something else.
    """
    request = make_request(InpaintRequest, image=image, mask=mask, **options)
    return load_inpainter(model, device, precision, offload)(request, watch)


def load_inpainter(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Inpainter:
    """Load a checkpoint once for many requests."""
    return Inpainter(load_stable_diffusion(model, device, precision, offload).require_task("inpaint", "generate"))
