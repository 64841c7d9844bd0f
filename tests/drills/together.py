"""Requests that share a batch: each picture is the one that the request gives alone."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tests.drills import jobs, wire
from tests.drills.figures import Figure, share
from tests.support.service import Served

Make = Callable[[int], dict[str, Any]]


def together(served: Served, count: int) -> list[Figure]:
    """So many jobs of each kind, queued behind a long one so that they may run together, and each alone."""
    return [*compared(served, "generated", count, lambda k: jobs.generate_later(
        served, prompt=f"picture {k}", seed=100 + k, num_inference_steps=6
    )), *compared(served, "enlarged", count, lambda k: jobs.upscale_later(
        served, wire.png(48, 32, seed=k), seed=str(k), detail="0"
    ))]  # fmt: skip


def compared(served: Served, kind: str, count: int, make: Make) -> list[Figure]:
    """The figures of one kind of job."""
    runs, sizes = (jobs.metric(served, f"enlarger_batch_size_{part}") for part in ("count", "sum"))
    long = jobs.generate_later(served, num_inference_steps=60)["id"]
    jobs.wait_status(served, long, "running")
    made = [make(k)["id"] for k in range(count)]
    done = jobs.wait_for(served, [long, *made])
    ran = jobs.metric(served, "enlarger_batch_size_count") - runs - 1
    held = jobs.metric(served, "enlarger_batch_size_sum") - sizes - 1
    mixed = [jobs.results(served, done[id]) for id in made]
    alone = [alone_of(served, make(k)["id"]) for k in range(count)]
    differences = [apart(a, b) for pair in zip(mixed, alone, strict=True) for a, b in zip(*pair, strict=True)]
    return [
        share(f"{kind}: jobs that succeeded", sum(done[id]["status"] == "succeeded" for id in made), count),
        Figure(f"{kind}: jobs in a batch, mean", held / max(ran, 1), least=2),
        Figure(f"{kind}: largest difference to the picture made alone", max(differences), "of 255", most=1),
        Figure(f"{kind}: pictures equal to the last bit", sum(each == 0 for each in differences)),
    ]


def alone_of(served: Served, id: str) -> list[bytes]:
    return jobs.results(served, jobs.wait_for(served, [id])[id])


def apart(one: bytes, other: bytes) -> float:
    """The largest difference of two pictures' values."""
    first, second = (np.asarray(Image.open(BytesIO(each)).convert("RGB"), dtype=np.int16) for each in (one, other))
    assert first.shape == second.shape, f"{first.shape} is not {second.shape}"
    return float(np.abs(first - second).max())
