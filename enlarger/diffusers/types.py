"""What people give to the pipelines, as types under diffusers' names."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from enlarger.diffusion.listing import Array

PipelineImageInput = Image.Image | Array | Tensor | Sequence[Image.Image] | Sequence[Array] | Sequence[Tensor]
# of the pipeline, the step, its timestep and tensors: the tensors to go on with
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor | None]], object]
OlderCallback = Callable[[int, Tensor, Tensor], Tensor | None]  # of the step, its timestep and latents: the latents
