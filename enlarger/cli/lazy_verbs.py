"""The verbs by name. The module of each is imported when it is asked for: all together they take longer than help."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from enlarger.cli.light_help import import_help
from enlarger.cli.terminal import printable

VERBS = {  # each with its module in this room, and the first paragraph of its own help
    "upscale": ("upscale", "Enlarge pictures."),
    "generate": ("generate", "Make pictures from text."),
    "refine": (
        "refine",
        "Remake pictures from noisy copies of themselves, with Stable Diffusion 1 or 2 or SDXL, base or refiner.",
    ),
    "inpaint": (
        "inpaint",
        "Repaint what a mask covers, with a model made for it or any other of Stable Diffusion 1 or 2 or SDXL.",
    ),
    "depth": ("depth", "Remake pictures with their depth kept, with the depth model of Stable Diffusion 2."),
    "models": (
        "models",
        "List a folder of models: each file by the name to ask for it, and what it is by its names and shapes.",
    ),
    "inspect": (
        "inspect",
        "Show what a checkpoint is: family, parts, number formats, sizes, parameters, and anything unusual.",
    ),
    "replay": ("replay", "Make a picture again from what its file says, and say whether the bytes are the same."),
    "convert": (
        "convert",
        "Write a checkpoint as a folder in diffusers' layout, or as one file in the original code's.",
    ),
    "pull": (
        "pull",
        "Download a checkpoint into the cache or a folder, and print its path: the only command that uses the network.",
    ),
    "doctor": (
        "doctor",
        "Show what is installed, which devices and number formats work, how networks run and why; check pulled models.",
    ),
    "key": ("serve", "Make a key for the service, and the line for its configuration."),
    "serve": ("serve", "Serve pictures over HTTP: OpenAI's images API, /v1/images/upscale, jobs and a web page."),
    "plan": (
        "plan",
        "Show what a verb will take before it runs: stages, tiles, memory, network calls and time.",
    ),
    "train": ("train", "Train models."),
    "evaluate": ("evaluate", "Measure models."),
}


def add_verbs(app: typer.Typer) -> None:
    """Register every verb by its name and help alone."""
    for name, (_, help_text) in VERBS.items():
        app.command(name, help=help_text)(_not_loaded)


def _not_loaded() -> None:
    raise AssertionError("`Verbs` puts the verb itself in the place of this")


class Verbs(TyperGroup):
    """The commands; their errors about usage are one line that a terminal only shows."""

    def load(self, name: str) -> Any:
        """A verb itself, in the place of its name."""
        module, _ = VERBS[name]
        found = getattr(import_module(f"enlarger.cli.{module}"), name)
        self.commands[name] = made = get_group(found) if isinstance(found, typer.Typer) else _command(name, found)
        made.name = name
        return made

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in VERBS:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_help()
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            import_help()
            error.message = printable(error.message)
            raise


def _command(name: str, verb: Any) -> Any:
    from enlarger.cli.verbs import Verb

    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Verb, add_help_option=name != "serve")(verb)  # it has its own, with the settings' texts
    return get_command(alone)
