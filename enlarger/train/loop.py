"""The one training loop: Adam, a rate that falls with the time used, an averaged copy, a log, and resumption."""

import json
import math
import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, np.random.Generator, float], Tensor]  # module, randomness, progress 0..1
Score = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one stage learns. Time rather than steps, so that a plan fits any machine."""

    minutes: float
    rate: float
    average: float = 0.999  # of the averaged weights, per step
    warmup: int = 100  # steps
    seed: int = 0
    log_every: int = 50  # steps
    save_every: float = 180.0  # seconds


def learn(
    module: nn.Module, loss: Loss, recipe: Recipe, folder: Path, name: str, score: Score | None = None
) -> nn.Module:
    """Train `module`, resuming from `folder/name.state` if it is there; returns the averaged copy.

    Time spent before an interruption counts; `folder/name.jsonl` holds the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    averaged = deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(module.parameters(), lr=recipe.rate, betas=(0.9, 0.99))
    draw = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    step, elapsed = _resume(folder / f"{name}.state", module, averaged, optimizer, draw)
    budget, saved = recipe.minutes * 60, time.monotonic()
    losses: list[float] = []
    with (folder / f"{name}.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"recipe": asdict(recipe), "resumed_at": step}) + "\n")
        while elapsed < budget:
            started = time.monotonic()
            progress = elapsed / budget
            optimizer.param_groups[0]["lr"] = rate = _rate(recipe, step, progress)
            value = loss(module, draw, progress)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _average(averaged, module, min(recipe.average, (1 + step) / (10 + step)))
            losses.append(value.item())
            step += 1
            elapsed += time.monotonic() - started
            if step % recipe.log_every == 0:
                line = {"step": step, "seconds": round(elapsed), "rate": rate, "loss": float(np.mean(losses))}
                losses.clear()
                if score is not None and step % (recipe.log_every * 10) == 0:
                    line |= score(averaged)
                log.write(json.dumps(line) + "\n")
            if time.monotonic() - saved > recipe.save_every:
                _save(folder / f"{name}.state", module, averaged, optimizer, draw, step, elapsed)
                saved = time.monotonic()
        if score is not None:
            log.write(json.dumps({"step": step, "seconds": round(elapsed), **score(averaged)}) + "\n")
    _save(folder / f"{name}.state", module, averaged, optimizer, draw, step, elapsed)
    return averaged


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its weights in the layout in which convolutions run fastest on a CPU."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownVariableType] - torch's overloads lack it


def _rate(recipe: Recipe, step: int, progress: float) -> float:
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def _average(averaged: nn.Module, module: nn.Module, keep: float) -> None:
    for mean, now in zip(averaged.state_dict().values(), module.state_dict().values(), strict=True):
        mean.lerp_(now, 1 - keep)


def _save(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer,
    draw: np.random.Generator, step: int, elapsed: float,
) -> None:  # fmt: skip
    state = {
        "module": module.state_dict(), "averaged": averaged.state_dict(), "optimizer": optimizer.state_dict(),
        "draw": json.dumps(draw.bit_generator.state), "torch": torch.get_rng_state(), "step": step, "elapsed": elapsed,
    }  # fmt: skip
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, draw: np.random.Generator
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    draw.bit_generator.state = json.loads(state["draw"])
    torch.set_rng_state(state["torch"])
    return state["step"], state["elapsed"]
