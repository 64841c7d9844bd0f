"""Typer's help without what it imports for features that are not used here: Markdown and drawn tracebacks."""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}  # modules of rich, and what of each is imported


def import_help() -> None:
    """Import `typer.rich_utils` with stand-ins for those, which take half of the time of `enlarger --help`.

    Where a version of typer wants more of them, it imports them itself later.
    """
    absent = {name: member for name, member in UNUSED.items() if name not in sys.modules}
    sys.modules.update({name: _stand_in(name, member) for name, member in absent.items()})
    try:
        with suppress(ImportError):
            import_module("typer.rich_utils")
    finally:
        for name in absent:
            del sys.modules[name]


def _stand_in(name: str, member: str) -> ModuleType:
    module = ModuleType(name)
    setattr(module, member, type(member, (), {}))
    return module
