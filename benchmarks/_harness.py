"""What all comparisons share: sides in processes of their own, in turn; medians, ratios, and the machine."""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._side import Job

ROOT = Path(__file__).parents[1]
SIDE = ROOT / "benchmarks" / "_side.py"
RESULTS = ROOT / "benchmarks" / "results"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # what speed depends on
MEASURES = ("run", "first", "load", "peak", "load_peak")
EXACT = 99.0  # dB, where two pictures are equal


@dataclass(frozen=True)
class Row:
    """One side: a job, and the interpreter and path that it is done with."""

    name: str
    job: Job
    python: str = sys.executable
    path: str = str(ROOT)  # PYTHONPATH


def against(row: Row, other: str) -> Row:
    """The same by another build: a worktree of this repository, or an environment's interpreter."""
    place = Path(other)
    if place.is_dir():
        return replace(row, name=f"{row.name} of {place.name}", path=str(place.resolve()))
    return replace(row, name=f"{row.name} of {place}", python=str(place), path="")


def run_side(row: Row) -> dict[str, float]:
    """One side in a process of its own; RuntimeError with its last line where it fails."""
    return call([row.python, "-P", str(SIDE), json.dumps(asdict(row.job))], row.job.threads, row.path)


def call(command: Sequence[str], threads: int, path: str = str(ROOT)) -> dict[str, float]:
    """What a program prints last, as JSON; RuntimeError with the last line of its errors where it fails."""
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings | {"PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    rows: Sequence[Row], rounds: int, side: Callable[[Row], dict[str, float]] = run_side
) -> list[dict[str, Any]]:
    """The medians of each side over the rounds, in which all take turns, with their ratios to the first.

    `difference` and `psnr` are of its picture to the first's. A side that fails is left out of later rounds, and says
    why.
    """
    measured: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    failed: dict[str, str] = {}
    pictures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="enlarger-benchmark-") as folder:
        for _ in range(rounds):
            for i, row in enumerate(rows):
                if row.name in failed:
                    continue
                picture = Path(folder) / f"{i}.npy"
                try:
                    measured[row.name].append(side(replace(row, job=replace(row.job, picture=str(picture)))))
                except RuntimeError as error:
                    failed[row.name] = str(error)
                    continue
                pictures[row.name] = np.load(picture)
                print(f"{row.name}: {json.dumps(measured[row.name][-1])}", file=sys.stderr, flush=True)
    return [summary(row.name, measured, failed, pictures, rows[0].name) for row in rows]


def summary(
    name: str,
    measured: Mapping[str, Sequence[Mapping[str, float]]],
    failed: Mapping[str, str],
    pictures: Mapping[str, Any],
    reference: str,
) -> dict[str, Any]:
    """What is kept of a side."""
    if name in failed or not measured[name]:
        return {"name": name, "failed": failed.get(name, "it was not run")}
    medians = {key: statistics.median(one[key] for one in measured[name]) for key in MEASURES}
    found: dict[str, Any] = {"name": name, **medians, "runs": [one["run"] for one in measured[name]]}
    if measured[reference] and reference not in failed:
        base = {key: statistics.median(one[key] for one in measured[reference]) for key in MEASURES}
        found["ratios"] = {key: medians[key] / base[key] for key in MEASURES if base[key]}
        found |= differences(pictures[name], pictures[reference])
    return found


def differences(made: Any, reference: Any) -> dict[str, float]:
    """How far a picture is from another: the largest difference (0..1), and the PSNR in dB; nothing for other sizes."""
    if made.shape != reference.shape:
        return {}
    gap = np.abs(made.astype(np.float64) - reference)
    mean_square = float((gap**2).mean())
    return {"difference": float(gap.max()), "psnr": EXACT if mean_square == 0 else -10 * math.log10(mean_square)}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seconds and memory of each row, with their ratios, as Markdown."""
    lines = ["| | seconds | ratio | memory | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        found = row.get("ratios", {})
        cells = [row["name"], f"{row['run']:.2f}", f"{found['run']:.2f}" if "run" in found else ""]
        cells += [f"{row['peak']:,.0f} MiB" if "peak" in row else "", f"{found['peak']:.2f}" if "peak" in found else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith(("model name", "flags"))]
    flags = set(" ".join(lines).split())
    return {
        "processor": lines[0] if lines else platform.processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "gibibytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "openvino", "enlarger")},
    }


def version(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Write what was measured, with the machine, for `scripts/bench report`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(int(settings.get("threads") or os.cpu_count() or 1)),
        "settings": dict(settings),
        "rows": list(rows),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(told, indent=1) + "\n")
    return path
