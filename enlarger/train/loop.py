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

LossFn = Callable[[nn.Module, np.random.Generator, float], Tensor]  # module, randomness, progress 0..1
EvaluateFn = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast one stage learns. Time rather than steps, so that a plan fits any machine."""

    minutes: float
    learning_rate: float
    ema_decay: float = 0.999  # of the averaged weights, per step
    warmup: int = 100  # steps
    seed: int = 0
    log_every: int = 50  # steps
    save_every: float = 180.0  # seconds


def train(
    module: nn.Module,
    loss: LossFn,
    training_config: TrainingConfig,
    folder: Path,
    name: str,
    evaluate: EvaluateFn | None = None,
) -> nn.Module:
    """Train `module`, resuming from `folder/name.state` if it is there; returns the averaged copy.

    Time spent before an interruption counts; `folder/name.jsonl` holds the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ema = deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(module.parameters(), lr=training_config.learning_rate, betas=(0.9, 0.99))
    rng = np.random.default_rng(training_config.seed)
    torch.manual_seed(training_config.seed)
    step, elapsed = _resume(folder / f"{name}.state", module, ema, optimizer, rng)
    budget_seconds, last_saved = training_config.minutes * 60, time.monotonic()
    losses: list[float] = []
    with (folder / f"{name}.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"recipe": asdict(training_config), "resumed_at": step}) + "\n")
        while elapsed < budget_seconds:
            started = time.monotonic()
            progress = elapsed / budget_seconds
            optimizer.param_groups[0]["lr"] = learning_rate = _learning_rate(training_config, step, progress)
            loss_value = loss(module, rng, progress)
            optimizer.zero_grad(set_to_none=True)
            loss_value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _update_ema(ema, module, min(training_config.ema_decay, (1 + step) / (10 + step)))
            losses.append(loss_value.item())
            step += 1
            elapsed += time.monotonic() - started
            if step % training_config.log_every == 0:
                log_entry = {
                    "step": step,
                    "seconds": round(elapsed),
                    "rate": learning_rate,
                    "loss": float(np.mean(losses)),
                }
                losses.clear()
                if evaluate is not None and step % (training_config.log_every * 10) == 0:
                    log_entry |= evaluate(ema)
                log.write(json.dumps(log_entry) + "\n")
            if time.monotonic() - last_saved > training_config.save_every:
                _save(folder / f"{name}.state", module, ema, optimizer, rng, step, elapsed)
                last_saved = time.monotonic()
        if evaluate is not None:
            log.write(json.dumps({"step": step, "seconds": round(elapsed), **evaluate(ema)}) + "\n")
    _save(folder / f"{name}.state", module, ema, optimizer, rng, step, elapsed)
    return ema


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its weights in the layout in which convolutions run fastest on a CPU."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownVariableType] - torch's overloads lack it


def _learning_rate(training_config: TrainingConfig, step: int, progress: float) -> float:
    return (
        training_config.learning_rate
        * min(1.0, (step + 1) / training_config.warmup)
        * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    )


@torch.no_grad()
def _update_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    for mean, now in zip(ema.state_dict().values(), module.state_dict().values(), strict=True):
        mean.lerp_(now, 1 - decay)


def _save(
    path: Path, module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer,
    rng: np.random.Generator, step: int, elapsed: float,
) -> None:  # fmt: skip
    state = {
        "module": module.state_dict(), "averaged": ema.state_dict(), "optimizer": optimizer.state_dict(),
        "draw": json.dumps(rng.bit_generator.state), "torch": torch.get_rng_state(), "step": step, "elapsed": elapsed,
    }  # fmt: skip
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    path: Path, module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, rng: np.random.Generator
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    ema.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    rng.bit_generator.state = json.loads(state["draw"])
    torch.set_rng_state(state["torch"])
    return state["step"], state["elapsed"]
