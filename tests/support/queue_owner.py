"""A process that owns a queue: it gives jobs with keys 0, 1, ... unless they are there already, and waits for all.

`python -m tests.support.queue_owner FOLDER COUNT` writes "ready", "given KEY ID" once a job is accepted, and "all".
"""

import asyncio
import os
import sys
from pathlib import Path

from enlarger.service.jobs.job import Idempotency
from tests.support.queues import queue_of, submit_job, until

SLOW = {"steps": 4, "seconds": 0.004}


def print_line(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def main(data: Path, count: int) -> None:
    queue = queue_of(data, queue=1000)
    await queue.start()
    await until(lambda: queue.is_ready)
    print_line("ready")
    jobs = []
    for key in map(str, range(count)):
        idempotency = Idempotency(key, key)
        jobs.append(
            await queue.find_repeated("", idempotency) or await submit_job(queue, SLOW, idempotency=idempotency)
        )
        print_line(f"given {key} {jobs[-1].id}")
    for job in jobs:
        await queue.wait(job.id)
    await queue.drain()
    print_line("all")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
