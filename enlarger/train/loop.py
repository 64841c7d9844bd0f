"""The one training loop: a rate that warms up, is held and may fall, an averaged copy, resumption to the last bit.

What a step sees follows from the seed and the step's number alone, so a training that was interrupted goes on as if it
had not been, on the same machine and with as many threads.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.diffusion.overflow import first_overflow
from enlarger.errors import NonFinite
from enlarger.train.devices import Devices, OneDevice
from enlarger.train.draws import seed_of
from enlarger.train.muon import Muon
from enlarger.train.recipe import Recipe
from enlarger.train.state import State, copy_trainable, trainable

Batch = TypeVar("Batch")
Loss = Callable[[nn.Module, Batch, float], Tensor]  # module, batch, progress 0..1
Score = Callable[[nn.Module], dict[str, float]]
Source = Callable[[int, int], Iterator[Batch]]  # first step and end to batches, `accumulate` of them for each step
THIS_DEVICE = OneDevice()


@dataclass(frozen=True)
class TrainedStep:
    """What one step was: its number, counted from 1, its loss, rate, and the norm of its gradients."""

    step: int
    loss: float
    rate: float
    norm: float


def train_steps(
    state: State,
    loss: Loss[Batch],
    batches: Iterator[Batch],
    recipe: Recipe,
    first: int,
    devices: Devices = THIS_DEVICE,
) -> Iterator[TrainedStep]:
    """Learn from step `first` to the recipe's last, or as long as there are batches; each step is yielded once done.

    Raises NonFinite, before the weights change, where a loss or a gradient is no number.
    """
    network = devices.prepare(state.module)
    for step in range(first, recipe.steps):
        portions = list(islice(batches, recipe.accumulate))
        if not portions:
            return
        torch.manual_seed(seed_of(recipe.seed, step))
        state.module.zero_grad(set_to_none=True)
        value = sum(
            _add_gradients(
                network, state.module, loss, portion, (step, recipe), devices, is_last=portion is portions[-1]
            )
            for portion in portions
        )
        weights = trainable(state.module)
        total = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        norm = float(total)
        if not math.isfinite(norm):
            raise NonFinite(
                f"{_where(step, portions[-1])}: the gradient of {_bad_gradient(state.module)} is not finite{ADVICE}"
            )
        nn.utils.clip_grads_with_norm_(weights, recipe.max_norm, total)
        rate = recipe.rate_at(step)
        state.step(rate)
        if recipe.average is not None:
            state.average(min(recipe.average, (1 + step) / (10 + step)))
        yield TrainedStep(step + 1, value, rate, norm)


def learn(
    module: nn.Module, loss: Loss[Batch], source: Source[Batch], recipe: Recipe, folder: Path, name: str,
    score: Score | None = None,
) -> nn.Module:  # fmt: skip
    """Train `module`, going on from `folder/name.safetensors` if it is there; returns the averaged copy.

    `folder/name.jsonl` holds the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, path = new_state(module, recipe), folder / f"{name}.safetensors"
    step, saved, losses = state.resume(path), monotonic(), list[float]()
    with (folder / f"{name}.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"recipe": asdict(recipe), "resumed_at": step}) + "\n")
        for done in train_steps(state, loss, source(step, recipe.steps), recipe, step):
            step = done.step
            losses.append(done.loss)
            if step % recipe.log_every == 0:
                line: dict[str, float] = {"step": step, "rate": done.rate, "loss": float(np.mean(losses))}
                losses.clear()
                if score is not None and step % recipe.score_every == 0:
                    line |= score(state.result)
                log.write(json.dumps(line) + "\n")
            if monotonic() - saved > recipe.save_every:
                state.save(path, step)
                saved = monotonic()
        if score is not None:
            log.write(json.dumps({"step": step, **score(state.result)}) + "\n")
    state.save(path, step)
    return state.result


def new_state(module: nn.Module, recipe: Recipe) -> State:
    """The state before the first step."""
    averaged = None if recipe.average is None else copy_trainable(module)
    return State(module, averaged, _optimizers(module, recipe))


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its weights in the layout in which convolutions run fastest on a CPU."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownVariableType] - torch's overloads lack it


ADVICE = "; no weight has changed since the step before"


def _add_gradients(
    network: nn.Module, module: nn.Module, loss: Loss[Batch], batch: Batch, place: tuple[int, Recipe], devices: Devices,
    *, is_last: bool,
) -> float:  # fmt: skip
    """Add a batch's share of a step's gradients; its share of the loss. Raises NonFinite, naming the module."""
    step, recipe = place

    def run() -> Tensor:
        with devices.autocast():
            return loss(network, batch, step / recipe.steps)

    with devices.without_sync(network) if not is_last else nullcontext():
        value = run() / recipe.accumulate
        mean = devices.mean(value)
        if not math.isfinite(mean):
            name = first_overflow(module, run)
            where = "" if name is None else f", first in {name}"
            raise NonFinite(f"{_where(step, batch)}: the loss is {mean}{where}{ADVICE}")
        value.backward()
    return mean


def _where(step: int, batch: object) -> str:
    return f"step {step + 1}, {batch}"


def _bad_gradient(module: nn.Module) -> str:
    named = ((name, parameter.grad) for name, parameter in module.named_parameters())
    return next((name for name, grad in named if grad is not None and not bool(torch.isfinite(grad).all())), "a weight")


def _optimizers(module: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Adam or AdamW; or Muon for the convolutions inside, and Adam for the first, the last and all biases."""
    inside = [
        parameter
        for name, parameter in module.named_parameters()
        if recipe.muon and parameter.ndim == 4 and not name.startswith(("head", "tail"))
    ]
    rest = [parameter for parameter in trainable(module) if all(parameter is not other for other in inside)]
    betas = (0.9, recipe.beta2)
    if recipe.weight_decay is not None:
        return (torch.optim.AdamW(rest, lr=recipe.rate, betas=betas, weight_decay=recipe.weight_decay),)
    adam = torch.optim.Adam(rest, lr=recipe.rate, betas=betas)
    return (adam, Muon(inside, recipe.rate)) if inside else (adam,)
