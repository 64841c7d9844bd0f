"""A plan beside what then happens: peak memory and time of 20 tasks, each in a process of its own.

    scripts/bench plan [--only 3 7] [--seconds 540]

The networks have random weights: official architectures, and narrow ones of the same kind. One process for each
architecture calibrates first. Then each task is planned, run and saved in a process of its own, whose most resident
memory (VmHWM) stands beside the plan's peak, and its seconds, loading not counted, beside the plan's. What has not
begun after `--seconds` is left out, and said.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

MEMORY_BAR, TIME_BAR = 0.15, 0.25


@dataclass(frozen=True)
class Case:
    """A task: of which verb, by which model, on a picture of which size."""

    model: str  # bundled; or a family, "narrow" before it: a quarter of its widths
    verb: str
    width: int
    height: int
    options: dict[str, Any]


CASES = (
    Case("bundled", "upscale", 256, 256, {}),
    Case("bundled", "upscale", 768, 512, {}),
    Case("bundled", "upscale", 1024, 1024, {"consistent": True}),
    Case("bundled", "upscale", 512, 512, {"detail": 0.5}),
    Case("bundled", "upscale", 400, 300, {"by": 4}),
    Case("bundled", "upscale", 1500, 1000, {"by": 1.5}),
    Case("bundled", "upscale", 1024, 1024, {"memory": "450MB"}),
    Case("narrow x2", "upscale", 256, 256, {"steps": 4, "guidance": 1}),
    Case("narrow x2", "upscale", 512, 384, {"steps": 4, "guidance": 4}),
    Case("narrow x2", "upscale", 512, 512, {"steps": 4, "guidance": 1, "memory": "700MB"}),
    Case("narrow x2", "upscale", 200, 200, {"by": 4, "steps": 2, "guidance": 1}),
    Case("narrow x4", "upscale", 128, 128, {"steps": 4}),
    Case("narrow x4", "upscale", 160, 96, {"steps": 4, "memory": "800MB"}),
    Case("narrow sd1", "generate", 512, 512, {"steps": 5}),
    Case("narrow sd1", "refine", 512, 512, {"steps": 10, "strength": 0.5}),
    Case("narrow sd1", "refine", 640, 512, {"steps": 4, "strength": 0.5, "memory": "750MB"}),
    Case("narrow sd1_inpainting", "inpaint", 512, 512, {"steps": 5}),
    Case("narrow sd2_depth", "depth", 512, 384, {"steps": 5}),
    Case("x2", "upscale", 128, 128, {"steps": 3, "guidance": 1}),
    Case("x2", "upscale", 256, 256, {"steps": 2, "guidance": 1, "memory": "3500MB"}),
)


def main() -> None:
    """Parse the command line; `--case` and `--calibrate` are how the program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", default=range(1, len(CASES) + 1), help="numbers of tasks")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--case", type=int)
    parser.add_argument("--calibrate", type=int)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(run(CASES[arguments.case - 1])))
    elif arguments.calibrate is not None:
        print(json.dumps(calibrate(CASES[arguments.calibrate - 1])))
    else:
        table(list(arguments.only), time.monotonic() + arguments.seconds)


