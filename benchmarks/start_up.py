"""How long a start takes: `enlarger --help`, the first command on a photo, and loading beside diffusers.

    scripts/bench start_up [--repeat 5] [--photo examples/mandrill.jpg]

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
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOADING = {
    "enlarger": "import enlarger; model = enlarger.load_upscaler()",
    "diffusers": "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])",
}
WIDTHS = (32, 96, 96)  # of the UNet's stages: with the other parts about as many bytes as the bundled model


def main() -> None:
    """Parse the command line, measure, print a table and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "mandrill.jpg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enlarger-benchmark-") as temporary:
        folder = make(Path(temporary))
        print(json.dumps({name: size_of(place) for name, place in places(folder).items()}), file=sys.stderr)
        report(measure(arguments, folder, Path(temporary) / "enlarged.png"), arguments.repeat)


def places(folder: Path) -> dict[str, Path]:
    """The folders of weights that are loaded."""
    return {"enlarger": ROOT / "enlarger" / "bundled", "diffusers": folder}


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def make(place: Path) -> Path:
    """A pipeline of diffusers with weights as large as the bundled model's."""
    from enlarger.checkpoint.folder.save import save_folder
    from enlarger.nn.k_unet import KUNet
    from tests.support.random_weights import randomise
    from tests.support.tiny_models import K_UNET, x2_bundle

    stages = tuple(replace(stage, channels=width) for stage, width in zip(K_UNET.stages, WIDTHS, strict=True))
    return save_folder(x2_bundle(place, unet=randomise(KUNet(replace(K_UNET, stages=stages)))), place / "pipeline")


def measure(arguments: argparse.Namespace, folder: Path, output: Path) -> dict[str, list[float]]:
    """Seconds of each start; the first round, which fills caches, does not count."""
    enlarger = [sys.executable, "-m", "enlarger"]
    commands = {
        "help": [*enlarger, "--help"],
        "first command": [*enlarger, "upscale", str(arguments.photo), "-o", str(output), "--overwrite"],
        "loading, enlarger": [sys.executable, "-c", LOADING["enlarger"]],
        "loading, diffusers": [sys.executable, "-c", LOADING["diffusers"], str(folder)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.repeat + 1):
        for name, command in commands.items():
            seconds[name].append(run(command))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: taken[1:] for name, taken in seconds.items()}


def run(command: list[str]) -> float:
    """Seconds of a process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr}")
    return taken


def report(seconds: dict[str, list[float]], repeat: int) -> None:
    """The medians as a Markdown table, and all figures as JSON."""
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ours, theirs = medians["loading, enlarger"], medians["loading, diffusers"]
    print(f"Whole processes, medians of {repeat}; {os.cpu_count()} cores\n\n| | seconds |\n| --- | --- |")
    for name, taken in medians.items():
        print(f"| {name} | {taken:.2f} |")
    print(f"| loading, enlarger over diffusers | {ours / theirs:.2f} |\n")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
