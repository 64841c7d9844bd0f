"""Pictures in, other pictures of the same depth out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import InputError
from enlarger.requests import DepthRequest, filled, one_per, request_of
from enlarger.runtime.runtime import Offload
from enlarger.tasks.depth_estimator import DepthEstimator, normalise_depth, read_depth
from enlarger.tasks.latents import Latents
from enlarger.tasks.model import Model, load_model
from enlarger.tasks.parts import Result, Watch, pad_to, quiet
from enlarger.tasks.reading import Location
from enlarger.tasks.refine import remake
from enlarger.tasks.sources import Opened, each_source, open_picture, sources_of


@dataclass(frozen=True, eq=False)
class DepthToImage:
    """A loaded depth checkpoint; calling it with a request remakes the request's pictures.

    Without an `estimator` every request has to bring its depth maps.
    """

    model: Model
    estimator: DepthEstimator | None = None

    def __call__(self, request: DepthRequest, watch: Watch = quiet) -> Result:
        """Each input gives `count` pictures of its own size, in order. One picture is computed at a time."""
        count = len(sources_of(request.image))
        maps = one_per(None if request.depth is None else _maps_of(request.depth), count, "depth")

        def one(request: DepthRequest, seeds: tuple[int, ...]) -> Result:
            if isinstance(request.image, Latents):
                raise InputError(
                    "found latents, expected a picture: its depth is seen in its pixels; decode them first"
                )
            opened = open_picture(request.image, self.model.granularity)
            depth = self._depth(opened, request.depth)
            return remake(self.model, filled(request, "depth"), opened, seeds, watch, {"concat": depth})

        return each_source(request, one, depth=maps)

    def _depth(self, opened: Opened, given: Any) -> Tensor:
        """The depth of the padded picture as the network's fifth channel, (1, 1, h, w) in -1..1."""
        if given is None and self.estimator is None:
            raise InputError("found no depth map; give one per picture, or load the model with its depth estimator")
        height, width = opened.size
        seen = opened.image[..., :height, :width]
        found = read_depth(given) if given is not None else cast("DepthEstimator", self.estimator)(seen)
        if len(found) != 1:
            raise InputError(f"found {len(found)} depth maps for one picture, expected one; give a list of them")
        factor = self.model.networks.vae.factor
        if seen.shape != opened.image.shape:
            found = F.interpolate(found, (height, width), mode="bicubic", align_corners=False)
            found = pad_to(found, self.model.granularity)
        return normalise_depth(found, (opened.image.shape[2] // factor, opened.image.shape[3] // factor))


def _maps_of(depth: Any) -> list[Any]:
    """One depth map, a list of them, or a batch (B, H, W) or (B, 1, H, W), as a list."""
    if isinstance(depth, list | tuple):
        return list(cast("Sequence[Any]", depth))
    batch = hasattr(depth, "ndim") and depth.ndim > 2
    return list(depth) if batch else [depth]


def depth(
    image: Any, prompt: Any = "", *, model: Location, depth: Any = None, device: str = "auto",
    precision: str = "auto", offload: Offload = "none", watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Remake one or several pictures with their depth kept: paths, PIL images, arrays or tensors in -1..1.

    `model` is a folder of Stable Diffusion 2's depth model. `depth` is a map per picture (a path, PIL image, array or
    tensor of any size and scale, near is large); None estimates it with the folder's own network, which needs
    enlarger[depth]. `options` are `DepthRequest`'s. Raises InputError for pictures, maps and options that cannot be
    used.
    """
    request = request_of(DepthRequest, image=image, prompt=prompt, depth=depth, **options)
    return load_depth(model, device, precision, offload, estimator=depth is None)(request, watch)


def load_depth(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none", estimator: bool = True
) -> DepthToImage:
    """Load a depth checkpoint once for many requests; `estimator` loads the network that estimates depth too."""
    found = load_model(model, device, precision, offload).for_task("depth")
    return DepthToImage(found, estimator_of(found) if estimator else None)


def estimator_of(model: Model) -> DepthEstimator | None:
    """The network beside the checkpoint that estimates depth; None where there is none, as with single files."""
    if not (model.path / "depth_estimator").is_dir():
        return None
    return DepthEstimator.from_folder(model.path, model.networks.dtype, model.networks.runtime)
