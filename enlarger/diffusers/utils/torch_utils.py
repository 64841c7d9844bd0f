"""`randn_tensor`, as diffusers.utils.torch_utils has it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import Generators, noise_from_generator


def randn_tensor(
    shape: Sequence[int],
    generator: Generators | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Noise of a shape, drawn where the generator is; of a list of generators each draws one of the first axis."""
    return noise_from_generator(generator, shape[0])(torch.empty(tuple(shape), device=device, dtype=dtype))
