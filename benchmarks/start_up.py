"""How long a start takes: `enlarger --help`, the first command on a photo, and loading beside diffusers.

    scripts/bench start_up [--repeat 5] [--photo examples/mandrill.jpg] [--against PATH]

Every figure is of a process of its own, from its start to its end, in turn; medians. Loading is `import enlarger` and
the bundled model beside `import diffusers` and a pipeline with weights of the same size (the x2 upscaler's parts in
small, random), each from the start of the interpreter until the networks are there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _harness
from benchmarks._harness import ROOT

REFERENCE = "loading, diffusers"
LOADING = {
    "enlarger": "import enlarger; model = enlarger.load_upscaler()",
    "diffusers": "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])",
}


def main() -> None:
    """Parse the command line, measure, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "mandrill.jpg")
    parser.add_argument("--against", action="append", default=[], metavar="PATH")
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enlarger-benchmark-") as temporary:
        folder = make(Path(temporary))
        print(json.dumps({name: size_of(place) for name, place in places(folder).items()}), file=sys.stderr)
        planned = commands(arguments.photo, folder, Path(temporary) / "enlarged.png", arguments.against)
        rows = measure(planned, arguments.repeat)
    _harness.save("start_up", {"repeat": arguments.repeat}, rows, arguments.results)
    print("| whole process | seconds | over loading diffusers |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {row['name']} | {row['run']:.2f} | {row['ratios']['run']:.2f} |")


def places(folder: Path) -> dict[str, Path]:
    """The folders of weights that are loaded."""
    return {"enlarger": ROOT / "enlarger" / "bundled", "diffusers": folder}


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def make(place: Path) -> Path:
    """A pipeline of diffusers with weights about as large as the bundled model's."""
    from enlarger.checkpoint.folder.save import save_folder
    from enlarger.nn.k_unet import KUNet
    from tests.support.random_weights import randomise
    from tests.support.tiny_models import K_UNET, x2_bundle

    return save_folder(x2_bundle(place, unet=randomise(KUNet(K_UNET))), place / "pipeline")


def commands(photo: Path, folder: Path, output: Path, others: Sequence[str]) -> dict[str, tuple[list[str], str]]:
    """Each command line with its PYTHONPATH; those that are ours of other builds too."""
    ours = {
        "help": ["-m", "enlarger", "--help"],
        "first command": ["-m", "enlarger", "upscale", str(photo), "-o", str(output), "--overwrite"],
        "loading, enlarger": ["-c", LOADING["enlarger"]],
    }
    made = {name: ([sys.executable, "-P", *arguments], str(ROOT)) for name, arguments in ours.items()}
    for other in map(Path, others):
        python, path = (sys.executable, str(other.resolve())) if other.is_dir() else (str(other), "")
        made |= {f"{name} of {other.name}": ([python, "-P", *arguments], path) for name, arguments in ours.items()}
    return made | {REFERENCE: ([sys.executable, "-P", "-c", LOADING["diffusers"], str(folder)], str(ROOT))}


def measure(planned: Mapping[str, tuple[list[str], str]], repeat: int) -> list[dict[str, Any]]:
    """Seconds of each start, and over loading diffusers; the first round, which fills caches, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in planned}
    for _ in range(repeat + 1):
        for name, (command, path) in planned.items():
            seconds[name].append(run(command, path))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    base = medians.get(REFERENCE, medians[next(iter(medians))])
    return [
        {"name": name, "run": value, "runs": seconds[name][1:], "ratios": {"run": value / base}}
        for name, value in medians.items()
    ]


def run(command: list[str], path: str) -> float:
    """Seconds of a process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr}")
    return taken


if __name__ == "__main__":
    main()
