"""Which solver and spacing comes nearest to the converged solution in how many calls, on densities with known scores.

    scripts/bench solvers [--samples 64] [--results FOLDER]

The densities are mixtures of Gaussians in 256 dimensions whose deviations fall from 1 to 0.01, as those of pictures do
over their frequencies; their exact denoiser is known, so that all that is measured is the solver. The distance is the
root mean square, over all dimensions and samples, to the solution of the same equation from the same noise in 2000
steps of Heun. Made for each task with its own noise levels: x2's end at 0.03, the others' at 0.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import _harness
from enlarger.diffusion.sample import sample
from enlarger.diffusion.sampler import Sampler, network_call_sigmas
from enlarger.diffusion.schedule import scaled_linear
from enlarger.diffusion.solvers import SOLVERS

DIMENSIONS, COMPONENTS = 256, 12
SCHEDULE = scaled_linear(0.00085, 0.012)
CONVERGED = 2000  # steps of Heun
BASELINE = ("euler", 20)  # solver and calls of the quality that is asked for
CANDIDATES = ("euler", "heun", "lms", "plms", "pndm", "dpm2", "dpmpp_singlestep", "dpmpp_2m", "unipc")
SPACINGS = ("leading", "linspace", "trailing", "karras", "exponential", "beta")
CALLS = (4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 30, 40, 50, 75)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians with axes along the dimensions: `means` and `deviations` are (K, D)."""

    means: Tensor
    deviations: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the data that noisy x (B, D, 1, 1) comes from: the exact denoised estimate."""
        flat, variances = x[:, None, :, 0, 0], self.deviations**2
        total = variances + sigma**2
        logits = -0.5 * ((flat - self.means) ** 2 / total + total.log()).sum(-1)  # (B, K)
        shrunk = self.means + variances / total * (flat - self.means)
        return (logits.softmax(-1)[..., None] * shrunk).sum(1)[..., None, None]


def mixture(seed: int, spread: float, exponent: float) -> Mixture:
    """Deviations 1 to 0.01 that fall by `exponent`, means `spread` times as far apart as the data is wide."""
    random = torch.Generator().manual_seed(seed)
    falling = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -exponent
    deviations = falling.clamp(min=0.01) * torch.rand(COMPONENTS, 1, generator=random, dtype=torch.float64).add(0.5)
    means = torch.randn(COMPONENTS, DIMENSIONS, generator=random, dtype=torch.float64) * falling.sqrt() * spread
    return Mixture(means, deviations)


DENSITIES = {
    "one wide mode": mixture(0, 0.1, 0.5),
    "modes that touch": mixture(1, 0.5, 0.7),
    "modes far apart": mixture(2, 1.0, 1.0),
}
TASKS: Mapping[str, tuple[Sampler, Sequence[str | None]]] = {  # a sampler as its folder says, and the spacings tried
    "x2": (Sampler(SCHEDULE, timestep_spacing="log_linear"), (None,)),
    "Stable Diffusion": (Sampler(SCHEDULE, timestep_spacing="leading", steps_offset=1), SPACINGS),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--converged", type=int, default=CONVERGED)
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    asked = parser.parse_args(arguments)
    rows = [row for task in TASKS for row in measure(task, asked.samples, asked.converged)]
    settings = {"samples": asked.samples, "converged": asked.converged, "calls": CALLS, "threads": 1}
    _harness.save("solvers", settings, rows, asked.results)
    print("\n".join(table(rows)))


def measure(task: str, samples: int, converged: int) -> list[dict]:
    """Of each solver and spacing the distances by calls of the network, averaged over the densities."""
    sampler, spacings = TASKS[task]
    noise = torch.randn(samples, DIMENSIONS, 1, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    truths = {name: truth(density, sampler, noise, converged) for name, density in DENSITIES.items()}
    rows = list[dict]()
    for solver in CANDIDATES:
        for spacing in spacings:
            chosen = sampler.with_solver(solver, spacing)
            curve = dict[int, float]()
            for steps in CALLS:
                sigmas = chosen.sigma_schedule(steps).sigmas
                calls = network_call_sigmas(chosen.make_solver(), sigmas)
                assert calls is not None
                if len(calls) <= max(CALLS):
                    curve[len(calls)] = distance(chosen, sigmas, noise, truths)
            rows.append({"task": task, "solver": solver, "spacing": spacing or "its own", "distances": curve})
    return rows


def truth(density: Mixture, sampler: Sampler, noise: Tensor, steps: int) -> Tensor:
    """The converged solution, from the highest of all training levels to where the task ends."""
    top = float(SCHEDULE.sigmas[-1])
    low = float(sampler.sigma_schedule(10).sigmas[-1]) or 1e-4
    ladder = torch.logspace(torch.tensor(top).log10(), torch.tensor(low).log10(), steps + 1, dtype=torch.float64)
    return sample(SOLVERS["heun"], density, noise * top, ladder, torch.zeros_like)


def distance(sampler: Sampler, sigmas: Tensor, noise: Tensor, truths: Mapping[str, Tensor]) -> float:
    """The mean, over the densities, of the distance to the converged solution."""
    found = list[float]()
    for name, expected in truths.items():
        x = sample(sampler.make_solver(), DENSITIES[name], noise * sigmas[0], sigmas, torch.zeros_like)
        found.append(float((x - expected).square().mean().sqrt()))
    return sum(found) / len(found)


def calls_for(row: Mapping, wanted: float) -> int | None:
    """The fewest calls from which on a solver is at most `wanted` away."""
    ordered = sorted((int(calls), value) for calls, value in row["distances"].items())
    reached = None
    for calls, value in reversed(ordered):
        if value > wanted:
            break
        reached = calls
    return reached


def baseline(rows: Sequence[Mapping], task: str, calls: int = BASELINE[1]) -> float:
    """How far Euler is, on the task's own noise levels, after so many calls."""
    own = "its own" if task == "x2" else "leading"
    row = next(r for r in rows if (r["task"], r["solver"], r["spacing"]) == (task, BASELINE[0], own))
    return {int(key): value for key, value in row["distances"].items()}[calls]


def table(rows: Sequence[Mapping]) -> list[str]:
    """The calls that each solver needs for the quality of Euler's 20 and of its 50 or 75, its best spacing first."""
    lines = ["| task | solver | spacing | calls as good as Euler's 20 | as Euler's 50 | distance at 8 | at 20 |"]
    lines.append("| --- " * 7 + "|")
    for task in TASKS:
        wanted = baseline(rows, task), baseline(rows, task, 50)
        ranked = sorted(
            (row for row in rows if row["task"] == task),
            key=lambda row: (calls_for(row, wanted[0]) or 999, row["solver"]),
        )
        for row in ranked:
            distances = {int(key): value for key, value in row["distances"].items()}
            needed = [calls_for(row, level) for level in wanted]
            cells = [task, row["solver"], row["spacing"], *("-" if n is None else str(n) for n in needed)]
            cells += [f"{distances[n]:.2g}" if n in distances else "" for n in (8, 20)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
