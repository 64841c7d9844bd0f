"""Work that goes on when the request that began it is over."""

import asyncio
from collections.abc import Coroutine
from typing import Any

_running: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks weakly


def in_background(work: Coroutine[Any, Any, Any]) -> None:
    """Run something to its end, whatever becomes of the caller."""
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
