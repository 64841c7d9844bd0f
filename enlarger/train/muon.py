"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, so that every direction learns alike."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.775, 2.0315)  # coefficients of the Newton-Schulz iteration
ROUNDS = 5
ALIKE = 0.2  # with it a rate means about what it means to Adam (Liu et al. 2025, section 2.2)


class Muon(torch.optim.Optimizer):
    """For the weights of convolutions, each a matrix with a row for each output channel."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closure is called
        """One step down the gradients, Nesterov's way."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(momentum, MOMENTUM).reshape(len(parameter), -1)
                change = orthogonal(ahead).reshape(parameter.shape)
                parameter.add_(change, alpha=-group["lr"] * ALIKE * max(ahead.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all singular values near 1, by a quintic Newton-Schulz iteration."""
    upright = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if upright else matrix
    x = x / (x.square().sum().sqrt() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if upright else x
