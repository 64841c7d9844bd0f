"""Seeded random weights under which a network's output neither vanishes nor explodes."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def randomise(module: Module, seed: int = 0) -> Module:
    """Fill every parameter in place, in the order of its names, and return the module ready to run."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(draw * 0.7 * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(draw * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return module.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
