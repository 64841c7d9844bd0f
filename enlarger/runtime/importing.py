"""Importing torch and reading a model make many objects and hardly any garbage, which then is not looked for."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def garbage_ignored() -> Generator[None]:
    """Collect no garbage in the block, and after the first one never look through what it has made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
        if was_enabled:
            gc.enable()
