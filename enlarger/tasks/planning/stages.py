"""The stages that tasks are made of, with the tiles that the run will choose and what each takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from enlarger.diffusion.windows import Windows
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.footprint import Cost
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls
from enlarger.tasks.planning.network_costs import (
    Size,
    decoder_cost,
    diffusion_cost,
    encoder_cost,
    input_channels,
    picture_cost,
    text_cost,
)
from enlarger.tasks.planning.plan import Plan, Stage
from enlarger.tasks.planning.room import (
    FINISH_BYTES,
    LARGE_BYTES,
    READ_BYTES,
    MemoryRoom,
    NetworkShape,
    decoder_tile,
    encoder_tile,
    latent_bytes,
)


class Timer(Protocol):
    """What estimates the time of work."""

    def network(self, kind: str, network: nn.Module, cost: Cost, runtime: Runtime) -> float: ...

    def pictures(self, kind: str, pixels: int, runtime: Runtime) -> float: ...


class Planned(Protocol):
    """What a plan says of the model that it is for."""

    @property
    def name(self) -> str: ...


def make_plan(task: str, model: Planned, runtime: Runtime, dtype: torch.dtype, lists: "Sequence[StageList]") -> Plan:
    """The plan of a request: the stages of its pictures one after another.

    Raises InputError where even the smallest tiles take more than the bound.
    """
    first = lists[0]
    what = first.describe() if len(lists) == 1 else f"{len(lists)} pictures"
    stages = tuple(stage for each in lists for stage in each.stages)
    precision = str(dtype).removeprefix("torch.")
    room, worst = first.room, max(stages, key=lambda stage: stage.peak)
    if room.asked is not None and worst.peak > room.base + room.bytes:
        raise room.refuse(worst.peak - room.base, f"the stage '{worst.name}' of {what}")
    return Plan(task, model.name, str(runtime.device), precision, what, room.asked, room.process, room.weights, stages)


def padded_size(size: Size, multiple: int, least: int = 1) -> Size:
    """As `pad_to_multiple` pads."""
    height, width = (max(-(-side // multiple) * multiple, least) for side in size)
    return height, width


def pixels_of(size: Size) -> int:
    return size[0] * size[1]


@dataclass(frozen=True, eq=False)
class StageList:
    """Collects the stages for one picture of `small` pixels, made `count` times, that becomes one of `large`."""

    room: MemoryRoom
    small: Size
    large: Size
    count: int = 1
    timer: Timer | None = None
    stages: list[Stage] = field(default_factory=list[Stage])

    def describe(self) -> str:
        """The picture and what becomes of it, width before height."""
        (height, width), (high, wide) = self.small, self.large
        times = "" if self.count == 1 else f", {self.count} times"
        return (
            f"{width} x {height}{times}"
            if self.small == self.large
            else f"{width} x {height} -> {wide} x {high}{times}"
        )

    def read(self) -> None:
        pixels = pixels_of(self.small)
        self._picture("read", pixels, READ_BYTES * pixels)

    def finish(self, reached: Size, *, is_consistent: bool) -> None:
        """From what the networks have made to a file."""
        pixels = pixels_of(self.large)
        made = (
            LARGE_BYTES * (pixels_of(reached) if reached != self.large else 0) + FINISH_BYTES * pixels + self.room.held
        )
        if reached != self.large:
            self._picture("resample", pixels, made, self.count)
        if is_consistent:
            self._picture("consistency", pixels, made, self.count)
        self._picture("write", pixels, made, self.count)

    def add_plan(self, plan: Plan, name: str) -> None:
        """The stages of another model's work, which holds these weights too."""
        more = self.room.weights if plan.process else 0
        for stage in plan.stages:
            self.stages.append(replace(stage, name=f"{name}: {stage.name}", peak=stage.peak + more))

    def text(self, encoders: Sequence[ClipText], prompts: int, times: int = 1) -> None:
        """So many prompts by each encoder in one call, so many times."""
        costs = [text_cost(encoder, prompts) for encoder in encoders]
        seconds = [
            self._seconds("text encoder", encoder, cost, times) for encoder, cost in zip(encoders, costs, strict=True)
        ]
        work = max(cost.peak for cost in costs)
        gflop = times * sum(cost.flops for cost in costs) / 1e9
        stage = Stage("encode text", self._peak(work), times * len(costs), gflop=gflop, seconds=_sum(seconds))
        self.stages.append(stage)

    def encode(self, autoencoder: AutoencoderKL, size: Size, calls: int) -> None:
        """Pictures of `size` pixels to latents."""
        tile = encoder_tile(autoencoder, size, self.room.work)
        cost = encoder_cost(autoencoder, size, tile)
        self._autoencoder("encode picture", autoencoder.encoder, cost, calls, size, tile)

    def decode(self, autoencoder: AutoencoderKL, size: Size, calls: int) -> None:
        """Latents of `size` to pictures."""
        tile = decoder_tile(autoencoder, size, self.room.work)
        cost = decoder_cost(autoencoder, size, tile)
        factor = autoencoder.downsample_factor
        self._autoencoder("decode", autoencoder.decoder, cost, calls, (size[0] * factor, size[1] * factor), tile)

    def denoise(
        self, shape: NetworkShape, size: Size, windows: Windows | None, calls: Sequence[NetworkCalls], rows: int,
        name: str = "network calls", runs: int | None = None,
    ) -> None:  # fmt: skip
        """`rows` latents of `size` down the noise levels, both branches of a guidance counted, `runs` times."""
        runs = self.count if runs is None else runs
        seen = size if windows is None else (min(size[0], windows.side), min(size[1], windows.side))
        cost = diffusion_cost(shape.network, seen, rows)
        tiles = 1 if windows is None else windows.count(size)
        counts = [call.count for call in calls if call.count is not None]
        total = sum(counts) * runs if len(counts) == len(calls) else None
        work = cost.peak + latent_bytes(size, rows)
        seconds = None if total is None else self._seconds("diffusion network", shape.network, cost, total * tiles)
        stage = Stage(
            name, self._peak(work), total, tiles, None if windows is None else windows.side,
            cost.flops * tiles * (total or 0) / 1e9, seconds,
        )  # fmt: skip
        self.stages.append(stage)

    def enlarge(self, network: nn.Module, size: Size, tile: int, margin: int, name: str) -> None:
        """A network from picture to picture over one of `size`, in tiles with a margin; the room holds its result."""
        is_whole = max(size) <= tile + margin
        window = size if is_whole else (min(size[0], tile + 2 * margin), min(size[1], tile + 2 * margin))
        tiles = 1 if is_whole else -(-size[0] // tile) * -(-size[1] // tile)
        cost = picture_cost(network, window, input_channels(network))
        seconds = self._seconds("enlarging network", network, cost, tiles)
        gflop = cost.flops * tiles / 1e9
        self.stages.append(Stage(name, self._peak(cost.peak), 1, tiles, None if is_whole else tile, gflop, seconds))

    def _autoencoder(
        self, name: str, network: nn.Module, cost: Cost, calls: int, pixels: Size, tile: int | None
    ) -> None:
        kind = network.__class__.__name__.lower() + ("" if tile is None else " in tiles")
        tiles = 1 if tile is None else -(-pixels[0] // tile) * -(-pixels[1] // tile)
        seconds = self._seconds(kind, network, cost, calls)
        stage = Stage(name, self._peak(cost.peak), calls, tiles, tile, cost.flops * calls / 1e9, seconds)
        self.stages.append(stage)

    def _picture(self, name: str, pixels: int, taken: int, times: int = 1) -> None:
        seconds = None if self.timer is None else self.timer.pictures(name, pixels, self.room.runtime) * times
        self.stages.append(Stage(name, self.room.base + taken, seconds=seconds))

    def _seconds(self, kind: str, network: nn.Module, cost: Cost, calls: int = 1) -> float | None:
        return None if self.timer is None else self.timer.network(kind, network, cost, self.room.runtime) * calls

    def _peak(self, work: int) -> int:
        return self.room.base + self.room.held + work


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
