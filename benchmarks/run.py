"""The networks beside diffusers: same random weights of the official architectures, same steps, seed and threads.

    scripts/bench run x2 [--rows face auto openvino int8 ...] [--size 256] [--steps 10] [--rounds 5] [--against PATH]

A round runs every side once, in a process of its own: loading, a first run to warm up, and a run that counts. The first
side is diffusers' eager float32; ratios are to it. The rows are ours: `face` makes diffusers' own calls in float32,
`float32`, `bfloat16` and `auto` are our verbs in that precision, `compile`, `openvino`, `openvino-bfloat16` and `int8`
our verbs by that engine; and diffusers': `diffusers-bfloat16` and `diffusers-compile`. `--against` runs the rows that
are ours by another build too: a worktree, or an environment's interpreter.

Weights are written once and kept in --folder. What was measured goes to benchmarks/results/, from where `scripts/bench
report` takes it.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Row
from benchmarks._side import Job
from benchmarks._weights import make


@dataclass(frozen=True)
class Scenario:
    """A task in an official architecture, and the size that takes minutes on two cores."""

    repositories: tuple[str, ...]
    size: int
    steps: int
    guidance: float
    rounds: int = 5
    thrifty: bool = False


SCENARIOS = {
    "x2": Scenario(("sd-x2-latent-upscaler",), 256, 10, 1.0),
    "x2_large": Scenario(("sd-x2-latent-upscaler",), 1024, 2, 1.0, rounds=1, thrifty=True),
    "x4": Scenario(("stable-diffusion-x4-upscaler",), 64, 5, 9.0, rounds=3),
    "text_to_image": Scenario(("stable-diffusion-v1-5",), 256, 10, 7.5),
    "inpaint": Scenario(("stable-diffusion-2-inpainting",), 256, 10, 7.5, rounds=3),
    "sdxl": Scenario(("stable-diffusion-xl-base-1.0", "stable-diffusion-xl-refiner-1.0"), 256, 5, 5.0, rounds=1),
    "autoencoder": Scenario(("sd-x2-latent-upscaler",), 512, 1, 1.0),
}
KIND = {"x2_large": "x2"}  # what a scenario is to a side, where that is not its name
ROWS = {
    "face": {"library": "face"},
    "float32": {"library": "native"},
    "auto": {"library": "native", "precision": "auto"},
    "bfloat16": {"library": "native", "precision": "bfloat16"},
    "compile": {"library": "native", "engine": "compile"},
    "openvino": {"library": "native", "engine": "openvino"},
    "openvino-bfloat16": {"library": "native", "engine": "openvino", "precision": "bfloat16"},
    "int8": {"library": "native", "engine": "openvino", "precision": "int8"},
    "diffusers-bfloat16": {"library": "diffusers", "precision": "bfloat16"},
    "diffusers-compile": {"library": "diffusers", "compiled": True},
}
DEFAULT_ROWS = ("face", "float32", "auto")
REFERENCE = "diffusers"
WHOLE_UP_TO = 1024  # pixels along a side that diffusers decodes without tiles


def main(arguments: Sequence[str] | None = None, side: Callable[[Row], dict[str, float]] = _harness.run_side) -> None:
    """Parse the command line, measure, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; none: all of them")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=DEFAULT_ROWS)
    parser.add_argument("--against", action="append", default=[], metavar="PATH")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark")
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.scenarios) - set(SCENARIOS)):
        parser.error(f"no scenario is called {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    for name in asked.scenarios or SCENARIOS:
        changed = {key: getattr(asked, key) for key in ("size", "steps", "guidance", "rounds")}
        scenario = replace(SCENARIOS[name], **{key: value for key, value in changed.items() if value is not None})
        job = Job(
            KIND.get(name, name), "diffusers", str(weights(name, asked.folder)), scenario.size, scenario.steps,
            scenario.guidance, asked.threads,
            thrifty=scenario.thrifty or (name == "autoencoder" and scenario.size > WHOLE_UP_TO),
        )  # fmt: skip
        rows = plan(job, asked.rows, asked.against)
        found = _harness.compare(rows, scenario.rounds, side)
        settings = {key: getattr(scenario, key) for key in ("size", "steps", "guidance", "rounds")}
        label = name if name != "autoencoder" else f"autoencoder-{scenario.size}"
        _harness.save(label, settings | {"threads": asked.threads}, found, asked.results)
        print(f"\n{label}: {settings}\n\n" + "\n".join(table(found)))


def plan(job: Job, rows: Sequence[str], others: Sequence[str]) -> list[Row]:
    """diffusers first, then the rows, each of ours followed by the same of other builds."""
    planned = [Row(REFERENCE, job)]
    for name in rows:
        row = Row(name, replace(job, **ROWS[name]))
        planned.append(row)
        if row.job.library != "diffusers":
            planned += [_harness.against(row, other) for other in others]
    return planned


def weights(name: str, folder: Path) -> Path:
    """The scenario's weights, written if they are not there."""
    repositories = SCENARIOS[name].repositories
    if len(repositories) == 1:
        return written(repositories[0], folder / repositories[0])
    together = folder / name
    for part, repository in zip(("base", "refiner"), repositories, strict=True):
        written(repository, together / part)
    return together


def written(repository: str, folder: Path) -> Path:
    """The folder of a repository's weights."""
    if not (folder / "model_index.json").is_file():
        make(repository, folder)
    return folder


def table(rows: Sequence[dict]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| | run | ratio | first run | loading | ratio | peak memory | ratio | largest difference | PSNR |"]
    lines.append("| --- " * 10 + "|")
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | not run: {row['failed']} |" + " |" * 8)
            continue
        ratios = row.get("ratios", {})
        cells = [row["name"], f"{row['run']:.2f} s", f"{ratios.get('run', 0):.2f}", f"{row['first']:.2f} s"]
        cells += [f"{row['load']:.2f} s", f"{ratios.get('load', 0):.2f}"]
        cells += [f"{row['peak']:,.0f} MiB", f"{ratios.get('peak', 0):.2f}"]
        cells += [f"{row['difference']:.2g}" if "difference" in row else ""]
        cells += [f"{row['psnr']:.1f} dB" if "psnr" in row else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
