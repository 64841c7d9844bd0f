"""How fast this machine is: measured in a few seconds when it is first asked for, and kept on disk."""

import hashlib
import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from enlarger.errors import CheckpointError
from enlarger.hub.cache import cache_dir
from enlarger.image.atomic_write import atomic_write
from enlarger.runtime.footprint import Cost
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import is_object, read_json
from enlarger.tasks.planning.sample_calls import MOVED_BYTES, PICTURE_MEGAPIXELS, SampleCall, picture_work, sample_calls

LONG_ENOUGH = 0.4  # seconds of a call that is measured; shorter ones are only a step on the way
REPEATS = 3
VERSION = 1  # of the file


@dataclass(frozen=True)
class Rates:
    """Seconds for a unit of each kind of work of one network."""

    gflop: float
    megabyte: float
    operation: float

    def seconds(self, cost: Cost) -> float:
        return self.gflop * cost.flops / 1e9 + self.megabyte * cost.moved / 1e6 + self.operation * cost.operations


@dataclass(frozen=True, eq=False)
class CalibratedTimer:
    """Estimates from the rates of this machine, by kind of network, its architecture, precision and engine.

    What is not known yet is measured; with `renew` all is, once. A damaged file is made anew, with a note.
    """

    engine: str = "eager"
    renew: bool = False
    folder: Path = field(default_factory=lambda: cache_dir() / "calibration")
    known: dict[str, Rates] = field(default_factory=dict[str, Rates])

    def network(self, kind: str, network: nn.Module, cost: Cost, runtime: Runtime) -> float:
        """Seconds of a call of that cost."""
        key = f"{kind}, {architecture(network)}"
        return self._rates(key, lambda: self._measure_network(kind, network, runtime), runtime).seconds(cost)

    def pictures(self, kind: str, pixels: int, runtime: Runtime) -> float:
        """Seconds of work on pictures: "read", "resample", "consistency" or "write"."""
        name = f"pictures, {kind}"
        rates = self._rates(name, lambda: Rates(0.0, _timed(picture_work(kind)) / PICTURE_MEGAPIXELS, 0.0), runtime)
        return rates.megabyte * pixels / 1e6

    def _rates(self, key: str, measure: Callable[[], Rates], runtime: Runtime) -> Rates:
        """Those that are known, kept, or measured now."""
        key = f"{machine(runtime.device)}, {self.engine}, {key}"
        if key not in self.known:
            path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
            found = None if self.renew else read_rates(path, key)
            self.known[key] = measure() if found is None else found
            if found is None:
                write_rates(path, key, self.known[key])
        return self.known[key]

    def _measure_network(self, kind: str, network: nn.Module, runtime: Runtime) -> Rates:
        """The rates that explain a short call and a longer one."""
        device = runtime.device
        megabyte = self._rates("memory", lambda: Rates(0.0, _seconds_per_megabyte(device), 0.0), runtime).megabyte
        with runtime.hold(network), torch.inference_mode():
            measured = measure_calls(sample_calls(kind, network, device), device)
        return fit_rates(measured, megabyte)


def _seconds_per_megabyte(device: torch.device) -> float:
    """That an operation of one pass reads or writes."""
    x = torch.ones(MOVED_BYTES // 4, device=device)
    return _timed(lambda: x + x, device) / (3 * x.nbytes / 1e6)


def measure_calls(calls: list[SampleCall], device: torch.device) -> list[tuple[Cost, float]]:
    """Costs and times of calls from the shortest on, until one is long enough."""
    measured: list[tuple[Cost, float]] = []
    for call in calls:
        measured.append((call.cost, _timed(call.run, device)))
        if measured[-1][1] > LONG_ENOUGH:
            break
    return measured


def fit_rates(measured: list[tuple[Cost, float]], megabyte: float) -> Rates:
    """The rates of the longest call and of the shortest, which is mostly the beginning of its operations."""
    (short, brief), (long, lasting) = measured[0], measured[-1]
    megabyte = min(megabyte, 0.5 * lasting / (long.moved / 1e6), 0.5 * brief / (short.moved / 1e6))
    left, rest = (time - megabyte * cost.moved / 1e6 for cost, time in ((short, brief), (long, lasting)))
    determinant = short.flops * long.operations - long.flops * short.operations
    operation = (short.flops * rest - long.flops * left) / determinant if determinant else 0.0
    operation = min(max(operation, 0.0), left / short.operations)
    return Rates(max(rest - operation * long.operations, 0.0) / (long.flops / 1e9), megabyte, operation)


def machine(device: torch.device) -> str:
    """What times depend on beside the network: the processor or the device, threads, torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {device.type}"


def architecture(network: nn.Module) -> str:
    """A short name of a network's shapes, types and layout, whatever the weights are."""
    parameters = [f"{name} {tuple(p.shape)} {p.stride()} {p.dtype}" for name, p in network.named_parameters()]
    return hashlib.sha256("\n".join(parameters).encode()).hexdigest()[:16]


def read_rates(path: Path, key: str) -> Rates | None:
    """What a file says; None where there is none, and with a note where it is damaged."""
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        rates = found["rates"] if found.get("key") == key and found.get("version") == VERSION else None
        values = [rates[name] for name in ("gflop", "megabyte", "operation")] if is_object(rates) else []
        if len(values) == 3 and all(
            isinstance(value, float) and math.isfinite(value) and value >= 0 for value in values
        ):
            return Rates(*values)
    except (CheckpointError, KeyError, OSError):
        pass
    warnings.warn(f"the calibration {path} was damaged, and is made anew", stacklevel=2)
    return None


def write_rates(path: Path, key: str, rates: Rates) -> None:
    """Keep rates; each has a file of its own, so that processes do not disturb one another. Where the folder cannot be
    written to, they are measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as stream:
            stream.write(json.dumps({"version": VERSION, "key": key, "rates": asdict(rates)}).encode())
    except OSError as error:
        warnings.warn(f"the calibration cannot be kept in {path.parent} ({error.strerror})", stacklevel=2)


def _processor() -> str:
    """The processor's name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _timed(run: Callable[[], object], device: torch.device | None = None) -> float:
    """The median of several times, after one that is not counted; of one alone where it is long."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        result = run()
        if isinstance(result, Tensor) and device is not None and device.type != "cpu":
            result.flatten()[0].item()  # waits for the device
        times.append(time.perf_counter() - started)
        if sum(times) > 2 * LONG_ENOUGH and len(times) > 1:
            break
    return median(times[1:])
