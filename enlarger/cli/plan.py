"""`enlarger plan`: what a verb will take before it runs. Each has the options of its verb, and writes nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from enlarger.cli.image_jobs import Inputs, ModelFolder, Offload, make_request
from enlarger.cli.options import Device, Engine, JsonLines, Model, Options, Precision, Recursive, request_options
from enlarger.cli.terminal import print_lines, printable
from enlarger.cli.verbs import Verb
from enlarger.errors import InputError
from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

if TYPE_CHECKING:  # torch comes with these
    from enlarger.tasks.planning.plan import Plan
    from enlarger.tasks.planning.stages import Timer

plan = typer.Typer(
    no_args_is_help=True,
    help="Show what a verb will take before it runs: stages, tiles, memory, network calls and time.",
)
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="measure this machine anew; else what is kept, or measured once, is taken")
]
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT...", help="what the pictures show")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="picture to repaint")]
MaskFile = Annotated[Path | None, typer.Option("--mask", help="a picture of the same size")]


class PlannedTask(Protocol):
    """A loaded task of any verb."""

    def plan(self, request: Any, timer: "Timer | None" = None) -> "Plan": ...


@plan.command(cls=Verb)
@request_options(UpscaleRequest, "upscale")
def upscale(
    inputs: Inputs,
    options: Options,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    recursive: Recursive = False,
    calibrate: Calibrate = False,
    json_lines: JsonLines = False,
) -> None:
    """Plan `enlarger upscale`."""
    from enlarger.tasks.upscale.upscale import load_upscaler

    request = make_request(UpscaleRequest, image=None, **options)
    task = load_upscaler(model, device, precision, offload, engine=engine)
    show_plans(task, _per_file(request, inputs, recursive), calibrate, json_lines)


@plan.command(cls=Verb)
@request_options(GenerateRequest, "generate")
def generate(
    prompts: Prompts,
    options: Options,
    model: ModelFolder,
    refiner: Annotated[str | None, typer.Option(help="folder of the model that finishes pictures")] = None,
    upscaler: Annotated[str | None, typer.Option(help="folder of the model for --upscale")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    calibrate: Calibrate = False,
    json_lines: JsonLines = False,
) -> None:
    """Plan `enlarger generate`."""
    from enlarger.tasks.text_to_image import load_generator

    request = make_request(GenerateRequest, prompt=prompts, **options)
    generator = load_generator(model, device, precision, offload, refiner, upscaler, engine)
    show_plans(generator, {", ".join(prompts): request}, calibrate, json_lines)


@plan.command(cls=Verb)
@request_options(RefineRequest, "refine")
def refine(
    inputs: Inputs,
    options: Options,
    model: ModelFolder,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    recursive: Recursive = False,
    calibrate: Calibrate = False,
    json_lines: JsonLines = False,
) -> None:
    """Plan `enlarger refine`."""
    from enlarger.tasks.image_to_image import load_refiner

    request = make_request(RefineRequest, image=None, **options)
    task = load_refiner(model, device, precision, offload, engine=engine)
    show_plans(task, _per_file(request, inputs, recursive), calibrate, json_lines)


@plan.command(cls=Verb)
@request_options(InpaintRequest, "inpaint")
def inpaint(
    image: ImageFile,
    options: Options,
    model: ModelFolder,
    mask: MaskFile = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    calibrate: Calibrate = False,
    json_lines: JsonLines = False,
) -> None:
    """Plan `enlarger inpaint`."""
    from enlarger.tasks.inpaint import load_inpainter

    request = make_request(InpaintRequest, image=image, mask=mask, **options)
    inpainter = load_inpainter(model, device, precision, offload, engine)
    show_plans(inpainter, {str(image): request}, calibrate, json_lines)


@plan.command(cls=Verb)
@request_options(DepthRequest, "depth")
def depth(
    inputs: Inputs,
    options: Options,
    model: ModelFolder,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    recursive: Recursive = False,
    calibrate: Calibrate = False,
    json_lines: JsonLines = False,
) -> None:
    """Plan `enlarger depth`; what estimates the depth is not in it."""
    from enlarger.tasks.depth import load_depth

    request = make_request(DepthRequest, image=None, **options)
    task = load_depth(model, device, precision, offload, estimator=False, engine=engine)
    show_plans(task, _per_file(request, inputs, recursive), calibrate, json_lines)


def show_plans(task: PlannedTask, requests: dict[str, Any], calibrate: bool, json_lines: bool) -> None:
    """Print the plan of each request, under the name of what it is for. Ends with status 1 if there is none of one."""
    from enlarger.tasks.planning.calibration import CalibratedTimer

    timer, errors = CalibratedTimer(renew=calibrate), list[InputError]()
    for name, request in requests.items():
        try:
            if isinstance(request, InputError):
                raise request
            found = task.plan(request, timer)
        except InputError as error:
            if len(requests) == 1:
                raise
            errors.append(error)
            typer.echo(printable(f"error: {error}"), err=True)
            continue
        if json_lines:
            print_lines([json.dumps({"input": name} | found.as_json())])
        else:
            print_lines([f"{name}:", *str(found).splitlines()])
    if errors:
        raise typer.Exit(1)


def _per_file(request: Any, inputs: Sequence[str], recursive: bool) -> dict[str, Any]:
    """A request for each picture, or what is wrong with it."""
    from enlarger.cli.inputs import find_inputs

    found, _ = find_inputs([Path(one) for one in inputs], recursive)
    return {
        str(entry.path): replace(request, image=entry.path)
        if entry.error is None
        else InputError(f"{entry.path}: {entry.error}")
        for entry in found
    }
