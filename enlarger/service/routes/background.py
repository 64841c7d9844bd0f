"""Work that goes on when the request that began it is over."""

import asyncio
from collections.abc import Coroutine
from typing import Any

_tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks weakly


def run_in_background(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run something to its end, whatever becomes of the caller."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
