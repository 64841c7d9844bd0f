"""Pictures and masks in, repainted pictures out: what inpainting needs around its network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.images import PIXEL_LIMIT
from enlarger.requests import DEFAULTS, InpaintRequest, filled, one_per, request_of, seeds_for
from enlarger.resize import resize
from enlarger.runtime.runtime import Offload
from enlarger.tasks.denoise import Method
from enlarger.tasks.fill import fill_under
from enlarger.tasks.inpaint import InpaintJob
from enlarger.tasks.inpaint import inpaint as inpaint_latents
from enlarger.tasks.mask import Box, Mask, box_of, feathered, grown, read_mask
from enlarger.tasks.model import Model, load_model, words_of
from enlarger.tasks.parts import Watch, pad_to, quiet
from enlarger.tasks.paste import Original, expanded, pasted, read_original
from enlarger.tasks.reading import Location
from enlarger.tasks.refine import last_share
from enlarger.tasks.sources import joined_flags, sources_of

LITTLE, MUCH = 0.1, 99.9  # percent of coverage beyond which the mask's sense is doubtful
LARGE = 4  # times the pixels that the model was trained on


@dataclass(frozen=True)
class Changed:
    """How many pixels of a result differ from the input, and the box (left, top, right, bottom) that holds them."""

    pixels: int
    box: Box | None


@dataclass(frozen=True)
class Repair:
    """Results of their inputs' kind, mode, type and size, and what is to be known of each, in the same order.

    A path gives a PIL image. `masks` are those that were used, white is repainted; `coverage` is their mean in percent.
    """

    images: tuple[Any, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...]
    changed: tuple[Changed, ...]
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
class Sheet:
    """One picture laid out for the work, on a canvas of (H, W) that holds what `expand` adds."""

    original: Original
    mask: Mask
    added: Tensor  # (1, H, W), 1 where the canvas is larger than the input
    weights: Tensor  # (1, H, W) of the new colours in the result
    box: Box  # what is worked on

    @property
    def span(self) -> tuple[slice, ...]:
        """The box as an index into (C, H, W)."""
        left, top, right, bottom = self.box
        return (slice(None), slice(top, bottom), slice(left, right))

    def finish(self, colour: Tensor) -> tuple[Any, Changed]:
        """The result with `colour` (3, H, W) in it, and what changed by that."""
        values = pasted(self.original, colour, self.weights)
        differs = (values != self.original.values).any(0, keepdim=True).float().maximum(self.added)
        return self.original.write(values), Changed(int(differs.sum()), box_of(differs))


@dataclass(frozen=True, eq=False)
class Repairer:
    """A loaded checkpoint; calling it with a request repaints the request's pictures one after another."""

    model: Model

    def __call__(self, request: InpaintRequest, watch: Watch = quiet) -> Repair:
        """Each input gives `count` results, in order. One is computed at a time, so that it depends on no other."""
        sources = sources_of(request.image)
        given = {"mask": [None] if request.mask is None else sources_of(request.mask)}
        given |= {"prompt": request.prompt, "negative": request.negative}
        each = {name: one_per(value, len(sources), name) for name, value in given.items()}
        count, seeds = request.count, seeds_for(request.seed, len(sources) * request.count)
        done = [
            self._repair(
                replace(request, image=source, **{name: values[i] for name, values in each.items()}),
                seeds[i * count : (i + 1) * count],
                watch,
            )
            for i, source in enumerate(sources)
        ]
        return Repair(
            tuple(image for one in done for image in one.images),
            tuple(seeds),
            self.model.name,
            tuple(dict.fromkeys(note for one in done for note in one.notes)),
            tuple(changed for one in done for changed in one.changed),
            tuple(coverage for one in done for coverage in one.coverage),
            tuple(mask for one in done for mask in one.masks),
            joined_flags([one.flagged for one in done]),
        )

    def _repair(self, request: InpaintRequest, seeds: Sequence[int], watch: Watch) -> Repair:
        """All results of one input."""
        options = filled(request, "inpaint") | {"fill": request.fill}  # None differs for mask and border
        sheet = lay_out(request)
        flagged, said = None, ()
        if bool((sheet.weights > 0).any()):
            painted = [self._paint(sheet, options, seed, watch) for seed in seeds]
            flagged, said = self.model.judge(painted)
            made = [sheet.finish(colour) for colour in painted]
        else:
            made = [(sheet.original.same, Changed(0, None)) for _ in seeds]
        notes = (
            *sheet.original.notes,
            *sheet.mask.notes,
            *words_of(options).notes,
            *self._notes(request, sheet),
            *said,
        )
        images, changed = (tuple(column) for column in zip(*made, strict=True))
        many = len(seeds)
        masks, coverage = (sheet.mask.image(),) * many, (sheet.mask.coverage,) * many
        return Repair(images, tuple(seeds), self.model.name, notes, changed, coverage, masks, flagged)

    def _paint(self, sheet: Sheet, options: Mapping[str, Any], seed: int, watch: Watch) -> Tensor:
        """The canvas (3, H, W) with the box remade."""
        canvas = _started(sheet, options["fill"], seed)
        if options["strength"] == 0:
            return canvas
        part, mask = canvas[sheet.span], sheet.mask.weights[sheet.span]
        own = (part.shape[-2], part.shape[-1])
        if options["crop"] is not None:
            size = self._best_size(own)
            part, mask = resize(part, size, "lanczos").clamp(-1, 1), resize(mask, size).clamp(0, 1)
        made = self._run(part[None], mask[None], options, seed, watch)[0]
        result = canvas.clone()
        result[sheet.span] = resize(made, own, "lanczos") if made.shape[-2:] != own else made
        return result

    def _run(self, image: Tensor, mask: Tensor, options: Mapping[str, Any], seed: int, watch: Watch) -> Tensor:
        """A picture (1, 3, h, w) of any size, repainted by the network."""
        height, width = image.shape[-2:]
        method, strength = self.model.method(options["steps"], options["solver"], [seed]), options["strength"]
        course = last_share(method.course, strength)
        told = self.model.tell_one(words_of(options), (height, width))
        multiple = self.model.granularity
        image, mask = (pad_to(x, multiple, 2 * multiple) for x in (image, mask))  # a lone latent has no statistics
        job = InpaintJob(told, image, mask, Method(course, method.solver, method.noise), blank=strength == 1, soft=True)
        networks = self.model.on(course)
        made = networks.decode(inpaint_latents(networks, job, watch))
        return made[..., :height, :width].cpu()

    def _best_size(self, own: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) of the same shape with as many pixels as the model was trained on."""
        side = self.model.side * self.model.networks.vae.factor
        scale = side / (own[0] * own[1]) ** 0.5
        return max(round(own[0] * scale), 1), max(round(own[1] * scale), 1)

    def _notes(self, request: InpaintRequest, sheet: Sheet) -> list[str]:
        coverage, notes = sheet.mask.coverage, list[str]()
        if coverage == 0:
            return ["the mask is empty: the picture is returned as it was"]
        if coverage < LITTLE or coverage > MUCH:
            notes.append(f"the mask covers {coverage:.4g} % of the picture; if the rest was meant, invert it")
        if request.strength == 0:
            kept = ", except for what was added, which has its fill" if bool(sheet.added.any()) else ""
            return [*notes, f"strength is 0: no network has changed the picture{kept}"]
        left, top, right, bottom = sheet.box
        side = self.model.side * self.model.networks.vae.factor
        if request.crop is None and (right - left) * (bottom - top) > LARGE * side**2:
            notes.append(f"the picture is much larger than the {side} x {side} pixels of the model; crop helps")
        if request.fill is not None and request.strength == 1 and self.model.task == "inpaint":
            notes.append("fill has no effect: at strength 1 this model sees nothing of what lies under the mask")
        if request.preserve == "exact" and float(sheet.weights.max()) < float(sheet.mask.weights.max()):
            notes.append(f"feather {request.feather} reaches over the whole mask: old colours remain everywhere in it")
        alpha = sheet.original.picture.alpha
        if alpha is not None and bool(((alpha == 0) & (sheet.weights > 0)).any()):
            notes.append("alpha stays as it is: what is repainted where the picture is transparent is not seen")
        return notes


def lay_out(request: InpaintRequest) -> Sheet:
    """Read the picture and the mask of a request for one, and settle where the work and the result go."""
    original, (left, top, right, bottom) = read_original(request.image), request.sides
    if request.mask is None and not any(request.sides):
        raise InputError("found no mask and nothing to add, so nothing to repaint; give a mask, or expand")
    height, width = original.size
    wide, high = left + width + right, top + height + bottom
    if wide * high > PIXEL_LIMIT:
        raise InputError(f"the expanded picture would be {wide} x {high}, at most {PIXEL_LIMIT:,} pixels; add less")
    around, zeros = (left, right, top, bottom), torch.zeros(1, height, width)
    read = Mask(zeros) if request.mask is None else read_mask(request.mask, original.size, request.mask_mode)
    mask = replace(read, weights=F.pad(read.weights, around, value=1.0))
    added = F.pad(zeros, around, value=1.0)
    found, whole = box_of(mask.weights), (0, 0, wide, high)
    box = whole if request.crop is None or found is None else grown(found, request.crop, (high, wide))
    canvas = expanded(original, request.sides)
    return Sheet(canvas, mask, added, _weights(request, mask.weights, added, box), box)


def _weights(request: InpaintRequest, mask: Tensor, added: Tensor, box: Box) -> Tensor:
    """The share of the new colours in the result."""
    if request.strength == 0 or not bool((mask > 0).any()):
        return added
    if request.preserve == "exact":
        return feathered(mask, request.feather)
    left, top, right, bottom = box
    weights = torch.zeros_like(mask)
    weights[:, top:bottom, left:right] = 1
    return weights


def _started(sheet: Sheet, fill: str | None, seed: int) -> Tensor:
    """The canvas with what lies under the mask at first; None stands for the defaults of mask and border."""
    colour, generator = sheet.original.picture.colour, torch.Generator().manual_seed(seed)
    if fill is not None:
        return fill_under(colour, sheet.mask.weights, fill, generator)
    inside = sheet.mask.weights * (1 - sheet.added)
    colour = fill_under(colour, inside, DEFAULTS["inpaint"]["fill"], generator)
    return fill_under(colour, sheet.added, DEFAULTS["inpaint/expand"]["fill"], generator)


def inpaint(
    image: Any, mask: Any = None, *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", watch: Watch = quiet, **options: Any,
) -> Repair:  # fmt: skip
    """Repaint what a mask covers of one or several pictures: paths, PIL images, arrays, or tensors in -1..1.

    `model` is a folder of an inpainting checkpoint or of any other of Stable Diffusion 1 or 2 or SDXL; `options` are
    `InpaintRequest`'s. Not one byte changes where the mask is 0. Raises InputError for pictures, masks and options that
    cannot be used, Unsupported for checkpoints made for something else.
    """
    request = request_of(InpaintRequest, image=image, mask=mask, **options)
    return load_inpainter(model, device, precision, offload)(request, watch)


def load_inpainter(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Repairer:
    """Load a checkpoint once for many requests."""
    return Repairer(load_model(model, device, precision, offload).for_task("inpaint", "generate"))
