"""The one training loop: a rate that is held and falls, an averaged copy, a log, and resumption to the last bit.

What a step sees follows from the seed and the step's number alone, so a training that was interrupted goes on as if it
had not been, on the same machine and with as many threads.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.train.muon import Muon
from enlarger.train.pairs import Pair

Loss = Callable[[nn.Module, Pair, float], Tensor]  # module, batch, progress 0..1
Score = Callable[[nn.Module], dict[str, float]]
Source = Callable[[int, int], Iterator[Pair]]  # first step and end to batches


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one stage learns."""

    steps: int
    rate: float
    hold: float = 0.4  # share of the steps before the rate falls
    average: float = 0.998  # of the averaged weights, per step
    warmup: int = 50  # steps
    seed: int = 0
    muon: bool = False  # else Adam for all
    log_every: int = 25  # steps
    score_every: int = 200
    save_every: float = 120.0  # seconds


def learn(
    module: nn.Module, loss: Loss, source: Source, recipe: Recipe, folder: Path, name: str, score: Score | None = None
) -> nn.Module:
    """Train `module`, going on from `folder/name.safetensors` if it is there; returns the averaged copy.

    `folder/name.jsonl` holds the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = State(module, deepcopy(module).eval().requires_grad_(False), _optimizers(module, recipe))
    path = folder / f"{name}.safetensors"
    step, saved, losses = state.resume(path), monotonic(), list[float]()
    with (folder / f"{name}.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"recipe": asdict(recipe), "resumed_at": step}) + "\n")
        for pair in source(step, recipe.steps):
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            rate = _rate(recipe, step)
            losses.append(_learn_once(state, loss, pair, rate, recipe, step))
            step += 1
            if step % recipe.log_every == 0:
                line: dict[str, float] = {"step": step, "rate": rate, "loss": float(np.mean(losses))}
                losses.clear()
                if score is not None and step % recipe.score_every == 0:
                    line |= score(state.averaged)
                log.write(json.dumps(line) + "\n")
            if monotonic() - saved > recipe.save_every:
                state.save(path, step)
                saved = monotonic()
        if score is not None:
            log.write(json.dumps({"step": step, **score(state.averaged)}) + "\n")
    state.save(path, step)
    return state.averaged


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its weights in the layout in which convolutions run fastest on a CPU."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownVariableType] - torch's overloads lack it


def half_precision() -> AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it; elsewhere it would only be slower."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage] - nothing public tells
    return torch.autocast("cpu", torch.bfloat16) if fast else nullcontext()


@dataclass(frozen=True, eq=False)
class State:
    """All that changes while training."""

    module: nn.Module
    averaged: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]

    def save(self, path: Path, step: int) -> None:
        """Write everything at once, so that no half of a file is ever read."""
        partial = path.with_suffix(".partial")
        tensors = {name: value.contiguous() for name, value in self._tensors().items()}
        safetensors.torch.save_file(tensors, partial, {"step": str(step)})
        os.replace(partial, path)

    def resume(self, path: Path) -> int:
        """Take everything from a file, if there is one; the number of steps it has seen."""
        if not path.exists():
            return 0
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - safetensors has no types
            step = int(file.metadata()["step"])  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - likewise
        self._start()
        own = self._tensors()
        if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in found.items()}:
            raise InputError(f"{path}: is of another network than this training's; give another --work")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(found[name])
        return step

    def _tensors(self) -> dict[str, Tensor]:
        """Views by name; the optimizer's once it has stepped."""
        named = {f"module.{n}": v for n, v in self.module.state_dict().items()}
        named |= {f"averaged.{n}": v for n, v in self.averaged.state_dict().items()}
        for n, parameter in self.module.named_parameters():
            kept: list[dict[str, Tensor]] = [o.state[parameter] for o in self.optimizers if parameter in o.state]
            named |= {f"optimizer.{n}.{key}": value for state in kept for key, value in state.items()}
        return named

    def _start(self) -> None:
        """Let the optimizers make what they keep, without a change of the weights."""
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)

    def step(self, rate: float) -> None:
        """One step down the gradients."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()


def _optimizers(module: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Adam; or Muon for the convolutions inside, and Adam for the first, the last and all biases."""
    inside = [
        parameter
        for name, parameter in module.named_parameters()
        if recipe.muon and parameter.ndim == 4 and not name.startswith(("head", "tail"))
    ]
    rest = [parameter for parameter in module.parameters() if all(parameter is not other for other in inside)]
    adam = torch.optim.Adam(rest, lr=recipe.rate, betas=(0.9, 0.99))
    return (adam, Muon(inside, recipe.rate)) if inside else (adam,)


def _learn_once(state: State, loss: Loss, pair: Pair, rate: float, recipe: Recipe, step: int) -> float:
    with half_precision():
        value = loss(state.module, pair, step / recipe.steps)
    state.module.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    state.step(rate)
    _average(state.averaged, state.module, min(recipe.average, (1 + step) / (10 + step)))
    return value.item()


def _rate(recipe: Recipe, step: int) -> float:
    """Held, then along half a cosine down to 2 %."""
    warm = recipe.rate * min(1.0, (step + 1) / recipe.warmup)
    falling = max(0.0, (step / recipe.steps - recipe.hold) / (1 - recipe.hold))
    return warm * (0.02 + 0.98 * (1 + math.cos(math.pi * falling)) / 2)


@torch.no_grad()
def _average(averaged: nn.Module, module: nn.Module, keep: float) -> None:
    for mean, now in zip(averaged.state_dict().values(), module.state_dict().values(), strict=True):
        mean.lerp_(now, 1 - keep)
