"""Peak memory of whole commands, each in a process of its own: the bundled model, and x2 in the official architecture.

    scripts/bench memory [--sides 1024 2048 4096] [--detail 0] [--x2 2048x1536] [--folder FOLDER] [--limit 6]

Enlarges squares of the given sides by two with the bundled model. With `--x2`, a picture of that size with random
weights of the x2 upscaler in two steps, in tiles as they are chosen and then whole, which is ended where it passes
`--limit` GiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._weights import make

PHOTO = Path(__file__).parents[1] / "examples" / "mandrill.jpg"
X2_OPTIONS = ("--steps", "2", "--guidance", "1")
POLL = 0.05  # seconds


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=[1024, 2048, 4096])
    parser.add_argument("--detail", type=float, default=0.0)
    parser.add_argument("--x2", metavar="WIDTHxHEIGHT")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark-x2")
    parser.add_argument("--limit", type=float, default=6.0)
    arguments = parser.parse_args()
    print("| what | picture | result | peak memory (RSS) | time |\n| --- | --- | --- | --- | --- |")
    for side in arguments.sides:
        row("bundled model", (side, side), ["--detail", str(arguments.detail)])
    if arguments.x2 is not None:
        if not (arguments.folder / "model_index.json").is_file():
            make("sd-x2-latent-upscaler", arguments.folder)
        size = tuple(int(side) for side in arguments.x2.split("x"))
        options = ["--model", str(arguments.folder), *X2_OPTIONS]
        row("x2, in tiles", size, options)
        row("x2, whole", size, [*options, "--no-tile", "--memory", "1000"], arguments.limit * 2**10)


def row(what: str, size: tuple[int, int], options: list[str], limit: float = float("inf")) -> None:
    """Run one command and print its line."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "a.png"
        photo(size, source)
        found = measure(["upscale", str(source), "-o", str(Path(name) / "b.png"), "--quiet", *options], limit)
    width, height = size
    seconds = f"{found.seconds:.0f} s" + (", then ended" if found.is_ended else "")
    peak = f"{'over ' if found.is_ended else ''}{found.peak:,.0f} MiB"
    print(f"| {what} | {width} x {height} | {2 * width} x {2 * height} | {peak} | {seconds} |", flush=True)


def photo(size: tuple[int, int], path: Path) -> None:
    """A photograph of any size: one and its mirror images, side by side."""
    import numpy as np
    from PIL import Image

    with Image.open(PHOTO) as image:
        tile = np.asarray(image.convert("RGB"))
    width, height = size
    rows, columns = ((0, max(0, wanted - side)) for wanted, side in zip((height, width), tile.shape[:2], strict=True))
    Image.fromarray(np.pad(tile, (rows, columns, (0, 0)), "symmetric")[:height, :width]).save(path, compress_level=1)


@dataclass(frozen=True)
class Measured:
    """What a process took, in MiB and seconds, and whether it was ended for its memory."""

    peak: float
    seconds: float
    is_ended: bool


def measure(arguments: list[str], limit: float) -> Measured:
    """Run `enlarger` with its own peak memory looked at all the while; CalledProcessError where it fails."""
    command = [sys.executable, "-m", "enlarger", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    peak, is_ended = 0.0, False
    while process.poll() is None:
        time.sleep(POLL)
        peak = max(peak, high_water(process.pid))
        if peak > limit and not is_ended:
            process.kill()
            is_ended = True
    if process.returncode and not is_ended:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(peak, time.perf_counter() - started, is_ended)


def high_water(pid: int) -> float:
    """The most memory that a process has held, in MiB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10 if "VmHWM:" in status else 0.0


if __name__ == "__main__":
    main()
