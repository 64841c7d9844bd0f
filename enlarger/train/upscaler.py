"""Training a x2 upscaler like the bundled one: predictor, detailer, graphics, restorer, then a folder to load."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.errors import InputError
from enlarger.nn.perceptual import read_judges
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.train.pairs import Mixture
from enlarger.train.photos import read_photos
from enlarger.train.plot import plot_log
from enlarger.train.recipe import Recipe
from enlarger.train.stages import Workshop, train_detailer, train_graphics, train_predictor, train_restorer, widened

CROP = 128  # pixels of the large picture on a side


@dataclass(frozen=True)
class Stage:
    """A network, how long it learns, and from what."""

    config: UpscaleNetConfig
    recipe: Recipe
    mixture: Mixture


SHIPPED: Mapping[str, Stage] = {
    "predictor": Stage(
        UpscaleNetConfig(), Recipe(3300, 8e-4, hold=0.0, average=0.999), Mixture(drawn=0.0, kernels=0.0)
    ),
    "detailer": Stage(UpscaleNetConfig(), Recipe(460, 3e-4, average=0.99), Mixture(batch=6)),
    "graphics": Stage(UpscaleNetConfig(), Recipe(410, 5e-4, average=0.985, muon=True), Mixture(drawn=0.6, kernels=0.5)),
    "restorer": Stage(
        UpscaleNetConfig(extra_channels=1),
        Recipe(640, 5e-4, hold=0.6, average=0.985),
        Mixture(batch=4, drawn=0.05, kernels=0.05),
    ),
}
"""The recipe of the bundled model."""


@dataclass(frozen=True)
class Plan:
    """What `train_upscaler` is asked for."""

    photos: Path
    out: Path
    work: Path  # logs, states to go on from, and the photographs' pixels
    judges: Path | None = None  # weights of LPIPS and DISTS; None: learnt without an eye, by absolute error alone
    start: Path | None = None  # a model folder whose networks are learnt further
    steps: int | None = None  # of the predictor; the others' in proportion; None: the recipe's
    seed: int = 0
    workers: int = 1


def train_upscaler(plan: Plan, stages: Mapping[str, Stage] = SHIPPED, crop: int = CROP) -> None:
    """Train the networks and write them to `plan.out`; run again with the same `work` to go on."""
    photos = read_photos(plan.photos, plan.work, crop, plan.seed)
    judges = None if plan.judges is None else read_judges(plan.judges)
    shop = Workshop(photos, judges, plan.work, plan.workers)
    share = 1.0 if plan.steps is None else plan.steps / stages["predictor"].recipe.steps
    parts: dict[str, nn.Module] = {} if plan.start is None else _networks(plan.start)
    learners = {
        "predictor": train_predictor,
        "detailer": train_detailer,
        "graphics": train_graphics,
        "restorer": train_restorer,
    }
    for name, train in learners.items():
        stage, start = stages[name], parts.get(name, parts.get("predictor"))
        recipe = replace(stage.recipe, steps=max(1, round(stage.recipe.steps * share)), seed=plan.seed)
        net = widened(stage.config, start if isinstance(start, UpscaleNet) else None, plan.seed)
        parts[name] = train(shop, net, recipe, stage.mixture)
        plot_log(plan.work / f"{name}.jsonl", plan.work / f"{name}.png")
    save_upscaler(parts, plan.out)


def save_upscaler(parts: Mapping[str, nn.Module], out: Path) -> None:
    """Write the networks as a folder that `enlarger upscale --model` reads."""
    index = {"_class_name": "CompactUpscale"} | {n: ["enlarger", type(m).__name__] for n, m in parts.items()}
    save_folder(PipelineComponents(out, index, dict(parts)), out)


def _networks(folder: Path) -> dict[str, nn.Module]:
    """The networks of a folder to start from."""
    parts = read_folder(folder, dtype=torch.float32).components
    if not isinstance(parts.get("predictor"), UpscaleNet):
        raise InputError(f"{folder}: has no predictor to start from; give a folder that this training wrote")
    return {name: part.requires_grad_(True) for name, part in parts.items() if isinstance(part, UpscaleNet)}