def table(numbers: list[int], deadline: float) -> None:
    """Print a line for each task, and how far off they are."""
    print(f"{machine()}\n")
    print("| | model | task | peak memory | planned | off | time | planned | off |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    found: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as home:
        for number in numbers:
            if time.monotonic() > deadline:
                print(f"\nleft out for time: {', '.join(map(str, numbers[numbers.index(number) :]))}")
                break
            call(["--calibrate", str(number)], home)
            found.append(row(number, call(["--case", str(number)], home)))
    for name, bar, values in zip(("memory", "time"), (MEMORY_BAR, TIME_BAR), zip(*found, strict=True), strict=True):
        worst, kept = max(values, key=abs), sum(abs(value) <= bar for value in values)
        print(f"\n{name}: {kept} of {len(values)} within {bar:.0%}, the farthest {worst:+.1%}", end="")
    print()


def row(number: int, made: dict[str, float]) -> tuple[float, float]:
    """Print one line; how much the plan is above what happened, as shares."""
    case = CASES[number - 1]
    options = ", ".join(f"{name} {value}" for name, value in case.options.items())
    off = (made["planned_peak"] / made["peak"] - 1, made["planned_seconds"] / made["seconds"] - 1)
    print(
        f"| {number} | {case.model} | {case.verb} {case.width} x {case.height}{', ' if options else ''}{options} | "
        f"{made['peak'] / 2**20:,.0f} MiB | {made['planned_peak'] / 2**20:,.0f} MiB | {off[0]:+.1%} | "
        f"{made['seconds']:.2f} s | {made['planned_seconds']:.2f} s | {off[1]:+.1%} |",
        flush=True,
    )
    return off


def call(arguments: list[str], home: str) -> dict[str, float]:
    """One step in a process of its own, with its calibration in `home`."""
    command = [sys.executable, "-m", "benchmarks.plan", *arguments]
    environment = os.environ | {"ENLARGER_HOME": home, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def calibrate(case: Case) -> dict[str, Any]:
    """Plan once, so that all rates are kept."""
    from enlarger.tasks.planning.calibration import CalibratedTimer

    task, request = prepare(case)
    return asdict(task.plan(request, CalibratedTimer()))


def run(case: Case) -> dict[str, float]:
    """Plan by the rates that are kept, run, save."""
    from enlarger.tasks.planning.calibration import CalibratedTimer

    task, request = prepare(case)
    planned = task.plan(request, CalibratedTimer())
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = task(request)
        result.images[0].save(Path(folder) / "made.png")
        seconds = time.perf_counter() - started
    assert planned.seconds is not None
    return {
        "planned_peak": planned.peak,
        "peak": peak(),
        "planned_seconds": planned.seconds,
        "seconds": seconds,
    }


def peak() -> float:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def prepare(case: Case) -> tuple[Any, Any]:
    """The task, and its request for a picture in a file."""
    from PIL import Image

    from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
    from enlarger.tasks.loading.load import load_model

    size, folder = (case.width, case.height), Path(os.environ["ENLARGER_HOME"])
    picture, mask = folder / f"{case.width}x{case.height}.png", Image.new("L", size, 0)
    if not picture.is_file():
        noise = Image.effect_noise((case.width // 8, case.height // 8), 60).convert("RGB")
        noise.resize(size, Image.Resampling.BICUBIC).save(picture)
    mask.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    requests = {
        "upscale": lambda: UpscaleRequest(picture, **case.options),
        "generate": lambda: GenerateRequest("a boat", width=size[0], height=size[1], **case.options),
        "refine": lambda: RefineRequest(picture, "a boat", **case.options),
        "inpaint": lambda: InpaintRequest(picture, mask, "a boat", **case.options),
        "depth": lambda: DepthRequest(picture, "a boat", depth=Image.linear_gradient("L"), **case.options),
    }
    if case.model == "bundled":
        return load_model("bundled", "cpu").tasks["upscale"], requests[case.verb]()
    return random_task(case), requests[case.verb]()


def random_task(case: Case) -> Any:
    """The task of a model with random weights; diffusers, whose import takes memory too, is not needed."""
    from enlarger.checkpoint.components import COMPONENT_CLASSES, PipelineComponents
    from enlarger.checkpoint.config.bundled_configs import clip_tokenizer, family_configs
    from enlarger.checkpoint.families import KINDS
    from enlarger.runtime.runtime import Runtime

    family = case.model.removeprefix("narrow ")
    configs = family_configs(family)
    parts: dict[str, Any] = {"tokenizer": clip_tokenizer("<|endoftext|>")}
    for name in ("unet", "vae", "text_encoder"):
        component = COMPONENT_CLASSES[configs["model_index"][name][1]]
        config = component.read_config(configs[name])
        parts[name] = random_weights(component, narrow(config) if family != case.model else config)
    parts |= {name: configs[name] for name in ("scheduler", "low_res_scheduler") if name in configs}
    kind, index = KINDS[family], {**configs["model_index"], "safety_checker": None}
    components = PipelineComponents(Path(case.model), index, parts, {"unet": configs["unet"]})
    loaded = _named(kind.loader)(components, Runtime(), case.model)
    if case.verb == "depth":
        from enlarger.tasks.depth import DepthToImage

        return DepthToImage(loaded)
    factory = kind.tasks[case.verb].factory
    return loaded if factory is None else _named(factory)(loaded)


def _named(path: str) -> Any:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def narrow(config: Any) -> Any:
    """A quarter of a network's widths; what joins networks keeps its own."""
    if hasattr(config, "stages"):
        stages = tuple(replace(stage, channels=max(64, round(stage.channels / 256) * 64)) for stage in config.stages)
        if not hasattr(config, "mid_heads"):
            return replace(config, stages=stages)
        return replace(config, stages=tuple(replace(stage, heads=4) for stage in stages), mid_heads=4)
    if hasattr(config, "latent_channels"):
        return replace(config, channels=tuple(channels // 4 for channels in config.channels))
    return replace(config, layers=2)


def random_weights(component: Any, config: Any) -> Any:
    """A network of small random numbers, so that every page of its weights is there."""
    import torch

    with torch.device("meta"):
        network = component.create(config)
    network.to_empty(device="cpu").eval()
    some = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(some.repeat(-(-tensor.numel() // len(some)))[: tensor.numel()].reshape(tensor.shape))
    return network


def machine() -> str:
    """What was measured on."""
    import torch

    from enlarger.tasks.planning.calibration import machine as described

    return f"{described(torch.device('cpu'))}, {platform.system()}"


if __name__ == "__main__":
    main()
