"""The x2 latent upscaler beside diffusers: same random weights of the official architecture, same steps and threads.

    scripts/bench upscale_latent [--folder FOLDER] [--side 32] [--steps 4] [--threads 2] [--repeat 3]

Writes the weights once (about 2.3 GB, kept in FOLDER), then runs each side in processes of its own, in turn, and
prints a table of wall times and peak memory with their ratios, and how far the two pictures are apart.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._weights import make

SIDES = ("diffusers", "enlarger")


def main() -> None:
    """Parse the command line; `--side-run` is how the program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark-x2")
    parser.add_argument("--side", type=int, default=32, help="height and width of the low-resolution latent")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=9.0)
    parser.add_argument("--side-run", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.side_run:
        print(json.dumps(run(arguments)))
        return
    if not (arguments.folder / "model_index.json").is_file():
        make("sd-x2-latent-upscaler", arguments.folder)
    results = {side: [] for side in SIDES}
    for _ in range(arguments.repeat):
        for side in SIDES:
            results[side].append(call(side, arguments))
    report(results, arguments)


def call(side: str, arguments: argparse.Namespace) -> dict:
    """One side in a process of its own."""
    options = ["--folder", arguments.folder, "--side", arguments.side, "--steps", arguments.steps]
    options += ["--threads", arguments.threads, "--guidance", arguments.guidance, "--side-run", side]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.upscale_latent", *map(str, options)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace) -> dict:
    """Load, then enlarge one latent twice; the second run is the one that counts."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.side_run == "diffusers":
        from diffusers import StableDiffusionLatentUpscalePipeline
    else:
        from enlarger.diffusers import StableDiffusionLatentUpscalePipeline
    started = time.perf_counter()
    pipe = StableDiffusionLatentUpscalePipeline.from_pretrained(arguments.folder, torch_dtype=torch.float32)
    loaded = time.perf_counter()
    after_load = peak()
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, arguments.side, arguments.side, generator=torch.Generator().manual_seed(1))
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        image = pipe(
            "a photo", image=latents, num_inference_steps=arguments.steps, guidance_scale=arguments.guidance,
            generator=torch.Generator().manual_seed(2), output_type="np",
        ).images[0]  # fmt: skip
        times.append(time.perf_counter() - begun)
    return {
        "load": loaded - started,
        "run": min(times),
        "load_peak": after_load,
        "peak": peak(),
        "pixels": image[::16, ::16].tolist(),
    }


def peak() -> float:
    """The most memory that this process has held, in MiB. A child's own: `ru_maxrss` would start at its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def report(results: dict, arguments: argparse.Namespace) -> None:
    """The medians and their ratios, as a Markdown table."""
    import diffusers
    import torch

    peer, ours = (
        {k: statistics.median(r[k] for r in results[s]) for k in ("load", "run", "load_peak", "peak")} for s in SIDES
    )
    max_difference = max(
        abs(a - b)
        for x, y in zip(results["diffusers"][0]["pixels"], results["enlarger"][0]["pixels"], strict=True)
        for p, q in zip(x, y, strict=True)
        for a, b in zip(p, q, strict=True)
    )
    print(
        f"x2 latent upscaler, latent {arguments.side} x {arguments.side}, {arguments.steps} steps, guidance "
        f"{arguments.guidance:g}, float32, {arguments.threads} threads, {platform.machine()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}; medians of {arguments.repeat}\n"
    )
    print("| | diffusers | enlarger | ratio |\n| --- | --- | --- | --- |")
    for key, name, unit in (
        ("load", "loading", "s"), ("run", "one picture", "s"),
        ("load_peak", "peak memory after loading", "MiB"), ("peak", "peak memory", "MiB"),
    ):  # fmt: skip
        print(f"| {name} | {peer[key]:.2f} {unit} | {ours[key]:.2f} {unit} | {ours[key] / peer[key]:.2f} |")
    print(f"\nLargest difference of the pictures (0..1): {max_difference:.2g}")


if __name__ == "__main__":
    main()
