"""How many functions of the package stand between a call and a network's `forward`."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

import enlarger

PACKAGE = str(Path(enlarger.__file__).parent)


def functions_between(run: Callable[[], object], name: str, network: type[nn.Module], owner: object = None) -> int:
    """The most functions, comprehensions among them, between `name` and a `network`'s `forward`, both left out.

    All calls during `run` are looked at. With an `owner`, `name` is its method. Frames of torch and of the library do
    not count.
    """
    counts: list[int] = []

    def watch_calls(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or frame.f_code.co_name != "forward" or not isinstance(frame.f_locals.get("self"), network):
            return
        count, outer = 0, frame.f_back
        while outer is not None and not _is_the_call(outer, name, owner):
            count += outer.f_code.co_filename.startswith(PACKAGE)
            outer = outer.f_back
        if outer is not None:
            counts.append(count)

    sys.setprofile(watch_calls)
    try:
        run()
    finally:
        sys.setprofile(None)
    assert counts, f"the network was never called from {name}"
    return max(counts)


def _is_the_call(frame: FrameType, name: str, owner: object) -> bool:
    if frame.f_code.co_name != name or not frame.f_code.co_filename.startswith(PACKAGE):
        return False
    return owner is None or frame.f_locals.get("self") is owner
