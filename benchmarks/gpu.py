"""On a CUDA device: x2 from 512 to 1024 in 20 steps and SDXL with its refiner at 1024 in 30, beside diffusers.

    scripts/bench gpu [--budget 520] [--precisions float16 bfloat16] [--folder FOLDER]

Each side in a process of its own: diffusers as it is and compiled (max-autotune, channels-last, fused projections; of
SDXL the repeated blocks, which takes less time), and ours. Sides for which the budget of seconds has no time left are
left out and said to be. With it go the floating point operations of one run, counted by torch, over the time it took
and over what a large matrix product reaches on the same device.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import _harness, run
from benchmarks._harness import Row
from benchmarks._side import Job, load

SIZES = {"x2": (512, 20, 1.0), "sdxl": (1024, 30, 5.0)}  # size, steps, guidance
SIDE, TRIES = 8192, 20  # of the square matrices whose product is the ceiling
NEEDED = {"x2": 60.0, "sdxl": 100.0}  # seconds that a side may take; below that it is not begun


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write, and print tables."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=520.0, help="seconds")
    parser.add_argument("--precisions", nargs="*", default=["float16", "bfloat16"], choices=("float16", "bfloat16"))
    parser.add_argument("--scenarios", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark")
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("found no CUDA device, expected one; the comparison on a CPU is `scripts/bench run`")
    deadline, device = time.monotonic() + asked.budget, torch.cuda.get_device_name()
    for name in asked.scenarios:
        for precision in asked.precisions:
            size, steps, guidance = SIZES[name]
            folder = str(run.weights(name, asked.folder))
            job = Job(name, "diffusers", folder, size, steps, guidance, 8, precision, device="cuda", repeat=3)
            found = _harness.compare(sides(job), 1, lambda row: within(deadline, row))
            settings = {"size": size, "steps": steps, "guidance": guidance, "precision": precision, "device": device}
            settings |= {"ceiling": ceiling(precision), "operations": operations(job), "threads": 8}
            for row in found:
                if "run" in row:
                    row["of_ceiling"] = settings["operations"] / row["run"] / settings["ceiling"]
            _harness.save(f"gpu-{name}-{precision}", settings, found, asked.results)
            print(f"\n{name}, {precision}, {device}\n\n" + "\n".join(run.table(found)))


def sides(job: Job) -> list[Row]:
    """diffusers, ours, and diffusers compiled, which takes longest."""
    ours = replace(job, library="native")
    return [
        Row("diffusers", job),
        Row("enlarger", ours),
        Row("enlarger compiled", replace(ours, engine="compile")),
        Row("diffusers compiled", replace(job, compiled=True)),
    ]


def within(deadline: float, row: Row) -> dict[str, float]:
    """A side, if there is time for it."""
    if deadline - time.monotonic() < NEEDED[row.job.scenario]:
        raise RuntimeError("the budget had no time left for it")
    return _harness.run_side(row)


def ceiling(precision: str) -> float:
    """Floating point operations per second of a large matrix product."""
    import torch

    a = torch.randn(SIDE, SIDE, device="cuda", dtype=getattr(torch, precision))
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TRIES):
        a @ a
    torch.cuda.synchronize()
    return 2 * SIDE**3 * TRIES / (time.perf_counter() - started)


def operations(job: Job) -> int:
    """Floating point operations of one run of diffusers' side."""
    from torch.utils.flop_counter import FlopCounterMode

    made = load(job)
    with FlopCounterMode(display=False) as counter:
        made(job.steps)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
