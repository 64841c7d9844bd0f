"""What every verb does with its arguments before it runs."""

from typing import Any, get_args

import typer
from typer.core import TyperCommand

from enlarger.cli.help_panels import arrange
from enlarger.cli.light_help import import_help
from enlarger.cli.options import Strip
from enlarger.cli.typos import meant_options

STRIP_VALUES = get_args(get_args(Strip)[0])
TEXTS = frozenset({"prompt", "prompts", "negative", "expand"})  # arguments that may be empty


class Verb(TyperCommand):
    """A command for which an empty text, such as an unset variable in quotes, names nothing: no file and no folder."""

    def get_params(self, ctx: Any) -> list[Any]:
        return arrange(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = _with_bare_strip(args)
        try:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        except typer.TyperException as error:
            self._hint(error)
            raise
        for parameter in self.params:
            value = given.get(parameter.name or "")
            if parameter.name not in TEXTS and "" in (value if isinstance(value, list | tuple) else [value]):
                name = parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
                raise typer.BadParameter(f"{name} is empty, expected a value; is a variable in quotes not set?")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_help()
        super().format_help(ctx, formatter)

    def _hint(self, error: Any) -> None:
        """Give an unknown option the hints that fit, in the place of those that only begin alike."""
        if hasattr(error, "possibilities") and getattr(error, "option_name", None):
            known = [flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)]
            error.possibilities = meant_options(str(error.option_name), known)


def _with_bare_strip(args: list[str]) -> list[str]:
    """The arguments, with what `--strip` means where no value follows it."""
    following = [*args[1:], ""][: len(args)]
    is_bare = [arg == "--strip" and value not in STRIP_VALUES for arg, value in zip(args, following, strict=True)]
    return ["--strip=all" if bare else arg for arg, bare in zip(args, is_bare, strict=True)]
