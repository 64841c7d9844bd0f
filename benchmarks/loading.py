"""Loading the x2 upscaler's folder beside diffusers, with the page cache emptied of it and with the files in it.

    scripts/bench loading [--rounds 5] [--folder FOLDER] [--against PATH]

Seconds until every page of every weight was touched, as who maps a file has read nothing yet when loading returns; and
memory after loading, before and after that touching. A single SDXL file is `scripts/bench load_single_file`'s.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _harness, run
from benchmarks._harness import Row
from benchmarks._side import Job
from benchmarks.load_single_file import empty_cache, read_plainly

STATES = ("cold", "warm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark")
    parser.add_argument("--rows", nargs="*", choices=("face", "float32", "auto"), default=("face", "float32"))
    parser.add_argument("--against", action="append", default=[], metavar="PATH")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    asked = parser.parse_args(arguments)
    folder = run.weights("x2", asked.folder)
    job = Job("x2", "diffusers", str(folder), 64, 0, 1.0, asked.threads, repeat=0)
    found = measure(run.plan(job, asked.rows, asked.against), folder, asked.rounds)
    _harness.save("loading", {"rounds": asked.rounds, "threads": asked.threads}, found, asked.results)
    print("\n".join(_harness.table(found)))


def measure(rows: Sequence[Row], folder: Path, rounds: int) -> list[dict]:
    """The medians of all rows in both states of the page cache, and their ratios to the first row."""
    files, found = sorted(folder.rglob("*.safetensors")), list[dict]()
    for state in STATES:
        taken: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
        for _ in range(rounds):
            for row in rows:
                for file in files:
                    (empty_cache if state == "cold" else read_plainly)(file)
                taken[row.name].append(_harness.run_side(row))
                print(f"{row.name}, {state}: {taken[row.name][-1]}", file=sys.stderr, flush=True)
        medians = {
            name: {key: statistics.median(one[key] for one in values) for key in ("load", "touched", "load_peak")}
            for name, values in taken.items()
        }
        base = medians[rows[0].name]
        for name, values in medians.items():
            seconds, memory = values["load"] + values["touched"], values["load_peak"]
            ratios = {"run": seconds / (base["load"] + base["touched"]), "peak": memory / base["load_peak"]}
            found.append({"name": f"{name}, {state}", "run": seconds, "peak": memory, "ratios": ratios} | values)
    return found


if __name__ == "__main__":
    main()
