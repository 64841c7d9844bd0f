"""Batches on a simulated Ray cluster: cost per picture against nodes, memory of a long run, and where growth stops.

    scripts/bench scale [--nodes 1 2] [--photos 200] [--side 128] [--tiny 2000]

Every node has one core, and all are on this machine: more nodes than cores say nothing. Each run is the command in a
process of its own, beside the plain command; the seconds are from the first picture done to the last, so that starting
is left out. Then `--tiny` pictures of 32 x 32 pixels: what Ray costs over the plain loop, and the largest memory of the
command and of the workers in the first tenth of the run, after it, and at its end.

The model: n nodes take max(work / n, shared) for a picture. `work` is the plain loop's; `shared` is what the command
itself computes for a picture, by its processor time, which nodes do not share.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from enlarger.cluster.manifest import NAME
from tests.drills.ray_batches import simulated
from tests.support.ray_cluster import photos

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """What was measured of one run."""

    seconds: float  # from the first picture to the last
    processor_seconds: float  # of the command itself, in that time
    memory: dict[str, list[float]]  # MB in the course of it: of the command, and of the largest worker
    done: int

    @property
    def cost(self) -> float:
        """Milliseconds for a picture."""
        return 1000 * self.seconds / max(self.done - 1, 1)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--tiny", type=int, default=2000)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    with TemporaryDirectory(prefix="enlarger-scale-") as folder:
        place = Path(folder)
        photos(place / "photos", arguments.photos, arguments.side)
        nodes_table(place, arguments.nodes)
        if arguments.tiny:
            photos(place / "tiny", arguments.tiny, 32)
            tiny_table(place, max(arguments.nodes))


def nodes_table(place: Path, nodes: list[int]) -> None:
    """Cost per picture against nodes, and whether the bytes are those of a plain run."""
    plain = run(place, "photos", "plain", [])
    print("| nodes | ms a picture | of one node's | same bytes |\n| --- | --- | --- | --- |")
    print(f"| no Ray | {plain.cost:.1f} | | |")
    first = 0.0
    for count in nodes:
        with simulated(count) as cluster:
            out = f"out-{count}"
            found = run(place, "photos", out, ["--ray", "auto", "--workers", str(count)], cluster.address)
        first = first or found.cost
        same = all((place / out / path.name).read_bytes() == path.read_bytes() for path in (place / "plain").iterdir())
        print(f"| {count} | {found.cost:.1f} | {found.cost / first:.3f} | {'yes' if same else 'NO'} |", flush=True)


def tiny_table(place: Path, nodes: int) -> None:
    """What Ray costs for pictures that cost little, and whether memory grows."""
    plain = run(place, "tiny", "tiny-plain", [])
    with simulated(nodes) as cluster:
        found = run(place, "tiny", "tiny-out", ["--ray", "auto", "--workers", str(nodes)], cluster.address)
    shared = 1000 * found.processor_seconds / max(found.done, 1)
    print(
        f"\n{found.done:,} pictures of 32 x 32: {found.cost:.2f} ms each on {nodes} nodes, {plain.cost:.2f} without Ray"
    )
    print(f"the command itself computes {shared:.2f} ms a picture: growth stops at {plain.cost / shared:.0f} nodes")
    for name, sizes in found.memory.items():
        tenth = max(len(sizes) // 10, 1)
        rest = sizes[tenth:] or sizes
        print(
            f"{name}: {max(sizes[:tenth]):.0f} MB in the first tenth, {max(rest):.0f} after, {sizes[-1]:.0f} at the end"
        )


def run(place: Path, source: str, out: str, options: list[str], address: str = "") -> Run:
    """The command over a folder, watched."""
    command = [sys.executable, "-m", "enlarger", "upscale", source, "-o", out, "-q", *options]
    process = psutil.Popen(command, cwd=place, env=os.environ | {"RAY_ADDRESS": address}, stderr=subprocess.DEVNULL)
    memory, used = defaultdict[str, list[float]](list), [0.0]  # processor seconds since the first result was there
    while process.poll() is None:
        try:
            usage = process.cpu_times()
            if any(place.glob(f"{out}/*.png")):
                used.append(usage.user + usage.system)
                memory["the command"].append(process.memory_info().rss / 1e6)
                memory["the largest worker"].append(largest_worker() if options else 0)
        except psutil.Error:
            break
        time.sleep(LOOK_SECONDS)
    process.wait()
    results = [path for path in (place / out).iterdir() if path.suffix == ".png"]
    times = sorted(path.stat().st_mtime for path in results)
    if options:
        rows = [json.loads(line) for line in (place / out / NAME).read_text().splitlines()]
        assert len(rows) == len({row["key"] for row in rows}) == len(results), "the manifest is not complete"
    return Run(times[-1] - times[0], used[-1] - used[:2][-1], dict(memory), len(results))


def largest_worker() -> float:
    """MB of the largest process of Ray's workers."""
    every = [each.info for each in psutil.process_iter(["cmdline", "memory_info"])]
    workers = [each for each in every if (each["cmdline"] or [""])[0].startswith("ray::MapWorker")]
    return max((each["memory_info"].rss / 1e6 for each in workers), default=0.0)


if __name__ == "__main__":
    main()
