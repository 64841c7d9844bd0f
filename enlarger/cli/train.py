"""`enlarger train`: make models from one's own pictures."""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from enlarger.cli.options import Device, Quiet, field_parameter
from enlarger.cli.terminal import print_lines
from enlarger.cli.verbs import Verb
from enlarger.train.options import (
    ATTENTION,
    WITHOUT,
    DataSettings,
    LoraSettings,
    LossOptions,
    SampleOptions,
    Task,
    TrainOptions,
)

train = typer.Typer(no_args_is_help=True, help="Train models.")

Base = Annotated[str, typer.Option(help="folder or file of the base, or a name", show_default=False)]
Data = Annotated[
    str,
    typer.Option(help="folder of pictures with captions, or WebDataset tars: 'a-{000..012}.tar'", show_default=False),
]
Out = Annotated[Path, typer.Option(help="folder for the result; of a LoRA a .safetensors file too", show_default=False)]
Prompts = Annotated[list[str] | None, typer.Option("--sample-prompt", help="prompt of a sample; may be repeated")]
Tracker = Annotated[str | None, typer.Option(help="where to log: tensorboard, wandb, or another of accelerate's")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="end of the names of layers to change; may be repeated", show_default=", ".join(ATTENTION)
    ),
]
Cache = Annotated[Path | None, typer.Option(help="folder to keep latents and text features in; needs --center-crop")]
Estimator = Annotated[Path | None, typer.Option(help="folder of a depth model, where the base has no estimator")]
PLACES: dict[str, Any] = {"model": Base, "data": Data, "out": Out}
OTHERS: dict[str, tuple[Any, Any]] = {
    "device": (Device, "auto"),
    "sample_prompts": (Prompts, None),
    "tracker": (Tracker, None),
    "cache": (Cache, None),
    "quiet": (Quiet, False),
}
OF_TASK: dict[str, dict[str, tuple[Any, Any]]] = {
    "lora": {"targets": (Targets, None)},
    "depth": {"estimator": (Estimator, None)},
}
HELP: dict[Task, str] = {
    "text-to-image": "Train a text-to-image model further, all of its UNet.",
    "lora": "Train a LoRA for a text-to-image model.",
    "inpainting": "Make an inpainting model of a text-to-image model, or train one further, with LaMa's masks.",
    "depth": "Make a depth-to-image model of a text-to-image model, or train one further.",
    "upscaler-x4": "Train the x4 upscaler further.",
    "upscaler-x2": "Train the x2 latent upscaler further.",
}
GROUPS = {"loss": LossOptions, "data_settings": DataSettings, "samples": SampleOptions, "lora": LoraSettings}


@train.callback()
def about() -> None:
    """Train models on your own pictures.

    Several devices: `accelerate launch -m enlarger train ...`.
    """


def _command(task: Task) -> Callable[..., None]:
    """The command of a task: an option for each field that means something to it."""

    def run(**arguments: Any) -> None:
        _train(task, arguments)

    described: Any = run
    parameters = list(_parameters(task))
    described.__signature__ = Signature(parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    described.__doc__ = HELP[task]
    return run


def _parameters(task: Task) -> list[Parameter]:
    def keyword(name: str, kind: Any, default: Any) -> Parameter:
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    hidden = WITHOUT[task] if task == "lora" else WITHOUT[task] | {"lora_layout"}
    groups = [TrainOptions, *(group for name, group in GROUPS.items() if name != "lora" or task == "lora")]
    from_fields = [
        field_parameter(item, get_type_hints(group)[item.name], "train", item.default)
        for group in groups
        for item in fields(group)
        if "limits" in item.metadata and item.name not in hidden
    ]
    places = [keyword(name, kind, Parameter.empty) for name, kind in PLACES.items()]
    others = [keyword(name, kind, default) for name, (kind, default) in (OTHERS | OF_TASK.get(task, {})).items()]
    return [*places, *from_fields, *others]


def _train(task: Task, arguments: dict[str, Any]) -> None:
    from enlarger.cli.train_progress import training_progress
    from enlarger.train.run import train as run_training  # torch comes with it

    quiet = arguments.pop("quiet")
    lists = {name: tuple(value) for name in ("sample_prompts", "targets") if (value := arguments.pop(name, None))}
    given: dict[str, Any] = arguments | lists
    grouped: dict[str, Any] = {
        name: group(**{item.name: given.pop(item.name) for item in fields(group) if item.name in given})
        for name, group in GROUPS.items()
    }
    options = TrainOptions(task=task, **given, **grouped)
    with training_progress(quiet=quiet) as watch:
        out = run_training(options, watch)
    print_lines([out])


for name in get_args(Task):
    train.command(name, cls=Verb)(_command(name))


@train.command(cls=Verb)
def bundled(
    photos: Annotated[Path, typer.Option(help="folder of photos, searched with the folders in it")],
    out: Annotated[Path, typer.Option(help="folder to write the model to")] = Path("upscaler"),
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="steps of the first network, the others in proportion", show_default="the bundled model's"
        ),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="folder for logs and states, to go on from", show_default="OUT.work")
    ] = None,
    perceptual: Annotated[
        Path | None,
        typer.Option(help="weights of LPIPS and DISTS, made by scripts/judges; without, detail is learnt blindly"),
    ] = None,
    start: Annotated[Path | None, typer.Option(help="folder of an upscaler whose networks are learnt further")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of all draws")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes that prepare pairs")] = 1,
) -> None:
    """Train a x2 upscaler like the bundled one; run again with the same --work to go on."""
    from enlarger.train.upscaler import Plan, train_upscaler  # torch comes with it

    place = out.with_name(f"{out.name}.work") if work is None else work
    train_upscaler(Plan(photos, out, place, perceptual, start, steps, seed, workers))
    print_lines([out])


train.command("upscaler", cls=Verb, hidden=True)(bundled)  # what it was called first
